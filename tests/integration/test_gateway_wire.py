"""What stands on the wire: framing that two servers could read differently, and what goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.gateway_process import (
    KEY,
    USD,
    GatewayProcess,
    Simulator,
    account,
    body,
    config,
    post,
    provider,
    rows,
)

from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.reconcile.x509 import Authority

pytestmark = pytest.mark.cluster

DOCUMENT = json.dumps(body()).encode()
LENGTH = b"content-length: %d\r\n" % len(DOCUMENT)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DOCUMENT), DOCUMENT)
CALL = b"POST /v1/chat/completions HTTP/1.1\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

AMBIGUOUS = {
    "a length beside chunks": (LENGTH + b"transfer-encoding: chunked\r\n", CHUNKED),
    "chunks beside a length": (b"transfer-encoding: chunked\r\n" + LENGTH, CHUNKED),
    "chunks beside a wrong length": (
        b"transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        CHUNKED,
    ),
    "a compressed coding": (b"transfer-encoding: gzip, chunked\r\n", CHUNKED),
    "a line that ends with its feed alone": (LENGTH + b"x-a: 1\nx-b: 2\r\n", DOCUMENT),
    "two lengths": (LENGTH + b"content-length: 3\r\n", DOCUMENT),
    "a list of lengths": (b"content-length: %d, 3\r\n" % len(DOCUMENT), DOCUMENT),
    "a length with a sign": (b"content-length: +%d\r\n" % len(DOCUMENT), DOCUMENT),
    "an unknown coding": (b"transfer-encoding: xchunked\r\n", CHUNKED),
    "chunks that are not the last coding": (b"transfer-encoding: chunked, gzip\r\n", CHUNKED),
    "a space before the colon": (b"content-length : %d\r\n" % len(DOCUMENT), DOCUMENT),
    "a folded line": (LENGTH + b"x-a: 1\r\n 2\r\n", DOCUMENT),
    "a bare return in a value": (LENGTH + b"x-a: 1\rx-b: 2\r\n", DOCUMENT),
    "a zero byte in a value": (LENGTH + b"x-a: 1\x00\r\n", DOCUMENT),
    "two tokens": (LENGTH + b"authorization: Bearer other\r\n", DOCUMENT),
    "a chunk that is no number": (b"transfer-encoding: chunked\r\n", b"zz\r\n" + SMUGGLED),
}
"""Headers and body of requests that mean different things to different servers."""


async def send(gateway: GatewayProcess, head: bytes, content: bytes) -> bytes:
    """Send a call as it is, with a second request behind it, and read all that comes back."""
    token = await gateway.token()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(
            CALL
            + b"host: gateway\r\ncontent-type: application/json\r\n"
            + f"authorization: Bearer {token}\r\n".encode()
            + head
            + b"\r\n"
            + content
            + SMUGGLED
        )
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionResetError:
        return b""
    except TimeoutError:
        raise AssertionError("the gateway waits for more") from None
    finally:
        writer.close()


async def test_what_is_ambiguous_is_refused_and_never_forwarded(
    gateway: GatewayProcess, simulator: Simulator
) -> None:
    for what, (head, content) in AMBIGUOUS.items():
        answer = await send(gateway, head, content)
        status = answer.split(b" ", 2)[1] if answer else b"closed"
        assert status in (b"400", b"closed"), f"{what}: {answer[:200]!r}"
    found = await simulator.bill()
    assert (found["calls"], found["requests"]) == (0, 0)


async def test_chunks_alone_are_read(gateway: GatewayProcess, simulator: Simulator) -> None:
    answer = await send(gateway, b"transfer-encoding: chunked\r\n", CHUNKED)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    assert b"HTTP/1.1 404" in answer, "what follows is a request of its own"
    assert (await simulator.bill())["requests"] == 1


async def test_of_the_callers_headers_none_goes_on(gateway: GatewayProcess, namespace: str) -> None:
    seen: list[Request] = []

    async def listen(request: Request, answer: Answer) -> None:
        seen.append(request)
        answer.send(400, b'{"error": {"message": "no"}}')

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(listen, 0)))
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (provider("sim", port),), generation=2))
        await asyncio.sleep(0.5)
        token = await gateway.token()
        await post(
            gateway,
            body(),
            token,
            **{"connection": "x-hop", "x-hop": "1", "proxy-authorization": "Basic eA=="},
            **{"x-forwarded-for": "10.0.0.1", "x-remote-user": "admin", "cookie": "a=b"},
            **{"openai-organization": "org-other", "openai-project": "proj-other"},
            **{"accept-encoding": "gzip", "forwarded": "for=10.0.0.1", "te": "trailers"},
        )
    headers = dict(seen[0].headers)
    assert headers.pop("authorization") == f"Bearer {KEY}"
    assert headers.pop("host") == f"127.0.0.1:{port}"
    assert int(headers.pop("content-length")) == len(seen[0].body)
    assert headers == {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "llmbudget",
    }
    assert token not in str(seen[0])


async def test_what_is_compressed_is_neither_taken_nor_given_on(
    gateway: GatewayProcess, simulator: Simulator, namespace: str
) -> None:
    refused = await post(gateway, gzip.compress(DOCUMENT), content_encoding="gzip")
    assert refused.status_code == 400
    assert "Content-Encoding" in refused.text
    assert (await simulator.bill())["requests"] == 0
    unfolding = gzip.compress(b"0" * 50_000_000)

    async def listen(request: Request, answer: Answer) -> None:
        answer.send(200, unfolding, headers={"content-encoding": "gzip"})

    async with AsyncExitStack() as stack:
        port = port_of(await stack.enter_async_context(await serve(listen, 0)))
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (provider("sim", port),), generation=2))
        await asyncio.sleep(0.5)
        found = await post(gateway, body())
    assert found.status_code == 502
    assert "compressed" in found.text
    (entry,) = await rows(gateway)
    assert entry.cost == entry.held, "the provider may have done the work"


async def test_the_environments_proxies_see_nothing_and_no_redirect_is_followed(
    gateway: GatewayProcess, namespace: str
) -> None:
    seen: list[str] = []

    async def elsewhere(request: Request, answer: Answer) -> None:
        seen.append(f"{request.method} {request.path} {dict(request.headers)}")
        answer.send(200, b"{}")

    async with AsyncExitStack() as stack:
        trap = port_of(await stack.enter_async_context(await serve(elsewhere, 0)))

        async def redirect(request: Request, answer: Answer) -> None:
            to = {"location": f"http://127.0.0.1:{trap}/v1/chat/completions"}
            answer.send(307, b"", headers=to)

        port = port_of(await stack.enter_async_context(await serve(redirect, 0)))
        assert gateway.stop() == 0
        proxy = f"http://127.0.0.1:{trap}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        gateway.start(
            {**dict.fromkeys(names, proxy), **dict.fromkeys(map(str.lower, names), proxy)}
        )
        await gateway.ready()
        mine = (account(namespace, USD),)
        await gateway.configure(config(namespace, mine, (provider("sim", port),), generation=2))
        await asyncio.sleep(0.5)
        found = await post(gateway, body())
    assert found.status_code == 502
    assert "location" not in found.headers
    assert seen == []


async def test_a_provider_is_checked_by_the_authorities_that_it_names(
    gateway: GatewayProcess, namespace: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    authority = Authority.make(now, timedelta(days=2))
    pair = authority.issue(["127.0.0.1"], now, timedelta(days=1))
    (tmp_path / "provider.crt").write_bytes(pair.certificate)
    (tmp_path / "provider.key").write_bytes(pair.key)
    (tmp_path / "ca" / "sim.pem").write_bytes(authority.pair.certificate)
    other = Authority.make(now, timedelta(days=2)).pair.certificate
    (tmp_path / "ca" / "other.pem").write_bytes(other)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "provider.crt", tmp_path / "provider.key")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"https://127.0.0.1:{port}/v1"
        for generation, (bundle, status, says) in enumerate(
            (
                ("sim.pem", 400, ""),
                (None, 502, "certificate is not accepted"),
                ("other.pem", 502, "certificate is not accepted"),
                ("missing.pem", 502, "CA bundle missing.pem is missing"),
            ),
            start=2,
        ):
            named = provider("sim", port, endpoint=url, ca_file=bundle)
            mine = (account(namespace, USD),)
            await gateway.configure(config(namespace, mine, (named,), generation=generation))
            await asyncio.sleep(0.5)
            found = await post(gateway, body())
            assert found.status_code == status, (bundle, found.text)
            assert says in found.text
    assert all(entry.cost == 0 for entry in await rows(gateway))


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/../v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/../models",
        "/V1/chat/completions",
        "/v1/files",
        "/v1/chat/completions%00",
        "/v1/chat%2fcompletions/x",
    ],
)
async def test_other_spellings_of_a_path_lead_nowhere(
    gateway: GatewayProcess, simulator: Simulator, path: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
        + f"authorization: Bearer {await gateway.token()}\r\n".encode()
        + LENGTH
        + b"\r\n"
        + DOCUMENT
    )
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ", 2)[1] in (b"404", b"400"), answer[:200]
    assert (await simulator.bill())["requests"] == 0


async def test_a_flood_of_half_open_handshakes_keeps_nobody_from_calling(
    gateway: GatewayProcess, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More connections than the process may open files, renewed as soon as they are dropped, all
    from an address that is not the callers'."""
    gateway.stop()
    monkeypatch.setenv("SSL_CERT_FILE", str(gateway.serve_tls(tmp_path / "tls")))
    gateway.files = 256
    gateway.start()
    await gateway.ready()
    token = await gateway.token()

    async def hold_open() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", gateway.port, local_addr=("127.0.0.2", 0)
                )
                try:
                    await reader.read()
                finally:
                    writer.close()
            await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        for _ in range(600):
            stack.callback(asyncio.create_task(hold_open()).cancel)
        await asyncio.sleep(1)
        answers = [await post(gateway, body(), token) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [200] * 10, answers[0].text
    assert (await simulator.bill())["calls"] == 10
