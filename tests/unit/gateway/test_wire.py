"""A request's hygiene: whose token, which headers, how large a body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import pytest

from llmbudget.gateway import wire as module
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.wire import Headers, Request, Transport, request_id_of

ONCE = [
    *(
        "authorization",
        "x-api-key",
        "api-key",
        "content-type",
        "content-length",
        "host",
        "idempotency-key",
    ),
    *("x-llmbudget-budget", "x-llmbudget-task-id", "transfer-encoding"),
]
LIMIT = 10
DRAIN = 80


@dataclass
class Body:
    """A request, whose body comes in chunks; endless after them where it hangs."""

    chunks: list[bytes] = field(default_factory=list)
    hangs: bool = False
    read: int = 0
    whole: bool = False
    """Whether all of it is there at once."""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    answer_headers: Headers = field(default_factory=list)
    keep_alive: bool = True
    answered: bool = False
    method: str = "POST"
    path: str = "/v1/chat/completions"
    client: str = "10.0.0.1:50000"

    @property
    def received(self) -> bytes | None:
        return b"".join(self.chunks) if self.whole else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += len(chunk)
            yield chunk
        if self.hangs:
            await asyncio.Event().wait()

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        raise AssertionError("a request answers nothing by itself")

    def response_stream(self, status: int, headers: Headers) -> Transport:
        raise AssertionError("a request answers nothing by itself")


def request(
    *headers: tuple[str, str], unreadable: Iterable[str] = (), body: Body | None = None, **more: str
) -> Request:
    asked = body or Body()
    asked.fields = [(name.encode(), value.encode()) for name, value in headers]
    asked.fields += [(name.encode(), b"\xc3\xa9") for name in unreadable]
    for name, value in more.items():
        setattr(asked, name, value)
    return Request(asked, "request-1")


def with_length(length: object, body: Body) -> Request:
    return request(("content-length", str(length)), body=body)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_DRAIN", DRAIN // LIMIT)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer abc")],
        [("authorization", "bearer abc")],
        [("authorization", "BEARER   abc ")],
        [("x-api-key", "abc")],
        [("api-key", "abc")],
        [("api-key", "abc"), ("authorization", "Bearer abc")],
        [("authorization", "Bearer abc"), ("x-api-key", "abc")],
        [("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "abc")],
        [("authorization", ""), ("x-api-key", "abc")],
        [("authorization", "Bearer "), ("x-api-key", "abc")],
        [("authorization", "Bearer abc"), ("x-api-key", "")],
    ],
)
def test_the_token_of_either_header(headers: Headers) -> None:
    assert request(*headers).token == "abc"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer   ")],
        [("authorization", "abc")],
        [("authorization", "Basic YWJj")],
        [("authorization", "BearerX abc")],
        [("authorization", "Bearer\tabc")],
        [("x-api-key", "")],
        [("proxy-authorization", "Bearer abc")],
        [("cookie", "token=abc")],
    ],
)
def test_no_token_is_401(headers: Headers) -> None:
    with pytest.raises(Refusal, match="No token") as refused:
        _ = request(*headers).token
    assert (refused.value.status, refused.value.retry_after) == (401, None)


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_two_tokens_that_differ_are_refused_and_not_repeated(header: str) -> None:
    asked = request(("authorization", "Bearer mine"), (header, "yours"))
    with pytest.raises(Refusal) as refused:
        _ = asked.token
    assert refused.value.status == 400
    assert not {"mine", "yours"} & set(refused.value.message.split())


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("values", [("a", "b"), ("a", "a"), ("a", "")])
def test_what_means_something_is_sent_once(name: str, values: tuple[str, str]) -> None:
    with pytest.raises(Refusal, match=f"{name} is sent more than once") as refused:
        request(*((name, value) for value in values))
    assert refused.value.status == 400


@pytest.mark.parametrize("name", ONCE)
def test_what_means_something_is_readable(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name} has characters other than ASCII") as refused:
        request(("accept", "a"), unreadable=[name])
    assert refused.value.status == 400


def test_other_headers_may_be_repeated_or_unreadable() -> None:
    asked = request(("accept", "a"), ("accept", "b"), ("via", "c"), unreadable=["x-name"])
    assert asked.headers["via"] == "c"
    assert "x-name" not in asked.headers


def test_two_ways_to_say_the_length_are_refused() -> None:
    with pytest.raises(Refusal, match="exclude each other") as refused:
        request(("content-length", "5"), ("transfer-encoding", "chunked"))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("client", "address"),
    [("10.0.0.1:50000", "10.0.0.1"), ("[2001:db8::1]:443", "[2001:db8::1]"), ("::1:80", "::1")],
)
def test_the_callers_address_has_no_port(client: str, address: str) -> None:
    assert request(client=client).client == address


@pytest.mark.parametrize("whole", [True, False])
async def test_a_body_of_known_length(whole: bool) -> None:
    assert await with_length(5, Body([b"he", b"llo"], whole=whole)).body(LIMIT) == b"hello"


@pytest.mark.parametrize("chunks", [[], [b""], [b"{}"], [b"12345"] * 2])
@pytest.mark.usefixtures("small_limits")
async def test_a_body_in_chunks_up_to_the_limit(chunks: list[bytes]) -> None:
    asked = request(("transfer-encoding", "chunked"), body=Body(chunks))
    assert await asked.body(LIMIT) == b"".join(chunks)


@pytest.mark.parametrize("length", [None, LIMIT + 1, "", "-1", "+5", "0x5", "1e1", "5, 5"])
@pytest.mark.usefixtures("small_limits")
async def test_a_body_beyond_the_limit_is_413_once_it_was_read(length: object) -> None:
    body = Body([b"12345", b"12345", b"1"])
    asked = request(body=body) if length is None else with_length(length, body)
    with pytest.raises(Refusal, match="larger than 10 bytes") as refused:
        await asked.body(LIMIT)
    assert refused.value.status == 413
    assert body.read == LIMIT + 1


@pytest.mark.usefixtures("small_limits")
async def test_a_body_without_end_is_read_no_further_than_the_bound() -> None:
    body = Body([b"x" * LIMIT] * 1000, hangs=True)
    with pytest.raises(Refusal) as refused:
        await request(body=body).body(LIMIT)
    assert refused.value.status == 413
    assert DRAIN < body.read <= DRAIN + LIMIT


@pytest.mark.parametrize("length", [None, 5])
async def test_a_body_that_does_not_come_is_given_up(
    length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.01)
    body = Body([b"he"], hangs=True)
    asked = request(body=body) if length is None else with_length(length, body)
    with pytest.raises(Refusal, match="did not come within") as refused:
        await asked.body(LIMIT)
    assert refused.value.status == 400


@pytest.mark.parametrize("asked", [b"mine-1", b"a" * 128])
def test_a_caller_names_its_request(asked: bytes) -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", asked)]) == asked.decode()


@pytest.mark.parametrize("asked", [b"", b"-", b"a b", b"a" * 129, b"\xff", b'a"', b"a\n"])
def test_a_name_that_is_none_is_replaced(asked: bytes) -> None:
    assert len(request_id_of([(b"x-request-id", asked)])) == 16
    assert len(request_id_of([])) == 16
