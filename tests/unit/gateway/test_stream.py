"""A stream is relayed as it comes, charged by its end, and never carries a key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import cast

import pytest
from tests.support.offers import offer
from tests.support.records import call_record

from llmbudget.api.money import Nano
from llmbudget.contract.config import Prices
from llmbudget.decide.cost import Units, Usage
from llmbudget.gateway import stream as module
from llmbudget.gateway.admission import HeldCall
from llmbudget.gateway.attempt import Attempt
from llmbudget.gateway.connections import Doubtful
from llmbudget.gateway.keys import longest_mask
from llmbudget.gateway.protocols.chat_answers import ChatMeter
from llmbudget.gateway.protocols.sse import MAX_EVENT, EventMeter, NoMeter, RawMeter
from llmbudget.gateway.stream import relay
from llmbudget.gateway.upstream import Answer
from llmbudget.gateway.wire import CallerGone, Exchange, Headers
from llmbudget.ledger.interface import Hold, Settlement, Status

KEY = "sk-Canary-0123456789abcdefghijklmnopqrstuvwxyz-0123"
CONTENT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":12}}\n\n'
DONE = b"data: [DONE]\n\n"
COST = b": llmbudget cost_usd=0.000000042 entry_id=call-1\n\n"
IN_FULL = Settlement(None, status=Status.ERROR)
METERED = Settlement(Nano(42), 30, 12, Status.OK)


class Provider:
    """An answer that comes in chunks, and then ends, breaks off or hangs."""

    def __init__(self, chunks: list[bytes], end: str = "ends") -> None:
        self.chunks = list(chunks)
        self.end = end

    async def read_chunk(self) -> bytes | None:
        if self.chunks:
            return self.chunks.pop(0)
        if self.end == "breaks":
            raise Doubtful("the answer broke off")
        if self.end == "hangs":
            await asyncio.Event().wait()
        return None


class Caller:
    """Takes what is sent, and leaves after so many pieces."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.leaves_after = leaves_after
        self.pieces: list[bytes] = []
        self.status = 0
        self.headers: dict[str, str] = {}

    def response_stream(self, status: int, headers: Headers) -> Caller:
        self.status, self.headers = status, dict(headers)
        return self

    async def send_bytes(self, data: bytes) -> None:
        if self.leaves_after is not None and len(self.pieces) >= self.leaves_after:
            raise CallerGone
        self.pieces.append(data)

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)


class Money:
    """The hold of one call, settled once."""

    def __init__(self) -> None:
        self.hold = Hold("call-1", "ns/team", Nano(5000), "2026-11", None)
        self.settled: list[Settlement] = []

    async def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)


def chat(*, asked: bool = False) -> EventMeter:
    return ChatMeter(1000, include_usage=asked)


async def stream(
    provider: Provider,
    caller: Caller,
    meter: EventMeter | None = None,
    count_tokens: Callable[[int], None] = lambda _: None,
    status: Status = Status.OK,
    prices: Prices | None = None,
) -> Settlement:
    """Relay one answer; return how it was settled."""
    money, offered = Money(), offer()
    assert offered.prices is not None
    attempt = Attempt(
        held=cast(HeldCall, money),
        offer=offered,
        prices=prices or offered.prices,
        record=call_record(offered),
        plausible=1000,
        status=status,
        key=KEY,
        headers=[("x-llmbudget-entry-id", "call-1")],
    )
    await relay(
        attempt, cast(Answer, provider), cast(Exchange, caller), meter or chat(), count_tokens
    )
    (settlement,) = money.settled
    return settlement


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 50, 10_000])
@pytest.mark.parametrize("asked", [False, True])
async def test_events_pass_byte_for_byte_and_end_with_their_cost(size: int, asked: bool) -> None:
    caller, counted = Caller(), []
    sent = CONTENT + b": ping\r\n\r\n" + CONTENT + USAGE + DONE
    provider = Provider([*pieces(sent, size), b"data: after the end\n\n"])
    assert await stream(provider, caller, chat(asked=asked), counted.append) == METERED
    shown = USAGE if asked else b""
    assert caller.got == CONTENT + b": ping\r\n\r\n" + CONTENT + shown + COST + DONE
    assert caller.status == 200
    assert caller.headers["content-type"].startswith("text/event-stream")
    assert caller.headers["x-llmbudget-cost-usd"] == "0.000005", "the hold: the cost comes later"
    assert caller.headers["x-llmbudget-entry-id"] == "call-1"
    assert counted == [42]


async def test_each_event_is_sent_as_soon_as_it_came() -> None:
    caller = Caller()
    await stream(Provider([CONTENT, CONTENT, CONTENT[:9]], "breaks"), caller)
    assert caller.pieces == [CONTENT, CONTENT, CONTENT[:9]]


@pytest.mark.parametrize("end", ["ends", "breaks"])
@pytest.mark.parametrize("chunks", [[], [CONTENT], [CONTENT, USAGE], [CONTENT, USAGE, DONE[:9]]])
async def test_a_stream_without_its_end_is_charged_in_full(chunks: list[bytes], end: str) -> None:
    caller, counted = Caller(), []
    assert await stream(Provider(chunks, end), caller, chat(), counted.append) == IN_FULL
    assert b"llmbudget cost_usd" not in caller.got
    assert DONE not in caller.got
    assert not counted


async def test_a_whole_stream_without_figures_is_charged_in_full() -> None:
    caller = Caller()
    settlement = await stream(Provider([CONTENT, DONE]), caller)
    assert settlement == Settlement(None, status=Status.OK)
    assert b"cost_usd=0.000005 " in caller.got


async def test_a_stream_with_an_error_is_charged_in_full() -> None:
    error = b'data: {"error":{"message":"overloaded"}}\n\n'
    assert await stream(Provider([CONTENT, error, USAGE, DONE]), Caller()) == IN_FULL


SOUND = Usage(0, 0, units=Units(characters=5))


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_sound_passes_as_it_comes_at_a_cost_that_is_known(size: int) -> None:
    caller, sound = Caller(), b"\xff\xfb" + KEY.encode() + bytes(500)
    meter = RawMeter(SOUND, "audio/mpeg")
    free = Settlement(Nano(0), 0, 0, Status.OK)
    prices = offer().model.prices
    assert prices is not None
    by_character = prices.model_copy(update={"tokens": False, "character": Decimal(0)})
    settled = await stream(Provider(pieces(sound, size)), caller, meter, prices=by_character)
    assert settled == free
    assert caller.headers["content-type"] == "audio/mpeg"
    assert caller.got == b"\xff\xfb[masked]" + bytes(500)


@pytest.mark.parametrize("end", ["ends", "breaks"])
async def test_sound_is_charged_in_full_where_tokens_are_or_where_it_breaks_off(end: str) -> None:
    settled = await stream(Provider([b"\xff\xfb"], end), Caller(), RawMeter(SOUND, "audio/mpeg"))
    assert settled.cost is None


async def test_a_fallback_stays_one() -> None:
    settlement = await stream(Provider([USAGE, DONE]), Caller(), status=Status.FALLBACK)
    assert settlement == Settlement(Nano(42), 30, 12, Status.FALLBACK)


@pytest.mark.parametrize("leaves_after", [0, 1, 2])
async def test_when_the_caller_leaves_the_rest_is_read_for_its_cost(leaves_after: int) -> None:
    caller = Caller(leaves_after)
    provider = Provider([CONTENT] * 20 + [USAGE, DONE])
    assert await stream(provider, caller) == METERED
    assert caller.got == CONTENT * leaves_after


async def test_for_a_caller_that_left_not_too_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_BYTES", 10 * len(CONTENT))
    provider = Provider([CONTENT] * 1000 + [USAGE, DONE])
    assert await stream(provider, Caller(0)) == IN_FULL
    assert len(provider.chunks) > 900


async def test_for_a_caller_that_left_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.01)
    assert await stream(Provider([CONTENT], "hangs"), Caller(0)) == IN_FULL


@pytest.mark.parametrize("size", [1, 10, 49, 10_000])
@pytest.mark.parametrize("written", [KEY, "".join(f"\\u{ord(c):04x}" for c in KEY)])
async def test_a_key_in_an_event_is_masked(written: str, size: int) -> None:
    caller = Caller()
    sent = f'data: {{"error":"bad key {written}!"}}\n\n'.encode() + DONE
    await stream(Provider(pieces(sent, size)), caller)
    assert written.encode() not in caller.got
    assert b"bad key [masked]!" in caller.got


@pytest.mark.parametrize("end", [b"", b"\n\n"])
async def test_a_key_in_what_never_ends_with_a_blank_line_is_masked(end: bytes) -> None:
    caller = Caller()
    await stream(Provider([b'data: "', *pieces(KEY.encode(), 9), end]), caller)
    assert KEY.encode() not in caller.got


@pytest.mark.parametrize("first", range(0, len(KEY) + 1, 10))
@pytest.mark.parametrize("meter", [chat, lambda: NoMeter(1000)])
async def test_a_key_cut_in_two_is_masked_in_what_is_too_large_to_read(
    first: int, meter: Callable[[], EventMeter]
) -> None:
    caller, key = Caller(), KEY.encode()
    junk = b"x" * MAX_EVENT
    chunks = [junk, b"x" * 500 + key[:first], key[first:] + b"y" * 500, b"z" * 500]
    await stream(Provider(chunks), caller, meter())
    assert caller.got == b"".join(chunks).replace(key, b"[masked]")


async def test_keys_cut_in_two_one_after_another_are_masked() -> None:
    caller, key = Caller(), KEY.encode()
    between = b"x" * (longest_mask(KEY) - 2 * len(key))
    chunks = [b"x" * (MAX_EVENT + 1), key[:-1], key[-1:], between + key[:-1], key[-1:]]
    await stream(Provider(chunks), caller)
    assert key not in caller.got
