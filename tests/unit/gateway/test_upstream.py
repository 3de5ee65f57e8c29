"""A provider's certificate is checked by the authorities that its file names now."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.offers import offer

from llmbudget.gateway import upstream
from llmbudget.gateway.connections import NotSent
from llmbudget.gateway.upstream import Upstream
from llmbudget.reconcile.x509 import Authority


async def _listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    writer.close()


@pytest.fixture
async def authority(tmp_path: Path) -> Authority:
    return Authority.make(datetime.now(UTC), timedelta(days=2))


@pytest.fixture
async def provider(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Upstream]:
    """A provider whose bundle is `bundle.pem`, looked at before each call."""
    pair = authority.issue(["127.0.0.1"], datetime.now(UTC), timedelta(days=1))
    (tmp_path / "tls.crt").write_bytes(pair.certificate)
    (tmp_path / "tls.key").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    monkeypatch.setattr(upstream, "RESOLVE_SECONDS", 0.0)
    monkeypatch.setattr(upstream, "_FAILED_SECONDS", 0.0)
    async with await asyncio.start_server(_listen, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        changes = {
            **{"endpoint": f"https://127.0.0.1:{port}/v1", "ca_file": "bundle.pem"},
            **{"allow_private": True, "connect_timeout_ms": 2000},
            **{"idle_timeout_ms": 2000, "total_timeout_ms": 2000},
        }
        made = Upstream(offer().provider.model_copy(update=changes), tmp_path)
        yield made
        if made._pool is not None:
            made._pool.close()


async def _status(provider: Upstream) -> int:
    answer = await provider.post("/chat/completions", b"{}", "key", [], "application/json")
    await answer.read()
    answer.close()
    return answer.status


async def test_a_bundle_that_changes_is_trusted_without_another_configuration(
    provider: Upstream, authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    other = Authority.make(datetime.now(UTC), timedelta(days=2)).pair.certificate
    bundle.write_bytes(other)
    with pytest.raises(NotSent, match="certificate is not accepted"):
        await _status(provider)
    bundle.write_bytes(other + authority.pair.certificate)
    assert await _status(provider) == 200
    pool = provider._pool
    assert await _status(provider) == 200
    assert provider._pool is pool, "connections are kept while nothing changes"


async def test_an_authority_that_is_taken_out_is_trusted_no_more(
    provider: Upstream, authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.pair.certificate)
    assert await _status(provider) == 200
    bundle.write_bytes(Authority.make(datetime.now(UTC), timedelta(days=2)).pair.certificate)
    with pytest.raises(NotSent, match="certificate is not accepted"):
        await _status(provider)


async def test_a_bundle_that_is_broken_or_gone_lets_nothing_out(
    provider: Upstream, authority: Authority, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(authority.pair.certificate)
    assert await _status(provider) == 200
    bundle.write_text("no certificate")
    with pytest.raises(NotSent, match=r"bundle\.pem can't be used"):
        await _status(provider)
    bundle.unlink()
    with pytest.raises(NotSent, match=r"bundle\.pem is missing"):
        await _status(provider)
    bundle.write_bytes(authority.pair.certificate)
    assert await _status(provider) == 200


@pytest.mark.parametrize("value", ["a,\ta", "a\r\nb: c", "é"])
async def test_what_can_be_no_header_was_not_sent(tmp_path: Path, value: str) -> None:
    provider = Upstream(offer().provider, tmp_path)
    with pytest.raises(NotSent, match="a character that no header may have"):
        await provider.post("/x", b"{}", "key", [("anthropic-beta", value)], "application/json")
    with pytest.raises(NotSent):
        await provider.post("/x", b"{}", value, [], "application/json")
    assert not provider.breaker.wait()
