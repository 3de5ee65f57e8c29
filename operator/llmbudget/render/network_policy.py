"""Who may connect to the gateway, and where the gateway may connect to.

The 371OS guide's two rules first: in from the namespace `monitoring` on 8080, out to the namespace
`external-apis` on 443. Then only what the gateway needs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from llmbudget.api.gateway_spec import Egress, PostgresRef
from llmbudget.contract.config import GATEWAY_PORT
from llmbudget.decide.databases import ledger_hosts, region_database
from llmbudget.decide.validity.chain import callable_providers
from llmbudget.decide.validity.consent import posthog_of
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.validity.providers import private_urls
from llmbudget.decide.validity.tracing import collector_of
from llmbudget.decide.world import World
from llmbudget.render.deployment import pod_labels
from llmbudget.render.names import Manifest, gateway, metadata, selector

_NAME: Final = "kubernetes.io/metadata.name"
_HTTPS: Final = 443
_PRIVATE_V4: Final = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
)
_PRIVATE_V6: Final = ("::1/128", "fc00::/7", "fe80::/10", "ff00::/8", "64:ff9b::/96")
_INTERNAL: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
"""Where a private endpoint of any other name may be."""


def network_policy(world: World, found: tuple[Finding, ...]) -> Manifest:
    """Build the NetworkPolicy of all gateway pods."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(world, gateway(world.root)),
        "spec": {
            "podSelector": {"matchLabels": selector(world.root)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _ingress(world),
            "egress": _egress(world, found),
        },
    }


def region_policy(world: World, region: str | None) -> Manifest | None:
    """Build what is allowed to the pods of one region beside that: its own database."""
    own = region_database(world.root, region)
    if own is None:
        return None
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(world, gateway(world.root, region)),
        "spec": {
            "podSelector": {"matchLabels": pod_labels(world, region)},
            "policyTypes": ["Egress"],
            "egress": _to_database(world, own),
        },
    }


def _ingress(world: World) -> list[Manifest]:
    network = world.root.spec.network
    consumers = {c.namespace for budget in world.budgets for c in budget.spec.consumers}
    needed = consumers | {world.installation.namespace}
    ports = [_port(GATEWAY_PORT)]
    rules = [{"from": _named(network.ingress_namespaces), "ports": ports}]
    rules.append({"from": [_namespace(name) for name in sorted(needed)], "ports": ports})
    return [rule for rule in rules if rule["from"]]


def _egress(world: World, found: tuple[Finding, ...]) -> list[Manifest]:
    network = world.root.spec.network
    rules = [{"to": _named(network.egress_namespaces), "ports": [_port(_HTTPS)]}]
    dns = [_port(53, "UDP"), _port(53)]
    rules.append({"to": [_namespace("kube-system")], "ports": dns})
    rules += _api_servers(world)
    for host, port in _internal_endpoints(world, found):
        rules.append({"to": _peers(host), "ports": [_port(port)]})
    rules += _to_database(world, world.root.spec.ledger.postgres)
    if network.egress is Egress.PUBLIC:
        ports = sorted({_HTTPS, *_public_vaults(world, found)})
        rules.append({"to": _PUBLIC, "ports": [_port(port) for port in ports]})
    return [rule for rule in rules if rule["to"]]


def _to_database(world: World, postgres: PostgresRef | None) -> list[Manifest]:
    rules: list[Manifest] = []
    for server in ledger_hosts(world, postgres):
        peers = _peers(server.host)
        if peers == _ANY_INTERNAL and world.root.spec.network.egress is Egress.PUBLIC:
            # A managed database may have a public address.
            peers = [*peers, *_PUBLIC]
        rules.append({"to": peers, "ports": [_port(server.port)]})
    return rules


def _api_servers(world: World) -> list[Manifest]:
    by_port: dict[int, list[str]] = {}
    for address, port in sorted(world.api_servers):
        by_port.setdefault(port, []).append(address)
    return [
        {"to": [_block(_single(a)) for a in addresses], "ports": [_port(port)]}
        for port, addresses in sorted(by_port.items())
    ]


def _internal_endpoints(world: World, found: tuple[Finding, ...]) -> list[tuple[str, int]]:
    """List the endpoints that are not public: of providers, Vaults and what is told of calls."""
    callable_ones = callable_providers(world, found)
    endpoints = {_place(url) for provider in callable_ones for url in private_urls(provider)}
    posthog = posthog_of(world)
    if posthog is not None and world.installation.lists(posthog.host):
        endpoints.add(_place(posthog.host))
    collector = collector_of(world)
    if collector is not None and collector.private:
        endpoints.add((collector.host, collector.port))
    return sorted(endpoints)


def _public_vaults(world: World, found: tuple[Finding, ...]) -> set[int]:
    """List the ports of Vaults at public addresses: mostly 8200."""
    specs = [provider.spec for provider in callable_providers(world, found)]
    vaults = [spec.credentials.vault for spec in specs if spec is not None]
    return {_place(each.address)[1] for each in vaults if each and not each.allow_private}


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (_HTTPS if parts.scheme == "https" else 80)


def _peers(host: str) -> list[Manifest]:
    """Find the peers behind a host: an address, a Service's namespace, or any internal address."""
    try:
        return [_block(_single(host))]
    except ValueError:
        pass
    labels = host.removesuffix(".cluster.local").removesuffix(".svc").split(".")
    if len(labels) == 2:
        return [_namespace(labels[1])]
    return _ANY_INTERNAL


def _single(address: str) -> str:
    found = ipaddress.ip_address(address)
    return f"{found}/{found.max_prefixlen}"


def _named(namespaces: Iterable[str]) -> list[Manifest]:
    """Match namespaces by the guide's label `name` or by the one that every cluster sets."""
    return [
        {"namespaceSelector": {"matchLabels": {label: name}}}
        for name in sorted(namespaces)
        for label in ("name", _NAME)
    ]


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {_NAME: name}}}


def _block(cidr: str, but: tuple[str, ...] = ()) -> Manifest:
    block: Manifest = {"cidr": cidr}
    return {"ipBlock": block | {"except": list(but)} if but else block}


_ANY_INTERNAL: Final = [_block(cidr) for cidr in _INTERNAL]
_PUBLIC: Final = [_block("0.0.0.0/0", _PRIVATE_V4), _block("::/0", _PRIVATE_V6)]


def _port(port: int, protocol: str = "TCP") -> Manifest:
    return {"protocol": protocol, "port": port}
