"""Toxiproxy: TCP connections that are slow, stall, break off within a message or are reset."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from random import Random
from typing import Any, Final

from llmbudget.local import binaries
from llmbudget.local.process import free_port

Toxic = tuple[str, dict[str, int]]
TOXICS: Final[tuple[Toxic, ...]] = (
    ("latency", {"latency": 40, "jitter": 20}),
    ("reset_peer", {"timeout": 0}),
    ("reset_peer", {"timeout": 200}),
    ("timeout", {"timeout": 300}),
    ("limit_data", {"bytes": 3000}),
)


class Toxiproxy:
    """One server, with a proxy for each of some ports."""

    def __init__(self, targets: list[int]) -> None:
        self._api = free_port()
        program = binaries.tool("toxiproxy", lambda _: None)
        self._process = subprocess.Popen(
            [program, "-host", "127.0.0.1", "-port", str(self._api)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.toxics = 0
        """How often a connection was poisoned."""
        self._wait()
        self.ports = [free_port() for _ in targets]
        for number, (port, target) in enumerate(zip(self.ports, targets, strict=True)):
            ends = {"listen": f"127.0.0.1:{port}", "upstream": f"127.0.0.1:{target}"}
            self._ask("POST", "/proxies", {"name": f"{number}", **ends})

    def poison(self, chance: Random) -> None:
        """Do something to the answers or the requests of one proxy, until `heal`."""
        kind, attributes = chance.choice(TOXICS)
        stream = chance.choice(("upstream", "downstream"))
        toxic = {"name": "toxic", "type": kind, "stream": stream, "attributes": attributes}
        number = chance.randrange(len(self.ports))
        self._ask("POST", f"/proxies/{number}/toxics", toxic)
        self.toxics += 1

    def delay(self, milliseconds: int) -> None:
        """Let all that goes through take so long, there and as long back."""
        for number in range(len(self.ports)):
            for stream in ("upstream", "downstream"):
                toxic = {"name": stream, "type": "latency", "stream": stream}
                attributes = {"latency": milliseconds}
                self._ask("POST", f"/proxies/{number}/toxics", toxic | {"attributes": attributes})

    def heal(self) -> None:
        """Take all toxics away."""
        self._ask("POST", "/reset")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                self._ask("GET", "/version")
            except urllib.error.URLError:
                assert time.monotonic() < deadline, "toxiproxy does not start"
                time.sleep(0.05)
            else:
                return

    def _ask(self, method: str, path: str, document: dict[str, Any] | None = None) -> None:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._api}{path}", body, {"user-agent": "tests"}, method=method
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()
