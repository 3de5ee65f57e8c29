"""`llmbudget local gateway`: a Deployment's pod as a process of this machine.

The pod's program here is the provider simulator: it reads a key from a Secret's volume and prices
from a ConfigMap's, and writes its bill to a claim.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmbudget.local.process import free_port
from llmbudget.local.stage import PROGRAM

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]
DEADLINE = 30.0


def until(what: str, ask: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {DEADLINE:.0f} s")


def manifests(namespace: str, port: int) -> str:
    def named(api: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}

    mounts = {
        "config": "/etc/config",
        "data": "/var/lib/data",
        "keys": "/run/keys",
        "own": "/run/own",
    }
    token = {"serviceAccountToken": {"path": "token", "audience": "test"}}
    container = {
        "name": "main",
        "image": "never:pulled",
        "args": [
            "local",
            "provider",
            f"--port={port}",
            "--prices=/etc/config/prices.json",
            "--bill=/var/lib/data/bill.jsonl",
            "--keys=/run/keys/provider",
        ],
        "readinessProbe": {"httpGet": {"path": "/bill", "port": 8080}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    secret = {"name": "key", "items": [{"key": "KEY", "path": "provider"}]}
    volumes = [
        {"name": "config", "configMap": {"name": "prices"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "ledger"}},
        {"name": "keys", "projected": {"sources": [{"secret": secret}]}},
        {"name": "own", "projected": {"sources": [token]}},
    ]
    labels = {"app": "gateway"}
    pod = {"serviceAccountName": "own", "containers": [container], "volumes": volumes}
    template = {"metadata": {"labels": labels}, "spec": pod}
    prices = json.dumps({"large": {"inputPer1K": "1", "outputPer1K": "1"}})
    spec = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": labels},
        "template": template,
    }
    items = [
        named("v1", "ServiceAccount", "own"),
        named("v1", "ConfigMap", "prices", data={"prices.json": prices}),
        named("apps/v1", "Deployment", "team-gateway", spec=spec),
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


class Pod:
    """One local gateway and what can be asked of it."""

    def __init__(self, kubectl: Kubectl, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self._kubectl = kubectl
        self.namespace = namespace
        self.port = free_port()
        self.state = folder / "state"
        self.log = folder / "log"
        self._announcement = self.state / f"{namespace}_team.json"
        kubectl("apply", "-f", "-", stdin=manifests(namespace, self.port))
        command = [PROGRAM, "local", "gateway", f"{namespace}/team", f"--port={self.port}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--kubeconfig={kubeconfig}", f"--state={self.state}"],
                stdout=log,
                stderr=log,
            )

    def key(self, value: str) -> None:
        """Create or rotate the Secret."""
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "key", "namespace": self.namespace},
            "stringData": {"KEY": value},
        }
        self._kubectl("apply", "-f", "-", stdin=json.dumps(secret))

    def pods(self) -> list[dict[str, Any]]:
        text = self._kubectl("get", "pods", "-n", self.namespace, "-o", "json")
        pods: list[dict[str, Any]] = json.loads(text)["items"]
        return pods

    def available(self) -> bool:
        path = "{.status.availableReplicas}/{.status.observedGeneration}/{.metadata.generation}"
        text = self._kubectl(
            "get", "deployment", "team-gateway", "-n", self.namespace, f"-o=jsonpath={path}"
        )
        replicas, observed, generation = text.split("/")
        return replicas == "1" and observed == generation

    def pid(self) -> int:
        """Process id of the pod's program; 0: it does not run."""
        if not self._announcement.exists():
            return 0
        return int(json.loads(self._announcement.read_text())["pid"])

    def status(self, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{self.port}/v1/models"
        try:
            return httpx.get(url, headers=headers, trust_env=False).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def pod(kubectl: Kubectl, kubeconfig: Path, namespace: str, tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(kubectl, kubeconfig, namespace, tmp_path)
    yield pod
    pod.process.terminate()
    pod.process.wait(DEADLINE)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_pod_waits_for_its_secret_and_follows_its_rotation(pod: Pod) -> None:
    until("what is missing is said", lambda: "Secret key does not exist" in pod.log.read_text())
    assert not pod.available()
    pod.key("sk-one")
    until("the Deployment is available", pod.available)
    assert pod.status("sk-one") == 200
    first = pod.pid()
    pod.key("sk-two")
    until("the new key is accepted", lambda: pod.status("sk-two") == 200)
    assert pod.status("sk-one") == 401
    assert pod.pid() == first, "a rotated Secret needs no restart"


def test_a_new_template_makes_a_new_process_on_the_same_claim(pod: Pod, kubectl: Kubectl) -> None:
    pod.key("sk")
    until("the Deployment is available", pod.available)
    first, name = pod.pid(), pod.pods()[0]["metadata"]["name"]
    body = {"model": "large", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    headers = {"authorization": "Bearer sk"}
    base = f"http://127.0.0.1:{pod.port}"
    httpx.post(f"{base}/v1/chat/completions", json=body, headers=headers, trust_env=False)
    kubectl("set", "env", "deployment/team-gateway", "CHANGED=yes", "-n", pod.namespace)
    until("another process runs", lambda: pod.pid() not in (0, first))
    until("the Deployment is available again", pod.available)
    assert [item["metadata"]["name"] for item in pod.pods()] != [name]
    assert not alive(first)
    assert b"CHANGED=yes" in Path(f"/proc/{pod.pid()}/environ").read_bytes()
    assert httpx.get(f"{base}/bill", trust_env=False).json()["calls"] == 1


def test_a_killed_process_is_started_again(pod: Pod) -> None:
    pod.key("sk")
    until("the Deployment is available", pod.available)
    first = pod.pid()
    os.kill(first, signal.SIGKILL)
    until("another process runs", lambda: pod.pid() not in (0, first))

    def restarted() -> bool:
        statuses = pod.pods()[0]["status"]["containerStatuses"]
        return bool(statuses[0]["restartCount"] == 1 and statuses[0]["ready"])

    until("the pod tells of its restart", restarted)


def test_the_process_ends_with_its_parent(pod: Pod) -> None:
    pod.key("sk")
    until("the Deployment is available", pod.available)
    program = pod.pid()
    pod.process.kill()
    until("the program has ended", lambda: not alive(program))


def test_a_deleted_deployment_leaves_no_pod_and_no_process(pod: Pod, kubectl: Kubectl) -> None:
    pod.key("sk")
    until("the Deployment is available", pod.available)
    program = pod.pid()
    kubectl("delete", "deployment", "team-gateway", "-n", pod.namespace)
    until("the pod has gone", lambda: not pod.pods())
    until("the program has ended", lambda: not alive(program))
