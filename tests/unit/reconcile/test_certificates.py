"""The authority in its Secret, and what it signs, as clients check it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.support.worlds import read, world_of
from tests.unit.reconcile.test_apply import SCENARIOS

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import Kind
from llmbudget.decide.certificates import AUTHORITY_LIFE, CERTIFICATE_LIFE, PUBLISHED_FOR
from llmbudget.decide.world import World
from llmbudget.reconcile import certificates
from llmbudget.reconcile.certificates import AUTHORITY_SECRET, Certificates
from llmbudget.reconcile.live import Live
from llmbudget.reconcile.x509 import Authority, NotCertificate, facts_of, only_certificates
from llmbudget.render.certificate import PLAIN_HTTP, Pair, Serving, bundle, certificate

SYSTEM = "llmbudget-system"


def live_of(cluster: Cluster) -> Live:
    return Live(cluster, lambda _: None, lambda: None)


class Secrets(Cluster):
    """Secrets in memory, written only as they were read."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.known: dict[tuple[str | None, str], dict[str, Any]] = {}
        self.written = 0
        self.forbidden = False

    def put(self, namespace: str, name: str, **data: bytes) -> None:
        encoded = {key.replace("_", "."): b64encode(value).decode() for key, value in data.items()}
        version = str(int(self.version(namespace, name)) + 1)
        metadata = {"namespace": namespace, "name": name, "resourceVersion": version}
        self.known[namespace, name] = {"metadata": metadata, "data": encoded}

    def version(self, namespace: str, name: str) -> str:
        found = self.known.get((namespace, name), {"metadata": {"resourceVersion": "0"}})
        return str(found["metadata"]["resourceVersion"])

    def entry(self, name: str) -> bytes | None:
        found = self.known[SYSTEM, AUTHORITY_SECRET]["data"].get(name)
        return b64decode(found) if found else None

    async def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        if self.forbidden and namespace == SYSTEM:
            raise ApiError(403, "Forbidden", "no")
        return self.known.get((namespace, name))

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        metadata = manifest["metadata"]
        if (metadata["namespace"], metadata["name"]) in self.known:
            raise ApiError(409, "AlreadyExists", "it is there")
        return await self.replace(manifest | {"metadata": metadata | {"resourceVersion": "0"}})

    async def replace(self, manifest: dict[str, Any]) -> dict[str, Any]:
        metadata = manifest["metadata"]
        if metadata["resourceVersion"] != self.version(metadata["namespace"], metadata["name"]):
            raise ApiError(409, "Conflict", "it was modified")
        self.written += 1
        data = {key.replace(".", "_"): b64decode(value) for key, value in manifest["data"].items()}
        self.put(metadata["namespace"], metadata["name"], **data)
        return manifest


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
def live(secrets: Secrets) -> Live:
    return live_of(secrets)


@pytest.fixture
def issuing(
    secrets: Secrets, live: Live, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Certificates:
    monkeypatch.setattr(certificates, "KNOWN_SECONDS", 0.0)
    monkeypatch.setattr(certificates, "BROKEN_SECONDS", 0.0)
    return Certificates(secrets, live, SYSTEM, clock)


def world(**tls: Any) -> World:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml")
    documents[-1]["spec"]["deployment"] = {"tls": tls}
    made = world_of(documents)
    return replace(made, installation=replace(made.installation, loopback=True))


async def served(secrets: Secrets, issuing: Certificates) -> Serving:
    """What a gateway serves with, kept as the operator keeps it."""
    here = world()
    found = await issuing.serving(here)
    assert found.pair is not None
    data = certificate(here, found.pair)["data"]
    pair = {key.replace(".", "_"): b64decode(value) for key, value in data.items()}
    secrets.put("llm-platform", "team-a-gateway-tls", **pair)
    return found


async def shake(serving: Serving, name: str, bundle: str, folder: Path) -> None:
    """Connect as a client of this name would, with the strictest checks that there are."""
    assert serving.pair is not None
    (folder / "tls.crt").write_bytes(serving.pair.certificate)
    (folder / "tls.key").write_bytes(serving.pair.key)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    checking = ssl.create_default_context(cadata=bundle)
    checking.verify_flags |= ssl.VERIFY_X509_STRICT
    server, client = socket.socketpair()
    with server, client:
        both = (
            asyncio.to_thread(shown.wrap_socket, server, server_side=True),
            asyncio.to_thread(checking.wrap_socket, client, server_hostname=name),
        )
        answers = await asyncio.gather(*both, return_exceptions=True)
    for socket_or_error in reversed(answers):
        if isinstance(socket_or_error, BaseException):
            raise socket_or_error
        socket_or_error.close()


async def test_clients_take_the_certificate_by_each_name(
    secrets: Secrets, issuing: Certificates, tmp_path: Path
) -> None:
    serving = await served(secrets, issuing)
    assert serving.bundle is not None
    for name in ("team-a-gateway.llm-platform.svc", "team-a-gateway", "127.0.0.1", "localhost"):
        await shake(serving, name, serving.bundle, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await shake(serving, "team-b-gateway.llm-platform.svc", serving.bundle, tmp_path)
    other = Authority.make(datetime.now(UTC), AUTHORITY_LIFE).pair.certificate.decode()
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake(serving, "team-a-gateway", other, tmp_path)


async def test_nothing_is_written_or_made_again_without_a_reason(
    secrets: Secrets, issuing: Certificates, clock: Clock
) -> None:
    first = await served(secrets, issuing)
    assert secrets.written == 1
    clock.now += timedelta(days=19)
    assert await served(secrets, issuing) == first
    clock.now += timedelta(days=2)
    renewed = await served(secrets, issuing)
    assert renewed.pair != first.pair
    assert renewed.bundle == first.bundle
    assert secrets.written == 1


async def test_a_certificate_that_was_spoilt_is_made_anew(
    secrets: Secrets, issuing: Certificates
) -> None:
    first = await served(secrets, issuing)
    assert first.pair is not None
    other = Authority.make(datetime.now(UTC), AUTHORITY_LIFE).pair
    for pair in (
        {"tls_crt": b"nonsense", "tls_key": b"nonsense"},
        {"tls_crt": first.pair.certificate, "tls_key": other.key},
        {"tls_crt": other.certificate, "tls_key": other.key},
        {"tls_crt": first.pair.certificate},
    ):
        secrets.put("llm-platform", "team-a-gateway-tls", **pair)
        again = await issuing.serving(world())
        assert again.pair is not None
        assert facts_of(again.pair) == replace(
            facts_of(first.pair), not_after=facts_of(again.pair).not_after
        )


async def test_an_authority_is_replaced_with_overlap(
    secrets: Secrets, issuing: Certificates, clock: Clock
) -> None:
    first = await served(secrets, issuing)
    clock.now += AUTHORITY_LIFE - timedelta(days=119)
    prepared = await served(secrets, issuing)
    assert authorities(first) < authorities(prepared)
    assert len(authorities(prepared)) == 2
    assert signer(prepared) == signer(first)
    clock.now += PUBLISHED_FOR
    moved = await served(secrets, issuing)
    assert signer(moved) != signer(first)
    assert authorities(moved) == authorities(prepared)
    clock.now += timedelta(days=120)
    last = await served(secrets, issuing)
    assert len(authorities(last)) == 1
    assert authorities(last) < authorities(prepared)


def authorities(serving: Serving) -> set[x509.Certificate]:
    assert serving.bundle is not None
    return set(x509.load_pem_x509_certificates(serving.bundle.encode()))


def signer(serving: Serving) -> bytes:
    assert serving.pair is not None
    return facts_of(serving.pair).issuer


@pytest.mark.parametrize("emptied", [False, True])
async def test_of_two_operators_one_makes_the_authority(
    secrets: Secrets, clock: Clock, emptied: bool
) -> None:
    if emptied:
        secrets.put(SYSTEM, AUTHORITY_SECRET)
    both = [Certificates(secrets, live_of(secrets), SYSTEM, clock) for _ in range(2)]
    one, other = await asyncio.gather(*(issuing.serving(world()) for issuing in both))
    assert one.bundle == other.bundle
    assert secrets.written == 1


async def test_a_secret_that_cannot_be_used_is_left_alone(
    secrets: Secrets, issuing: Certificates
) -> None:
    good = Authority.make(datetime.now(UTC), AUTHORITY_LIFE).pair
    other = Authority.make(datetime.now(UTC), AUTHORITY_LIFE).pair
    for data in (
        {"current_crt": good.certificate},
        {"current_crt": good.certificate, "current_key": other.key},
        {"current_crt": b"nonsense", "current_key": good.key},
        {"previous_crt": b"nonsense"},
    ):
        secrets.put(SYSTEM, AUTHORITY_SECRET, **data)
        problem = (await issuing.serving(world())).problem
        assert problem is not None
        assert "remove its data" in problem
        assert "PRIVATE" not in problem
    assert secrets.written == 0
    secrets.forbidden = True
    problem = (await issuing.serving(world())).problem
    assert problem is not None
    assert "install the manifests" in problem


async def test_without_an_authority_what_there_is_stays(
    secrets: Secrets, issuing: Certificates, live: Live, clock: Clock
) -> None:
    before = await served(secrets, issuing)
    assert before.bundle is not None
    live.put(bundle(world(), before.bundle))
    good = dict(secrets.known[SYSTEM, AUTHORITY_SECRET]["data"])
    secrets.put(SYSTEM, AUTHORITY_SECRET, current_crt=b"nonsense", current_key=b"nonsense")
    clock.now += timedelta(days=29)
    now = await issuing.serving(world())
    assert now.problem is not None
    assert replace(now, problem=None) == before
    secrets.known[SYSTEM, AUTHORITY_SECRET]["data"] = good
    mended = await issuing.serving(world())
    assert mended.problem is None
    assert mended.pair != before.pair, "it was due"
    assert mended.bundle == before.bundle


async def test_a_budgets_own_certificate_needs_no_authority(
    secrets: Secrets, issuing: Certificates
) -> None:
    secrets.forbidden = True
    assert await issuing.serving(world(plainHttp=True)) == PLAIN_HTTP
    own = world(secretName="from-cert-manager")
    assert await issuing.serving(own) == Serving(tls=True)
    made = Authority.make(datetime.now(UTC), AUTHORITY_LIFE).pair
    secrets.put("llm-platform", "from-cert-manager", ca_crt=made.certificate + made.key)
    found = await issuing.serving(own)
    assert found.pair is None
    assert found.bundle == made.certificate.decode(), "what is published has no key in it"


def test_only_certificates_leave_a_secret() -> None:
    for text in (b"", b"sk-a-providers-key", b"-----BEGIN CERTIFICATE-----\nsk-a-key\n"):
        assert only_certificates(text) == ""


def test_a_certificate_ends_no_later_than_its_authority() -> None:
    now = datetime.now(UTC)
    pair = Authority.make(now, timedelta(days=3)).issue(["a"], now, CERTIFICATE_LIFE)
    assert facts_of(pair).not_after <= now + timedelta(days=3)
    usage = x509.load_pem_x509_certificate(pair.certificate).extensions
    assert not usage.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(NotCertificate):
        Authority(Pair(pair.certificate, Authority.make(now, AUTHORITY_LIFE).pair.key))
