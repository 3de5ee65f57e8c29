"""A budget reaches another namespace only by fields where the other side is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmbudget.api.crd import KINDS, crd

CONSENT_IS_ASKED = {
    "LLMBudget": {
        "spec.parentRef.namespace",
        "spec.allowedChildren.namespaces",  # gives consent
        "spec.consumers[].namespace",  # who may call: proved by a token
        "spec.targets[].namespace",
        "spec.network.ingressNamespaces",
        "spec.network.egressNamespaces",
    },
    "LLMProvider": {
        "spec.credentials.vault.namespace",  # one of Vault's own
    },
}


def fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, below in (schema.get("properties") or {}).items():
        yield from fields(below, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from fields(schema["items"], f"{path}[]")
    elif not schema.get("properties"):
        yield path
    if schema.get("type") == "array":
        yield path


def test_only_what_asks_for_consent_names_another_namespace() -> None:
    for kind in (each.name for each in KINDS):
        document = next(crd(each) for each in KINDS if each.name == kind)
        schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        named = {
            path.removesuffix("[]")
            for path in fields(schema)
            if path.startswith("spec.") and "namespace" in path.rsplit(".", 1)[-1].lower()
        }
        assert named - CONSENT_IS_ASKED[kind] == set(), "does it ask the other side?"
        assert CONSENT_IS_ASKED[kind] - named == set(), "no longer there"
