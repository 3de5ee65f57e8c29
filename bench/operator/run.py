"""Operator bench: a thousand budgets on a real API server, beside the raw limit of that server.

    python -m bench.operator.run [--budgets 1000] [--rest 300] [--parts start,restart,…]

One control plane, its audit log as the witness of every write. The operator runs as in a cluster:
with its own ServiceAccount's token and rights. In place of the gateways' pods one process speaks
for all of them: the gateway's own ledger rules and event stream, fed by the ConfigMaps that the
operator renders, over HTTP. No Pods run: the API server is loaded by the operator alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from bench.operator import world
from bench.operator.raw import Bare
from tests.support.worlds import INSTALLATION, serving_of, world_of

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS
from llmbudget.decide.validity.chain import findings
from llmbudget.local.binaries import CONTROL_PLANE, find
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.stage import OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, Stage
from llmbudget.reconcile.status import status_manifest
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config

Manifest = dict[str, Any]
OPERATOR: Final = "system:serviceaccount:llmbudget-system:llmbudget-operator"
WRITES: Final = frozenset({"create", "update", "patch", "delete"})
CROSSINGS: Final = 150
PARTS: Final = ("start", "restart", "more", "cross", "spend", "secrets", "rest", "raw")
RAW: Final = "raw"
"""Of the names of the namespaces for the raw limit."""
FOREIGN: Final = 100_000
MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Audit:
    """The API server's audit log, read on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self.reads: Counter[str] = Counter()
        """What it read meanwhile."""

    def writes(self) -> Counter[str]:
        """Count the operator's writes since this was asked last, by verb and resource."""
        found: Counter[str] = Counter()
        self.reads.clear()
        for line in self._file:
            entry = json.loads(line)
            if entry["user"]["username"] == OPERATOR:
                place = entry.get("objectRef") or {}
                parts = [place.get("resource", "?"), place.get("subresource")]
                counts = found if entry["verb"] in WRITES else self.reads
                counts[f"{entry['verb']} {'/'.join(filter(None, parts))}"] += 1
        return found


class Bench:
    """One run: the cluster, the operator's process and what was found."""

    def __init__(
        self, options: argparse.Namespace, folder: Path, ledgers: Path, plane: ControlPlane
    ) -> None:
        self.options = options
        self.folder = folder
        self.ledgers = ledgers
        """In memory where that can be: the gateways' disks are not what is measured."""
        self.plane = plane
        self.results: list[tuple[str, str]] = []
        self.cluster = Cluster.from_kubeconfig(plane.kubeconfig)
        self.bare = Bare(plane.kubeconfig)
        self.audit = Audit(plane.audit_log)
        self.control = free_port()
        self.operator: asyncio.subprocess.Process | None = None
        self.rate: float | None = None
        """Of the operator's applies at its start, a second."""
        self.stage: Stage | None = None

    def say(self, what: str, result: str) -> None:
        """Note a result."""
        self.results.append((what, result))
        print(f"  {what}: {result}", flush=True)

    async def run(self) -> None:
        """Carry out the parts in order."""
        kubectl = find(lambda _: None).kubectl
        async with (
            self.cluster,
            Stage(self.ledgers / "stage", self.plane.kubeconfig, kubectl) as stage,
        ):
            self.stage = stage
            await self._prepare(stage)
            async with self._gateways(stage):
                for part in self.options.parts.split(","):
                    print(f"{part}", flush=True)
                    await getattr(self, f"_{part}")()
                if self.operator is not None:
                    await stop(self.operator)

    async def _prepare(self, stage: Stage) -> None:
        await stage.install()
        for number in range(world.NAMESPACES):
            await stage.allow_namespace(world.namespace(number))
        await self.bare.apply_all(world.surroundings())
        count = self.options.budgets
        await self.bare.apply_all(world.workload(n) for n in range(count) if world.has_target(n))
        _, seconds = await self.bare.apply_all(world.budget(n) for n in range(count))
        print(f"{count} budgets written in {seconds:.1f} s", flush=True)

    @contextlib.asynccontextmanager
    async def _gateways(self, stage: Stage) -> AsyncIterator[None]:
        with (self.folder / "gateways.log").open("wb") as log:
            command = [sys.executable, "-m", "bench.operator.gateways"]
            arguments = [self.plane.kubeconfig, stage.gateways, str(self.control)]
            process = await spawn([*command, *arguments], output=log)
            try:
                yield
            finally:
                await stop(process)

    # Parts

    async def _start(self) -> None:
        """All Ready, from the start of the process on."""
        count = self.options.budgets
        self.audit.writes()
        server = self._server_cpu()
        seconds = await self._until_ready(count, self._begin)
        await asyncio.sleep(1)
        server_ours = self._server_cpu() - server
        writes = self.audit.writes()
        applied = sum(n for what, n in writes.items() if what.startswith("patch"))
        self.rate = applied / seconds
        self.say(f"{count} budgets Ready", f"{seconds:.1f} s, {applied} server-side applies")
        self.say("  rate", f"{self.rate:.0f}/s")
        self.say("  other writes", _listed(writes, lambda what: not what.startswith("patch")))
        self.say("  reads", _listed(self.audit.reads, lambda what: what.startswith("get")))
        self.say("  control plane's processor", f"{1000 * server_ours / applied:.1f} ms an apply")
        self.say("  memory", f"{self._memory()}; processor: {self._cpu():.1f} s")

    async def _restart(self) -> None:
        """Nothing is written to a child, and all is seen to be well."""
        assert self.stage is not None
        await self._end()
        self.audit.writes()
        server = self._server_cpu()
        with self.stage.log("operator").open("rb") as log:
            log.seek(0, os.SEEK_END)
            await self._begin()
            seconds = await self._until_settled(log)
        ours, server = self._cpu(), self._server_cpu() - server
        await asyncio.sleep(5)
        writes = self.audit.writes()
        children = {w: n for w, n in writes.items() if not _is_own(w)}
        self.say(
            f"restart with {self.options.budgets} budgets", f"all looked at in {seconds:.1f} s"
        )
        self.say("  processor until then", f"{ours:.1f} s; control plane {server:.1f} s")
        self.say("  writes to children", str(sum(children.values())))
        self.say("  other writes", _listed(writes, _is_own))
        self.say("  memory", self._memory())

    async def _more(self) -> None:
        """What one more budget costs."""
        times = []
        for number in range(self.options.budgets + 1, self.options.budgets + 11):
            times.append(await self._one_more(number))
        median = statistics.median(times) * 1000
        self.say(f"one more budget beside {self.options.budgets}", f"Ready in {median:.0f} ms")

    async def _spend(self) -> None:
        """Every budget spends all the time."""
        await self._command("/spend", rate=self.options.budgets)
        await asyncio.sleep(12)
        self.audit.writes()
        before, seconds = self._cpu(), 25.0
        spent = sum((await self._command("/spent")).values())
        await asyncio.sleep(seconds)
        writes = self.audit.writes()
        statuses = writes["patch llmbudgets/status"] / seconds
        # The spender may not keep up with what it was asked for.
        spent = sum((await self._command("/spent")).values()) - spent
        lag = await self._lag(spent / seconds / self.options.budgets)
        cpu = (self._cpu() - before) / seconds
        self.say(f"{self.options.budgets} budgets spending", f"{statuses:.0f} status writes/s")
        self.say("  figures lag", f"{lag:.1f} s at most; operator uses {cpu:.2f} of a core")
        await self._command("/spend", rate=0)

    async def _cross(self) -> None:
        """From the ledger's crossing to the patched Deployment, while all spend."""
        await self._command("/spend", rate=self.options.budgets)
        await asyncio.sleep(5)
        chosen = [n for n in range(self.options.budgets) if world.has_target(n)][:CROSSINGS]
        seen: dict[str, float] = {}
        watching = asyncio.create_task(self._watch_models(seen))
        await asyncio.sleep(2)
        at: dict[str, float] = {}
        for number in chosen:
            name = world.account(number)
            nano = int(world.CAP * 0.92)
            at[name] = (await self._command("/cross", account=name, nano=nano))["at"]
            await asyncio.sleep(0.1)
        deadline = time.monotonic() + 30
        while len(seen) < len(chosen) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        watching.cancel()
        await self._command("/spend", rate=0)
        times = sorted(1000 * (seen.get(name, float("inf")) - at[name]) for name in at)
        self.say(
            f"crossing to patched Deployment, {len(times)} times",
            f"p50 {_percentile(times, 50):.0f} ms, p99 {_percentile(times, 99):.0f} ms,"
            f" slowest {times[-1]:.0f} ms",
        )

    async def _rest(self) -> None:
        """Nothing happens, and nothing is written."""
        await asyncio.sleep(30)
        self.audit.writes()
        before = self._cpu()
        await asyncio.sleep(self.options.rest)
        writes = self.audit.writes()
        cpu = (self._cpu() - before) / self.options.rest
        self.say(f"at rest for {self.options.rest} s", f"writes: {_listed(writes, lambda _: True)}")
        self.say("  processor", f"{cpu:.3f} of a core")

    async def _raw(self) -> None:
        """The same applies once more, of as many budgets, by a client that does nothing else: new
        objects in new namespaces, with the rights of the operator's own account."""
        await self._end()
        assert self.stage is not None
        again = await self._the_same_again()
        token = await self.stage.token(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)
        bare = Bare(self.plane.kubeconfig, token)
        server = self._server_cpu()
        applied, seconds = await bare.apply_groups(again)
        raw, server = applied / seconds, self._server_cpu() - server
        self.say("raw limit", f"{applied} server-side applies in {seconds:.1f} s: {raw:.0f}/s")
        self.say("  control plane's processor", f"{1000 * server / applied:.1f} ms an apply")
        if self.rate is not None:
            self.say("  ratio of the operator's rate", f"{self.rate / raw:.2f}")

    async def _secrets(self) -> None:
        """A hundred thousand Secrets of others."""
        memory = self._memory()
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "foreign"}}
        await self.bare.apply_all([namespace])
        _, seconds = await self.bare.create_all(world.foreign_secret(n) for n in range(FOREIGN))
        print(f"{FOREIGN} Secrets of others made in {seconds:.0f} s", flush=True)
        await self._restart()
        self.say(f"memory before {FOREIGN} foreign Secrets", memory)

    # Help

    async def _begin(self) -> None:
        assert self.stage is not None
        self.operator = await self.stage.operator(allow_private=["127.0.0.1"])

    async def _end(self) -> None:
        assert self.operator is not None
        await stop(self.operator)

    async def _until_ready(self, count: int, begin: Callable[[], Awaitable[None]]) -> float:
        """Begin, and wait until so many budgets are Ready; return the seconds."""
        ready: set[str] = set()
        started = time.monotonic()
        await begin()
        async with asyncio.timeout(600 + count * 0.4):
            async for event in self.cluster.watch(BUDGETS):
                if event.type == "SYNCED":
                    continue
                metadata = event.object["metadata"]
                if _is_ready(event.object):
                    ready.add(f"{metadata['namespace']}/{metadata['name']}")
                if len(ready) >= count:
                    return time.monotonic() - started
        raise AssertionError

    async def _one_more(self, number: int) -> float:
        async def begin() -> None:
            await self.bare.apply_all([world.budget(number)])

        wanted = world.name(number)
        started = time.monotonic()
        await begin()
        async with asyncio.timeout(60):
            selector = f"metadata.name={wanted}"
            async for event in self.cluster.watch(
                BUDGETS, world.namespace(number), field_selector=selector
            ):
                if event.type != "SYNCED" and _is_ready(event.object):
                    return time.monotonic() - started
        raise AssertionError

    async def _until_settled(self, log: BinaryIO) -> float:
        """Wait until the operator says that it has looked at all; return the seconds since its
        process began."""
        assert self.operator is not None
        async with asyncio.timeout(600):
            while not any(b'"all looked at"' in line for line in log):
                await asyncio.sleep(0.02)
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _began(self.operator.pid)

    async def _watch_models(self, seen: dict[str, float]) -> None:
        async for event in self.cluster.watch(DEPLOYMENTS):
            metadata = event.object.get("metadata", {})
            notes = metadata.get("annotations") or {}
            account = notes.get("llmbudget.io/allow-budget")
            if account and "llmbudget.io/downgraded-to" in notes and event.type == "MODIFIED":
                seen.setdefault(account, time.monotonic())

    async def _the_same_again(self) -> list[list[Manifest]]:
        """Render the children of one budget, and take them and its statuses as often as there are
        budgets, each with an owner of its own."""
        assert self.stage is not None
        known = await self.cluster.get(BUDGETS, world.namespace(0), world.name(0))
        assert known is not None
        for number in range(world.NAMESPACES):
            await self.stage.allow_namespace(world.namespace(number, RAW))
        numbers = range(self.options.budgets)
        owners = [await self.cluster.create(world.budget(number, RAW)) for number in numbers]
        status = known["status"]
        of_one = [
            *_children(owners[0]),
            _status(owners[0], status | {"phase": "Pending"}),
            _status(owners[0], status),
        ]
        text = json.dumps(of_one)
        return [json.loads(_for(text, owners[0], owner)) for owner in owners]

    async def _command(self, path: str, **body: Any) -> Any:  # noqa: ANN401
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            return (await client.post(f"http://127.0.0.1:{self.control}{path}", json=body)).json()

    async def _lag(self, nano_a_second: float) -> float:
        """Find how old the oldest figure in a status is, by what its ledger has spent since, at
        what each spends in a second."""
        spent = await self._command("/spent")
        items, _ = await self.cluster.list(BUDGETS)
        lags = []
        for item in items:
            account = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            shown = round(float((item.get("status") or {}).get("spent", "0")) * 10**9)
            lags.append((spent.get(account, 0) - shown) / nano_a_second)
        return max(lags)

    def _memory(self) -> str:
        assert self.operator is not None
        text = Path(f"/proc/{self.operator.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        now, most = (int(fields[key].split()[0]) // 1024 for key in ("VmRSS", "VmHWM"))
        return f"{now} MB now, {most} MB at most"

    def _cpu(self) -> float:
        assert self.operator is not None
        return _cpu_of(self.operator.pid)

    def _server_cpu(self) -> float:
        """Seconds that etcd, the API server and the controllers have used."""
        place = str(self.plane.folder).encode()
        pids = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
        return sum(_cpu_of(pid) for pid in pids if _is_server(_command(pid), place))


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _began(pid: int) -> float:
    """Tell when a process began, in seconds since the machine did."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> bytes:
    """Read a process's command line; empty: it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _is_server(command: bytes, place: bytes) -> bool:
    program, _, arguments = command.partition(b"\0")
    return Path(program.decode(errors="replace")).name in CONTROL_PLANE and place in arguments


def _is_own(what: str) -> bool:
    """Tell whether a write is no child: a status, the Lease, a token, an Event."""
    return any(part in what for part in ("status", "leases", "token", "events"))


def _is_ready(budget: Manifest) -> bool:
    conditions = (budget.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _children(budget: Manifest) -> tuple[Manifest, ...]:
    """Render the children of one budget, as the operator does."""
    installation = replace(INSTALLATION, loopback=True, private_hosts=frozenset({"127.0.0.1"}))
    here = [item for item in world.surroundings(RAW) if _namespace(item) == _namespace(budget)]
    made = world_of([*here, budget], installation=installation)
    found = findings(made)
    assert not found, found
    return children(made, found, gateway_config(made, found), {}, serving_of(made))


def _status(budget: Manifest, status: Manifest) -> Manifest:
    return status_manifest("LLMBudget", _namespace(budget), budget["metadata"]["name"], status)


def _for(text: str, one: Manifest, other: Manifest) -> str:
    """Make what is one budget's another's."""
    for key in ("name", "namespace", "uid"):
        text = text.replace(one["metadata"][key], other["metadata"][key])
    return text


def _namespace(item: Manifest) -> str:
    return str(item["metadata"]["namespace"])


def _listed(writes: Counter[str], wanted: Callable[[str], bool]) -> str:
    found = [f"{count} {what}" for what, count in sorted(writes.items()) if wanted(what)]
    return ", ".join(found) or "none"


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, default=1000)
    parser.add_argument("--rest", type=int, default=300, help="seconds")
    parser.add_argument("--parts", default=",".join(PARTS))
    return parser.parse_args()


async def main() -> None:
    """Run and print."""
    options = _options()
    # A stream for each gateway, on both sides.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        tempfile.TemporaryDirectory(prefix="bench-operator-") as folder,
        tempfile.TemporaryDirectory(prefix="bench-operator-", dir=MEMORY) as ledgers,
    ):
        place = Path(folder)
        async with ControlPlane(place / "cluster", say=print, audit=True) as plane:
            bench = Bench(options, place, Path(ledgers), plane)
            await bench.run()
    print()
    for what, result in bench.results:
        print(f"| {what} | {result} |")


if __name__ == "__main__":
    asyncio.run(main())
