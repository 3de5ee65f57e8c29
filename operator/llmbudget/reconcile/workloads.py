"""Other people's Deployments, followed for their consent: it is in an annotation, by which no watch
can choose, so that all of them are followed, but nothing of them is read beyond their metadata."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import DEPLOYMENTS

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 15.0

Seen = Callable[[dict[str, Any], bool], None]
"""Called with a Deployment's metadata, and whether it is gone."""


async def follow_workloads(cluster: Cluster, namespaces: tuple[str, ...], seen: Seen) -> None:
    """Follow the Deployments of these namespaces until cancelled; none: of all."""
    async with asyncio.TaskGroup() as group:
        for namespace in namespaces or (None,):
            group.create_task(_follow(cluster, namespace, seen))


async def _follow(cluster: Cluster, namespace: str | None, seen: Seen) -> None:
    while True:
        try:
            async for event in cluster.watch(DEPLOYMENTS, namespace, metadata_only=True):
                if event.type != "SYNCED":
                    seen(event.object, event.type == "DELETED")
        except ApiError as error:
            log.warning("watch: %s", error, extra={"fields": {"kind": DEPLOYMENTS.kind}})
        await asyncio.sleep(_RETRY_SECONDS)
