"""The process that owns one control plane: `python -m llmbudget.local.supervisor FOLDER`.

It starts what FOLDER/plan.json lists, each with a log beside it, and ends all of them when it is
told to or when one of them ends. The kernel ends them too when this process is killed. The
controller manager needs the kubeconfig that is written once the API server has its certificate.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from llmbudget.local.process import die_with_parent

_ORDER: Final = ("etcd", "apiserver", "controller-manager")
_GRACE: Final = 5.0


def main(folder: Path) -> int:
    """Run until SIGTERM (0) or until a process ends by itself (1)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    plan: dict[str, list[str]] = json.loads((folder / "plan.json").read_text())
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in _ORDER:
            while name == "controller-manager" and not (folder / "kubeconfig").exists():
                _check(running)
                time.sleep(0.05)
            running[name] = _start(folder, name, plan[name])
        while True:
            _check(running)
            time.sleep(0.2)
    finally:
        _end(running)


def _start(folder: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    log = (folder / f"{name}.log").open("wb")
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        preexec_fn=die_with_parent,
    )


def _check(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in running.items():
        if process.poll() is not None:
            sys.exit(f"{name} ended with code {process.returncode}; see {name}.log")


def _end(running: dict[str, subprocess.Popen[bytes]]) -> None:
    """End them in reverse order, so that etcd outlives its clients."""
    for process in reversed(running.values()):
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
