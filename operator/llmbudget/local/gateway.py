"""The pod of a rendered gateway Deployment, run as a process on this machine.

Everything that the process gets comes from the API server, as it would through a kubelet: its
arguments and variables, the ConfigMaps and Secrets in its volumes, and the pod's own ServiceAccount
token. The pod is bound to a node of its own and is Ready when the process says so. A changed pod
template makes a new pod, which makes a new process; a claim is a folder that outlives both. A
Deployment may have several pods: each is a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import httpx
import yaml

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import DEPLOYMENTS, PODS
from llmbudget.local.front import Front
from llmbudget.local.node import Node, is_ready
from llmbudget.local.pods import Mounts, arguments, environment
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.volumes import NotReady, Volumes

Manifest = Mapping[str, Any]

PERIOD: Final = 0.5
"""Seconds between two looks at the Deployment's pods, its volumes and the process."""
RESTART_WAIT: Final = 1.0
"""Seconds before a process that ended by itself is started again."""
TRANSIENT: Final = (ApiError, OSError, NotReady)
"""What the next turn may find mended."""


class PodTokens:
    """Tokens of the pod's ServiceAccount, bound to the pod, renewed when most of their life is
    over."""

    def __init__(self, cluster: Cluster, pod: Manifest) -> None:
        self._cluster = cluster
        self._pod = pod
        self._known: dict[str | None, tuple[str, float]] = {}

    async def token(self, audience: str | None, seconds: int) -> str:
        """Return a token that is good for a while yet."""
        known = self._known.get(audience)
        if known is not None and time.time() < known[1]:
            return known[0]
        metadata = self._pod["metadata"]
        token, expires = await self._cluster.create_token(
            metadata["namespace"],
            self._pod["spec"].get("serviceAccountName", "default"),
            audience,
            seconds,
            pod=(metadata["name"], metadata["uid"]),
        )
        life = expires.timestamp() - time.time()
        self._known[audience] = (token, time.time() + 0.8 * life)
        return token


class PodProcess:
    """One pod and its process."""

    def __init__(
        self, cluster: Cluster, server: str, pod: Manifest, port: int, state: Path
    ) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.restarts = 0
        self.port = port
        self.is_ready = False
        """As it said last."""
        self.process: asyncio.subprocess.Process | None = None
        self._cluster = cluster
        self._server = server
        self._folder = state / "pods" / self.uid
        self._volumes = Volumes(
            cluster, pod, PodTokens(cluster, pod), self._folder, state / "claims"
        )
        self._container: Manifest = pod["spec"]["containers"][0]

    async def keep(self) -> None:
        """Refresh the volumes and see that the process runs.

        Raises:
            NotReady: something that the pod needs does not exist yet.
        """
        await self._volumes.refresh()
        if self.process is not None and self.process.returncode is None:
            return
        if self.process is not None:
            self.restarts += 1
            click.echo(f"gateway ended with {self.process.returncode}: starting it again", err=True)
            await asyncio.sleep(RESTART_WAIT)
        mounts = Mounts(self.pod, self._container, self._volumes)
        variables = await environment(
            self._cluster, self.pod, self._container, mounts, self._server
        )
        command = arguments(self._container, mounts, self.port)
        self.process = await spawn(command, environment=variables)

    @property
    def url(self) -> str:
        """Base URL of the process."""
        scheme = str(self._probe.get("scheme", "HTTP")).lower()
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def _probe(self) -> Manifest:
        probe: Manifest = self._container.get("readinessProbe", {}).get("httpGet", {})
        return probe

    async def ready(self) -> bool:
        """Ask the process as the kubelet would: its readiness probe."""
        path = self._probe.get("path", "/readyz")
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=2, verify=_trusting()) as client:
                answer = await client.get(f"{self.url}{path}")
        except httpx.TransportError:
            return False
        return answer.is_success

    async def stop(self) -> None:
        """End the process and forget its volumes, but for the claims."""
        if self.process is not None:
            await stop(self.process, self.pod["spec"].get("terminationGracePeriodSeconds", 30))
        shutil.rmtree(self._folder, ignore_errors=True)


def _trusting() -> ssl.SSLContext:
    """Trust any certificate, as a kubelet does: it asks a process that it started itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class LocalGateway:
    """Runs the Deployment's pods. Where they are rolled beside each other, callers get to them as
    through a Service, by one port in front of them; a pod that is alone has the port itself."""

    def __init__(
        self, cluster: Cluster, server: str, node: Node, deployment: str, port: int, state: Path
    ) -> None:
        self._cluster = cluster
        self._server = server
        self._node = node
        self._namespace, self._name = deployment.split("/")
        self._port = port
        self._state = state
        self._pods: dict[str, PodProcess] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._front: Front | None = None
        self._selector: str | None = None
        self._complaint = ""

    async def run(self, announcement: Path) -> None:
        """Keep the pods running until cancelled; `announcement` tells the operator where they
        are."""
        try:
            while True:
                try:
                    await self._turn()
                    self._complain("")
                except TRANSIENT as error:
                    self._complain(str(error))
                self._announce(announcement)
                await asyncio.sleep(PERIOD)
        finally:
            _forget(announcement)
            if self._front is not None:
                self._front.close()
            stopping = [pod.stop() for pod in self._pods.values()]
            await asyncio.gather(*stopping, *self._leaving.values(), return_exceptions=True)

    def _complain(self, message: str) -> None:
        if message and message != self._complaint:
            click.echo(f"waiting: {message}", err=True)
        self._complaint = message

    def _announce(self, path: Path) -> None:
        """Write where the gateways are, once a process runs; ids are for those who test kills."""
        running = [
            {"url": pod.url, "pid": pod.process.pid}
            for pod in self._pods.values()
            if pod.process is not None
        ]
        if not running:
            return
        url = running[0]["url"]
        if self._front is not None:
            url = f"{str(url).partition(':')[0]}://127.0.0.1:{self._port}"
        content = json.dumps(running[0] | {"url": url, "pods": running})
        if not path.exists() or path.read_text() != content:
            fresh = path.with_suffix(".tmp")
            fresh.write_text(content)
            fresh.rename(path)

    async def _turn(self) -> None:
        found = {pod["metadata"]["uid"]: pod for pod in await self._list()}
        for uid, pod in found.items():
            if pod["metadata"].get("deletionTimestamp"):
                self._leave(uid, pod)
            elif uid not in self._pods:
                self._pods[uid] = await self._take(pod)
        for uid in self._pods.keys() - found.keys():
            self._leave(uid, None)
        if self._front is not None:
            self._front.ports = [pod.port for pod in self._pods.values() if pod.is_ready]
        kept = [self._keep(pod, found[uid]) for uid, pod in self._pods.items()]
        for result in await asyncio.gather(*kept, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _leave(self, uid: str, pod: Manifest | None) -> None:
        """End a pod's process, and then the pod, beside the others."""

        async def leave() -> None:
            if process is not None:
                await process.stop()
            if pod is not None:
                with contextlib.suppress(*TRANSIENT):
                    await self._node.remove(pod)
            del self._leaving[uid]

        if uid not in self._leaving:
            process = self._pods.pop(uid, None)
            self._leaving[uid] = asyncio.create_task(leave())

    async def _list(self) -> list[dict[str, Any]]:
        if self._selector is None:
            deployment = await self._cluster.get(DEPLOYMENTS, self._namespace, self._name)
            if deployment is None:
                raise NotReady(f"Deployment {self._namespace}/{self._name} does not exist yet")
            labels = deployment["spec"]["selector"]["matchLabels"]  # immutable
            if deployment["spec"]["strategy"]["type"] == "RollingUpdate":
                self._front = await Front.open(self._port)
            self._selector = ",".join(f"{key}={value}" for key, value in labels.items())
        pods, _ = await self._cluster.list(PODS, self._namespace, label_selector=self._selector)
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    async def _take(self, pod: Manifest) -> PodProcess:
        if not pod["spec"].get("nodeName"):
            await self._node.bind(pod)
        port = self._port if self._front is None else free_port()
        return PodProcess(self._cluster, self._server, pod, port, self._state)

    async def _keep(self, pod: PodProcess, seen: Manifest) -> None:
        await pod.keep()
        pod.is_ready = await pod.ready()
        statuses = seen.get("status", {}).get("containerStatuses") or [{}]
        restarts = statuses[0].get("restartCount")
        if (pod.is_ready, pod.restarts) != (is_ready(seen), restarts):
            await self._node.report(seen, ready=pod.is_ready, restarts=pod.restarts)


def _forget(announcement: Path) -> None:
    announcement.unlink(missing_ok=True)


def server_of(kubeconfig: Path) -> str:
    """Read the API server's URL from a kubeconfig's current context.

    Raises:
        click.ClickException: there is none.
    """
    try:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        return str(_named(config["clusters"], context["cluster"])["cluster"]["server"])
    except (OSError, KeyError, TypeError, StopIteration, yaml.YAMLError) as error:
        raise click.ClickException(f"{kubeconfig} is no usable kubeconfig: {error!r}") from None


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


async def run(kubeconfig: Path, budget: str, port: int, state: Path) -> None:
    """Run the gateway of the root budget NAMESPACE/NAME until cancelled."""
    namespace, name = budget.split("/")
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster.from_kubeconfig(kubeconfig))
        node = Node(cluster, f"local-{namespace}-{name}")
        await stack.enter_async_context(node.registered())
        server = server_of(kubeconfig)
        gateway = LocalGateway(cluster, server, node, f"{budget}-gateway", port, state)
        await gateway.run(state / f"{namespace}_{name}.json")


async def _until_told(work: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work


@click.command("gateway")
@click.argument("budget", metavar="NAMESPACE/NAME")
@click.option("--port", default=0, help="Port on the loopback; 0: a free one.")
@click.option(
    "--kubeconfig",
    envvar="KUBECONFIG",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    help="The cluster; default: $KUBECONFIG.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for volumes, claims and NAMESPACE_NAME.json, which `llmbudget operator"
    " --local-gateways` reads.",
)
def command(budget: str, port: int, kubeconfig: Path, state: Path) -> None:
    """Run the gateway of a root budget as a process on this machine."""
    if budget.count("/") != 1:
        raise click.BadParameter("write NAMESPACE/NAME", param_hint="NAMESPACE/NAME")
    chosen = port or free_port()
    folder = state.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def main() -> None:
        await _until_told(asyncio.ensure_future(run(kubeconfig, budget, chosen, folder)))

    asyncio.run(main())
