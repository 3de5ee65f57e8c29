"""A pod's container as a command line of this machine: arguments, environment, paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import CONFIG_MAPS, SECRETS
from llmbudget.local.volumes import NotReady, Volumes, field, read_data

Manifest = Mapping[str, Any]


class Mounts:
    """Where the paths of a container lie on this machine."""

    def __init__(self, pod: Manifest, container: Manifest, volumes: Volumes) -> None:
        by_name = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        self._folders = {
            str(mount["mountPath"]).rstrip("/"): volumes.path(by_name[mount["name"]])
            for mount in container.get("volumeMounts", ())
        }
        # The longest mount first: one may lie within another.
        mounts = sorted(self._folders, key=len, reverse=True)
        choice = "|".join(re.escape(mount) for mount in mounts)
        self._pattern = re.compile(rf"(?<![\w/.-])({choice})(?=/|$)") if mounts else None

    def localise(self, text: str) -> str:
        """Replace the mount paths in an argument or variable by folders of this machine."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: str(self._folders[match.group(1)]), text)


def arguments(container: Manifest, mounts: Mounts, port: int) -> list[str]:
    """Build the command line: the container's, with local paths, listening on the loopback."""
    program = str(Path(sys.executable).with_name("llmbudget"))
    listen = f"--listen=127.0.0.1:{port}"
    given = [mounts.localise(argument) for argument in container.get("args", ())]
    return [program, *(listen if item.startswith("--listen=") else item for item in given)]


async def environment(
    cluster: Cluster, pod: Manifest, container: Manifest, mounts: Mounts, server: str
) -> dict[str, str]:
    """Collect the container's variables; `server` is the API server's URL.

    Raises:
        NotReady: a Secret, ConfigMap or key that is not optional does not exist.
    """
    url = urlsplit(server)
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "KUBERNETES_SERVICE_HOST": url.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(url.port or 443),
    }
    namespace: str = pod["metadata"]["namespace"]
    for source in container.get("envFrom", ()):
        variables.update(await _env_from(cluster, namespace, source))
    for entry in container.get("env", ()):
        value = await _value(cluster, pod, entry)
        if value is not None:
            variables[entry["name"]] = mounts.localise(value)
    return variables


async def _env_from(cluster: Cluster, namespace: str, source: Manifest) -> dict[str, str]:
    kind, reference = (
        (SECRETS, source["secretRef"])
        if "secretRef" in source
        else (CONFIG_MAPS, source["configMapRef"])
    )
    data = await read_data(cluster, kind, namespace, reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise NotReady(f"{kind.kind} {reference['name']} does not exist")
    prefix = source.get("prefix", "")
    return {f"{prefix}{key}": value.decode() for key, value in data.items()}


async def _value(cluster: Cluster, pod: Manifest, entry: Manifest) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return str(entry.get("value", ""))
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    kind, reference = (
        (SECRETS, source["secretKeyRef"])
        if "secretKeyRef" in source
        else (CONFIG_MAPS, source["configMapKeyRef"])
    )
    data = await read_data(cluster, kind, pod["metadata"]["namespace"], reference["name"]) or {}
    if reference["key"] in data:
        return data[reference["key"]].decode()
    if reference.get("optional"):
        return None
    raise NotReady(f"{kind.kind} {reference['name']} has no key {reference['key']}")
