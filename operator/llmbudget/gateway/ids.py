"""Ids that can't be guessed, at the price of a list's pop."""

from __future__ import annotations

import secrets
import time
from typing import Final

_DIGITS: Final = 16
_AT_ONCE: Final = 256
_RANDOM: Final[list[str]] = []
"""Random parts of ids to come."""


def random_hex() -> str:
    """Make 64 random bits as 16 lower-case hexadecimal digits."""
    if not _RANDOM:
        # In bulk: asking the kernel for each lets other threads in, and a call waits for its turn.
        text = secrets.token_hex(_AT_ONCE * _DIGITS // 2)
        _RANDOM.extend(text[at : at + _DIGITS] for at in range(0, len(text), _DIGITS))
    return _RANDOM.pop()


def new_entry_id() -> str:
    """Make an id that sorts by time."""
    return f"call-{time.time_ns() // 1_000_000:011x}-{random_hex()}"
