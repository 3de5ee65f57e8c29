"""What an account may call: the models of its providers, and the ladders that hold for it.

Built once for each configuration, so that a call only looks things up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from llmbudget.api.provider import Protocol
from llmbudget.contract.config import (
    TOKENS,
    AccountConfig,
    GatewayConfig,
    ModelConfig,
    Prices,
    ProviderConfig,
    Unit,
)
from llmbudget.decide.ladder import default_ladder, lowered, weights_of


@dataclass(frozen=True, slots=True)
class Offer:
    """A model at a provider."""

    provider: ProviderConfig
    model: ModelConfig

    @property
    def name(self) -> str:
        """The model's name, by which callers ask for it."""
        return self.model.name

    @property
    def qualified(self) -> str:
        """`PROVIDER/name`, by which callers ask for it at this provider."""
        return f"{self.provider.name}/{self.model.name}"

    @property
    def prices(self) -> Prices | None:
        """The model's prices; None: unknown, so it can't be called."""
        return self.model.prices

    @property
    def free(self) -> bool:
        """Whether calls cost nothing."""
        return self.model.prices is not None and self.model.prices.free


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """What one account may call. Each one differs from all others, so that what was found in it can
    be remembered."""

    account: AccountConfig
    path: tuple[AccountConfig, ...]
    """The account and its ancestors, root first."""
    names: tuple[str, ...]
    """Their names."""
    offers: tuple[Offer, ...]
    """All offers in order of preference, unpriced ones among them."""
    ladders: tuple[tuple[str, ...], ...]
    """The ladder of each account of the path: its own, else its parent's, else by price."""
    weights: Mapping[str, Decimal]
    """How dear each priced model is; only for comparing."""

    def speaking(self, protocol: Protocol, units: frozenset[Unit] = TOKENS) -> tuple[Offer, ...]:
        """List the offers in a protocol that have a price for one of the units."""
        return tuple(
            offer
            for offer in self.offers
            if offer.provider.protocol is protocol
            and offer.prices is not None
            and offer.prices.has(units)
        )

    def lowering(self, levels: Mapping[str, int]) -> Callable[[str], str | None]:
        """Make the function that applies all ceilings of the path: from a model to the one that a
        call for it goes to, None where none is left. `levels` are by account; missing: 0."""
        path_levels = [levels.get(account.name, 0) for account in self.path]
        return lambda model: lowered(model, self.ladders, path_levels, self.weights)


def catalogues(config: GatewayConfig) -> dict[str, Catalogue]:
    """Build the catalogue of every account, by its name."""
    accounts, providers = _by_name(config)
    return {name: _catalogue(_path(accounts, name), providers) for name in accounts}


def _by_name(
    config: GatewayConfig,
) -> tuple[dict[str, AccountConfig], dict[str, ProviderConfig]]:
    return (
        {account.name: account for account in config.accounts},
        {provider.name: provider for provider in config.providers},
    )


def _catalogue(
    path: tuple[AccountConfig, ...], providers: Mapping[str, ProviderConfig]
) -> Catalogue:
    names = _allowed_providers(path)
    offers = tuple(
        Offer(providers[name], model)
        for name in names
        if name in providers
        for model in providers[name].models
    )
    models = [offer.model for offer in offers]
    return Catalogue(
        account=path[-1],
        path=path,
        names=tuple(account.name for account in path),
        offers=offers,
        ladders=_ladders(path, models),
        weights=weights_of(models),
    )


def _path(accounts: Mapping[str, AccountConfig], name: str) -> tuple[AccountConfig, ...]:
    """List an account and its ancestors, root first."""
    account = accounts[name]
    above = _path(accounts, account.parent) if account.parent else ()
    return (*above, account)


def _allowed_providers(path: Iterable[AccountConfig]) -> tuple[str, ...]:
    """Keep of each account's providers those that its parent has; none named: all of them."""
    allowed: tuple[str, ...] = ()
    for account in path:
        chosen = account.providers or allowed
        allowed = tuple(name for name in chosen if not account.parent or name in allowed)
    return allowed


def _ladders(
    path: Iterable[AccountConfig], models: Iterable[ModelConfig]
) -> tuple[tuple[str, ...], ...]:
    ladders: list[tuple[str, ...]] = []
    inherited = default_ladder(models)
    for account in path:
        inherited = account.ladder or inherited
        ladders.append(inherited)
    return tuple(ladders)
