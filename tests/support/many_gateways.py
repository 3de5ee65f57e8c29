"""The ledgers of many gateways in one process: what the operator hears, without the pods.

Ledger and event stream are the gateway's own code, fed by the ConfigMaps that the operator renders;
only calls and identity are missing. Each root budget is announced as `llmbudget local gateway`
announces it.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from llmbudget.api.money import Nano
from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import CONFIG_MAPS
from llmbudget.contract.config import CONFIG_KEY, GatewayConfig
from llmbudget.contract.events import ACTIONS_PATH, BALANCES_PATH
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.ledger_api import stream_balances
from llmbudget.gateway.wire import CallerGone, Exchange
from llmbudget.ledger.interface import HoldRequest, Settlement
from llmbudget.ledger.sqlite.engine import SqliteLedger
from llmbudget.local.http1 import Answer, Request, port_of, serve
from llmbudget.reconcile.live import SELECTOR


class ManyGateways:
    """All gateways of a cluster that an operator with `--local-gateways` finds."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self.ledgers: dict[str, SqliteLedger] = {}
        self.configs: dict[str, GatewayConfig] = {}
        self.acknowledged: dict[str, set[str]] = {}
        """Actions, by root."""
        self.delay = 0.0
        """Seconds until a stream is answered."""
        self._calls = 0
        self._url = ""

    async def run(self) -> None:
        """Follow the ConfigMaps until cancelled."""
        server = await serve(self._answer, 0)
        self._url = f"http://127.0.0.1:{port_of(server)}"
        try:
            async for event in self._cluster.watch(CONFIG_MAPS, label_selector=SELECTOR):
                text = (event.object.get("data") or {}).get(CONFIG_KEY)
                if event.type in ("ADDED", "MODIFIED") and text:
                    await self._configure(GatewayConfig.model_validate_json(text))
        finally:
            server.close()
            for ledger in self.ledgers.values():
                await ledger.close()

    async def spend(self, account: str, nano: int, root: str | None = None) -> float:
        """Charge a call to an account; return the instant of the commit, by the steady clock."""
        ledger = self.ledgers[root or account]
        self._calls += 1
        name = f"call-{self._calls}"
        await ledger.hold(HoldRequest(name, account, Nano(nano), "sim", "large"))
        await ledger.settle(name, Settlement(cost=Nano(nano), tokens_in=1, tokens_out=1))
        return time.monotonic()

    def acknowledged_of(self, root: str) -> int:
        """Count the actions that the operator has acknowledged."""
        return len(self.acknowledged.get(root, ()))

    async def _configure(self, config: GatewayConfig) -> None:
        self.configs[config.root] = config
        place = self._folder / config.root.replace("/", "_")
        if config.root not in self.ledgers:
            self.ledgers[config.root] = await SqliteLedger.open(place.with_suffix(".db"))
        ledger = self.ledgers[config.root]
        await ledger.configure(
            config.accounts, time_zone=config.time_zone, generation=config.generation
        )
        announced = place.with_suffix(".json")
        if not announced.exists():
            announced.write_text(json.dumps({"pods": [{"url": f"{self._url}/{config.root}"}]}))

    async def _answer(self, request: Request, answer: Answer) -> None:
        _, namespace, name, *rest = request.path.split("/")
        root, path = f"{namespace}/{name}", "/" + "/".join(rest)
        ledger = self.ledgers.get(root)
        if ledger is None or not request.headers.get("authorization"):
            answer.send(401, b"")
        elif path == BALANCES_PATH:
            await asyncio.sleep(self.delay)
            keys = cast(Keys, SimpleNamespace(missing=lambda _: {}))
            exchange = cast(Exchange, _Exchange(answer))
            await stream_balances(
                ledger, keys, lambda: self.configs[root], exchange, answer.closed.is_set
            )
        elif path.startswith(ACTIONS_PATH):
            action = path.split("/")[-2]
            self.acknowledged.setdefault(root, set()).add(action)
            await ledger.acknowledge(action)
            answer.send(200, b"{}")
        else:
            answer.send(404, b"")


class _Exchange:
    """The way back of a stream, as the gateway's server gives it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def response_stream(self, status: int, headers: object) -> _Exchange:
        self._answer.start("text/event-stream; charset=utf-8")
        return self

    async def send_bytes(self, data: bytes) -> None:
        if self._answer.closed.is_set():
            raise CallerGone
        self._answer.chunk(data)
