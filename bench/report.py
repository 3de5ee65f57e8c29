"""What the benches print: one line a peer, and whether a target is met."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway.wrk import Load


@dataclass
class Peer:
    """One proxy under load."""

    name: str
    url: str
    tokens: Sequence[str] = ("-",)
    pid: int | None = None
    """Of the process whose time is counted."""
    loads: list[Load] = field(default_factory=list)
    microseconds: list[float] = field(default_factory=list)
    """Processor time of a call, in each round."""

    def median(self, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(getattr(load, figure) for load in self.loads)


@dataclass(frozen=True)
class Target:
    """What a figure should reach."""

    what: str
    found: float
    wanted: float
    least: bool = False
    """It should be at least that much; otherwise at most."""
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.found >= self.wanted if self.least else self.found <= self.wanted

    def __str__(self) -> str:
        bound = "at least" if self.least else "at most"
        unit = f" {self.unit}" if self.unit else ""
        verdict = "met" if self.met else "MISSED"
        return f"  {self.what}: {self.found:.3g}{unit} ({bound} {self.wanted:g}{unit}: {verdict})"


def processor_seconds(*pids: int) -> float:
    """Sum the processor time of processes so far, which the kernel counts in hundredths."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields) / 100


def ratio(peer: Peer, other: Peer) -> float:
    """Compare calls a second, round by round."""
    pairs = zip(peer.loads, other.loads, strict=True)
    return statistics.median(a.per_second / b.per_second for a, b in pairs)


def line(peer: Peer, last: str) -> str:
    """Write a peer's line."""
    return (
        f"  {peer.name:<18}{peer.median('per_second'):>10.0f}{peer.median('median_ms'):>12.2f}"
        f"{peer.median('p99_ms'):>10.2f}{last:>11}"
    )


def say(text: str) -> None:
    """Tell how far a bench is."""
    print(text, file=sys.stderr, flush=True)
