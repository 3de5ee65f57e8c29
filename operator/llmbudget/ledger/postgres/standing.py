"""The ledger's own row, which every transaction locks first and writes last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.postgres.connection import Database
from llmbudget.ledger.postgres.migrations import refuse_newer
from llmbudget.ledger.records import Header

LOCK: Final = (
    "SELECT requires, name, epoch, version, rare_version, envelopes_version, last_seq, "
    "generation, period, time_zone, next_time_zone, incarnation FROM ledger FOR UPDATE"
)
WRITE: Final = (
    "UPDATE ledger SET name = %s, epoch = %s, version = %s, rare_version = %s, "
    "envelopes_version = %s, last_seq = %s, generation = %s, period = %s, time_zone = %s, "
    "next_time_zone = %s"
)
COUNT: Final = "UPDATE owners SET commits = %s WHERE epoch = %s"


@dataclass(frozen=True, slots=True)
class Standing:
    """The ledger's row, and what belongs to it, under its lock."""

    name: str | None
    epoch: int
    version: int
    rare_version: int
    envelopes_version: int
    """The last one that changed an envelope."""
    last_seq: int
    header: Header
    """With this owner's epoch."""
    commits: int | None
    """How many this owner has made; None: it is none, or no longer."""

    @classmethod
    def of(cls, row: tuple[Any, ...] | None, database: Database, name: str) -> Self:
        """Read the row that `LOCK` selects; nobody is its owner yet.

        Raises:
            LedgerUnavailable: it is gone, another budget's, or of a newer version.
        """
        if row is None:
            raise LedgerUnavailable(f"PostgreSQL of {database.file}: the ledger's row is gone")
        requires, found, epoch, version, rare_version, envelopes_version, last_seq, *header = row
        refuse_newer(requires, database)
        if found not in (None, name):
            raise LedgerUnavailable(
                f"PostgreSQL of {database.file}: these tables are the ledger of {found}: give "
                f"{name} a schema of its own"
            )
        generation, period, time_zone, next_time_zone, incarnation = header
        return cls(
            name=found,
            epoch=epoch,
            version=version,
            rare_version=rare_version,
            envelopes_version=envelopes_version,
            last_seq=last_seq,
            header=Header(
                epoch=0,
                generation=generation,
                period=period,
                time_zone=time_zone or "UTC",
                next_time_zone=next_time_zone or "UTC",
                incarnation=incarnation,
            ),
            commits=None,
        )

    @property
    def identity(self) -> tuple[str, int, str | None]:
        """Tell what a book was read for: of the same, it only needs to catch up."""
        return identity(self.header)


def identity(header: Header) -> tuple[str, int, str | None]:
    """Tell whose tables they are, who owns them, and in which month."""
    return header.incarnation, header.epoch, header.period
