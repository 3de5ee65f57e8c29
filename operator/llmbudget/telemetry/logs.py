"""Structured logs: one JSON object a line, on stderr.

A call's fields are passed as `extra={"fields": {...}}`. Never a prompt, a completion, a token or a
key: those are not given to a logger in the first place.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic_core import to_json

_CALLS: Final = logging.getLogger("llmbudget.calls")
_GATHER_SECONDS: Final = 0.1


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level, logger, message, the record's fields and its traceback."""
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        document |= getattr(record, "fields", {})
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class CallLog:
    """One line a call. Lines are gathered and written a few times a second: to hand each to the
    kernel by itself costs more than much else of a call."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def write(self, fields: Mapping[str, object]) -> None:
        """Write a line, unless the level leaves it out."""
        if not _CALLS.isEnabledFor(logging.INFO):
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        document = {"time": now, "level": "info", "logger": _CALLS.name, "message": "call"}
        if not self._lines:
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self.flush)
        self._lines.append(to_json({**document, **fields}))

    def flush(self) -> None:
        """Write what was gathered."""
        if self._lines:
            text = b"\n".join(self._lines).decode()
            self._lines.clear()
            print(text, file=sys.stderr, flush=True)


def set_up(level: str = "INFO") -> None:
    """Send all logs to stderr as JSON; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("llmbudget").setLevel(level)
    # These log URLs that carry credentials: of what can't be used, of answers that are broken.
    for name in ("apprise", "urllib3"):
        silence(name)


def silence(name: str) -> None:
    """Drop whatever a library logs, its own loggers below included."""
    logger = logging.getLogger(name)
    logger.disabled = True
    logger.propagate = False
    logger.handlers[:] = [logging.NullHandler()]
