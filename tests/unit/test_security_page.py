"""Every threat of docs/security.md has a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_every_threat_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    threats = [line for line in rows if not line.startswith("| threat")]
    assert len(threats) > 20
    assert all("`tests/" in line for line in threats), "a row without a test"


def test_every_test_that_is_named_exists() -> None:
    for path, name in NAMED:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"
