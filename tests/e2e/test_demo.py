"""The demo, as a person runs it: it ends well, can be kept, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmbudget.local.stage import PROGRAM

pytestmark = pytest.mark.cluster
DEADLINE = 150.0
END = "Ctrl-C ends it"


def children(pid: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child} | children(child)
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [PROGRAM, "local", "demo", "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_the_demo_holds_its_budget_and_cleans_up(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:  # ends with the process; pytest's own timeout bounds it
        lines.append(line)
        if END in line:
            break
    text = "".join(lines)
    assert END in text, text
    for happened in (
        "a notice arrives",
        "asks for claude-3-sonnet, gpt-4o-mini answers",
        "is patched",
        "has rolled out",
        "402",
        "Three books, kept apart",
        "They agree to the nano-dollar, and the cap was not passed.",
    ):
        assert happened in text, text
    assert "Traceback" not in text
    amounts = re.findall(r"\$(\d+\.\d{9})", text)
    assert len(set(amounts[:3])) == 1
    assert amounts[3] == "1.000000000"

    started = children(demo.pid)
    assert started
    demo.send_signal(signal.SIGINT)
    assert demo.wait(DEADLINE) == 0
    deadline = time.monotonic() + DEADLINE
    while alive(started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(started)
    assert not list(tmp_path.glob("llmbudget-demo-*"))
