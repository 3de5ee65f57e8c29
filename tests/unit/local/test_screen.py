"""What the demo writes where there is no terminal: plain lines, none twice."""

from __future__ import annotations

import io

import pytest

from llmbudget.local import screen
from llmbudget.local.screen import RED, Screen


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def test_no_colours_and_no_redrawing_outside_a_terminal(out: io.StringIO) -> None:
    shown = Screen(out)
    shown.line(shown.paint("text", RED))
    shown.bar(500, "half")
    shown.news("something", "detail")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_a_bar_that_says_nothing_new_is_not_repeated(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "LINE_PERIOD", 0.0)
    shown = Screen(out)
    for text in ("same", "same", "other"):
        shown.bar(1, text)
    assert [line.split()[-1] for line in out.getvalue().splitlines()] == ["same", "other"]


@pytest.mark.parametrize(("share", "cells"), [(0, 0), (500, 15), (1000, 30), (1200, 30)])
def test_the_bar_fills_with_the_share(out: io.StringIO, share: int, cells: int) -> None:
    Screen(out).bar(share, "")
    assert out.getvalue().count("█") == cells
