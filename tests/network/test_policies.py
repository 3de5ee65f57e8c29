"""What the rendered NetworkPolicies allow, worked out by an analyser that knows nothing of them.

Each golden set is put into a cluster of some namespaces with a pod each, and np-guard's
network-config-analyzer says who may connect to whom. What the 371OS guide allows must be allowed,
and beside it only what a gateway needs.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench import environment

Manifest = dict[str, Any]
RENDERED = Path(__file__).parents[1] / "golden" / "rendered"
SETS = sorted(path.stem for path in RENDERED.glob("*.yaml"))
GATEWAYS = "llm-platform"
STRANGER = "stranger"
ALWAYS_IN = {"monitoring": "8080, TCP", "llmbudget-system": "8080, TCP"}
"""The guide's rule, and the operator, which follows the balances."""
ALWAYS_OUT = {"external-apis": "443, TCP", "kube-system": "53, TCP, UDP"}
"""The guide's rule, and the cluster's DNS."""
CONSUMERS = {
    **{name: {"team-a"} for name in ("minimal", "quickstart", "scheduling", "vault")},
    "environment": {"team-a"},
    "strict-network": {"team-a", "team-b"},
    "tree": {"llm-teams"},
    "smb": {"apps"},
    "enterprise": {"support"},
    "global": {"apps"},
    "regions": {"apps"},
}
MORE_OUT = {
    **{name: {"ai-models": "8080, TCP"} for name in ("minimal", "tree")},
    "strict-network": {"ai-models": "8080, TCP"},
    "vault": {"vault": "8200, TCP"},
    "global": {"global": "4318, TCP", "databases": "5432, TCP"},
    "enterprise": {"databases": "5432, TCP"},
    "regions": {"databases": "5432, 6432, TCP"},
}
"""Providers inside the cluster, a Vault, databases, a collector of traces: what the set's own
fields name."""
NAMESPACES = sorted(
    {*ALWAYS_IN, *ALWAYS_OUT, STRANGER}.union(*CONSUMERS.values(), *MORE_OUT.values())
)
API_SERVERS = ("10.0.0.1", "10.0.0.2")
METADATA_SERVICE = "169.254.169.254"
PUBLIC = "93.184.215.14"


@dataclass
class Allowed:
    """Of a gateway's pod: namespace or address range → ports and protocols that may pass."""

    sources: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def to_address(self, address: str) -> set[str]:
        """Tell what may go to an address."""
        asked = ipaddress.ip_address(address)
        return {
            ports
            for text, ports in self.addresses.items()
            if any(asked in network for network in _networks(text))
        }


def _networks(text: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    if "-" in text:
        first, last = (ipaddress.IPv4Address(part) for part in text.split("-"))
        yield from ipaddress.summarize_address_range(first, last)
    else:
        yield ipaddress.ip_network(text)


def cluster(rendered: str) -> list[Manifest]:
    """Put a set's policies and gateways into a cluster with a pod in every namespace."""
    documents = list(yaml.safe_load_all((RENDERED / f"{rendered}.yaml").read_text()))
    ours = [one for one in documents if one["kind"] in ("NetworkPolicy", "Deployment")]
    made: list[Manifest] = []
    for name in (GATEWAYS, *NAMESPACES):
        labels = {"kubernetes.io/metadata.name": name}
        made.append(_object("v1", "Namespace", {"name": name, "labels": labels}))
    for name in NAMESPACES:
        metadata = {"name": "any", "namespace": name, "labels": {"app": "any"}}
        containers = [{"name": "main", "image": "registry.example/any:1"}]
        made.append(_object("v1", "Pod", metadata) | {"spec": {"containers": containers}})
    return made + ours


def _object(version: str, kind: str, metadata: Manifest) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


@pytest.fixture(scope="session")
def analyser() -> Path:
    """The program, in an environment of its own: it pins other versions than ours."""
    requirements = Path(__file__).with_name("requirements-analyser.txt")
    return environment.installed("network-config-analyzer", requirements) / "bin" / "nca"


@pytest.fixture(params=SETS)
def analysed(request: pytest.FixtureRequest, analyser: Path, tmp_path: Path) -> tuple[str, Allowed]:
    name: str = request.param
    file, found = tmp_path / "cluster.yaml", tmp_path / "found.json"
    file.write_text(yaml.safe_dump_all(cluster(name)))
    command = [analyser, "--connectivity", file, "-n", file, "-p", file, "-o", "json", "-f", found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.exists(), done.stderr
    [query] = json.loads(found.read_text())
    return name, of_gateways(query["explanation"][0]["rules"])


def of_gateways(rules: list[Manifest]) -> Allowed:
    """Keep the rules that a gateway's pod is in."""
    allowed = Allowed()
    for rule in rules:
        passes = ", ".join(_named(connection) for connection in rule["connection"])
        if GATEWAYS in rule.get("src_ns", ()):
            allowed.targets |= dict.fromkeys(rule.get("dst_ns", ()), passes)
            allowed.addresses |= dict.fromkeys(rule.get("dst_ip_block", ()), passes)
        if GATEWAYS in rule.get("dst_ns", ()):
            sources = (*rule.get("src_ns", ()), *rule.get("src_ip_block", ()))
            allowed.sources |= dict.fromkeys(sources, passes)
    return allowed


def _named(connection: Any) -> str:
    if isinstance(connection, str):
        return connection
    return ", ".join(sorted(map(str, _flat(connection.values()))))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from value
        else:
            yield value


def test_every_golden_set_is_analysed() -> None:
    assert set(SETS) == set(CONSUMERS)


def test_gateways_talk_to_whom_they_must_and_to_nobody_else(analysed: tuple[str, Allowed]) -> None:
    name, allowed = analysed
    assert allowed.sources == ALWAYS_IN | dict.fromkeys(CONSUMERS[name], "8080, TCP")
    assert allowed.targets == ALWAYS_OUT | MORE_OUT.get(name, {})


def test_addresses(analysed: tuple[str, Allowed]) -> None:
    name, allowed = analysed
    for address in API_SERVERS:
        assert any("6443" in passes for passes in allowed.to_address(address))
    assert allowed.to_address(METADATA_SERVICE) == set()
    public = set() if name == "strict-network" else {"443, TCP"}
    if name == "vault":
        public = {"443, 8200, TCP"}
    assert allowed.to_address(PUBLIC) == public


def test_the_guides_own_policy_is_permitted(analyser: Path, tmp_path: Path) -> None:
    """Word for word, but for the label of the pods that it is about."""
    strict = cluster("strict-network")
    [ours] = [one for one in strict if one["kind"] == "NetworkPolicy"]
    for one in strict:
        if one["kind"] == "Namespace":
            one["metadata"]["labels"]["name"] = one["metadata"]["name"]
    allow = [{"protocol": "TCP", "port": 8080}], [{"protocol": "TCP", "port": 443}]
    metadata = {"name": "minds371-network-policy", "namespace": GATEWAYS}
    guide = _object("networking.k8s.io/v1", "NetworkPolicy", metadata) | {
        "spec": {
            "podSelector": ours["spec"]["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [_labelled("monitoring")], "ports": allow[0]}],
            "egress": [{"to": [_labelled("external-apis")], "ports": allow[1]}],
        }
    }
    theirs, file = tmp_path / "guide.yaml", tmp_path / "cluster.yaml"
    theirs.write_text(yaml.safe_dump(guide))
    file.write_text(yaml.safe_dump_all(strict))
    command = [analyser, "--permits", theirs, "-b", file, "-n", file, "-p", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "permits" in done.stdout.lower(), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout


def _labelled(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"name": name}}}
