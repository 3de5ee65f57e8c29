"""What a person at the terminal sees: steps, a bar that fills, and news above it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Final, TextIO

WIDTH: Final = 30
"""Cells of the bar."""
NAME: Final = 19
"""Columns for what a step is about."""
LINE_PERIOD: Final = 1.0
"""Seconds between two bars where the output is no terminal and can't be redrawn."""

BOLD, DIM, GREEN, YELLOW, RED, CYAN = "1", "2", "32", "33", "31", "36"


class Screen:
    """Writes to a terminal, or plainly to anything else."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._colour = self._terminal and "NO_COLOR" not in os.environ
        self._started = time.monotonic()
        self._live = False
        self._next_line = 0.0
        self._last_text: str | None = None

    def paint(self, text: str, *codes: str) -> str:
        """Colour a text where the output can show it."""
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if self._colour else text

    def line(self, text: str = "") -> None:
        """Write a line, above the bar if there is one."""
        self._clear()
        print(text, file=self._out, flush=True)

    def title(self, text: str) -> None:
        """Begin a chapter."""
        self.line()
        self.line(self.paint(text, BOLD))

    def step(self, text: str, detail: str = "") -> None:
        """Report something done."""
        mark = self.paint("✔", GREEN)
        self.line(f"  {mark} {text:<{NAME}} {self.paint(detail, DIM)}".rstrip())

    def news(self, text: str, *details: str) -> None:
        """Report something that happened, with the time since the start."""
        clock = self.paint(f"{time.monotonic() - self._started:5.1f} s", DIM)
        self.line(f"  {self.paint('●', YELLOW)} {clock}  {self.paint(text, BOLD)}")
        for detail in details:
            self.line(f"             {detail}")

    def bad(self, text: str) -> None:
        """Report a failure."""
        self.line(f"  {self.paint('✘', RED)} {text}")

    def bar(self, share: int, text: str) -> None:
        """Show the share (in thousandths) that is used; redrawn in place on a terminal."""
        now = time.monotonic()
        if not self._terminal and (text == self._last_text or now < self._next_line):
            return
        self._next_line, self._last_text = now + LINE_PERIOD, text
        filled = min(WIDTH, share * WIDTH // 1000)
        colour = RED if share >= 950 else YELLOW if share >= 800 else GREEN
        cells = self.paint("█" * filled, colour) + self.paint("░" * (WIDTH - filled), DIM)
        room = shutil.get_terminal_size().columns - WIDTH - 10 if self._terminal else len(text)
        line = f"  {cells} {share // 10:3d}%  {text[: max(0, room)]}"
        self._clear()
        print(line, end="" if self._terminal else "\n", file=self._out, flush=True)
        self._live = self._terminal

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=self._out)
            self._live = False
