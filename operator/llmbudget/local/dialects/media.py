"""OpenAI's operations on sound and images."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Final

from llmbudget.local.dialects.dialect import WORDS, Body, Call, Dialect, Document, event
from llmbudget.local.http1 import Request

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
        return event("transcript.text.delta", delta=text)

    def closing(self, call: Call) -> bytes:
        return event("transcript.text.done", text="".join(call.words()), **self._usage(call))

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
        return event("speech.audio.delta", audio=b64encode(text.encode()).decode())

    def closing(self, call: Call) -> bytes:
        usage = {} if call.counts is None else {"usage": _directions(call)}
        return event("speech.audio.done", **usage)


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
        return event("image_generation.partial_image", partial_image_index=0, **self._picture())

    def closing(self, call: Call) -> bytes:
        return event("image_generation.completed", **self._picture(), **self._usage(call))

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


def _directions(call: Call, details: str | None = None, **kinds: int) -> Document:
    read, written = call.counts or (0, 0)
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    return {**usage, **({details: {"image_tokens": 0, **kinds}} if details else {})}
