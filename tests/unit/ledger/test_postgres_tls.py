"""The database proves who it is: nothing is said to one that can't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.postgres_server import PostgresServer

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres import PostgresLedger
from llmbudget.reconcile.x509 import Authority

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make(NOW, 2 * DAY)


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[PostgresServer]:
    """A server that takes TLS alone, by a certificate for `localhost`."""
    server = PostgresServer(("ssl=on", "ssl_cert_file=tls.crt", "ssl_key_file=tls.key"))
    pair = authority.issue(["localhost"], NOW, DAY)
    owner = server.data.stat()
    for name, content in (("tls.crt", pair.certificate), ("tls.key", pair.key)):
        path = server.data / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        os.chown(path, owner.st_uid, owner.st_gid)
    rules = server.data / "pg_hba.conf"
    rules.write_text("hostssl all team 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    server.start()
    server.make_role("team")
    yield server
    server.stop()


@pytest.fixture
def uri(server: PostgresServer, tmp_path: Path) -> Path:
    """A connection string that says nothing of TLS: what is best is the default."""
    file = tmp_path / "uri"
    url = server.url(user="team", schema="team").replace("sslmode=disable&", "")
    file.write_text(url.replace("127.0.0.1", "localhost") + "&hostaddr=127.0.0.1")
    return file


def trust(uri: Path, authority: Authority) -> None:
    (uri.parent / "ca.crt").write_bytes(authority.pair.certificate)


def call_it(uri: Path, name: str) -> None:
    uri.write_text(uri.read_text().replace("localhost", name))


async def test_a_server_that_proves_its_name_is_spoken_to(
    uri: Path, authority: Authority, server: PostgresServer
) -> None:
    trust(uri, authority)
    ledger = await PostgresLedger.open(uri, "llm/team")
    found = server.execute(
        "SELECT DISTINCT version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE usename = 'team'"
    )
    assert found == [("TLSv1.3",)]
    await ledger.close()


async def test_an_authority_that_did_not_sign_it(uri: Path) -> None:
    trust(uri, Authority.make(NOW, 2 * DAY))
    with pytest.raises(LedgerUnavailable, match="certificate verify failed"):
        await PostgresLedger.open(uri, "llm/team")


async def test_without_an_authority_only_public_ones_will_do(uri: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="certificate verify failed"):
        await PostgresLedger.open(uri, "llm/team")


async def test_a_server_of_another_name(uri: Path, authority: Authority) -> None:
    trust(uri, authority)
    call_it(uri, "database.example")
    with pytest.raises(LedgerUnavailable, match="does not match host name"):
        await PostgresLedger.open(uri, "llm/team")
