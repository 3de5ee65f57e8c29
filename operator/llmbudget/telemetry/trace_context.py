"""W3C Trace Context: who asked for what a call is a part of."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


class TraceContext(NamedTuple):
    """A span of some trace."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    span_id: str
    """16 lower-case hexadecimal digits."""
    sampled: bool

    @property
    def traceparent(self) -> str:
        """Write the header, as the parent of what is called with it."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def read_traceparent(header: str | None) -> TraceContext | None:
    """Read the header `traceparent`; None: there is none, or none that means anything."""
    found = _TRACEPARENT.fullmatch(header) if header is not None else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    # Later versions may say more behind what this one says; there is no version ff.
    if (
        version == "ff"
        or (version == "00" and more)
        or not (int(trace_id, 16) and int(span_id, 16))
    ):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
