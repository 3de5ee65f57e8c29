"""Speaking to the database: where it is, how a connection is set up, what its errors mean.

The connection string is a secret in a file, and is read anew for each connection, so that a
rotated password needs no restart. No message of ours repeats any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from llmbudget.ledger.interface import LedgerUnavailable

Connection = psycopg.Connection[tuple[Any, ...]]

CA_FILE: Final = "ca.crt"
"""Authority of the server's certificate, in the folder of the connection string."""
_DEFAULTS: Final[dict[str, Any]] = {
    "application_name": "llmbudget",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "sslmode": "verify-full",
    "target_session_attrs": "read-write",
}
"""What holds unless the connection string says something else."""
_SESSION: Final = (
    "SET TimeZone = 'UTC'",
    "SET lock_timeout = '10s'",
    "SET statement_timeout = '20s'",
    "SET idle_in_transaction_session_timeout = '10s'",
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'",
)
"""A gateway that vanishes with its machine must not keep the others waiting for its locks; and what
is granted must outlive a crash, whatever the database's default says."""

_AGAIN: Final = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.UniqueViolation,
    errors.QueryCanceled,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,
    errors.TooManyConnections,
)
"""Errors after which the same may succeed. A unique violation means that this process knew too
little: it reads everything anew."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database, named by the file that holds its connection string."""

    file: Path

    def connect(self) -> Connection:
        """Open a connection that commits each statement unless told to begin a transaction.

        Raises:
            LedgerUnavailable: the file is missing or holds no connection string.
            psycopg.Error: the database can't be reached.
        """
        try:
            written = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise LedgerUnavailable(f"{self.file}: {why}") from error
        try:
            options = _DEFAULTS | conninfo_to_dict(written) if written else {}
        except psycopg.ProgrammingError:
            options = {}
        if not options:
            # The library's own words would repeat the password.
            raise LedgerUnavailable(
                f"{self.file}: no connection string: write "
                "postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full"
            ) from None
        authority = self.file.parent / CA_FILE
        if options["sslmode"] in ("verify-full", "verify-ca") and "sslrootcert" not in options:
            options["sslrootcert"] = str(authority) if authority.is_file() else "system"
        connection = psycopg.connect(**options, autocommit=True)
        try:
            with connection.pipeline():
                for statement in _SESSION:
                    connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def unavailable(self, error: psycopg.Error) -> LedgerUnavailable:
        """Say what went wrong, and what to do where that is known."""
        return LedgerUnavailable(f"PostgreSQL of {self.file}: {_meaning(error)}")


def passing(error: psycopg.Error, connection: Connection | None) -> bool:
    """Tell whether the same may succeed on another try: something was in the way, or the
    connection was lost."""
    # What the server did not say, the driver did: it lost its thread together with the connection.
    lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        connection is None or connection.closed or error.sqlstate is None
    )
    # Where a pipeline breaks, its own complaint hides what ended it.
    return lost or isinstance(error, _AGAIN) or isinstance(error.__context__, _AGAIN)


def _meaning(error: psycopg.Error) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    for kind, advice in _ADVICE:
        if kind(error, said):
            return f"{said}: {advice}"
    return said


_Test = Callable[[psycopg.Error, str], bool]
_ADVICE: Final[tuple[tuple[_Test, str], ...]] = (
    (
        lambda error, said: (
            isinstance(error, errors.ReadOnlySqlTransaction) or "session is read-only" in said
        ),
        "this is a standby: name the primary, or all hosts, in the connection string",
    ),
    (
        lambda error, _: isinstance(error, errors.InsufficientPrivilege),
        "grant it to the role of the connection string, see docs/postgresql.md",
    ),
    (
        lambda error, _: isinstance(error, errors.DiskFull),
        "make room on the database's disk",
    ),
)
