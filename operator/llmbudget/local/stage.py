"""The parts of an installation on this machine: installed, started, and ended together.

The operator runs as it does in a cluster: with the token of its own ServiceAccount and the RBAC of
the manifests, nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from llmbudget.contract.config import CA_BUNDLE_KEY
from llmbudget.local.process import free_port, spawn, stop

ROOT: Final = Path(__file__).parents[3]
"""The checkout, whose manifests and examples are used."""
PROGRAM: Final = Path(sys.executable).with_name("llmbudget")
OPERATOR_NAMESPACE: Final = "llmbudget-system"
OPERATOR_ACCOUNT: Final = "llmbudget-operator"
LIFE: Final = "12h"
"""How long the tokens last that are made here."""
WAIT: Final = 45.0
"""Seconds that anything may take to become ready."""
GATEWAY_IMAGE: Final = "llmbudget:local"
"""Never pulled: the gateway's pod runs as a process."""


Result = TypeVar("Result")


class StageError(Exception):
    """Something did not start or did not become ready; the message is for people."""


class Stage:
    """One installation in one folder, on a control plane that runs already."""

    def __init__(self, folder: Path, kubeconfig: Path, kubectl: Path) -> None:
        self.folder = folder
        self.kubeconfig = kubeconfig
        self.kubectl_program = kubectl
        self.gateways = folder / "gateways"
        self.health = ""
        """Where the operator that was started last answers its probe."""
        self._stack = contextlib.AsyncExitStack()
        self._parts: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> Stage:
        self.gateways.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as the cluster's administrator and return what it says.

        Raises:
            StageError: it failed.
        """
        process = await asyncio.create_subprocess_exec(
            self.kubectl_program,
            f"--kubeconfig={self.kubeconfig}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode())
        if process.returncode:
            raise StageError(f"kubectl {' '.join(arguments[:3])}: {err.decode().strip()}")
        return out.decode()

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """Read one object.

        Raises:
            StageError: it does not exist.
        """
        text = await self.kubectl("get", kind, name, "-n", namespace, "-o", "json")
        found: dict[str, Any] = json.loads(text)
        return found

    async def start(self, name: str, *arguments: str | Path) -> asyncio.subprocess.Process:
        """Start `llmbudget ARGUMENTS`; it ends with the stage, and its log is NAME.log."""
        log = self._stack.enter_context(self.log(name).open("ab"))
        process = await spawn([PROGRAM, *arguments], output=log)
        self._stack.push_async_callback(stop, process)
        self._parts[name] = process
        return process

    async def until(
        self, what: str, ask: Callable[[], Awaitable[Result | None]], seconds: float = WAIT
    ) -> Result:
        """Ask again until there is an answer.

        Raises:
            StageError: there was none in time, or a part ended.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = await ask()
            if answer is not None:
                return answer
            self._check()
            await asyncio.sleep(0.2)
        raise StageError(f"{what}: not ready after {seconds:.0f} seconds")

    def _check(self) -> None:
        for name, process in self._parts.items():
            if process.returncode is not None:
                end = self.log(name).read_text(errors="replace").strip().splitlines()[-3:]
                raise StageError("\n    ".join([f"{name} ended ({process.returncode}):", *end]))

    def log(self, name: str) -> Path:
        """Name the log of a part."""
        return self.folder / f"{name}.log"

    async def install(self) -> None:
        """Apply the CRDs, the operator's account and RBAC, and the admission policies."""
        manifests = ROOT / "manifests" / "default"
        await self.kubectl(
            "apply", "--server-side", "-k", str(manifests), "-l", "!llmbudget.io/runs-in-cluster"
        )
        await self.kubectl(
            "wait", "--for=condition=Established", "crd/llmbudgets.llmbudget.io",
            "crd/llmproviders.llmbudget.io", "--timeout=30s",
        )  # fmt: skip

    async def allow_namespace(self, namespace: str) -> None:
        """Let the operator manage gateways in a namespace, which is made where it is missing."""
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
        role = ROOT / "manifests" / "namespace"
        await self.kubectl("apply", "--server-side", "-n", namespace, "-k", str(role))

    async def token(self, namespace: str, account: str, audience: str | None = None) -> str:
        """Make a token of a ServiceAccount."""
        wanted = [f"--audience={audience}"] if audience else []
        made = await self.kubectl(
            "create", "token", account, "-n", namespace, f"--duration={LIFE}", *wanted
        )
        return made.strip()

    async def operator(
        self,
        *,
        allow_private: Sequence[str],
        name: str = "operator",
        identity: str = "local",
        server: str | None = None,
        only: str | None = None,
    ) -> asyncio.subprocess.Process:
        """Start the operator with its own account's token; `server`: another way to the API server
        than the administrator's; `only`: in this namespace, for it. Two of one identity both act.
        """
        namespace = only or OPERATOR_NAMESPACE
        kubeconfig = self.folder / f"{name}.kubeconfig"
        config = yaml.safe_load(self.kubeconfig.read_text())
        token = await self.token(namespace, OPERATOR_ACCOUNT)
        config["users"] = [
            {"name": user["name"], "user": {"token": token}} for user in config["users"]
        ]
        if server is not None:
            for entry in config["clusters"]:
                entry["cluster"] = {"server": server}
        write_private(kubeconfig, yaml.safe_dump(config))
        port = free_port()
        self.health = f"http://127.0.0.1:{port}"
        allowed = [
            argument for host in allow_private for argument in ("--allow-private-host", host)
        ]
        return await self.start(
            name,
            "operator",
            *("--kubeconfig", kubeconfig),
            *("--namespace", namespace),
            *("--service-account", f"{namespace}/{OPERATOR_ACCOUNT}"),
            *(("--namespaces", only) if only else ()),
            *("--gateway-image", GATEWAY_IMAGE),
            *("--local-gateways", self.gateways),
            *("--health-port", str(port)),
            *("--identity", identity),
            *allowed,
        )

    async def gateway(self, budget: str) -> str:
        """Start the gateway of a root budget; return its URL once its process runs."""
        await self.start(
            f"gateway-{budget.replace('/', '_')}",
            *("local", "gateway", budget),
            *("--kubeconfig", self.kubeconfig),
            *("--state", self.gateways),
        )
        announcement = self.gateways / f"{budget.replace('/', '_')}.json"

        async def announced() -> str | None:
            known = announcement.exists()
            return str(json.loads(announcement.read_text())["url"]) if known else None

        return await self.until("the gateway's process", announced)

    async def authorities(self, budget: str) -> Path:
        """Write down by which authorities a gateway's certificate is checked."""
        namespace, _, name = budget.partition("/")
        found = await self.get("configmap", namespace, f"{name}-gateway-ca")
        path = self.folder / f"{budget.replace('/', '_')}.ca.crt"
        path.write_text(found["data"][CA_BUNDLE_KEY])
        return path

    async def provider(
        self, prices: Mapping[str, Mapping[str, str]], key: str, *, latency_ms: int
    ) -> tuple[str, Path]:
        """Start a provider simulator; return its base URL and its bill."""
        write_private(self.folder / "provider-keys", key)
        (self.folder / "prices.json").write_text(json.dumps(prices))
        port, bill = free_port(), self.folder / "bill.jsonl"
        await self.start(
            "provider",
            *("local", "provider", "--port", str(port)),
            *("--prices", self.folder / "prices.json"),
            *("--bill", bill),
            *("--keys", self.folder / "provider-keys"),
            *("--latency-ms", str(latency_ms)),
        )
        return f"http://127.0.0.1:{port}/v1", bill


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)
