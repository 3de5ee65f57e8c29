"""A provider simulator that keeps its own bill.

It speaks the protocols of OpenAI, as Azure and Gemini do too, and of Anthropic, wants the right
key, and charges by its own price table and arithmetic, which share nothing with the ledger: that
the two agree to the nano-dollar means something. A call is written to the bill when it is accepted,
before the first byte of the answer leaves, so that it counts whatever happens to the caller.

The answer's length is the request's: a prompt that says "37 words" gets 37 tokens, any other one as
many as its limit allows. A model called `NAME@MODE` costs what NAME costs and misbehaves as MODE
says; the header `x-simulator-mode` does the same for one call.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from llmbudget.local.bill import Bill, Prices
from llmbudget.local.dialects import DIALECTS, FREE
from llmbudget.local.dialects.dialect import WORDS, Call, Dialect
from llmbudget.local.http1 import Answer, Request, port_of, serve

FREE_MODES: Final = ("redirect", "echo")
"""Complete answers that charge nothing, as `status-NNN` (an error with that status) does."""
CHARGED_MODES: Final = (
    "",  # as it should be
    "hang",  # accepts the call and says nothing
    "reset",  # drops the connection before it answers
    "cut",  # drops it in the middle of the answer
    "garbage",  # sends what is no HTTP, or no JSON in a stream
    "no-usage",
    "negative-usage",
    "absurd-usage",
    "usual-tier",  # serves in the usual tier, whichever was asked for
)
CHUNKS: Final = 8
"""Most pieces that a streamed answer's text comes in."""
_LENGTH = re.compile(r"\b([0-9]{1,6}) words\b")
_AZURE = re.compile(
    r"/openai/(?:deployments/[^/]+/|(?=responses))([a-z/]+)\?api-version=[-0-9a-z]+"
)
_STATUS = re.compile(r"status-([1-5][0-9]{2})")


def tokens_in(prompt: object) -> int:
    """Count a request's input: a token for every 4 bytes of what is read, at least 1."""
    return max(1, len(json.dumps(prompt, ensure_ascii=False).encode()) // 4)


def tokens_out(prompt: object, limit: int | None, default: int) -> int:
    """Count one choice of the answer: what the prompt asks for, within the request's limit."""
    most = default if limit is None else limit
    asked = _LENGTH.findall(json.dumps(prompt))
    return min(most, int(asked[-1])) if asked else most


class Simulator:
    """The provider: answers calls, and writes down what they cost."""

    def __init__(
        self, prices: Prices, bill: Bill, key_file: Path, *, latency: float, output_tokens: int
    ) -> None:
        self._prices = prices
        self._bill = bill
        self._key_file = key_file
        self._latency = latency
        """Seconds before an answer begins, and as long again while it streams."""
        self._output_tokens = output_tokens
        self._ids = count(1)
        self._keys: tuple[int, frozenset[str]] = (0, frozenset())
        self.requests = 0
        self.refused = 0

    async def handle(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        if request.path == "/bill":
            return _json(answer, {**self._bill.total(), **self._counts()})
        self.requests += 1
        if not self._admitted(request):
            self.refused += 1
            return _error(answer, HTTPStatus.UNAUTHORIZED, "Incorrect API key provided.")
        match request.method, _path(request):
            case "GET", "/v1/models":
                listed = [{"id": name, "object": "model"} for name in self._prices.models]
                return _json(answer, {"object": "list", "data": listed})
            case "POST", path if path in DIALECTS:
                return await self._call(DIALECTS[path], request, answer)
        return _error(answer, HTTPStatus.NOT_FOUND, "No such path.")

    def _counts(self) -> dict[str, int]:
        return {"requests": self.requests, "refused": self.refused}

    def _admitted(self, request: Request) -> bool:
        """Compare the key with those of the key file, which may be rotated at any time."""
        stamp = self._key_file.stat().st_mtime_ns
        if stamp != self._keys[0]:
            self._keys = (stamp, frozenset(self._key_file.read_text().split()))
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        plain = (request.headers.get("api-key"), request.headers.get("x-api-key"))
        return any(key in self._keys[1] for key in (bearer, *plain))

    async def _call(self, dialect: Dialect, request: Request, answer: Answer) -> None:
        try:
            call = self._accept(dialect, request)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            return _error(answer, HTTPStatus.BAD_REQUEST, f"Bad request: {error!r}")
        if not _charged(call.mode):
            return _refuse(call.mode, request, answer)
        if dialect.path not in FREE:
            tokens = (call.tokens_in, call.tokens_out)
            cost = self._prices.cost(call.model, *tokens, call.units, call.service)
            self._bill.charge(call.model, *tokens, cost)
        if self._latency:
            await asyncio.sleep(self._latency)
        if call.mode == "hang":
            await answer.closed.wait()
        elif call.mode == "reset":
            answer.reset()
        elif call.mode == "garbage" and not call.stream:
            answer.raw(b"\x00\xff this is no HTTP \r\n\r\n")
            answer.close()
        elif call.stream:
            await self._stream(dialect, call, answer)
        else:
            _plain(dialect, call, answer)
        return None

    def _accept(self, dialect: Dialect, request: Request) -> Call:
        body = dialect.read(request)
        model, _, mode = body["model"].partition("@")
        choices, prompt = dialect.choices(body), dialect.prompt(body)
        mode = request.headers.get("x-simulator-mode", mode)
        if mode not in (*CHARGED_MODES, *FREE_MODES) and not _STATUS.fullmatch(mode):
            raise ValueError(f"no such mode: {mode}")
        self._prices.cost(model, 0, 0, {})
        by_token = self._prices.by_token(model)
        written = choices * tokens_out(prompt, dialect.limit(body), self._output_tokens)
        units = dialect.units(body)
        # After each search everything is read again.
        read = tokens_in(prompt) * (1 + units.get("searches", 0))
        return Call(
            id=f"call-{next(self._ids)}",
            model=model,
            mode=mode,
            stream=dialect.streams(body),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            choices=choices,
            tokens_in=read if by_token else 0,
            tokens_out=written if by_token else 0,
            units=units,
            kept=prompt if body.get("store") else None,
            service="default" if mode == "usual-tier" else body.get("service_tier"),
        )

    async def _stream(self, dialect: Dialect, call: Call, answer: Answer) -> None:
        answer.start()
        if opening := dialect.opening(call):
            answer.chunk(opening)
        words = call.words() or list(WORDS)
        size = max(1, -(-len(words) // CHUNKS))
        pieces = ["".join(words[at : at + size]) for at in range(0, len(words), size)]
        for number, piece in enumerate(pieces):
            if number == len(pieces) // 2 and call.mode in ("cut", "garbage"):
                return _spoil(call.mode, answer)
            for choice in range(call.choices):
                answer.chunk(dialect.piece(call, choice, piece))
            if self._latency:
                await asyncio.sleep(self._latency / len(pieces))
        answer.chunk(dialect.closing(call))
        return answer.chunk(b"")


def _path(request: Request) -> str:
    """Find the path of OpenAI's API; Azure's older one is for its own header and a version."""
    azure = _AZURE.fullmatch(request.path)
    if azure is None or "api-key" not in request.headers:
        return request.path
    return f"/v1/{azure[1]}"


def _charged(mode: str) -> bool:
    """Tell whether a call in this mode is charged: complete error answers are not."""
    return mode in CHARGED_MODES


def _refuse(mode: str, request: Request, answer: Answer) -> None:
    """Answer with a complete error, which costs nothing."""
    if mode == "redirect":
        place = {"location": "/v1/elsewhere"}
        return answer.send(HTTPStatus.TEMPORARY_REDIRECT, b"", headers=place)
    if mode == "echo":
        return _error(answer, HTTPStatus.BAD_REQUEST, f"You sent: {dict(request.headers)}")
    status = int(mode.removeprefix("status-"))
    wait = {"retry-after": "1"} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    return _error(answer, status, "The simulator was asked to fail.", wait)


def _spoil(mode: str, answer: Answer) -> None:
    """Break a stream in its middle."""
    if mode == "cut":
        return answer.reset()
    answer.chunk(b"data: {this is no JSON\n\n\xff\xfe")
    return answer.chunk(b"")


def _plain(dialect: Dialect, call: Call, answer: Answer) -> None:
    body = dialect.whole(call)
    if call.mode == "cut":
        answer.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        answer.raw(body[: len(body) // 2])
        return answer.reset()
    return answer.send(HTTPStatus.OK, body, dialect.content_type)


def _json(answer: Answer, document: Mapping[str, Any]) -> None:
    answer.send(HTTPStatus.OK, json.dumps(document).encode())


def _error(
    answer: Answer, status: int, message: str, headers: Mapping[str, str] | None = None
) -> None:
    document = {"error": {"message": message, "type": "simulator_error", "code": None}}
    answer.send(status, json.dumps(document).encode(), headers=headers)


async def run(simulator: Simulator, host: str, port: int) -> None:
    """Serve until cancelled; the first line of the output is the base URL."""
    server = await serve(simulator.handle, port, host)
    click.echo(f"http://{host}:{port_of(server)}/v1")
    async with server:
        await server.serve_forever()


_FILE = click.Path(path_type=Path, dir_okay=False)
_READ = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command("provider")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0: a free one.")
@click.option(
    "--prices",
    "prices_file",
    type=_READ,
    required=True,
    help='JSON: {"MODEL": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"}}, in USD;'
    " perMinute, per1KCharacters and perImage for what is not charged by tokens,"
    " per1KSearches for searches of the web.",
)
@click.option(
    "--bill",
    "bill_file",
    type=_FILE,
    required=True,
    help="The bill: a JSON line a call; an existing one is continued.",
)
@click.option(
    "--keys",
    "key_file",
    type=_READ,
    required=True,
    help="The API keys that are accepted, one a line; read again when it changes.",
)
@click.option(
    "--latency-ms", default=0, show_default=True, help="Milliseconds before an answer begins."
)
@click.option(
    "--output-tokens",
    default=64,
    show_default=True,
    help="Tokens of an answer where neither the prompt nor a limit says how many.",
)
def command(
    host: str,
    port: int,
    prices_file: Path,
    bill_file: Path,
    key_file: Path,
    latency_ms: int,
    output_tokens: int,
) -> None:
    """Simulate an OpenAI-compatible provider that keeps its own bill (GET /bill).

    A model called NAME@MODE, or the header x-simulator-mode, makes it misbehave: hang, reset, cut,
    garbage, no-usage, negative-usage, absurd-usage, usual-tier (all charged), redirect, echo,
    status-NNN (not charged).
    """
    try:
        prices = Prices(json.loads(prices_file.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise click.BadParameter(
            f"{prices_file}: it is no table of prices such as"
            ' {"MODEL": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"}}',
            param_hint="--prices",
        ) from None
    simulator = Simulator(
        prices, Bill(bill_file), key_file, latency=latency_ms / 1000, output_tokens=output_tokens
    )
    try:
        uvloop.run(run(simulator, host, port))
    except OSError as error:
        raise click.ClickException(str(error)) from None
