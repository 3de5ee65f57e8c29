"""What the provider simulator's APIs look like on the wire: requests read, answers written."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final

from llmbudget.local.http1 import Request

Body = Mapping[str, Any]
Document = dict[str, Any]

_ASKED: Final = re.compile(r"\bsearch ([0-9]{1,3}) times\b")
WORDS: Final = ("money ", "is ", "counted ", "before ", "it ", "is ", "spent ")


@dataclass(frozen=True, slots=True)
class Call:
    """One accepted call: what it is and what it will say."""

    id: str
    model: str
    mode: str
    stream: bool
    include_usage: bool
    choices: int
    tokens_in: int
    tokens_out: int
    units: Mapping[str, int]
    """Seconds, characters, images or searches that are charged."""
    kept: Any = None
    """What was read, where it is to be stored."""
    service: str | None = None
    """Service tier that it is served in; None: none was asked for."""

    @property
    def searches(self) -> int:
        """Searches of the web."""
        return self.units.get("searches", 0)

    @property
    def counts(self) -> tuple[int, int] | None:
        """Report token counts, as wrongly as the mode wants; None: not at all."""
        if self.mode == "no-usage":
            return None
        scale = {"negative-usage": -1, "absurd-usage": 10**12}.get(self.mode, 1)
        return self.tokens_in * scale, self.tokens_out * scale

    def words(self) -> list[str]:
        """Write one choice's text: a word a token."""
        each = self.tokens_out // max(1, self.choices)
        return [WORDS[index % len(WORDS)] for index in range(each)]


class Dialect(ABC):
    """One operation of one API."""

    path: str

    @abstractmethod
    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        """Find what is read: its size is the input, and it may ask for a length."""

    def limit(self, body: Body) -> int | None:
        """Find the output limit."""
        value = body.get("max_tokens")
        return None if value is None else int(value)

    def choices(self, body: Body) -> int:
        """Tell how many answers are asked for; 0: nothing is written."""
        return int(body.get("n") or 1)

    content_type = "application/json"
    """Of a whole answer."""

    def read(self, request: Request) -> Body:
        """Read a request's body."""
        body: Body = json.loads(request.body)
        return body

    def streams(self, body: Body) -> bool:
        """Tell whether events are asked for."""
        return bool(body.get("stream"))

    def units(self, body: Body) -> Mapping[str, int]:
        """Count what is charged beside tokens."""
        return {}

    def whole(self, call: Call) -> bytes:
        """Write a whole answer."""
        return json.dumps(self.plain(call)).encode()

    @abstractmethod
    def plain(self, call: Call) -> Document:
        """Write a whole answer as a document."""

    def opening(self, call: Call) -> bytes:
        """Write the events before a stream's text."""
        return b""

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        """Write one piece of a stream's text."""
        raise NotImplementedError

    def closing(self, call: Call) -> bytes:
        """Write the events after a stream's text."""
        raise NotImplementedError


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
        return _openai(call, "chat.completion", choices=choices, usage=_tokens(call))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        delta = {"index": choice, "delta": {"role": "assistant", "content": text}}
        return _data(_openai(call, "chat.completion.chunk", choices=[delta]))

    def closing(self, call: Call) -> bytes:
        stops = [
            {"index": choice, "delta": {}, "finish_reason": "stop"}
            for choice in range(call.choices)
        ]
        end = _data(_openai(call, "chat.completion.chunk", choices=stops))
        usage = _tokens(call)
        if call.include_usage and usage is not None:
            end += _data(_openai(call, "chat.completion.chunk", choices=[], usage=usage))
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
        return _openai(call, "text_completion", choices=choices, usage=_tokens(call))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        return _data(_openai(call, "text_completion", choices=[{"index": choice, "text": text}]))


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
        return _searches(self.prompt(body), int(body["max_tool_calls"])) if tools else {}

    def limit(self, body: Body) -> int | None:
        value = body.get("max_output_tokens")
        return None if value is None else int(value)

    def plain(self, call: Call) -> Document:
        return self._response(call, "completed", "".join(call.words()))

    def opening(self, call: Call) -> bytes:
        return _event("response.created", response=self._response(call, "in_progress", ""))

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        place = {"item_id": f"msg_{call.id}", "output_index": 0, "content_index": 0}
        return _event("response.output_text.delta", **place, delta=text, logprobs=[])

    def closing(self, call: Call) -> bytes:
        return _event("response.completed", response=self.plain(call))

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


class Messages(Dialect):
    """Anthropic's messages."""

    path = "/v1/messages"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["messages"]

    def units(self, body: Body) -> Mapping[str, int]:
        tools = [t for t in body.get("tools", ()) if t.get("type") == "web_search_20250305"]
        return _searches(body["messages"], int(tools[0]["max_uses"])) if tools else {}

    def plain(self, call: Call) -> Document:
        content = [*_search_blocks(call), {"type": "text", "text": "".join(call.words())}]
        return self._message(call, content=content, stop_reason="end_turn", usage=_counts(call))

    def opening(self, call: Call) -> bytes:
        usage = _counts(call)
        if usage is not None:
            usage |= {"output_tokens": 1}
        message = self._message(call, content=[], stop_reason=None, usage=usage)
        events = _event("message_start", message=message)
        blocks = _search_blocks(call)
        for index, block in enumerate(blocks):
            events += _event("content_block_start", index=index, content_block=block)
            events += _event("content_block_stop", index=index)
        text = {"type": "text", "text": ""}
        return events + _event("content_block_start", index=len(blocks), content_block=text)

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return _event("content_block_delta", index=2 * call.searches, delta=delta)

    def closing(self, call: Call) -> bytes:
        usage = _counts(call)
        if usage is not None:
            usage.pop("input_tokens")
        written = {} if usage is None else {"usage": usage}
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        end = _event("content_block_stop", index=2 * call.searches)
        return end + _event("message_delta", delta=delta, **written) + _event("message_stop")

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


class Embeddings(Dialect):
    """OpenAI's embeddings: a short vector for each input."""

    path = "/v1/embeddings"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["input"]

    def choices(self, body: Body) -> int:
        return 0

    def plain(self, call: Call) -> Document:
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        usage = {"prompt_tokens": call.tokens_in, "total_tokens": call.tokens_in}
        return {"object": "list", "model": call.model, "data": data, "usage": usage}


class Moderations(Embeddings):
    """OpenAI's moderations, whose answers tell of no usage."""

    path = "/v1/moderations"

    def plain(self, call: Call) -> Document:
        result = {"flagged": False, "categories": {}, "category_scores": {}}
        return {"id": call.id, "model": call.model, "results": [result]}


_KILOBITS: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)


class Transcriptions(Dialect):
    """OpenAI's transcriptions: a form with an MP3 file (MPEG 1, layer III) of one bitrate."""

    path = "/v1/audio/transcriptions"

    def read(self, request: Request) -> Body:
        head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
        form = BytesParser(policy=HTTP).parsebytes(head + request.body)
        parts = {
            str(part.get_param("name", header="content-disposition")): part
            for part in form.iter_parts()
        }
        texts = {name: part.get_content().strip() for name, part in parts.items() if name != "file"}
        sound = parts["file"].get_content()
        seconds = -(-len(sound) * 8 // (_KILOBITS[sound[2] >> 4] * 1000))
        return {**texts, "seconds": seconds}

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return f"{body.get('prompt', '')} {'sound ' * body['seconds']}"

    def streams(self, body: Body) -> bool:
        return bool(body.get("stream") == "true")

    def units(self, body: Body) -> Mapping[str, int]:
        return {"seconds": body["seconds"]}

    def plain(self, call: Call) -> Document:
        return {"text": "".join(call.words() or WORDS), **self._usage(call)}

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        return _event("transcript.text.delta", delta=text)

    def closing(self, call: Call) -> bytes:
        return _event("transcript.text.done", text="".join(call.words()), **self._usage(call))

    def _usage(self, call: Call) -> Document:
        if call.counts is None:
            return {}
        if not call.tokens_in:
            sign = -1 if call.mode == "negative-usage" else 1
            return {"usage": {"type": "duration", "seconds": sign * call.units["seconds"]}}
        return {"usage": {"type": "tokens", **_directions(call, "input_token_details")}}


class Speech(Dialect):
    """OpenAI's speech: sound, or events that carry it."""

    path = "/v1/audio/speech"
    content_type = "audio/mpeg"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["input"]

    def streams(self, body: Body) -> bool:
        return bool(body.get("stream_format") == "sse")

    def units(self, body: Body) -> Mapping[str, int]:
        # As the highest of providers' ways of counting: one beyond the basic plane is two.
        return {"characters": len(body["input"].encode("utf-16-le")) // 2}

    def whole(self, call: Call) -> bytes:
        return "".join(WORDS).encode() * 100

    def plain(self, call: Call) -> Document:
        raise NotImplementedError

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        return _event("speech.audio.delta", audio=b64encode(text.encode()).decode())

    def closing(self, call: Call) -> bytes:
        usage = {} if call.counts is None else {"usage": _directions(call)}
        return _event("speech.audio.done", **usage)


class Images(Dialect):
    """OpenAI's images: a picture of one byte for each that is asked for."""

    path = "/v1/images/generations"

    def prompt(self, body: Body) -> Any:  # noqa: ANN401
        return body["prompt"]

    def units(self, body: Body) -> Mapping[str, int]:
        return {"images": self.choices(body)}

    def plain(self, call: Call) -> Document:
        data = [{"b64_json": "AA=="}] * call.choices
        usage = self._usage(call)
        return {"created": 0, "data": data, **usage}

    def piece(self, call: Call, choice: int, text: str) -> bytes:
        return _event("image_generation.partial_image", partial_image_index=0, **self._picture())

    def closing(self, call: Call) -> bytes:
        return _event("image_generation.completed", **self._picture(), **self._usage(call))

    def _usage(self, call: Call) -> Document:
        if call.counts is None or not call.tokens_in:
            return {}
        return {"usage": _directions(call, "input_tokens_details", text_tokens=call.counts[0])}

    def _picture(self) -> Document:
        # As large as a real one: larger than any other event.
        return {
            **{"b64_json": "AAAA" * 400_000, "created_at": 0, "size": "1024x1024"},
            **{"background": "opaque", "output_format": "png", "quality": "high"},
        }


DIALECTS: Final = {
    dialect.path: dialect
    for dialect in (
        *(Chat(), Completions(), Responses(), Embeddings(), Moderations()),
        *(Transcriptions(), Speech(), Images()),
        *(Messages(), CountTokens()),
    )
}
FREE: Final = (CountTokens.path,)
"""Operations that are never charged."""


def _openai(call: Call, kind: str, usage: Document | None = None, **fields: object) -> Document:
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


def _counts(call: Call) -> Document | None:
    if call.counts is None:
        return None
    read, written = call.counts
    tools = {"server_tool_use": {"web_search_requests": call.searches}} if call.searches else {}
    return {"input_tokens": read, "output_tokens": written, **tools}


def _searches(prompt: object, most: int) -> Mapping[str, int]:
    """Search as often as the prompt asks for, once where it says nothing, within a limit."""
    asked = _ASKED.findall(json.dumps(prompt))
    return {"searches": min(most, int(asked[-1]) if asked else 1)}


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


def _directions(call: Call, details: str | None = None, **kinds: int) -> Document:
    read, written = call.counts or (0, 0)
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return {**usage, **({details: {"image_tokens": 0, **kinds}} if details else {})}


def _data(document: Document) -> bytes:
    return f"data: {json.dumps(document)}\n\n".encode()


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
