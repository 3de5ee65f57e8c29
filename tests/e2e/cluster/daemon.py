"""A process of the cluster that can be killed and started again."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


class Daemon:
    """One long-running program with a log; it ends with the namespaces that it runs in."""

    def __init__(self, name: str, log: Path, command: Sequence[str | Path]) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says is appended to its log."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def check(self) -> None:
        """Raise if it ended by itself, with the last that it said."""
        if self._process is not None and self._process.poll() is not None:
            end = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{end}")
