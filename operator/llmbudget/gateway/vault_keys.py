"""The providers' keys in Vault: kept in memory for a while, and read again well before its end.

A call finds a key that is there already. Only where there is none yet, or where the provider has
refused the one that is known, does it wait for a read, which all such calls share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from llmbudget.clients.vault import Secret, SecretRefused, VaultClient, VaultError
from llmbudget.contract.config import VAULT_CA_FILE, ProviderConfig, VaultConfig
from llmbudget.gateway.checked import BadBundle, CheckedTransport, trusted

log = logging.getLogger(__name__)

ALLOWED_HOST: Final = "allowed_host"
"""Entry of the secret with the host that its key may be sent to."""
_REFRESH_AT: Final = 2 / 3
"""Part of a key's time after which it is read again."""
_LEAST_SECONDS: Final = 1.0
"""Between two reads that nobody waits for, and after one that was in vain."""
_BACKOFF_SECONDS: Final = (1.0, 30.0)
_MILLISECONDS: Final = 1000


class VaultKey:
    """One provider's key."""

    def __init__(
        self,
        provider: ProviderConfig,
        config: VaultConfig,
        client: VaultClient,
        clock: Callable[[], float],
    ) -> None:
        self.provider = provider
        self.problem: str | None = "it has not been read yet"
        """Why the last read failed; None: it did not."""
        self._config = config
        self._client = client
        self._clock = clock
        self._key: str | None = None
        self._until = 0.0
        self._refresh_seconds = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._vain_until = float("-inf")

    def get(self) -> str | None:
        """Return the key while its time lasts."""
        return self._key if self._clock() < self._until else None

    async def awaited(self) -> str | None:
        """Return the key, after reading it where it is not there and the last read is past."""
        if self.get() is None and self._clock() >= self._vain_until:
            await self._read()
        return self.get()

    async def other_than(self, refused: str) -> str | None:
        """Return a key in place of one that the provider refuses; None: there is no other."""
        if self.get() == refused and self._clock() >= self._vain_until:
            await self._read()
            if self.get() == refused:
                self._vain_until = self._clock() + _LEAST_SECONDS
        found = self.get()
        return None if found == refused else found

    async def follow(self) -> None:
        """Keep the key fresh until cancelled."""
        pause, longest = _BACKOFF_SECONDS
        while True:
            await self._read()
            if self.problem is None:
                pause = _BACKOFF_SECONDS[0]
                await asyncio.sleep(self._refresh_seconds)
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)

    async def _read(self) -> None:
        """Read the key, or wait for the read that is under way; nobody who leaves ends it."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._take())
        await asyncio.shield(self._reading)

    async def _take(self) -> None:
        started = self._clock()
        try:
            secret = await self._client.read()
            key = self._checked(secret)
        except VaultError as error:
            if isinstance(error, SecretRefused):
                # It was taken away, and not only out of reach.
                self._key = None
            self._vain_until = self._clock() + _LEAST_SECONDS
            self._tell(str(error))
            return
        ttl = min(self._config.ttl_ms / _MILLISECONDS, secret.lease_seconds or float("inf"))
        self._key, self._until = key, started + ttl
        renewal = self._client.renewal_seconds
        due = ttl * _REFRESH_AT if renewal is None else min(ttl * _REFRESH_AT, renewal)
        self._refresh_seconds = max(_LEAST_SECONDS, due)
        self._tell(None)

    def _checked(self, secret: Secret) -> str:
        """Find the key in a secret that consents to be sent to the provider.

        Raises:
            SecretRefused.
        """
        config, entries = self._config, secret.entries
        where = f"the secret {config.mount}/{config.path}"
        host = urlsplit(self.provider.endpoint).hostname or ""
        if entries.get(ALLOWED_HOST) != host:
            raise SecretRefused(f"{where} may not be sent to {host}: add {ALLOWED_HOST}={host}")
        key = clean(entries.get(config.key))
        if key is None:
            raise SecretRefused(f"{where} has no entry {config.key} that can stand in a header")
        return key

    def _tell(self, problem: str | None) -> None:
        if problem != self.problem:
            fields = {"provider": self.provider.name, "why": problem}
            if problem is None:
                log.info("key read from Vault", extra={"fields": fields})
            else:
                log.warning("key not read from Vault", extra={"fields": fields})
        self.problem = problem


def clean(text: object) -> str | None:
    """Accept what can stand in a header, without the newline that many a secret ends with."""
    key = text.strip() if isinstance(text, str) else ""
    return key if key and key.isascii() and key.isprintable() else None


class VaultKeys:
    """The keys of all providers whose keys are in Vault."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        """One folder a provider, with what the gateway logs in with."""
        self._clock = clock
        self._followed: dict[str, tuple[VaultKey, asyncio.Task[None]]] = {}

    def of(self, provider: ProviderConfig, config: VaultConfig) -> VaultKey:
        """Give a provider's key, which is followed from now on."""
        known = self._followed.get(provider.name)
        if known is not None and _same_source(known[0].provider, provider):
            return known[0]
        if known is not None:
            known[1].cancel()
        folder = self._directory / provider.name
        client = VaultClient(config, folder, lambda: _transport(config, folder), self._clock)
        key = VaultKey(provider, config, client, self._clock)
        self._followed[provider.name] = key, asyncio.create_task(key.follow())
        return key

    def keep(self, providers: Iterable[ProviderConfig]) -> None:
        """Follow the keys of these providers, and forget all others."""
        wanted = {each.name: each.vault for each in providers if each.vault is not None}
        for name in self._followed.keys() - wanted.keys():
            self._followed.pop(name)[1].cancel()
        for provider in providers:
            if provider.vault is not None:
                self.of(provider, provider.vault)


def _same_source(one: ProviderConfig, other: ProviderConfig) -> bool:
    return (one.vault, one.endpoint) == (other.vault, other.endpoint)


async def _transport(config: VaultConfig, folder: Path) -> httpx.AsyncBaseTransport:
    bundle = folder / VAULT_CA_FILE if config.ca_bundle else None
    try:
        context = await asyncio.to_thread(trusted, bundle)
    except BadBundle as error:
        raise VaultError(str(error)) from None
    return CheckedTransport(context, allow_private=config.allow_private)
