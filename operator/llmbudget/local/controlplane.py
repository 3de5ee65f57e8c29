"""A real Kubernetes control plane on the loopback: etcd, kube-apiserver, kube-controller-manager.

Real RBAC, ServiceAccount tokens, garbage collection and Deployment controller; no node. Several
run side by side, each in a folder of its own with its certificates, logs and kubeconfig. One
supervising process (`supervisor.py`) owns the three: it ends with whoever started it, unless it
was started detached, and they end with it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Self

import httpx
import yaml

from llmbudget.local import binaries
from llmbudget.local.binaries import Binaries, Say
from llmbudget.local.process import die_with_parent, free_port

START_SECONDS: Final = 90
"""Deadline for the API server to answer; it takes about three."""
STOP_SECONDS: Final = 15
EXISTING: Final = "USE_EXISTING_CLUSTER"


class NotStarted(Exception):
    """The control plane did not come up; the message names its logs."""


def state_directory(name: str) -> Path:
    """Name the folder of a control plane that stays."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "llmbudget" / "clusters" / name


class ControlPlane:
    """One control plane in one folder. Use `async with` for one that ends with the block."""

    def __init__(self, folder: Path, *, say: Say, audit: bool = False) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.audit_log = folder / "audit.log"
        """With `audit`: a line of JSON for each request, its metadata only."""
        self._say = say
        self._audit = audit

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    def running(self) -> bool:
        """Tell whether its supervisor lives."""
        pid = self._pid()
        return pid is not None and _is_supervisor(pid)

    async def start(self, *, detached: bool = False) -> None:
        """Start it and wait until it answers. `detached`: it stays when this process ends.

        Raises:
            NotStarted: it did not come up in time.
            BuildFailed: its binaries can't be had.
        """
        if os.environ.get(EXISTING) == "true":
            self.kubeconfig = _existing(self._say)
            return
        found = await asyncio.to_thread(binaries.find, self._say)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        started = time.monotonic()
        port = free_port()
        self._write_plan(found, port)
        supervisor = self._supervise(detached=detached)
        try:
            await self._await_ready(port, supervisor)
        except BaseException:
            await self.stop(keep_logs=True)
            raise
        self._say(f"control plane up on 127.0.0.1:{port} in {time.monotonic() - started:.1f} s")

    async def stop(self, *, keep_logs: bool = False) -> None:
        """Stop it and remove its folder. Stopping what doesn't run is fine."""
        if os.environ.get(EXISTING) == "true":
            return
        pid = self._pid()
        if pid is not None and _is_supervisor(pid):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while _is_supervisor(pid) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
                _reap(pid)
            if _is_supervisor(pid):
                os.kill(pid, signal.SIGKILL)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _pid(self) -> int | None:
        try:
            return int((self.folder / "supervisor.pid").read_text())
        except (OSError, ValueError):
            return None

    def _supervise(self, *, detached: bool) -> subprocess.Popen[bytes]:
        log = (self.folder / "supervisor.log").open("wb")
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "llmbudget.local.supervisor", str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=detached,
            preexec_fn=None if detached else die_with_parent,
        )
        (self.folder / "supervisor.pid").write_text(str(supervisor.pid))
        return supervisor

    def _write_plan(self, found: Binaries, port: int) -> None:
        """Write what the supervisor starts, and the credentials that this needs."""
        folder = self.folder
        token = secrets.token_urlsafe(32)
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        (folder / "token").write_text(token)
        key = subprocess.run(
            ["openssl", "genrsa", "-out", folder / "service-accounts.key", "2048"],
            capture_output=True,
            check=False,
        )
        if key.returncode:
            raise NotStarted(f"openssl genrsa failed: {key.stderr.decode(errors='replace')}")
        client, peer = free_port(), free_port()
        plan = {
            "etcd": _etcd(found, folder, client, peer),
            "apiserver": _apiserver(found, folder, port, client, audit=self._audit),
            "controller-manager": _controller_manager(found, folder),
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        if self._audit:
            policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy"}
            rules = {"omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}
            (folder / "audit.yaml").write_text(yaml.safe_dump(policy | rules))

    async def _await_ready(self, port: int, supervisor: subprocess.Popen[bytes]) -> None:
        """Wait for certificate and readiness; the kubeconfig is written between the two."""
        certificate = self.folder / "certificates" / "apiserver.crt"
        deadline = time.monotonic() + START_SECONDS
        url = f"https://127.0.0.1:{port}"
        while time.monotonic() < deadline and supervisor.poll() is None:
            if certificate.exists() and certificate.stat().st_size:
                self._write_kubeconfig(url, certificate.read_bytes())
                if await _ready(url, certificate, (self.folder / "token").read_text()):
                    return
            await asyncio.sleep(0.1)
        raise NotStarted(f"the control plane did not come up; see the logs in {self.folder}")

    def _write_kubeconfig(self, url: str, certificate: bytes) -> None:
        ca = base64.b64encode(certificate).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": url, "certificate-authority-data": ca}}
            ],
            "users": [{"name": "admin", "user": {"token": (self.folder / "token").read_text()}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "admin"}}],
            "current-context": "local",
        }
        part = self.folder / ".kubeconfig"
        part.write_text(yaml.safe_dump(document))
        part.chmod(0o600)
        part.rename(self.kubeconfig)


def _etcd(found: Binaries, folder: Path, client: int, peer: int) -> list[str]:
    return [
        str(found.etcd),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(
    found: Binaries, folder: Path, port: int, etcd_port: int, *, audit: bool
) -> list[str]:
    key = folder / "service-accounts.key"
    audit_flags = [
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / 'audit.log'}",
    ]
    return [
        str(found.apiserver),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--cert-dir={folder / 'certificates'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC,Node",
        "--allow-privileged=true",
        "--enable-admission-plugins=NodeRestriction",
        # Nobody else uses this server: no fair queues, which only slow a burst of tests down.
        "--enable-priority-and-fairness=false",
        *(audit_flags if audit else []),
    ]


def _controller_manager(found: Binaries, folder: Path) -> list[str]:
    return [
        str(found.controller_manager),
        f"--kubeconfig={folder / 'kubeconfig'}",
        f"--service-account-private-key-file={folder / 'service-accounts.key'}",
        "--use-service-account-credentials=false",
        "--leader-elect=false",
        "--secure-port=0",
        # No kubelet writes to a Node here; a fake one must not be evicted after 40 s.
        "--controllers=*,-nodelifecycle,-node-lifecycle-controller,-node-ipam-controller",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


async def _ready(url: str, certificate: Path, token: str) -> bool:
    try:
        trust = ssl.create_default_context(cafile=certificate)
        async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=2) as client:
            headers = {"Authorization": f"Bearer {token}"}
            ready = await client.get(f"{url}/readyz", headers=headers)
            account = "/api/v1/namespaces/default/serviceaccounts/default"
            return (
                ready.is_success and (await client.get(url + account, headers=headers)).is_success
            )
    except (httpx.HTTPError, ssl.SSLError, OSError):
        return False


def _existing(say: Say) -> Path:
    path = Path(os.environ.get("KUBECONFIG", "")).expanduser()
    if not os.environ.get("KUBECONFIG") or not path.is_file():
        raise NotStarted(f"{EXISTING}=true needs KUBECONFIG to name one existing file")
    say(f"using the existing cluster of {path}, as {EXISTING}=true asks")
    return path


def _reap(pid: int) -> None:
    """Let a child of ours that ended go; a detached supervisor may be nobody's child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _is_supervisor(pid: int) -> bool:
    """Tell whether the process is alive and ours: a number may be used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"llmbudget.local.supervisor" in command
