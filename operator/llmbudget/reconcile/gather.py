"""Everything about one root budget, read into one World."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from llmbudget.api.gateway_spec import SecretDelivery
from llmbudget.api.meta import ANNOTATION_ALLOWED_HOST, LABEL_LEDGER, LABEL_PROVIDER_KEY
from llmbudget.api.model import LocalRef, SecretKeyRef
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import SECRETS
from llmbudget.contract.config import CONFIG_KEY
from llmbudget.decide.databases import databases
from llmbudget.decide.validity.chain import callable_providers
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import Budget, Installation, Provider, SecretFacts, World
from llmbudget.reconcile.live import Live
from llmbudget.reconcile.store import Store
from llmbudget.render import names

_FRESH_SECONDS: Final = 1.0


class SecretReader:
    """Reads what Secrets say of themselves: each once a second, however many budgets name it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._read: dict[tuple[str, str], tuple[float, asyncio.Future[SecretFacts | None]]] = {}

    async def facts(self, namespace: str, name: str) -> SecretFacts | None:
        """Read the metadata of a Secret, never its data; None: there is none.

        Raises:
            ApiError.
        """
        now, key = time.monotonic(), (namespace, name)
        known = self._read.get(key)
        if known is None or now - known[0] > _FRESH_SECONDS or _failed(known[1]):
            self._read = {k: v for k, v in self._read.items() if now - v[0] <= _FRESH_SECONDS}
            known = self._read[key] = now, asyncio.ensure_future(self._look(namespace, name))
        # Who gives up must not take the others' answer along.
        return await asyncio.shield(known[1])

    async def _look(self, namespace: str, name: str) -> SecretFacts | None:
        secret = await self._cluster.get_metadata(SECRETS, namespace, name)
        if secret is None:
            return None
        labels = secret["metadata"].get("labels") or {}
        annotations = secret["metadata"].get("annotations") or {}
        return SecretFacts(
            consents=labels.get(LABEL_PROVIDER_KEY) == "true",
            allowed_host=annotations.get(ANNOTATION_ALLOWED_HOST),
            is_ledger=labels.get(LABEL_LEDGER) == "true",
        )


def _failed(read: asyncio.Future[SecretFacts | None]) -> bool:
    return read.done() and (read.cancelled() or read.exception() is not None)


async def gather(
    reader: SecretReader,
    store: Store,
    live: Live,
    installation: Installation,
    root: str,
    now: datetime,
) -> World:
    """Read what a root budget depends on.

    Raises:
        ApiError: something can't be read.
    """
    members = store.forest.trees[root]
    namespace = members[0].namespace
    await live.ready(namespace)
    providers = store.providers_in(namespace)
    chosen = [providers[ref.name] for ref in members[0].spec.providers if ref.name in providers]

    def known(kind: str, name: str) -> dict[str, Any] | None:
        metadata = {"namespace": namespace, "name": name}
        return live.get({"apiVersion": "v1", "kind": kind, "metadata": metadata})

    config_map = known("ConfigMap", names.gateway(members[0]))
    return World(
        root=members[0],
        children=members[1:],
        providers=providers,
        secrets=await _secrets(reader, namespace, _secret_names(members[0], chosen)),
        api_servers=live.api_servers(),
        installation=installation,
        previous_config=((config_map or {}).get("data") or {}).get(CONFIG_KEY),
        now=now,
        embedded_ledger=known("PersistentVolumeClaim", names.ledger_claim(members[0])) is not None,
    )


async def keys_for_environment(
    cluster: Cluster, world: World, found: tuple[Finding, ...]
) -> Mapping[str, str]:
    """Read the providers' keys, only where the budget asks for keys by the environment.

    Returns:
        Base64 by provider name.

    Raises:
        ApiError.
    """
    if world.root.spec.deployment.secret_delivery is not SecretDelivery.ENV:
        return {}
    keys: dict[str, str] = {}
    for provider in callable_providers(world, found):
        ref = provider.spec.credentials.secret_key_ref if provider.spec else None
        secret = await cluster.get(SECRETS, provider.namespace, ref.name) if ref else None
        if ref is not None and secret is not None and ref.key in (secret.get("data") or {}):
            keys[provider.name] = secret["data"][ref.key]
    return keys


def _secret_names(root: Budget, providers: list[Provider]) -> list[str]:
    """Name the Secrets that a gateway is to mount and to send somewhere."""
    sources = [p.spec.credentials for p in providers if p.spec is not None]
    refs: list[SecretKeyRef | LocalRef | None] = [each.secret_key_ref for each in sources]
    refs += [each.vault.app_role_secret_ref for each in sources if each.vault is not None]
    monitoring = root.spec.monitoring
    refs += [monitoring.posthog.api_key_secret_ref, monitoring.datadog.api_key_secret_ref]
    refs += [each.secret_key_ref for each in databases(root)]
    return sorted({ref.name for ref in refs if ref is not None})


async def _secrets(
    reader: SecretReader, namespace: str, wanted: list[str]
) -> dict[str, SecretFacts]:
    found = await asyncio.gather(*(reader.facts(namespace, name) for name in wanted))
    return {name: facts for name, facts in zip(wanted, found, strict=True) if facts is not None}
