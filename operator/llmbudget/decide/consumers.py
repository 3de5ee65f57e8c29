"""Whose money a caller spends: its ServiceAccount is matched to a budget's consumers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from llmbudget.contract.config import AccountConfig, ConsumerConfig, EnvelopeLimits, Limits

_MOST_REMEMBERED: Final = 20_000
"""Callers whose budget is remembered."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A caller, matched to its budget."""

    namespace: str
    service_account: str
    account: AccountConfig
    agent: str
    """Name in the ledger: the entry's, else the ServiceAccount's."""
    limits: Limits
    envelopes: EnvelopeLimits | None = None
    """What it may set aside for its tasks; None: nothing."""

    @property
    def name(self) -> str:
        """`namespace/name` of the ServiceAccount."""
        return f"{self.namespace}/{self.service_account}"


class NoBudget(Exception):
    """No budget, or none in particular, is the caller's. `choices` are those it may name."""

    def __init__(self, message: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.message = message
        self.choices = tuple(choices)


class Consumers:
    """All budgets' consumers, indexed by namespace; built once for each configuration."""

    def __init__(self, accounts: Iterable[AccountConfig]) -> None:
        self._entries: dict[str, list[tuple[AccountConfig, ConsumerConfig]]] = {}
        for account in accounts:
            for entry in account.consumers:
                self._entries.setdefault(entry.namespace, []).append((account, entry))
        self._remembered = lru_cache(maxsize=_MOST_REMEMBERED)(self._match)

    def match(self, namespace: str, service_account: str, wanted: str | None) -> Consumer:
        """Find the budget that a caller spends from.

        `wanted` is the caller's own choice, `namespace/name` or just the name of a budget. Without
        it the most specific entry holds: one that names the ServiceAccount before one for the
        whole namespace.

        Raises:
            NoBudget.
        """
        return self._remembered(namespace, service_account, wanted)

    def _match(self, namespace: str, service_account: str, wanted: str | None) -> Consumer:
        matches = self._matches(namespace, service_account)
        caller = f"ServiceAccount {namespace}/{service_account}"
        if not matches:
            raise NoBudget(
                f"No budget names {caller} as a consumer: have it added to spec.consumers of one"
                " that this gateway serves.",
                (),
            )
        choices = sorted(account.name for account, _ in matches)
        if wanted is not None:
            named = [m for m in matches if wanted in (m[0].name, m[0].name.partition("/")[2])]
            if not named:
                raise NoBudget(f"Budget {wanted[:128]} doesn't name {caller}.", choices)
        else:
            specific = [match for match in matches if match[1].service_accounts is not None]
            named = specific or matches
        if len(named) > 1:
            raise NoBudget(
                f"Several budgets name {caller}: choose one by x-llmbudget-budget.",
                sorted(account.name for account, _ in named),
            )
        account, entry = named[0]
        return Consumer(
            namespace,
            service_account,
            account,
            entry.agent or service_account,
            entry.limits,
            entry.envelopes,
        )

    def _matches(
        self, namespace: str, service_account: str
    ) -> list[tuple[AccountConfig, ConsumerConfig]]:
        """List the matching entries, the most specific one of each account."""
        best: dict[str, tuple[AccountConfig, ConsumerConfig]] = {}
        for account, entry in self._entries.get(namespace, ()):
            names = entry.service_accounts
            if names is None:
                best.setdefault(account.name, (account, entry))
            elif service_account in names:
                best[account.name] = (account, entry)
        return list(best.values())
