"""Where spans may go: to a Service on OTLP's own port, to a public collector by TLS, and elsewhere
only where the installation allows it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmbudget.api.conditions import Reason
from llmbudget.api.gateway_spec import OTLP_PORT
from llmbudget.decide.addresses import ForbiddenAddress, choose
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import World

_HTTPS: Final = 443
_SERVICE: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+(\.svc(\.cluster\.local)?)?)?", re.IGNORECASE)
"""`NAME`, `NAME.NAMESPACE` or `NAME.NAMESPACE.svc`."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans go."""

    host: str
    port: int
    private: bool
    """It may be at a private address."""

    @property
    def url(self) -> str:
        """The URL that takes spans."""
        scheme = "https" if self.port == _HTTPS else "http"
        return f"{scheme}://{self.host}:{self.port}/v1/traces"


def collector_of(world: World) -> Collector | None:
    """Find where spans go; None: nowhere, or not there."""
    found = _decide(world)
    return found if isinstance(found, Collector) else None


def collector_allowed(world: World) -> Iterator[Finding]:
    """The collector is where a gateway may send to."""
    found = _decide(world)
    if isinstance(found, str):
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.monitoring.distributedTracing.collector: {found}",
            account=world.root.account,
        )


def _decide(world: World) -> Collector | str | None:
    """Choose the collector, or say what is wrong with it."""
    otlp = world.root.spec.monitoring.distributed_tracing.otlp
    if otlp is None:
        return None
    host, port = otlp
    where = f"{host}:{port}"
    if not 0 < port < 65536:
        return f"{where} has no usable port: it must be from 1 to 65535."
    listed = world.installation.lists(f"//{where}")
    address = _address(host)
    if address is not None:
        try:
            choose(host, [address], allow_private=True)
        except ForbiddenAddress as error:
            return f"{error}."
    if listed:
        return Collector(host, port, private=True)
    if address is None and port == OTLP_PORT and _SERVICE.fullmatch(host):
        return Collector(_qualified(host, world.root.namespace), port, private=True)
    if port == _HTTPS and _may_be_public(host, address):
        return Collector(host, port, private=False)
    return (
        f"{where} is neither a Service's port {OTLP_PORT} (NAME.NAMESPACE:{OTLP_PORT}) nor a public"
        f" HOST:{_HTTPS}, and not on this installation's list of private hosts: name one of those,"
        f" or start the operator with --allow-private-host={where}."
    )


def _address(host: str) -> str | None:
    """Read an address; None: it is a name, and so is `127.1`."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _may_be_public(host: str, address: str | None) -> bool:
    if address is not None:
        return ipaddress.ip_address(address).is_global
    return "." in host and not host.endswith((".svc", ".cluster.local"))


def _qualified(host: str, namespace: str) -> str:
    """Name a Service so that no name outside the cluster is meant: `example.com` is none then."""
    labels = host.split(".")
    if len(labels) == 1:
        return f"{host}.{namespace}.svc"
    return f"{host}.svc" if len(labels) == 2 else host
