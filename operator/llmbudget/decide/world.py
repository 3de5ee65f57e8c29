"""Everything that the operator gathered about one root budget: the one input of its decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.meta import account_name
from llmbudget.api.provider import ProviderSpec


@dataclass(frozen=True, slots=True)
class Budget:
    """An LLMBudget as it is in the cluster."""

    namespace: str
    name: str
    uid: str
    generation: int
    annotations: Mapping[str, str]
    spec: BudgetSpec
    """Effective: what the user wrote, then the profile, then the built-in defaults."""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()

    @property
    def account(self) -> str:
        """`namespace/name`, which identifies it in the ledger."""
        return account_name(self.namespace, self.name)

    @property
    def parent(self) -> str | None:
        """Account of its parent; None: it is a root."""
        ref = self.spec.parent_ref
        return None if ref is None else account_name(ref.namespace or self.namespace, ref.name)


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """An LLMProvider as it is in the cluster; `spec` None: it can't be read, for `error`.

    Made once for each change, and equal to itself alone: what is worked out of it is remembered.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    spec: ProviderSpec | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SecretFacts:
    """What a Secret's metadata say: nobody here reads its data."""

    consents: bool
    """It carries the label that lets it be a provider key."""
    allowed_host: str | None
    is_ledger: bool = False
    """It carries the label that lets it be a ledger's connection string."""


@dataclass(frozen=True, slots=True)
class Installation:
    """Settings of this installation of the operator."""

    namespace: str
    service_account: str
    """The operator's own, `namespace/name`."""
    gateway_image: str
    image_prefixes: tuple[str, ...] = ()
    """What other images of gateways may begin with, beside the repository of `gateway_image`."""
    private_hosts: frozenset[str] = frozenset()
    """Hosts, or HOST:PORT, that may be at private addresses."""
    loopback: bool = False
    """Gateways run as processes of this machine and are called there."""
    namespaces: tuple[str, ...] = ()
    """The only ones that are served, without a right in the whole cluster; none: all are."""

    def lists(self, url: str) -> bool:
        """Tell whether a URL's host may be at a private address."""
        parts = urlsplit(url)
        return parts.hostname in self.private_hosts or parts.netloc in self.private_hosts


@dataclass(frozen=True, slots=True)
class World:
    """One root budget and all that it depends on, at one instant."""

    root: Budget
    children: tuple[Budget, ...]
    """Accepted budgets below the root, every parent before its children."""
    providers: Mapping[str, Provider]
    """Those of the root's namespace, by name."""
    secrets: Mapping[str, SecretFacts]
    """Those that the providers name and that exist, by name."""
    api_servers: tuple[tuple[str, int], ...]
    """Addresses and ports behind the Service default/kubernetes."""
    installation: Installation
    previous_config: str | None
    """The gateway's configuration as rendered last."""
    now: datetime
    embedded_ledger: bool = False
    """Whether there is a volume of an embedded ledger, of now or of before."""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The root and its children, every parent first."""
        return (self.root, *self.children)
