"""Which budgets of a tree its gateway's configuration has room for: a ConfigMap holds 1 MiB.

Who has none is left out, and nobody else pays for it: neither those that are there, whose caps may
be lowered at any time, nor the money above, which its callers must not reach by a wider entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from llmbudget.contract.config import AccountConfig, ConsumerConfig

TREE_BYTES: Final = 800 * 1024
"""What all accounts may take; the rest is for the providers."""
NAMESPACE_BYTES: Final = 128 * 1024
"""What another namespace than the root's may add: some thousand named ServiceAccounts."""


def within_room(accounts: Sequence[AccountConfig]) -> tuple[AccountConfig, ...]:
    """Choose the accounts that there is room for, and let nobody else pay for the others' callers.

    `accounts` are the root, which is always in, and every parent before its children. Those of the
    root's own namespace come first, and otherwise the order that they are given in.
    """
    root = accounts[0]
    abroad = _abroad(accounts)
    kept, room, taken = {root.name}, TREE_BYTES - _size(root), Counter[str]()
    for account in sorted(accounts[1:], key=lambda each: each.name in abroad):
        size, namespace = _size(account), _namespace(account)
        share = taken[namespace] + size if account.name in abroad else 0
        if account.parent in kept and size <= room and share <= NAMESPACE_BYTES:
            kept.add(account.name)
            room -= size
            taken[namespace] += size
    out = [account for account in accounts if account.name not in kept]
    if not out:
        return tuple(accounts)
    named = _named(consumer for account in out for consumer in account.consumers)
    return tuple(_without(each, named) for each in accounts if each.name in kept)


def _abroad(accounts: Iterable[AccountConfig]) -> set[str]:
    """Name those that are in another namespace than the root, or below one that is."""
    found: set[str] = set()
    home: str | None = None
    for account in accounts:
        home = home or _namespace(account)
        if _namespace(account) != home or account.parent in found:
            found.add(account.name)
    return found


def _namespace(account: AccountConfig) -> str:
    return account.name.partition("/")[0]


def _size(account: AccountConfig) -> int:
    """Count an account's bytes in the document, where it stands two levels deep."""
    text = account.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return len(text.encode()) + 2 * (text.count("\n") + 1)


def _named(consumers: Iterable[ConsumerConfig]) -> dict[str, set[str]]:
    """Collect the ServiceAccounts that consumers name, by namespace."""
    found: dict[str, set[str]] = {}
    for consumer in consumers:
        found.setdefault(consumer.namespace, set()).update(consumer.service_accounts or ())
    return found


def _without(account: AccountConfig, named: dict[str, set[str]]) -> AccountConfig:
    """Take from an account whoever is named, and entries for the whole of their namespaces, which
    would let them in."""
    consumers: list[ConsumerConfig] = []
    for consumer in account.consumers:
        refused = named.get(consumer.namespace)
        if refused is None:
            consumers.append(consumer)
        elif consumer.service_accounts is not None:
            left = tuple(name for name in consumer.service_accounts if name not in refused)
            if left:
                consumers.append(consumer.model_copy(update={"service_accounts": left}))
    return account.model_copy(update={"consumers": tuple(consumers)})
