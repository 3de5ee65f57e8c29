"""OpenAI's operations on text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmbudget.local.dialects.dialect import Body, Call, Dialect, Document, count_searches, event


class Chat(Dialect):
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        if not body["messages"]:
            raise ValueError("no messages")
        return body["messages"]

    def limit(self, body: Body) -> int | None:
        value = body.get("max_completion_tokens") or body.get("max_tokens")
        return None if value is None else int(value)

    def plain(self, call: Call) -> Document:
        text = "".join(call.words())
        message = {"role": "assistant", "content": text}
        choices = [
            {"index": choice, "message": message, "finish_reason": "stop"}
            for choice in range(call.choices)
        ]
        return openai_document(call, "chat.completion", choices=choices, usage=_tokens(call))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        delta = {"index": choice, "delta": {"role": "assistant", "content": text}}
        return data(openai_document(call, "chat.completion.chunk", choices=[delta]))

    def closing(self, call: Call) -> bytes:
        stops = [
            {"index": choice, "delta": {}, "finish_reason": "stop"}
            for choice in range(call.choices)
        ]
        end = data(openai_document(call, "chat.completion.chunk", choices=stops))
        usage = _tokens(call)
        if call.include_usage and usage is not None:
            end += data(openai_document(call, "chat.completion.chunk", choices=[], usage=usage))
        return end + b"data: [DONE]\n\n"


class Completions(Chat):
    """OpenAI's text completions."""

    path = "/v1/completions"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["prompt"]

    def choices(self, body: Body) -> int:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [""]
        return len(prompts) * super().choices(body)

    def plain(self, call: Call) -> Document:
        text = "".join(call.words())
        choices = [
            {"index": choice, "text": text, "finish_reason": "stop"}
            for choice in range(call.choices)
        ]
        return openai_document(call, "text_completion", choices=choices, usage=_tokens(call))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        return data(
            openai_document(call, "text_completion", choices=[{"index": choice, "text": text}])
        )


class Responses(Dialect):
    """OpenAI's responses."""

    path = "/v1/responses"

    def __init__(self) -> None:
        self._stored: dict[str, Any] = {}
        """Conversations, by the id of their last response."""

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        before = body.get("previous_response_id")
        return body["input"] if before is None else [self._stored[before], body["input"]]

    def units(self, body: Body) -> Mapping[str, int]:
        tools = [tool for tool in body.get("tools", ()) if tool["type"] == "web_search"]
        return count_searches(self.prompt(body), int(body["max_tool_calls"])) if tools else {}

    def limit(self, body: Body) -> int | None:
        value = body.get("max_output_tokens")
        return None if value is None else int(value)

    def plain(self, call: Call) -> Document:
        return self._response(call, "completed", "".join(call.words()))

    def opening(self, call: Call) -> bytes:
        return event("response.created", response=self._response(call, "in_progress", ""))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        place = {"item_id": f"msg_{call.id}", "output_index": 0, "content_index": 0}
        return event("response.output_text.delta", **place, delta=text, logprobs=[])

    def closing(self, call: Call) -> bytes:
        return event("response.completed", response=self.plain(call))

    def _response(self, call: Call, status: str, text: str) -> Document:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"type": "message", "id": f"msg_{call.id}", "role": "assistant"}
        message |= {"status": status}
        searches = [
            {"type": "web_search_call", "id": f"ws_{index}", "status": "completed"}
            | {"action": {"type": "search", "query": "money"}}
            for index in range(call.searches)
        ]
        output = [*searches, {**message, "content": content}]
        document: Document = {
            **{"id": call.id, "object": "response", "created_at": 0, "model": call.model},
            **{"status": status, "output": output if text else []},
            **{"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}},
        }
        if call.service is not None:
            document["service_tier"] = call.service
        if status == "completed" and call.kept is not None:
            self._stored[call.id] = [call.kept, text]
        if status == "completed" and call.counts is not None:
            read, written = call.counts
            document["tool_usage"] = {"web_search": {"num_requests": call.searches}}
            document["usage"] = {
                **{"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        return document


class Embeddings(Dialect):
    """OpenAI's embeddings: a short vector for each input."""

    path = "/v1/embeddings"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["input"]

    def choices(self, body: Body) -> int:
        return 0

    def plain(self, call: Call) -> Document:
        found = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        usage = {"prompt_tokens": call.tokens_in, "total_tokens": call.tokens_in}
        return {"object": "list", "model": call.model, "data": found, "usage": usage}


class Moderations(Embeddings):
    """OpenAI's moderations, whose answers tell of no usage."""

    path = "/v1/moderations"

    def plain(self, call: Call) -> Document:
        result = {"flagged": False, "categories": {}, "category_scores": {}}
        return {"id": call.id, "model": call.model, "results": [result]}


def openai_document(
    call: Call, kind: str, usage: Document | None = None, **fields: object
) -> Document:
    """Write what all of OpenAI's answers have in common."""
    document = {"id": call.id, "object": kind, "created": 0, "model": call.model, **fields}
    if call.service is not None:
        document["service_tier"] = call.service
    return document if usage is None else document | {"usage": usage}


def _tokens(call: Call) -> Document | None:
    if call.counts is None:
        return None
    read, written = call.counts
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def data(document: Document) -> bytes:
    """Write one event of a stream, which has no name."""
    return f"data: {json.dumps(document)}\n\n".encode()
