"""The local control plane is a real one, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmbudget.local.controlplane import ControlPlane

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]


def wait_until(what: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "deadline passed"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_rbac_is_real(kubectl: Kubectl, namespace: str) -> None:
    user = f"--as=system:serviceaccount:{namespace}:default"
    with pytest.raises(Exception, match="forbidden"):
        kubectl("get", "secrets", "-n", namespace, user)


def test_service_account_tokens_are_reviewed(kubectl: Kubectl, namespace: str) -> None:
    token = kubectl("create", "token", "default", "-n", namespace, "--audience=llmbudget").strip()
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["llmbudget"]},
    }
    answer = json.loads(kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))
    assert answer["status"]["authenticated"]
    assert answer["status"]["user"]["username"] == f"system:serviceaccount:{namespace}:default"


def test_deployments_and_garbage_collection_work(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "deployment", "web", "--image=none", "-n", namespace)
    wait_until(lambda: "web-" in kubectl("get", "replicasets", "-n", namespace, "-o", "name"))
    kubectl("delete", "deployment", "web", "-n", namespace)
    wait_until(lambda: not kubectl("get", "replicasets", "-n", namespace, "-o", "name"))


async def test_several_run_at_once(control_plane: ControlPlane, tmp_path: Path) -> None:
    async with ControlPlane(tmp_path / "second", say=print) as second:
        assert second.running()
        assert control_plane.running()
        assert second.kubeconfig.read_text() != control_plane.kubeconfig.read_text()
        folder = second.folder
    assert not folder.exists()
    assert control_plane.running()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys, time
        from pathlib import Path
        from llmbudget.local.controlplane import ControlPlane
        plane = ControlPlane(Path(sys.argv[1]), say=lambda _: None)
        asyncio.run(plane.start())
        print("up", flush=True)
        time.sleep(600)
    """)
    folder = tmp_path / "orphan"
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    supervisor = int((folder / "supervisor.pid").read_text())
    pids = [supervisor, *children(supervisor)]
    assert len(pids) == 4
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_up_stays_and_down_removes(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}

    def llmbudget(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from llmbudget.cli import main; main()", "local"]
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=check
        )

    try:
        assert "from" in llmbudget("up", "--name=stay").stderr
        assert "up" in llmbudget("status", "--name=stay").stdout
        path = Path(llmbudget("kubeconfig", "--name=stay").stdout.strip())
        assert path.is_file()
        assert "already runs" in llmbudget("up", "--name=stay").stderr
    finally:
        llmbudget("down", "--name=stay")
    assert not path.exists()
    assert llmbudget("status", "--name=stay", check=False).returncode == 1
    assert "llmbudget local up" in llmbudget("kubeconfig", "--name=stay", check=False).stderr
