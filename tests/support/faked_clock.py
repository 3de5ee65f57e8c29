"""A clock for one server's processes that tests can move: Debian's libfaketime, preloaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support.debian import install

_PLACES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")


def find_library() -> Path:
    """Find libfaketime, or install Debian's package where this is root."""
    for _ in range(2):
        for place in _PLACES:
            for found in Path("/").glob(place.lstrip("/")):
                return found
        install("libfaketime")
    raise AssertionError("Debian's package libfaketime brought no library")


class FakedClock:
    """A wall clock that is some seconds off; steady clocks stay as they are."""

    def __init__(self) -> None:
        # Not in a test's own folder, which only this user may enter, and the server is another's.
        self._folder = tempfile.TemporaryDirectory(prefix="llmbudget-clock-")
        Path(self._folder.name).chmod(0o755)
        self._file = Path(self._folder.name) / "faketime"
        self._library = find_library()
        self.offset = 0
        self.move(0)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the processes that are to tell this time."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def stop(self) -> None:
        """Remove its file."""
        self._folder.cleanup()

    def move(self, seconds: int) -> None:
        """Move the clock, forwards or backwards; it is believed within a second."""
        self.offset += seconds
        fresh = self._file.with_suffix(".tmp")
        fresh.write_text(f"{self.offset:+d}\n")
        fresh.chmod(0o644)
        fresh.rename(self._file)
