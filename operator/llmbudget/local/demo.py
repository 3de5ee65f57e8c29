"""`make demo`: a budget of one dollar is spent before your eyes, and holds.

A real control plane, the operator under its own RBAC, the gateway's rendered pod as a process, a
provider simulator with a bill of its own, and an application that holds only a ServiceAccount
token. At the end the provider's bill, the ledger and the cap are laid side by side: the demo fails
when they disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import yaml

from llmbudget.api.meta import AUDIENCE
from llmbudget.api.money import parse_usd
from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.kinds import BUDGETS
from llmbudget.ledger.sqlite.schema import FILE_NAME, connect_reading
from llmbudget.local import demo_client
from llmbudget.local.bill import Bill
from llmbudget.local.binaries import BuildFailed, find
from llmbudget.local.controlplane import ControlPlane, NotStarted
from llmbudget.local.demo_show import Show
from llmbudget.local.http1 import port_of, serve
from llmbudget.local.node import Node
from llmbudget.local.process import spawn, stop
from llmbudget.local.screen import BOLD, CYAN, DIM, GREEN, Screen
from llmbudget.local.stage import ROOT, Stage, StageError, write_private

EXAMPLE: Final = ROOT / "examples" / "demo"
NAMESPACE, NAME = "llm-platform", "team-a"
BUDGET: Final = f"{NAMESPACE}/{NAME}"
APPLICATION_NAMESPACE, APPLICATION = "team-a", "researcher"
PROVIDER_AT: Final = "127.0.0.1:18080"
"""Where examples/demo expects the provider; replaced by where it really is."""
NOTICES_AT: Final = "127.0.0.1:18081"
WORKERS: Final = 30
LATENCY_MS: Final = 400
PATIENCE: Final = 120.0
"""Seconds that the spending may take."""
SETTLING: Final = 15.0
"""Seconds that the last figures and the rollout may take."""


class Demo:
    """The story, in the order in which it is told."""

    def __init__(self, screen: Screen, stage: Stage, cluster: Cluster) -> None:
        self._screen = screen
        self._stage = stage
        self._cluster = cluster
        self._show = Show(screen, cluster, BUDGET, f"{APPLICATION_NAMESPACE}/{APPLICATION}")
        self._bill = Path()
        self._url = ""
        self._authorities = Path()

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Install and start everything, up to a budget that is Ready."""
        screen, stage = self._screen, self._stage
        await stage.install()
        screen.step("installed", "CRDs, admission policies, the operator's account and its RBAC")
        documents = _example()
        key, prices = _provider(documents)
        provider, self._bill = await stage.provider(prices, key, latency_ms=LATENCY_MS)
        screen.step("provider simulator", f"{provider}, with a bill of its own")
        host = provider.removeprefix("http://").removesuffix("/v1")
        sink = await stack.enter_async_context(await serve(self._show.notice, 0))
        notices = f"127.0.0.1:{port_of(sink)}"
        ports = {PROVIDER_AT: host, NOTICES_AT: notices}
        await stage.operator(allow_private=[host, notices])
        screen.step("operator", "as its own ServiceAccount, with the RBAC of the manifests")
        await self._apply(ports)
        screen.step("examples/demo", f"applied: {BUDGET} is $1.00 a month, for {APPLICATION}")
        node = Node(self._cluster, "local")
        await stack.enter_async_context(node.registered())
        stack.enter_context(_background(node.run_pods([APPLICATION_NAMESPACE])))
        self._url = await stage.gateway(BUDGET)
        await self._stage.until("the budget", self._ready)
        self._authorities = await stage.authorities(BUDGET)
        screen.step("gateway", f"{self._url}, holds the key; the budget is Ready")

    async def _apply(self, ports: Mapping[str, str]) -> None:
        await self._stage.allow_namespace(NAMESPACE)
        text = await self._stage.kubectl("kustomize", str(EXAMPLE))
        for default, actual in ports.items():
            text = text.replace(default, actual)
        await self._stage.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    async def _ready(self) -> bool | None:
        budget = await self._cluster.get(BUDGETS, NAMESPACE, NAME) or {}
        conditions = budget.get("status", {}).get("conditions", ())
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
        return ready or None

    async def spend(self) -> None:
        """Let the application spend until nothing is left."""
        screen, stage = self._screen, self._stage
        screen.title(f"{WORKERS} workers spend: the openai package, a ServiceAccount token, no key")
        token = await stage.token(APPLICATION_NAMESPACE, APPLICATION, AUDIENCE)
        token_file = stage.folder / "application-token"
        write_private(token_file, token)
        program = [sys.executable, "-m", demo_client.__name__]
        with stage.log("client").open("wb") as log:
            client = await spawn(
                [*program, f"{self._url}/v1", token_file, str(WORKERS)],
                # The ConfigMap's bundle, as an application's pod would mount it.
                environment={**os.environ, "SSL_CERT_FILE": str(self._authorities)},
                output=log,
                stdout=asyncio.subprocess.PIPE,
            )
            assert client.stdout is not None
            try:
                with _background(self._show.follow_cluster()):
                    async with asyncio.timeout(PATIENCE):
                        await self._show.follow_client(client.stdout)
                    with contextlib.suppress(StageError):  # the verdict will say what is missing
                        await self._stage.until("the last figures", self._settled, SETTLING)
            except TimeoutError:
                raise StageError(f"the money was not spent within {PATIENCE:.0f} s") from None
            finally:
                await stop(client)

    async def _settled(self) -> bool | None:
        """Wait until the status has caught up with the ledger, and the rollout is over."""
        status = await self._show.look()
        spent, held = parse_usd(status.get("spent", "0")), parse_usd(status.get("held", "0"))
        done = not held and spent == self._ledger()[0] and self._show.seen.rolled_out
        return done or None

    def _ledger(self) -> tuple[int, int]:
        """Sum the ledger's rows up from its file: nano-USD, and their number."""
        claim = self._stage.gateways / "claims" / NAMESPACE / f"{NAME}-ledger"
        connection = connect_reading(claim / FILE_NAME)
        try:
            row = connection.execute("SELECT coalesce(sum(cost), 0), count(*) FROM entries")
            total, number = next(row)
            return int(total), int(number)
        finally:
            connection.close()

    async def judge(self) -> list[str]:
        """Lay the three amounts side by side; return what is wrong."""
        screen = self._screen
        screen.title("$ kubectl get llmbudgets -A")
        for line in (await self._stage.kubectl("get", "llmbudgets", "-A")).splitlines():
            screen.line(f"  {line}")
        status = await self._show.look()
        bill = Bill(self._bill).total()
        ledger, rows = self._ledger()
        screen.title("Three books, kept apart")
        amounts = {
            "the provider's own bill": (int(bill["nano"]), f"{bill['calls']} calls"),
            "the ledger's rows": (ledger, f"{rows} rows"),
            "the budget's status": (int(parse_usd(status["spent"])), "as kubectl shows it"),
            "the cap": (int(parse_usd(status["cap"])), ""),
        }
        for name, (nano, detail) in amounts.items():
            amount = screen.paint(f"${nano // 10**9}.{nano % 10**9:09d}", BOLD)
            screen.line(f"  {name:<24} {amount}  {screen.paint(detail, DIM)}")
        return _faults([nano for nano, _ in amounts.values()], self._show)

    def invite(self) -> None:
        """Say what there is to try."""
        paint = self._screen.paint
        self._screen.title("It is all still there. In another terminal:")
        call = '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}'
        for purpose, command in (
            ("use this cluster", f"export KUBECONFIG={self._stage.kubeconfig}"),
            ("look", f"kubectl describe llmbudget {NAME} -n {NAMESPACE}"),
            ("see what was done", f"kubectl get events -n {NAMESPACE}"),
            ("be the application", f"TOKEN=$(kubectl create token {APPLICATION}"
             f" -n {APPLICATION_NAMESPACE} --audience {AUDIENCE})"),
            ("spend: 402, the money is gone", f"curl -i --cacert {self._authorities}"
             f" {self._url}/v1/chat/completions"
             f" -H \"Authorization: Bearer $TOKEN\" -d '{call}'"),
            ("give it another dollar, and see the model come back",
             f"kubectl patch llmbudget {NAME} -n {NAMESPACE} --type merge"
             """ -p '{"spec": {"budget": {"monthlyCap": "2.00"}}}'"""),
        ):  # fmt: skip
            self._screen.line(f"  {paint('# ' + purpose, DIM)}")
            self._screen.line(f"  {paint(command, CYAN)}")
        self._screen.line()
        self._screen.line("  Ctrl-C ends it and cleans up.")


def _faults(amounts: list[int], show: Show) -> list[str]:
    """Tell what did not hold, and what should have happened and did not."""
    bill, ledger, status, cap = amounts
    seen = show.seen
    checks = {
        "the bill and the ledger disagree": bill != ledger,
        "the status and the ledger disagree": status != ledger,
        "the cap was passed": bill > cap,
        "the spending did not end in a 402": seen.refusal is None,
        "no notice arrived": not seen.notices,
        "no call was downgraded": len(seen.calls) < 2,
        "the application's Deployment did not roll out": not seen.rolled_out,
        f"the application met {', '.join(seen.failures[:3])}": bool(seen.failures),
    }
    return [fault for fault, true in checks.items() if true]


def _example() -> list[dict[str, Any]]:
    """Read the example's documents."""
    return list(yaml.safe_load_all((EXAMPLE / "platform.yaml").read_text()))


def _provider(documents: list[dict[str, Any]]) -> tuple[str, dict[str, dict[str, str]]]:
    """Take the simulator's key and its prices from the example."""
    secret = next(item for item in documents if "SIMULATOR_API_KEY" in item.get("stringData", {}))
    provider = next(item for item in documents if item["kind"] == "LLMProvider")
    prices = {model["name"]: model["cost"] for model in provider["spec"]["models"]}
    return secret["stringData"]["SIMULATOR_API_KEY"], prices


@contextlib.contextmanager
def _background(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Let something run beside a block; if it fails, the block's end says so."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        if task.done() and not task.cancelled():
            task.result()


async def tell(folder: Path, screen: Screen, *, keep: bool) -> int:
    """Run the demo and return its exit code."""
    current = asyncio.current_task()
    assert current is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # Explicitly: a shell's background job inherits an ignored SIGINT.
        asyncio.get_running_loop().add_signal_handler(number, current.cancel)
    screen.line(screen.paint("LLM Budget: a dollar, thirty workers, and no way past it", BOLD))
    screen.title("Starting")
    found = await asyncio.to_thread(find, lambda text: screen.step("binaries", text))
    async with contextlib.AsyncExitStack() as stack:
        plane = ControlPlane(folder / "cluster", say=lambda text: None)
        await stack.enter_async_context(plane)
        screen.step("control plane", "etcd, kube-apiserver, kube-controller-manager")
        cluster = await stack.enter_async_context(Cluster.from_kubeconfig(plane.kubeconfig))
        stage = await stack.enter_async_context(Stage(folder, plane.kubeconfig, found.kubectl))
        demo = Demo(screen, stage, cluster)
        await demo.prepare(stack)
        await demo.spend()
        faults = await demo.judge()
        screen.line()
        for fault in faults:
            screen.bad(fault)
        if not faults:
            verdict = "They agree to the nano-dollar, and the cap was not passed."
            screen.line(f"  {screen.paint('✔ ' + verdict, GREEN, BOLD)}")
        if keep:
            demo.invite()
            with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it is meant to end
                await asyncio.Event().wait()
        return 1 if faults else 0


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
def command(keep: bool) -> None:
    """Spend a budget of one dollar through a gateway on this machine, and check every nano."""
    screen = Screen()
    folder = Path(tempfile.mkdtemp(prefix="llmbudget-demo-"))
    try:
        code = asyncio.run(tell(folder, screen, keep=keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.line("  ended before its time, and cleaned up")
        code = 130
    except (StageError, NotStarted, BuildFailed, ApiError, OSError) as error:
        screen.bad(f"{error}")
        screen.line(f"    {screen.paint(f'logs: {folder}', DIM)}")
        sys.exit(1)
    if code == 1:
        screen.line(f"    {screen.paint(f'logs: {folder}', DIM)}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)
