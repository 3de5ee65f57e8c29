"""Anthropic's operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbudget.local.dialects.dialect import Body, Call, Dialect, Document, count_searches, event


class Messages(Dialect):
    """Anthropic's messages."""

    path = "/v1/messages"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["messages"]

    def units(self, body: Body) -> Mapping[str, int]:
        tools = [t for t in body.get("tools", ()) if t.get("type") == "web_search_20250305"]
        return count_searches(body["messages"], int(tools[0]["max_uses"])) if tools else {}

    def plain(self, call: Call) -> Document:
        content = [*_search_blocks(call), {"type": "text", "text": "".join(call.words())}]
        return self._message(call, content=content, stop_reason="end_turn", usage=_counts(call))

    def opening(self, call: Call) -> bytes:
        usage = _counts(call)
        if usage is not None:
            usage |= {"output_tokens": 1}
        message = self._message(call, content=[], stop_reason=None, usage=usage)
        events = event("message_start", message=message)
        blocks = _search_blocks(call)
        for index, block in enumerate(blocks):
            events += event("content_block_start", index=index, content_block=block)
            events += event("content_block_stop", index=index)
        text = {"type": "text", "text": ""}
        return events + event("content_block_start", index=len(blocks), content_block=text)

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return event("content_block_delta", index=2 * call.searches, delta=delta)

    def closing(self, call: Call) -> bytes:
        usage = _counts(call)
        if usage is not None:
            usage.pop("input_tokens")
        written = {} if usage is None else {"usage": usage}
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        end = event("content_block_stop", index=2 * call.searches)
        return end + event("message_delta", delta=delta, **written) + event("message_stop")

    def _message(self, call: Call, usage: Document | None, **fields: object) -> Document:
        document: Document = {
            **{"id": call.id, "type": "message", "role": "assistant", "model": call.model},
            **fields,
            "stop_sequence": None,
        }
        return document if usage is None else document | {"usage": usage}


class CountTokens(Dialect):
    """Anthropic's counting of tokens, which costs nothing."""

    path = "/v1/messages/count_tokens"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["messages"]

    def choices(self, body: Body) -> int:
        return 0

    def plain(self, call: Call) -> Document:
        return {"input_tokens": call.tokens_in}


def _counts(call: Call) -> Document | None:
    if call.counts is None:
        return None
    read, written = call.counts
    tools = {"server_tool_use": {"web_search_requests": call.searches}} if call.searches else {}
    return {"input_tokens": read, "output_tokens": written, **tools}


def _search_blocks(call: Call) -> list[Document]:
    """Write the blocks of Anthropic's web searches, each with its result."""
    blocks: list[Document] = []
    for index in range(call.searches):
        search = {"id": f"srvtoolu_{index}", "name": "web_search", "input": {"query": "money"}}
        page = {"title": "Money", "url": "https://money.example", "encrypted_content": "bW9uZXk="}
        found = [{"type": "web_search_result", **page, "page_age": None}]
        result = {"type": "web_search_tool_result", "tool_use_id": search["id"], "content": found}
        blocks += [{"type": "server_tool_use", **search}, result]
    return blocks
