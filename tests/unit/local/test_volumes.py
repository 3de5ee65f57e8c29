"""A pod's folders: swapped whole, and named in the command line as paths of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmbudget.clients.cluster import Cluster
from llmbudget.local.pods import Mounts, arguments
from llmbudget.local.volumes import NotReady, Volumes, field, swap

POD: dict[str, Any] = {
    "metadata": {"name": "pod", "namespace": "ns", "labels": {"app.kubernetes.io/name": "x"}},
    "spec": {
        "containers": [
            {
                "name": "main",
                "args": ["gateway", "--keys=/run/keys", "--ledger=/run", "--listen=0.0.0.0:8080"],
                "volumeMounts": [
                    {"name": "keys", "mountPath": "/run/keys"},
                    {"name": "ledger", "mountPath": "/run"},
                ],
            }
        ],
        "volumes": [
            {"name": "keys", "emptyDir": {}},
            {"name": "ledger", "persistentVolumeClaim": {"claimName": "claim"}},
        ],
    },
}


class NoTokens:
    async def token(self, audience: str | None, seconds: int) -> str:
        raise AssertionError("no volume of the pod asks for a token")


def volumes(tmp_path: Path) -> Volumes:
    cluster = Cluster.from_kubeconfig(tmp_path / "unused")
    return Volumes(cluster, POD, NoTokens(), tmp_path / "pod", tmp_path / "claims")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith("..")
    }


def test_files_are_swapped_whole(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    assert swap(folder, {"a": b"1", "b": b"1"})
    first = (folder / "..data").resolve()
    assert not swap(folder, {"a": b"1", "b": b"1"})
    assert swap(folder, {"a": b"2", "c": b"2"})
    assert content(folder) == {"a": b"2", "c": b"2"}
    assert not first.exists()


def test_files_are_private(tmp_path: Path) -> None:
    swap(tmp_path / "volume", {"key": b"sk"})
    assert (tmp_path / "volume" / "key").stat().st_mode & 0o077 == 0


def test_a_volume_may_become_empty(tmp_path: Path) -> None:
    swap(tmp_path, {"a": b"1"})
    assert swap(tmp_path, {})
    assert content(tmp_path) == {}


async def test_claims_outlive_the_pod_and_lie_elsewhere(tmp_path: Path) -> None:
    await volumes(tmp_path).refresh()
    assert (tmp_path / "claims" / "ns" / "claim").is_dir()
    assert (tmp_path / "pod" / "keys").is_dir()


def test_paths_become_local_the_longest_mount_first(tmp_path: Path) -> None:
    container = POD["spec"]["containers"][0]
    mounts = Mounts(POD, container, volumes(tmp_path))
    command = arguments(container, mounts, 9000)
    assert command[1:] == [
        "gateway",
        f"--keys={tmp_path}/pod/keys",
        f"--ledger={tmp_path}/claims/ns/claim",
        "--listen=127.0.0.1:9000",
    ]


@pytest.mark.parametrize("text", ["/running", "/other/run", "https://host.run/", "x/run"])
def test_what_only_looks_like_a_mount_stays(tmp_path: Path, text: str) -> None:
    mounts = Mounts(POD, POD["spec"]["containers"][0], volumes(tmp_path))
    assert mounts.localise(text) == text


def test_fields_of_the_pod_can_be_read() -> None:
    assert field(POD, "metadata.namespace") == "ns"
    assert field(POD, "metadata.labels['app.kubernetes.io/name']") == "x"
    with pytest.raises(NotReady):
        field(POD, "spec.nodeName")
