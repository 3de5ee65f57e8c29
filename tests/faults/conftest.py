"""After each fault, `llmbudget ledger verify` looks at every ledger that it left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.audits import assert_sound
from tests.support.shared_ledger import FILE, FOLDER


@pytest.fixture(autouse=True)
def audited(tmp_path: Path) -> Iterator[None]:
    """Set up first, so that it looks after everybody has let go."""
    yield
    for file in (*tmp_path.rglob("ledger.db"), *tmp_path.rglob(f"{FOLDER}/{FILE}")):
        assert_sound(file)
