"""One fault of a budget, its children or its providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmbudget.api.conditions import Reason
from llmbudget.decide.world import Provider, World


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault."""

    reason: Reason
    message: str
    account: str | None = None
    """The budget that it is about."""
    provider: str | None = None
    """The provider that it is about, which then can't be called."""
    fatal: bool = False
    """Nothing can be rendered: what was rendered before stays."""


Check = Callable[[World], Iterator[Finding]]


def used_providers(world: World) -> tuple[Provider, ...]:
    """List the root's providers that exist, in its order of preference."""
    return tuple(
        world.providers[ref.name]
        for ref in world.root.spec.providers
        if ref.name in world.providers
    )
