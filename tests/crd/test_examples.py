"""The examples: accepted by the real API server, and true to the 371OS guide."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.provider import ProviderSpec

Kubectl = Callable[..., str]
Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/kustomization.yaml"))
PROFILED = ["smb", "enterprise", "global"]

PROVIDERS_JSON = """[
  {"name": "openrouter", "model": "gpt-4o-mini", "cost_in": "0.0006", "cost_out": "0.0006",
   "max_context": 128000, "latency_ms": 500, "endpoint_env": "OPENROUTER_API_KEY"},
  {"name": "requesty", "model": "claude-3-sonnet", "cost_in": "0.003", "cost_out": "0.015",
   "max_context": 200000, "latency_ms": 800, "endpoint_env": "REQUESTY_API_KEY"},
  {"name": "localai", "model": "phi-4-14b", "cost_in": "0.0", "cost_out": "0.0",
   "max_context": 32000, "latency_ms": 200, "endpoint_env": "LOCALAI_API_KEY"}
]"""


def documents(example: str) -> list[Manifest]:
    files = sorted((ROOT / "examples" / example).glob("*.yaml"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [each for text in texts for each in yaml.safe_load_all(text)]


def of_kind(example: str, kind: str) -> dict[str, Manifest]:
    found = [each for each in documents(example) if each["kind"] == kind]
    return {each["metadata"]["name"]: each for each in found}


@pytest.mark.cluster
@pytest.mark.usefixtures("crds")
@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_the_api_server_accepts(folder: Path, kubectl: Kubectl) -> None:
    rendered = list(yaml.safe_load_all(kubectl("kustomize", str(folder))))
    namespaces = [each for each in rendered if each["kind"] == "Namespace"]
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(namespaces))
    everything = yaml.safe_dump_all(rendered)
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict")
    assert "llmbudget.llmbudget.io/" in kubectl(*arguments, "-f", "-", stdin=everything)


@pytest.mark.parametrize("example", PROFILED)
def test_the_guides_providers(example: str) -> None:
    providers = of_kind(example, "LLMProvider")
    written = []
    for name, manifest in providers.items():
        spec = ProviderSpec.model_validate(manifest["spec"])
        (model,) = spec.models
        assert model.cost is not None
        assert spec.credentials.secret_key_ref is not None
        written.append(
            {
                "name": name,
                "model": model.name,
                "cost_in": model.cost.input_per_1k,
                "cost_out": model.cost.output_per_1k,
                "max_context": model.max_context,
                "latency_ms": model.latency_ms,
                "endpoint_env": spec.credentials.secret_key_ref.key,
            }
        )
    assert written == json.loads(PROVIDERS_JSON)


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_every_key_is_there_and_consents(folder: Path) -> None:
    secrets = of_kind(folder.name, "Secret")
    for manifest in of_kind(folder.name, "LLMProvider").values():
        spec = ProviderSpec.model_validate(manifest["spec"])
        ref, vault = spec.credentials.secret_key_ref, spec.credentials.vault
        if ref is not None:
            name, entries, url = ref.name, {ref.key}, spec.endpoint
        else:
            assert vault is not None
            if vault.app_role_secret_ref is None:
                continue
            name, url = vault.app_role_secret_ref.name, vault.address
            entries = {"role_id", "secret_id"}
        secret, host = secrets[name], urlsplit(url).hostname
        assert entries <= set(secret["stringData"])
        assert secret["metadata"]["labels"]["llmbudget.io/provider-key"] == "true"
        assert secret["metadata"]["annotations"]["llmbudget.io/allowed-host"] == host


@pytest.mark.parametrize("example", PROFILED)
def test_each_shows_its_profile_and_its_ledger(example: str) -> None:
    root = next(
        each for each in of_kind(example, "LLMBudget").values() if "profile" in each["spec"]
    )
    spec = BudgetSpec.model_validate(root["spec"])
    assert spec.profile == example
    assert (spec.ledger.postgres is None) == (example == "smb")
    if spec.ledger.postgres is not None:
        reference = spec.ledger.postgres.secret_key_ref
        assert reference.key in of_kind(example, "Secret")[reference.name]["stringData"]
