"""How this process uses its memory: much of it for long, in tens of thousands of like objects.

By default Python looks through all of them again and again while they become more, a quarter of a
start's processor time, and the C library keeps each connection's 256 KiB of buffer resident once
such a buffer was freed.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_COLLECT: Final = (20_000, 20, 100)
"""Objects between two looks at the youngest, and how many looks at one generation between two at
the next."""
_MALLOPT: Final = {"M_TRIM_THRESHOLD": (-1, 256 * 1024), "M_MMAP_THRESHOLD": (-3, 64 * 1024)}
"""Numbers and values: what is larger than the second comes from the system, a page when it is
written to, and goes back to it. Setting them keeps them from growing."""
_ARENAS: Final = (-8, 1)
"""M_ARENA_MAX: one thread does all the work."""


def begin_frugally() -> None:
    """Set both up; of another C library nothing is asked."""
    gc.set_threshold(*_COLLECT)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for number, value in (*_MALLOPT.values(), _ARENAS):
            libc.mallopt(number, value)


def keep_for_good() -> None:
    """What is there now stays: it is not looked through again for cycles that nobody needs."""
    gc.collect()
    gc.freeze()
