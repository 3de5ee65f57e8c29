"""A process of the cluster that can be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class Daemon:
    """One long-running program with a log; it ends with the namespaces that it runs in.

    Its number is kept in a file: a cluster that is kept outlives the tests that started it.
    """

    def __init__(self, name: str, folder: Path, command: Sequence[str | Path]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run; what it says is appended to its log."""
        if self.runs():
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._pid_file.write_text(str(self._process.pid))

    def runs(self) -> bool:
        """Tell whether it runs."""
        if self._process is not None:
            return self._process.poll() is None
        return self._pid_file.exists() and Path("/proc", self._pid_file.read_text()).exists()

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self.runs():
            os.kill(int(self._pid_file.read_text()), signal.SIGKILL)
            while self.runs():
                time.sleep(0.01)
        self._pid_file.unlink(missing_ok=True)
        self._process = None

    def check(self) -> None:
        """Raise if it ended by itself, with the last that it said."""
        if self._pid_file.exists() and not self.runs():
            end = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended by itself:\n{end}")
