"""Objects, packed: thousands of budgets have tens of thousands of children, and a dict takes ten
times the memory of its text.

Children of one kind differ by little more than their names: each is deflated with the first of its
kind as dictionary, which leaves a hundred bytes of a kilobyte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

from pydantic_core import from_json, to_json

from llmbudget.clients.watch_events import version_of

Manifest = dict[str, Any]

_LEVEL: Final = 3
_RAW: Final = -15
"""No header and no checksum: what is packed stays in this process."""
_LONGEST: Final = 32 * 1024
"""As far as deflate looks back."""


class Packer:
    """Packs objects of a kind."""

    def __init__(self, *, alike: bool = True) -> None:
        """`alike`: later objects are told by how they differ from the first, whose text is kept for
        as long as the process lives. Not for what is secret."""
        self._alike = alike
        self._first = b""

    def pack(self, value: Manifest) -> bytes:
        """Pack; what is the same in the same order of keys, is the same packed."""
        text = to_json(value)
        if self._alike and not self._first:
            self._first = text[-_LONGEST:]
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, zdict=self._first)
        return deflater.compress(text) + deflater.flush()

    def unpack(self, packed: bytes) -> Manifest:
        """Give back what was packed."""
        found: Manifest = from_json(
            zlib.decompressobj(_RAW, zdict=self._first).decompress(packed), cache_strings="keys"
        )
        return found


class PackedResources(MutableMapping[tuple[str, str], Manifest]):
    """Resources by kind and account. What is read is a copy: changing it changes nothing here."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._packer = Packer()

    def version(self, key: tuple[str, str]) -> int:
        """Tell a resource's version, which costs nothing.

        Raises:
            KeyError: there is none.
        """
        return self._kept[key][0]

    def __getitem__(self, key: tuple[str, str]) -> Manifest:
        return self._packer.unpack(self._kept[key][1])

    def __setitem__(self, key: tuple[str, str], raw: Manifest) -> None:
        self._kept[key] = version_of(raw), self._packer.pack(raw)

    def __delitem__(self, key: tuple[str, str]) -> None:
        del self._kept[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
