"""Statuses, written when they differ, with the targets that they tell of."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from llmbudget.api.budget_status import ChangedTarget, Phase
from llmbudget.api.conditions import Reason
from llmbudget.api.meta import FINALIZER, account_name
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS
from llmbudget.decide.validity.finding import used_providers
from llmbudget.decide.world import Budget, Provider, World
from llmbudget.reconcile.apply import OwnerGone
from llmbudget.reconcile.recorder import Recorder
from llmbudget.reconcile.status import (
    Problem,
    Situation,
    budget_status,
    lowering,
    provider_problem,
    provider_status,
    rejected_status,
    status_manifest,
)
from llmbudget.reconcile.store import Store
from llmbudget.reconcile.targets import TargetReport, put_back, reconcile_targets

Manifest = dict[str, Any]

log = logging.getLogger(__name__)

_TRIES: Final = 5
_BAD: Final = frozenset({Phase.FAILED, Phase.EXCEEDED, Phase.AWAITING_APPROVAL})


class Statuses:
    """Writes the statuses of whole trees."""

    def __init__(
        self, cluster: Cluster, store: Store, recorder: Recorder, clock: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._problems: defaultdict[str, dict[str, Problem]] = defaultdict(dict)
        """Of each provider, in the eyes of each root budget that finds one."""

    def are_current(self, world: World) -> bool:
        """Tell whether every budget of a tree has a status of its present generation."""
        return all(
            self._before("LLMBudget", budget.account).get("observedGeneration") == budget.generation
            for budget in world.budgets
        )

    async def write_tree(self, situation: Situation) -> None:
        """Move targets and write the statuses of a root, its children and its providers. Nobody
        waits for another whose turn fails.

        Raises:
            ApiError: the first one's, once all have had their turn.
        """
        world = situation.world
        turns: list[Callable[[], Awaitable[None]]] = [
            *(partial(self._write_budget, situation, each) for each in world.budgets),
            *(partial(self._write_provider, situation, each) for each in used_providers(world)),
        ]
        failed: ApiError | None = None
        for turn in turns:
            try:
                await turn()
            except ApiError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def _write_budget(self, situation: Situation, budget: Budget) -> None:
        if self._is_deleting(budget.account):
            await self.release(budget.account)
            return
        now = self._store.budgets.get(budget.account)
        if now is None or now.uid != budget.uid or not self._belongs(budget, situation.world):
            # It has gone since it was gathered: what was put back must stay.
            return
        try:
            report = await self._targets(situation, now)
        except OwnerGone:
            return
        before = self._before("LLMBudget", budget.account)
        status = budget_status(situation, budget, report, before, self._timestamp())
        await self._write("LLMBudget", budget.namespace, budget.name, before, status)
        await self._tell(budget, before, status, report)

    async def _write_provider(self, situation: Situation, provider: Provider) -> None:
        account = account_name(provider.namespace, provider.name)
        before = self._before("LLMProvider", account)
        root, problems = situation.world.root.account, self._problems[account]
        mine = provider_problem(provider, situation.found, situation.gateway.missing_keys)
        if mine is None:
            problems.pop(root, None)
        else:
            problems[root] = mine
        if problems:
            users = {each for each in self._store.users_of(provider) if not self._is_deleting(each)}
            for gone in problems.keys() - users:
                del problems[gone]
        problem = problems[min(problems)] if problems else None
        now = situation.world.now
        status = provider_status(provider, problem, now, before, self._timestamp())
        await self._write("LLMProvider", provider.namespace, provider.name, before, status)

    async def reject(self, account: str, reason: Reason, message: str) -> None:
        """Write that a budget can't be reconciled, and why."""
        raw = self._store.raw.get(("LLMBudget", account))
        if raw is None:
            return
        metadata = raw["metadata"]
        before = raw.get("status") or {}
        status = rejected_status(
            metadata.get("generation", 0), reason, message, before, self._timestamp()
        )
        kept = {key: value for key, value in before.items() if key not in status}
        await self._write(
            "LLMBudget", metadata["namespace"], metadata["name"], before, kept | status
        )

    async def release(self, account: str) -> None:
        """Put the targets of a budget that is being deleted back, and let it go.

        What may not be touched must not hold a deletion up for ever: it is told of, and left.
        """
        raw = self._store.raw.get(("LLMBudget", account))
        if raw is None or FINALIZER not in (raw["metadata"].get("finalizers") or ()):
            return
        budget = self._store.budgets.get(account)
        targets = budget.spec.targets if budget is not None else ()
        report = await reconcile_targets(self._cluster, account, targets, None)
        former = {(changed.namespace, changed.name) for changed in self._changed(account)}
        former |= self._store.changed_targets(account)
        for namespace, name in sorted(former - report.seen):
            report.refused += await put_back(self._cluster, account, namespace, name)
        if report.refused and budget is not None:
            note = " ".join(["Targets were not put back.", *report.refused])
            await self._recorder.record(budget, "TargetsLeft", "Delete", note, warning=True)
        await self._set_finalizer(raw, wanted=False)

    async def put_back_orphans(self, account: str) -> None:
        """Put back what a budget left changed that is no more: its finalizer was removed by force,
        or it went while a target was being moved.

        Raises:
            ApiError.
        """
        namespace, _, name = account.partition("/")
        orphans = self._store.changed_targets(account)
        if orphans and await self._cluster.get_metadata(BUDGETS, namespace, name) is None:
            for orphan in sorted(orphans):
                for refusal in await put_back(self._cluster, account, *orphan):
                    log.warning("not put back: %s", refusal, extra={"fields": {"budget": account}})

    def _belongs(self, budget: Budget, world: World) -> bool:
        return self._store.forest.roots.get(budget.account) == world.root.account

    def _is_deleting(self, account: str) -> bool:
        raw = self._store.raw.get(("LLMBudget", account))
        return raw is not None and "deletionTimestamp" in raw["metadata"]

    async def _targets(self, situation: Situation, budget: Budget) -> TargetReport:
        """Move the targets of one budget, and put back what is no target any more."""
        known = self._changed(budget.account)
        balance = situation.gateway.balances.get(budget.account)
        if balance is None or not (budget.spec.targets or known):
            # Where nothing is known now, what was done stays.
            return TargetReport(changed=known)
        lower = lowering(situation, budget.account)
        if lower is None:
            # Nothing that could be carried out says where a model goes: what was done stays.
            return TargetReport(changed=known)

        async def before_change() -> None:
            await self._secure(budget)

        report = await reconcile_targets(
            self._cluster, budget.account, budget.spec.targets, lower, before_change
        )
        for changed in known:
            if (changed.namespace, changed.name) not in report.seen:
                report.refused += await put_back(
                    self._cluster, budget.account, changed.namespace, changed.name
                )
        raw = self._store.raw.get(("LLMBudget", budget.account))
        if raw is not None:
            # Someone may have removed it meanwhile.
            await self._set_finalizer(raw, wanted=bool(report.changed))
        return report

    def _changed(self, account: str) -> list[ChangedTarget]:
        """List the targets that the status says are changed."""
        changed = self._before("LLMBudget", account).get("changedTargets") or ()
        return [ChangedTarget.model_validate(target) for target in changed]

    async def _secure(self, budget: Budget) -> None:
        """Make sure that a deletion finds its way back, before a target is moved. What is known of
        the budget may be old, since another operator may have let it go: where it is written its
        version tells, otherwise it is read.

        Raises:
            OwnerGone: it is being deleted, or is no more.
        """
        raw = self._store.raw.get(("LLMBudget", budget.account))
        if raw is None or FINALIZER in (raw["metadata"].get("finalizers") or ()):
            raw = await self._cluster.get(BUDGETS, budget.namespace, budget.name)
        if raw is None or raw["metadata"]["uid"] != budget.uid:
            raise OwnerGone
        await self._set_finalizer(raw, wanted=True)

    async def _set_finalizer(self, raw: Manifest, *, wanted: bool) -> None:
        """Set or remove our finalizer, unless it is as wanted in `raw`.

        Raises:
            OwnerGone: it is wanted, and the budget is being deleted, or is no more.
        """
        uid, namespace, name = (raw["metadata"][key] for key in ("uid", "namespace", "name"))
        for attempt in range(_TRIES):
            finalizers = list(raw["metadata"].get("finalizers") or ())
            if wanted and "deletionTimestamp" in raw["metadata"]:
                raise OwnerGone
            if (FINALIZER in finalizers) == wanted:
                return
            others = [each for each in finalizers if each != FINALIZER]
            metadata = {
                "finalizers": [*others, FINALIZER] if wanted else others,
                "resourceVersion": raw["metadata"]["resourceVersion"],
            }
            try:
                answer = await self._cluster.merge_patch(
                    BUDGETS, namespace, name, {"metadata": metadata}
                )
            except ApiError as error:
                if error.status not in (404, 409) or attempt == _TRIES - 1:
                    raise
                found = await self._cluster.get(BUDGETS, namespace, name)
                if found is None or found["metadata"]["uid"] != uid:
                    if wanted:
                        raise OwnerGone from None
                    return
                raw = found
            else:
                self._store.answered("LLMBudget", answer)
                return

    def _before(self, kind: str, account: str) -> Mapping[str, Any]:
        raw = self._store.raw.get((kind, account)) or {}
        return raw.get("status") or {}

    async def _write(
        self,
        kind: str,
        namespace: str,
        name: str,
        before: Mapping[str, Any],
        status: Manifest,
    ) -> None:
        if status == before:
            return
        try:
            answer = await self._cluster.apply_status(
                status_manifest(kind, namespace, name, status)
            )
        except ApiError as error:
            if error.status == 404:
                return
            raise
        self._store.answered(kind, answer)

    async def _tell(
        self, budget: Budget, before: Mapping[str, Any], status: Manifest, report: TargetReport
    ) -> None:
        """Write Events on transitions of the phase, and of each target."""
        for text in report.moved:
            await self._recorder.record(budget, "TargetChanged", "Patch", f"{text}.")
        phase = status.get("phase")
        known = before.get("phase")
        if phase in (known, None) or (known is None and phase == Phase.PENDING):
            return
        why = [
            c["message"] for c in status["conditions"] if c["status"] == "False" and c["message"]
        ]
        note = f"Phase {phase}. {' '.join(why[:2])}"
        await self._recorder.record(budget, phase, "Reconcile", note, warning=phase in _BAD)

    def _timestamp(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
