"""The simulator's HTTP server: right where it should be, wrong only where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmbudget.local.http1 import MAX_HEAD, Answer, Request, port_of, serve


class Echo:
    """Answers with the request's body, or waits until the caller has gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.asked = asyncio.Event()

    async def handle(self, request: Request, answer: Answer) -> None:
        if request.path == "/wait":
            await answer.closed.wait()
            self.gone.set()
        elif request.path == "/late":
            self.asked.set()
            await answer.closed.wait()
            answer.send(200, b"")
            answer.start()
            answer.chunk(b"")
            answer.reset()
            self.gone.set()
        else:
            answer.send(200, request.body)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def port(echo: Echo) -> AsyncIterator[int]:
    async with await serve(echo.handle, 0) as server:
        yield port_of(server)


async def ask(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_requests_in_one_packet_are_answered_in_their_order(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"
    writer.write(one + b"one" + one + b"two")
    first = await reader.readuntil(b"one")
    second = await reader.readuntil(b"two")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()


async def test_a_request_may_come_in_pieces(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in (b"POST / HT", b"TP/1.1\r\nCONTENT-length: 4\r\n", b"\r\nbo", b"dy"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"x" * (MAX_HEAD + 1),
    ],
)
async def test_what_is_no_http_is_refused(port: int, sent: bytes) -> None:
    assert (await ask(port, sent)).startswith(b"HTTP/1.1 400 ")


async def test_a_handler_learns_that_its_caller_has_gone(port: int, echo: Echo) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /wait HTTP/1.1\r\n\r\n")
    await writer.drain()
    writer.close()
    await asyncio.wait_for(echo.gone.wait(), 5)


async def test_a_caller_that_has_gone_gets_nothing(echo: Echo, port: int) -> None:
    """And nobody is told of a fault."""
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /late HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    await echo.asked.wait()
    writer.transport.abort()
    await asyncio.wait_for(echo.gone.wait(), 10)
    await asyncio.sleep(0)
    assert not faults
