"""Worlds built from manifests, by the operator's own reading of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from llmbudget.api.meta import ANNOTATION_ALLOWED_HOST, LABEL_LEDGER, LABEL_PROVIDER_KEY
from llmbudget.decide.world import Installation, SecretFacts, World
from llmbudget.reconcile.store import Store
from llmbudget.render.certificate import PLAIN_HTTP, Pair, Serving

Manifest = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
INSTALLATION = Installation(
    namespace="llmbudget-system",
    service_account="llmbudget-system/llmbudget-operator",
    gateway_image="registry.example/llmbudget:1.0",
    image_prefixes=("registry.example/mirror/",),
    private_hosts=frozenset(
        {"localai.ai:8080", "localai.ai-models.svc:8080", "vault.vault.svc:8200"}
    ),
)


def read(*paths: Path) -> list[Manifest]:
    """Read all documents of YAML files."""
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def store_of(documents: Iterable[Manifest]) -> Store:
    """Take documents over as if watches had told of them."""
    store = Store()
    for number, document in enumerate(documents):
        generated = {"uid": f"uid-{number}", "generation": 1, "resourceVersion": str(number)}
        metadata = generated | document["metadata"]
        if document["kind"] == "LLMBudget":
            store.put_budget({**document, "metadata": metadata})
        elif document["kind"] == "LLMProvider":
            store.put_provider({**document, "metadata": metadata})
    return store


def world_of(documents: Iterable[Manifest], **changes: Any) -> World:
    """Gather the world of the first root budget among documents."""
    documents = list(documents)
    store = store_of(documents)
    assert not store.invalid, store.invalid
    members = next(iter(store.forest.trees.values()))
    values: dict[str, Any] = {
        "root": members[0],
        "children": members[1:],
        "providers": store.providers_in(members[0].namespace),
        "secrets": _secrets(documents, members[0].namespace),
        "api_servers": (("10.0.0.1", 6443), ("10.0.0.2", 6443)),
        "installation": INSTALLATION,
        "previous_config": None,
        "now": NOW,
    }
    return World(**(values | changes))


def serving_of(world: World) -> Serving:
    """Tell how a gateway is spoken to, with a certificate that is the same in every run."""
    tls = world.root.spec.deployment.tls
    if tls.plain_http:
        return PLAIN_HTTP
    pair = None if tls.secret_name else Pair(b"a certificate", b"its key")
    return Serving(tls=True, pair=pair, bundle="authorities\n")


def _secrets(documents: Iterable[Manifest], namespace: str) -> Mapping[str, SecretFacts]:
    return {
        document["metadata"]["name"]: SecretFacts(
            consents=(document["metadata"].get("labels") or {}).get(LABEL_PROVIDER_KEY) == "true",
            allowed_host=(document["metadata"].get("annotations") or {}).get(
                ANNOTATION_ALLOWED_HOST
            ),
            is_ledger=(document["metadata"].get("labels") or {}).get(LABEL_LEDGER) == "true",
        )
        for document in documents
        if document["kind"] == "Secret" and document["metadata"]["namespace"] == namespace
    }
