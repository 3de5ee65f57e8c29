"""The operator's own authority, kept in one Secret of its namespace, and what it signs.

The Secret is no part of the installation, which would empty it where it is replaced instead of
applied (`helm upgrade --force-replace`). It is written only as it was read: of two operators, one
is first and the other reads again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from llmbudget.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import SECRETS
from llmbudget.contract.config import CA_BUNDLE_KEY
from llmbudget.decide.certificates import (
    AUTHORITY_LIFE,
    CERTIFICATE_LIFE,
    Step,
    certificate_fits,
    next_step,
    serving_names,
)
from llmbudget.decide.world import Budget, World
from llmbudget.reconcile.apply import look_at_secret
from llmbudget.reconcile.live import Live
from llmbudget.reconcile.x509 import (
    Authority,
    NotCertificate,
    facts_of,
    only_certificates,
    validity_of,
)
from llmbudget.render import names
from llmbudget.render.certificate import PLAIN_HTTP, Pair, Serving

log = logging.getLogger(__name__)

AUTHORITY_SECRET: Final = "llmbudget-authority"  # noqa: S105
KNOWN_SECONDS: Final = 60.0
"""How long the authorities are taken for granted."""
BROKEN_SECONDS: Final = 5.0
"""The same, where there are none that can be used: people are about to mend that."""
_TRIES: Final = 5


class AuthorityUnusable(Exception):
    """The authority's Secret can't be used; the message says what to do."""


@dataclass(frozen=True)
class Authorities:
    """Those that clients trust."""

    current: Authority | None = None
    """Signs now."""
    following: Authority | None = None
    """Signs next."""
    previous: bytes | None = None
    """The certificate of the one that signed before."""

    @cached_property
    def bundle(self) -> str:
        """All of them, in PEM: one text for all gateways."""
        known = [each.pair.certificate for each in (self.current, self.following) if each]
        return b"".join([*known, *([self.previous] if self.previous else [])]).decode()


class Certificates:
    """Gives each root's gateway what it is to be spoken to by."""

    def __init__(
        self, cluster: Cluster, live: Live, namespace: str, clock: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._live = live
        self._namespace = namespace
        self._clock = clock
        self._known: Authorities | AuthorityUnusable | None = None
        self._known_at = 0.0
        self._reading = asyncio.Lock()

    async def serving(self, world: World) -> Serving:
        """Find a gateway's certificate, or make it anew where it is due. Without an authority that
        can be used, what there is stays.

        Raises:
            ApiError.
        """
        root = world.root
        tls = root.spec.deployment.tls
        if tls.plain_http:
            return PLAIN_HTTP
        if tls.secret_name is not None:
            secret = await self._cluster.get(SECRETS, root.namespace, tls.secret_name)
            pem = _entries(secret).get("ca.crt", b"")
            return Serving(tls=True, bundle=only_certificates(pem) or None)
        name = names.serving_secret(root)
        secret = await self._cluster.get(SECRETS, root.namespace, name)
        look_at_secret(self._live, root, name, secret)
        pair = _pair(secret)
        try:
            authorities = await self._authorities()
        except AuthorityUnusable as error:
            return Serving(tls=True, pair=pair, bundle=self._bundle(root), problem=str(error))
        signing = authorities.current
        assert signing is not None
        wanted = serving_names(world, names.services(world))
        if pair is None or not self._fits(pair, wanted, signing):
            pair = await asyncio.to_thread(signing.issue, wanted, self._clock(), CERTIFICATE_LIFE)
            log.info("certificate issued", extra={"fields": {"budget": root.account}})
        return Serving(tls=True, pair=pair, bundle=authorities.bundle)

    def _bundle(self, root: Budget) -> str | None:
        """Find the authorities that a gateway's clients were given last."""
        metadata = {"namespace": root.namespace, "name": names.ca_bundle(root)}
        found = self._live.get({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        return ((found or {}).get("data") or {}).get(CA_BUNDLE_KEY)

    def _fits(self, pair: Pair, wanted: frozenset[str], signing: Authority) -> bool:
        try:
            facts = facts_of(pair)
        except NotCertificate:
            return False
        return certificate_fits(facts, wanted, signing.identifier, self._clock())

    async def _authorities(self) -> Authorities:
        async with self._reading:
            usable = isinstance(self._known, Authorities)
            lasts = KNOWN_SECONDS if usable else BROKEN_SECONDS
            if self._known is None or time.monotonic() - self._known_at > lasts:
                try:
                    self._known = await self._settled()
                except AuthorityUnusable as error:
                    self._known = error
                self._known_at = time.monotonic()
            if isinstance(self._known, AuthorityUnusable):
                raise self._known
            return self._known

    async def _settled(self) -> Authorities:
        """Read the authorities, and do what is due with them."""
        for _ in range(_TRIES):
            try:
                secret = await self._secret()
                found = before = self._read(secret)
                while (step := self._step(found)) is not None:
                    found = _taken(found, step, self._clock())
                    log.info("authority", extra={"fields": {"step": step.name.lower()}})
                if found is not before:
                    await self._keep(secret | {"data": _written(found)})
            except ApiError as error:
                if error.status == 403:
                    raise AuthorityUnusable(
                        f"The operator may not read or write its authority, Secret {self._place}:"
                        " install the manifests of this version again, or set"
                        " spec.deployment.tls.secretName."
                    ) from None
                if error.status != 409:
                    raise
            else:
                return found
        raise AuthorityUnusable(f"Secret {self._place} is written by others all the time.")

    async def _keep(self, secret: dict[str, Any]) -> None:
        """Write the Secret.

        Raises:
            ApiError: 409 where somebody has made or written it since it was read.
        """
        known = "resourceVersion" in secret["metadata"]
        await (self._cluster.replace if known else self._cluster.create)(secret)

    def _step(self, found: Authorities) -> Step | None:
        current, following = found.current, found.following
        return next_step(
            current.validity if current else None,
            following.validity if following else None,
            validity_of(found.previous) if found.previous else None,
            self._clock(),
        )

    async def _secret(self) -> dict[str, Any]:
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": self._metadata}
        return made | (await self._cluster.get(SECRETS, self._namespace, AUTHORITY_SECRET) or {})

    @property
    def _metadata(self) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": "llmbudget", LABEL_MANAGED_BY: MANAGED_BY}
        return {"name": AUTHORITY_SECRET, "namespace": self._namespace, "labels": labels}

    def _read(self, secret: Mapping[str, Any]) -> Authorities:
        entries = _entries(secret)
        try:
            previous = entries.get("previous.crt") or None
            if previous is not None:
                validity_of(previous)
            return Authorities(
                _authority(entries, "current"), _authority(entries, "next"), previous
            )
        except NotCertificate as error:
            raise AuthorityUnusable(
                f"Secret {self._place} holds no authority that can be read ({error}): remove its"
                " data, and a new one is made, which clients then have to be given."
            ) from None

    @property
    def _place(self) -> str:
        return f"{self._namespace}/{AUTHORITY_SECRET}"


def _taken(found: Authorities, step: Step, now: datetime) -> Authorities:
    if step is Step.FORGET:
        return replace(found, previous=None)
    if step is Step.PROMOTE:
        before = found.current.pair.certificate if found.current else None
        return Authorities(found.following, None, before)
    made = Authority.make(now, AUTHORITY_LIFE)
    return replace(found, following=made) if step is Step.PREPARE else replace(found, current=made)


def _authority(entries: Mapping[str, bytes], name: str) -> Authority | None:
    certificate, key = entries.get(f"{name}.crt"), entries.get(f"{name}.key")
    if not (certificate or key):
        return None
    return Authority(Pair(certificate or b"", key or b""))


def _written(found: Authorities) -> dict[str, str]:
    entries: dict[str, bytes] = {}
    for name, authority in (("current", found.current), ("next", found.following)):
        if authority is not None:
            entries[f"{name}.crt"] = authority.pair.certificate
            entries[f"{name}.key"] = authority.pair.key
    if found.previous is not None:
        entries["previous.crt"] = found.previous
    return {name: b64encode(value).decode() for name, value in entries.items()}


def _pair(secret: Mapping[str, Any] | None) -> Pair | None:
    entries = _entries(secret)
    certificate, key = entries.get("tls.crt"), entries.get("tls.key")
    return Pair(certificate, key) if certificate and key else None


def _entries(secret: Mapping[str, Any] | None) -> dict[str, bytes]:
    data = (secret or {}).get("data") or {}
    return {name: b64decode(value) for name, value in data.items()}
