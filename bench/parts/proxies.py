"""Plain pass-through proxies, each of one HTTP server and one HTTP client.

    python -m bench.parts.proxies SERVER CLIENT PORT UPSTREAM-PORT

They pass a call on and its answer back, and do nothing else: what they cost is the parts' own cost.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol

import uvloop

from llmbudget.gateway.incoming import Incoming
from llmbudget.gateway.serving import Server as OwnServer

Post = Callable[[bytes], Awaitable[bytes]]
_PATH: Final = "/v1/chat/completions"
_HOST: Final = "127.0.0.1"
_HEADERS: Final = {"content-type": "application/json"}
_BACKLOG: Final = 1024

Message = Mapping[str, Any]
AsgiApplication = Callable[..., Awaitable[None]]


class RsgiExchange(Protocol):
    """A request of granian's, and the way back."""

    async def __call__(self) -> bytes:
        """Read the body."""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer."""


# Clients: each gives the function that sends a body and returns the answer's.


async def of_the_gateway(port: int, stack: AsyncExitStack) -> Post:
    """The gateway's own, on httptools."""
    from llmbudget.gateway.connections import Pool

    pool = Pool(_HOST, _HOST, port, None, 5)
    stack.callback(pool.close)
    head = f"POST {_PATH} HTTP/1.1\r\nhost: {_HOST}\r\ncontent-type: application/json\r\n"

    async def post(body: bytes) -> bytes:
        connection = await pool.take()
        try:
            connection.send(
                f"{head}content-length: {len(body)}\r\n\r\n".encode() + body,
                idle_seconds=60,
                total_seconds=600,
            )
            await connection.head()
            parts = []
            while (chunk := await connection.read_chunk()) is not None:
                parts.append(chunk)
            return b"".join(parts)
        finally:
            pool.give_back(connection)

    return post


async def pyreqwest(port: int, stack: AsyncExitStack) -> Post:
    """Rust's reqwest."""
    from pyreqwest.client import ClientBuilder

    client = await stack.enter_async_context(ClientBuilder().build())

    async def post(body: bytes) -> bytes:
        request = client.post(f"http://{_HOST}:{port}{_PATH}").headers(_HEADERS).body_bytes(body)
        answer = await request.build().send()
        return bytes(await answer.bytes())

    return post


async def aiohttp_client(port: int, stack: AsyncExitStack) -> Post:
    """aiohttp's."""
    from aiohttp import ClientSession, TCPConnector

    session = await stack.enter_async_context(ClientSession(connector=TCPConnector(limit=0)))

    async def post(body: bytes) -> bytes:
        url = f"http://{_HOST}:{port}{_PATH}"
        async with session.post(url, data=body, headers=_HEADERS) as answer:
            return await answer.read()

    return post


async def httpx_client(port: int, stack: AsyncExitStack) -> Post:
    """httpx, which most Python programs use."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, limits=limits))

    async def post(body: bytes) -> bytes:
        url = f"http://{_HOST}:{port}{_PATH}"
        return (await client.post(url, content=body, headers=_HEADERS)).content

    return post


# Servers: each answers for ever.


async def own_server(post: Post, port: int) -> None:
    """The gateway's own, on httptools."""

    async def application(exchange: Incoming) -> None:
        body = b"".join([chunk async for chunk in exchange])
        exchange.response_bytes(200, list(_HEADERS.items()), await post(body))

    await OwnServer(application, _HOST, port, None).serve()


async def granian(post: Post, port: int) -> None:
    """Rust's hyper, through RSGI."""
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    async def application(_: object, exchange: RsgiExchange) -> None:
        body = await exchange()
        exchange.response_bytes(200, list(_HEADERS.items()), await post(body))

    await Server(
        application,
        address=_HOST,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        log_enabled=False,
    ).serve()


def _asgi(post: Post) -> AsgiApplication:
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def application(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = await post(body)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return application


def _starlette(post: Post) -> AsgiApplication:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        return Response(await post(await request.body()), media_type=_HEADERS["content-type"])

    return Starlette(routes=[Route(_PATH, answer, methods=["POST"])])


async def _uvicorn(application: AsgiApplication, port: int) -> None:
    from uvicorn import Config, Server

    config = Config(
        application,
        host=_HOST,
        port=port,
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        backlog=_BACKLOG,
    )
    await Server(config).serve()


async def uvicorn(post: Post, port: int) -> None:
    """uvicorn on httptools, without a framework."""
    await _uvicorn(_asgi(post), port)


async def starlette(post: Post, port: int) -> None:
    """Starlette on uvicorn."""
    await _uvicorn(_starlette(post), port)


async def aiohttp_server(post: Post, port: int) -> None:
    """aiohttp's, without its router."""
    from aiohttp import web

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await post(await request.read()), headers=_HEADERS)

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, _HOST, port, backlog=_BACKLOG).start()
    await asyncio.Event().wait()


SERVERS: Final = {
    "own": own_server,
    "granian": granian,
    "uvicorn": uvicorn,
    "starlette": starlette,
    "aiohttp": aiohttp_server,
}
CLIENTS: Final = {
    "own": of_the_gateway,
    "pyreqwest": pyreqwest,
    "aiohttp": aiohttp_client,
    "httpx": httpx_client,
}


async def main() -> None:
    """Serve until killed."""
    server, client, port, upstream = sys.argv[1:]
    async with AsyncExitStack() as stack:
        await SERVERS[server](await CLIENTS[client](int(upstream), stack), int(port))


if __name__ == "__main__":
    uvloop.run(main())
