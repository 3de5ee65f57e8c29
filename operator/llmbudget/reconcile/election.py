"""Who acts: one operator at a time holds a Lease, the others wait.

After the rules of client-go's leader election. Only the local, steady clock is read: a Lease is
expired when it has not *changed* for as long as it says, so that machines need not agree on the
time. A leader that could not renew for a while stops by itself, before another may take over. The
`kubernetes` package's own election compares wall clocks, and lets a request that hangs outlast its
deadline.

This keeps two operators from doing everything twice. Nothing depends on it for being right: where
two act all the same, every write is level-triggered or tested against a version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import LEASES

log = logging.getLogger(__name__)

LEASE_NAME: Final = "llmbudget-operator"
LEASE_SECONDS: Final = 15
"""How long a Lease must stay unchanged before another takes it."""
RENEW_DEADLINE: Final = 10.0
"""How long a leader goes on without a renewal."""
RETRY_SECONDS: Final = 2.0


class LeaseLost(Exception):
    """Another operator holds the Lease, or it could not be renewed in time."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What a Lease says; that it changed is what counts."""

    holder: str
    renewed: str
    seconds: float


class Election:
    """One candidate."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        identity: str,
        *,
        renewed: Callable[[str, Mapping[str, Any]], None] = lambda _kind, _lease: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = f"lease {namespace}/{LEASE_NAME}"
        self._identity = identity
        self._renewed = renewed
        self._clock = clock
        self._lease: dict[str, Any] | None = None
        """As read or written last."""
        self._record: _Record | None = None
        self._changed = clock()
        """When the record was seen to change."""
        self._sent = clock()
        """When the last write was sent: however late its answer, others may have seen it by then,
        and count from there."""

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        waiting_for: str | None = None
        while not await self._attempt(RENEW_DEADLINE):
            holder = self._record.holder if self._record else ""
            if holder != waiting_for:
                waiting_for = holder
                log.info("waiting for the lease", extra={"fields": {"holder": holder}})
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading", extra={"fields": {"identity": self._identity}})

    async def hold(self) -> None:
        """Renew the Lease for as long as that works.

        Raises:
            LeaseLost.
        """
        deadline = self._sent + RENEW_DEADLINE
        pause = max(0.0, self._sent + RETRY_SECONDS - self._clock())
        while True:
            await asyncio.sleep(pause)
            pause = RETRY_SECONDS
            if await self._attempt(max(0.0, deadline - self._clock())):
                deadline = self._sent + RENEW_DEADLINE
            elif self._record is not None and self._record.holder != self._identity:
                raise LeaseLost(f"another operator leads: {self._record.holder or 'nobody yet'}")
            elif self._clock() >= deadline:
                raise LeaseLost(f"the lease could not be renewed for {RENEW_DEADLINE:.0f} s")

    async def release(self) -> None:
        """Let the next one lead at once; one that can't be told will wait."""
        if self._record is None or self._record.holder != self._identity:
            return
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._write(holder="", seconds=1)

    async def _attempt(self, seconds: float) -> bool:
        """Take or renew the Lease, in so many seconds; False: it did not work this time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._take_or_renew()
        except TimeoutError:
            log.warning("%s: the API server did not answer in time", self._name)
        except ApiError as error:
            # A conflict says only that someone else was faster.
            if error.status != 409:
                log.warning("%s: %s", self._name, error)
        self._lease = None
        return False

    async def _take_or_renew(self) -> bool:
        mine = self._record is not None and self._record.holder == self._identity
        if self._lease is None or not mine:
            found = await self._cluster.get(LEASES, self._namespace, LEASE_NAME)
            self._observe(found)
            if self._is_taken():
                return False
        await self._write(holder=self._identity, seconds=LEASE_SECONDS)
        assert self._lease is not None
        self._renewed(LEASES.kind, self._lease)
        return True

    def _is_taken(self) -> bool:
        record = self._record
        if record is None or record.holder in ("", self._identity):
            return False
        return self._clock() < self._changed + record.seconds

    def _observe(self, lease: dict[str, Any] | None) -> None:
        self._lease = lease
        spec = (lease or {}).get("spec") or {}
        record = _Record(
            holder=spec.get("holderIdentity") or "",
            renewed=spec.get("renewTime") or "",
            seconds=float(spec.get("leaseDurationSeconds") or LEASE_SECONDS),
        )
        if record != self._record:
            self._record, self._changed = record, self._clock()

    async def _write(self, *, holder: str, seconds: int) -> None:
        """Write the Lease, unless it has changed since it was read.

        Raises:
            ApiError: 409 where it has.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "renewTime": now,
        }
        self._sent = self._clock()
        before = self._lease
        if before is None or (before["spec"].get("holderIdentity") or "") != holder:
            transitions = (before or {"spec": {}})["spec"].get("leaseTransitions")
            spec |= {
                "acquireTime": now,
                "leaseTransitions": 0 if transitions is None else transitions + 1,
            }
        metadata: dict[str, Any] = {"name": LEASE_NAME, "namespace": self._namespace}
        if before is None:
            lease = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata}
            self._observe(await self._cluster.create(lease | {"spec": spec}))
            return
        version = before["metadata"]["resourceVersion"]
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        self._observe(await self._cluster.merge_patch(LEASES, self._namespace, LEASE_NAME, patch))
