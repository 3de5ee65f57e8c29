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
GOLDEN = Path(__file__).parents[1] / "golden"
RENDERED = GOLDEN / "rendered"
SETS = sorted(path.stem for path in RENDERED.glob("*.yaml"))
GATEWAYS = "llm-platform"
OPERATOR = "llmbudget-system"
BYSTANDER = "any"
"""A pod in each namespace, beside ours where we have some."""
STRANGER = "stranger"
ALWAYS_IN = {"monitoring": "8080, TCP", OPERATOR: "8080, TCP"}
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
    addresses: list[tuple[str, str]] = field(default_factory=list)
    """An address may be in several rules."""

    def to_address(self, address: str) -> str:
        """Tell what may go to an address; empty: nothing."""
        asked = ipaddress.ip_address(address)
        found: dict[str, str] = {}
        for text, passes in self.addresses:
            if any(asked in network for network in _networks(text)):
                _add(found, [address], passes)
        return found.get(address, "")


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
        metadata = {"name": BYSTANDER, "namespace": name, "labels": {"app": "any"}}
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
    return name, of_pods(GATEWAYS, rules(analyser, cluster(name), tmp_path))


def rules(analyser: Path, documents: list[Manifest], folder: Path) -> list[Manifest]:
    """Ask the analyser who may connect to whom."""
    file, found = folder / "cluster.yaml", folder / "found.json"
    file.write_text(yaml.safe_dump_all(documents))
    command = [analyser, "--connectivity", file, "-n", file, "-p", file, "-o", "json", "-f", found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.exists(), done.stderr
    [query] = json.loads(found.read_text())
    explained: list[Manifest] = query["explanation"][0]["rules"]
    return explained


def of_pods(namespace: str, rules: list[Manifest]) -> Allowed:
    """Keep the rules that our pods of a namespace are in."""
    allowed = Allowed()
    for rule in rules:
        passes = ", ".join(_named(connection) for connection in rule["connection"])
        if namespace in rule.get("src_ns", ()) and rule["src_pods"] != [BYSTANDER]:
            _add(allowed.targets, rule.get("dst_ns", ()), passes)
            allowed.addresses += [(block, passes) for block in rule.get("dst_ip_block", ())]
        if namespace in rule.get("dst_ns", ()) and rule["dst_pods"] != [BYSTANDER]:
            sources = (*rule.get("src_ns", ()), *rule.get("src_ip_block", ()))
            _add(allowed.sources, sources, passes)
    return allowed


def _add(known: dict[str, str], names: Iterable[str], passes: str) -> None:
    """Put together what several rules allow."""
    for name in names:
        words = {*known.get(name, passes).split(", "), *passes.split(", ")}
        known[name] = ", ".join(sorted(words))


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
        assert "6443" in allowed.to_address(address)
    assert allowed.to_address(METADATA_SERVICE) == ""
    public = {"strict-network": "", "vault": "443, 8200, TCP"}.get(name, "443, TCP")
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


def test_the_operator_is_reached_by_prometheus_alone_and_reaches_what_it_must(
    analyser: Path, tmp_path: Path
) -> None:
    installed = yaml.safe_load_all((GOLDEN / "manifests" / "default.yaml").read_text())
    ours = [one for one in installed if one["kind"] in ("NetworkPolicy", "Deployment")]
    found = rules(analyser, cluster("minimal") + ours, tmp_path)
    allowed = of_pods(OPERATOR, found)
    assert allowed.sources == {"monitoring": "8081, TCP"}
    assert allowed.targets == {GATEWAYS: "8080, TCP", "kube-system": "53, TCP, UDP"}
    for address in (*API_SERVERS, PUBLIC):
        assert allowed.to_address(address) == "443, 465, 587, 6443, TCP"
    assert allowed.to_address(METADATA_SERVICE) == ""
    everything = [rule for rule in found if rule["connection"] == ["All connections"]]
    beside = [rule for rule in everything if OPERATOR in rule.get("dst_ns", ())]
    assert any(STRANGER in rule.get("src_ns", ()) for rule in beside), "our policy is ours alone"
