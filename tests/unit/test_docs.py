"""What the pages point to is there: files, headings, targets of make, commands."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from llmbudget.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    *(ROOT / "bench").rglob("*.md"),
]
GENERATED = ROOT / "docs" / "reference.md"
"""Its patterns look like links."""
COMMAND = re.compile(rf"llmbudget ({'|'.join(COMMANDS)}) ([a-z][a-z-]+)\b(?!=)")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    if page == GENERATED:
        return
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z0-9-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    context = click.Context(main)
    for name, word in COMMAND.findall(text):
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            assert command.get_command(context, word) is not None, f"llmbudget {name} {word}"


def test_every_page_is_found_from_the_first() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert {name for name in pages if f"docs/{name}" not in first} == set()
