"""The budgets and providers that were seen last, parsed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.conditions import ConditionType
from llmbudget.api.meta import (
    ANNOTATION_ALLOW_BUDGET,
    ANNOTATION_ORIGINAL_ENV,
    account_name,
)
from llmbudget.api.profiles import effective
from llmbudget.api.provider import ProviderSpec
from llmbudget.clients.watch_events import Place, version_of
from llmbudget.decide.tree import EMPTY, Forest, regrown
from llmbudget.decide.world import Budget, Provider
from llmbudget.reconcile.packed import PackedResources
from llmbudget.telemetry.operator_metrics import Readiness

Manifest = dict[str, Any]

_OWN: Final = frozenset({"consumers", "targets"})
"""Parts of a spec that are like no other's."""
_MOST_PARTS: Final = 4096
_ONCE: Final[dict[tuple[str, str], object]] = {}
"""Parts of specs by their field and what they say."""


class Store:
    """What the watches say. Keys are `namespace/name`."""

    def __init__(self, written: Callable[[str, Manifest], None] = lambda _kind, _raw: None) -> None:
        """`written` is told what the API server answers to writes of ours."""
        self._written = written
        self.budgets: dict[str, Budget] = {}
        self.providers: dict[str, Provider] = {}
        self.raw = PackedResources()
        """By kind and account: the resources as they are, status included."""
        self._readiness: dict[tuple[str, str], tuple[int, Readiness]] = {}
        """With the version that it was read from: it is asked for all the time."""
        self.invalid: dict[str, str] = {}
        """Budgets that can't be read, and why."""
        self._changed_targets: dict[str, set[Place]] = {}
        self.forest: Forest = EMPTY
        """All trees."""
        self._providers_in: dict[str, dict[str, Provider]] = {}

    def put_budget(self, raw: Manifest) -> bool:
        """Take a budget over; False: nothing but its status changed."""
        if self._is_past("LLMBudget", raw):
            return False
        account, changed = self._put("LLMBudget", raw)
        if not changed:
            return False
        self.budgets.pop(account, None)
        self.invalid.pop(account, None)
        try:
            self.budgets[account] = parse_budget(raw)
        except ValidationError as error:
            self.invalid[account] = explain(error)
        self.forest = regrown(self.forest, self.budgets, account)
        return True

    def put_provider(self, raw: Manifest) -> bool:
        """Take a provider over; False: nothing but its status changed."""
        if self._is_past("LLMProvider", raw):
            return False
        account, changed = self._put("LLMProvider", raw)
        if changed:
            provider = parse_provider(raw)
            self.providers[account] = provider
            self._providers_in.setdefault(provider.namespace, {})[provider.name] = provider
        return changed

    def drop(self, kind: str, raw: Mapping[str, Any]) -> None:
        """Forget a resource."""
        metadata = raw["metadata"]
        account = account_name(metadata["namespace"], metadata["name"])
        self.raw.pop((kind, account), None)
        self._readiness.pop((kind, account), None)
        if kind == "LLMProvider":
            self.providers.pop(account, None)
            self._providers_in.get(metadata["namespace"], {}).pop(metadata["name"], None)
        else:
            self.budgets.pop(account, None)
            self.invalid.pop(account, None)
            self.forest = regrown(self.forest, self.budgets, account)

    def missing_from(self, kind: str, listed: Collection[Place], version: int) -> list[Manifest]:
        """Find what is known and not in a list of that version, nor made after it."""
        return [
            self.raw[key]
            for key in self.raw
            if key[0] == kind
            and tuple(key[1].split("/")) not in listed
            and self.raw.version(key) <= version
        ]

    def answered(self, kind: str, raw: Manifest) -> None:
        """Take over what the API server answered to a write of ours.

        Not where a watch has told later, nor where someone else's change came along: that is the
        watch's to tell, so that it is seen as a change.
        """
        self._written(kind, raw)
        metadata = raw["metadata"]
        key = (kind, account_name(metadata["namespace"], metadata["name"]))
        known = self.raw.get(key)
        if known is None or _asked(known) != _asked(raw):
            return
        if version_of(known) < version_of(raw):
            self.raw[key] = _slim(raw)

    def put_target(self, raw: Mapping[str, Any], *, gone: bool) -> str | None:
        """Take a Deployment over; return the account that it consents to, where there is one."""
        metadata = raw["metadata"]
        annotations = metadata.get("annotations") or {}
        account: str | None = annotations.get(ANNOTATION_ALLOW_BUDGET)
        if account is None:
            return None
        place = metadata["namespace"], metadata["name"]
        if ANNOTATION_ORIGINAL_ENV in annotations and not gone:
            self._changed_targets.setdefault(account, set()).add(place)
        elif account in self._changed_targets:
            self._changed_targets[account].discard(place)
            if not self._changed_targets[account]:
                del self._changed_targets[account]
        return account

    def changed_targets(self, account: str) -> frozenset[Place]:
        """List the Deployments that say of themselves that this budget has changed them."""
        return frozenset(self._changed_targets.get(account, ()))

    def users_of(self, provider: Provider) -> Iterable[str]:
        """Name the root budgets that a provider matters to."""
        for root, members in self.forest.trees.items():
            if members[0].namespace == provider.namespace and any(
                ref.name == provider.name for ref in members[0].spec.providers
            ):
                yield root

    def providers_in(self, namespace: str) -> dict[str, Provider]:
        """List a namespace's providers by name."""
        return dict(self._providers_in.get(namespace, {}))

    def readiness(self) -> Iterator[Readiness]:
        """Tell of each budget, and of each provider that a budget uses, what its status says."""
        used = {
            account_name(root.namespace, ref.name)
            for root, *_ in self.forest.trees.values()
            for ref in root.spec.providers
        }
        for kind, account in self.raw:
            if kind == "LLMProvider" and account not in used:
                continue
            key, version = (kind, account), self.raw.version((kind, account))
            known = self._readiness.get(key)
            if known is None or known[0] != version:
                known = self._readiness[key] = version, _readiness(kind, account, self.raw[key])
            yield known[1]

    def _is_past(self, kind: str, raw: Manifest) -> bool:
        """Tell whether something later is known of the same object."""
        metadata = raw["metadata"]
        known = self.raw.get((kind, account_name(metadata["namespace"], metadata["name"])))
        same = known is not None and known["metadata"].get("uid") == metadata.get("uid")
        return same and known is not None and version_of(raw) < version_of(known)

    def _put(self, kind: str, raw: Manifest) -> tuple[str, bool]:
        metadata = raw["metadata"]
        account = account_name(metadata["namespace"], metadata["name"])
        before = self.raw.get((kind, account))
        self.raw[kind, account] = _slim(raw)
        return account, before is None or _essence(before) != _essence(raw)


def _readiness(kind: str, account: str, raw: Manifest) -> Readiness:
    conditions = (raw.get("status") or {}).get("conditions") or ()
    ready = [each for each in conditions if each["type"] == ConditionType.READY]
    is_ready = any(each["status"] == "True" for each in ready)
    return Readiness(kind, account, is_ready, "".join(each["reason"] for each in ready))


def parse_budget(raw: Mapping[str, Any]) -> Budget:
    """Read an LLMBudget.

    Raises:
        ValidationError: its spec breaks a rule.
    """
    metadata = raw["metadata"]
    return Budget(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        annotations=metadata.get("annotations") or {},
        spec=_frugal(effective(BudgetSpec.model_validate(raw.get("spec") or {}))),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers") or ()),
    )


def parse_provider(raw: Mapping[str, Any]) -> Provider:
    """Read an LLMProvider; one that breaks a rule says so."""
    metadata = raw["metadata"]
    spec: ProviderSpec | None = None
    problem = ""
    try:
        spec = ProviderSpec.model_validate(raw.get("spec") or {})
    except ValidationError as error:
        problem = explain(error)
    return Provider(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=spec,
        error=problem,
    )


def _frugal(spec: BudgetSpec) -> BudgetSpec:
    """Let what is the same in many specs be there once: most of it, and parts never change."""
    parts = {name: getattr(spec, name) for name in type(spec).model_fields if name not in _OWN}
    if len(_ONCE) > _MOST_PARTS:
        _ONCE.clear()
    shared = {name: _ONCE.setdefault((name, repr(part)), part) for name, part in parts.items()}
    return spec.model_copy(update=shared)


def explain(error: ValidationError) -> str:
    """Say in one line which fields break which rules, without their values."""
    problems = [
        f"spec.{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors()
    ]
    return "; ".join(problems[:5])


def _slim(raw: Manifest) -> Manifest:
    """Leave out who wrote which field, which is half of a resource."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    return raw | {"metadata": metadata}


def _asked(raw: Mapping[str, Any]) -> tuple[object, ...]:
    """What people ask for: all that counts but the finalizers, which are ours."""
    metadata = raw["metadata"]
    keys = ("uid", "generation", "annotations", "deletionTimestamp")
    return tuple(metadata.get(key) for key in keys)


def _essence(raw: Mapping[str, Any]) -> tuple[object, ...]:
    metadata = raw["metadata"]
    keys = ("uid", "generation", "annotations", "finalizers", "deletionTimestamp")
    return tuple(metadata.get(key) for key in keys)
