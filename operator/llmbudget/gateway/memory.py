"""A bound on the requests that are in memory at once, in bytes.

A request is there several times over while its call is under way: as it came, as it was read and as
it is sent. Without a bound, a handful of callers with files could have the kernel end the process,
and every call under way be charged what it holds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from llmbudget.gateway.protocols.errors import rate_limited

_LIMIT_FILE: Final = Path("/sys/fs/cgroup/memory.max")
_SHARE: Final = 8
"""A request takes about three times its size: three eighths of the memory at most."""
_RETRY_SECONDS: Final = 2


class RequestMemory:
    """Counts the bytes of all requests under way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def claim(self) -> Claim:
        """Begin to count a request, which is forgotten at the end of the claim's block."""
        return Claim(self)

    def take(self, size: int, held: int) -> None:
        """Count more of a request that has `held` bytes already.

        Raises:
            Refusal: 429; one request alone always has room.
        """
        if self._taken > held and self._taken + size > self._most:
            raise rate_limited(
                "The requests under way take all the memory that the gateway has for them.",
                _RETRY_SECONDS,
            )
        self._taken += size

    def give_back(self, size: int) -> None:
        """Forget a request."""
        self._taken -= size


class Claim:
    """What one request has of it: as much as has arrived, whatever its head announces."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: RequestMemory) -> None:
        self._memory = memory
        self._size = 0

    def add(self, size: int) -> None:
        """So many bytes more have arrived.

        Raises:
            Refusal: 429, there is no room for them.
        """
        self._memory.take(size, self._size)
        self._size += size

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.give_back(self._size)


def share_of_memory(limit_file: Path = _LIMIT_FILE) -> int:
    """Tell how many bytes of requests this process has room for: by its container's limit, else by
    the machine's memory."""
    try:
        text = limit_file.read_text().strip()
    except OSError:
        text = "max"
    if text.isdecimal():
        return int(text) // _SHARE
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE
