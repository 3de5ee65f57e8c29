"""A pod's volumes as folders of this machine, filled and kept fresh as the kubelet does.

ConfigMaps, Secrets and projected sources become files behind one symbolic link, which is swapped
when anything changes: a reader sees the old set of files or the new one, never a mixture. A claim
is a folder that outlives the pod; an emptyDir one that does not.
"""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import CONFIG_MAPS, SECRETS, Kind

Manifest = Mapping[str, Any]
Files = dict[str, bytes]

DATA: Final = "..data"
TOKEN_SECONDS: Final = 3600
"""Lifetime of a token whose source says none."""


class NotReady(Exception):
    """A volume or variable can't be filled yet: something it names does not exist."""


class TokenSource(Protocol):
    """Gives the pod's ServiceAccount tokens."""

    async def token(self, audience: str | None, seconds: int) -> str:
        """Return a token that is good for a while yet."""


def swap(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Make a folder's content these files, atomically; tell whether anything changed."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = folder / DATA
    before = link.resolve() if link.is_symlink() else None
    if before is not None and _read(before) == dict(files):
        return False
    fresh = folder / f"..{time.time_ns()}"
    for name, content in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_bytes(content)
    fresh.mkdir(exist_ok=True, mode=0o700)
    _point(link, fresh.name)
    _link_names(folder, {Path(name).parts[0] for name in files})
    if before is not None:
        shutil.rmtree(before)
    return True


def _read(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _point(link: Path, target: str) -> None:
    fresh = link.with_name(f"{link.name}_tmp")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def _link_names(folder: Path, names: set[str]) -> None:
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path(DATA) / name)
    for path in folder.iterdir():
        if not path.name.startswith("..") and path.name not in names:
            path.unlink()


class Volumes:
    """The volumes of one pod, below `root`; claims below `claims`."""

    def __init__(
        self, cluster: Cluster, pod: Manifest, tokens: TokenSource, root: Path, claims: Path
    ) -> None:
        self._cluster = cluster
        self._namespace: str = pod["metadata"]["namespace"]
        self._pod = pod
        self._tokens = tokens
        self._root = root
        self._claims = claims

    def path(self, volume: Manifest) -> Path:
        """Name the folder that stands for a volume."""
        claim = volume.get("persistentVolumeClaim")
        if claim is not None:
            return self._claims / self._namespace / str(claim["claimName"])
        return self._root / str(volume["name"])

    async def refresh(self) -> None:
        """Bring all volumes up to date.

        Raises:
            NotReady: something that a volume needs does not exist.
        """
        for volume in self._pod["spec"].get("volumes", ()):
            folder = self.path(volume)
            sources = _sources(volume)
            if sources is None:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            else:
                files: Files = {}
                for source in sources:
                    files.update(await self._files(source))
                swap(folder, files)

    async def _files(self, source: Manifest) -> Files:
        if "secret" in source:
            return await self._entries(SECRETS, source["secret"])
        if "configMap" in source:
            return await self._entries(CONFIG_MAPS, source["configMap"])
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            seconds = wanted.get("expirationSeconds", TOKEN_SECONDS)
            token = await self._tokens.token(wanted.get("audience"), seconds)
            return {wanted["path"]: token.encode()}
        if "downwardAPI" in source:
            items = source["downwardAPI"]["items"]
            return {
                item["path"]: field(self._pod, item["fieldRef"]["fieldPath"]).encode()
                for item in items
            }
        raise NotReady(f"a volume of this kind is not known here: {', '.join(source)}")

    async def _entries(self, kind: Kind, source: Manifest) -> Files:
        optional = bool(source.get("optional"))
        data = await read_data(self._cluster, kind, self._namespace, source["name"])
        if data is None:
            if optional:
                return {}
            raise NotReady(f"{kind.kind} {source['name']} does not exist")
        items = source.get("items")
        if items is None:
            return data
        missing = [item["key"] for item in items if item["key"] not in data]
        if missing and not optional:
            raise NotReady(f"{kind.kind} {source['name']} has no key {missing[0]}")
        return {item["path"]: data[item["key"]] for item in items if item["key"] in data}


def _sources(volume: Manifest) -> Sequence[Manifest] | None:
    """Bring a volume into the form of a projected one; None: a plain folder."""
    if "persistentVolumeClaim" in volume or "emptyDir" in volume:
        return None
    if "projected" in volume:
        sources: Sequence[Manifest] = volume["projected"]["sources"]
        return sources
    if "secret" in volume:
        secret = volume["secret"]
        return [{"secret": {**secret, "name": secret["secretName"]}}]
    return [{key: value for key, value in volume.items() if key != "name"}]


async def read_data(cluster: Cluster, kind: Kind, namespace: str, name: str) -> Files | None:
    """Read the entries of a Secret or ConfigMap; None: it does not exist."""
    found = await cluster.get(kind, namespace, name)
    if found is None:
        return None
    encoded = {
        **(found.get("binaryData") or {}),
        **((found.get("data") or {}) if kind is SECRETS else {}),
    }
    plain = (found.get("data") or {}) if kind is CONFIG_MAPS else {}
    return {
        **{key: base64.b64decode(value) for key, value in encoded.items()},
        **{key: value.encode() for key, value in plain.items()},
    }


def field(pod: Manifest, path: str) -> str:
    """Read a field of the downward API, such as metadata.namespace or metadata.labels['app'].

    Raises:
        NotReady: the pod has no such field.
    """
    node: Any = pod
    for part in path.replace("['", ".").replace("']", "").split(".", 2):
        if not isinstance(node, Mapping) or part not in node:
            raise NotReady(f"the pod has no field {path}")
        node = node[part]
    return str(node)
