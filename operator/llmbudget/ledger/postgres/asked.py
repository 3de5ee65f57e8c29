"""What a group of operations needs beside the book, asked for in the round trip of the lock."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psycopg

from llmbudget.decide.periods import months_before
from llmbudget.ledger.book import Book
from llmbudget.ledger.operations import Subject
from llmbudget.ledger.postgres.arrays import array
from llmbudget.ledger.postgres.connection import Connection
from llmbudget.ledger.postgres.rows import (
    HOLDERS,
    KEYS,
    KNOWN,
    SLICES,
    Fetched,
    Rows,
    holders_of,
    slices_of,
)
from llmbudget.ledger.records import KeyRow


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers that are on their way."""

    ids: psycopg.Cursor[tuple[Any, ...]] | None
    keys: psycopg.Cursor[tuple[Any, ...]] | None
    holders: psycopg.Cursor[tuple[Any, ...]] | None
    slices: Mapping[str, psycopg.Cursor[tuple[Any, ...]]]

    @classmethod
    def ask(
        cls,
        connection: Connection,
        about: Sequence[Subject],
        period: str | None,
        holds: Container[str],
    ) -> Self:
        """Ask about holds, but those that are known, keys and slices."""
        ids = [one.id for one in about if one.id is not None and one.id not in holds]
        keys = [one.key for one in about if one.key is not None]
        used = used_keys = None
        if ids and period is not None:
            values = {"ids": array(ids), "since": months_before(period, 1)}
            used = connection.execute(KNOWN, values)
        if keys:
            columns = [array(column) for column in zip(*keys, strict=True)]
            used_keys = connection.execute(KEYS, columns)
        holders = {one.holder for one in about if one.holder is not None}
        slices = {each: connection.execute(SLICES, {"holder": each}) for each in holders}
        return cls(used, used_keys, connection.execute(HOLDERS) if holders else None, slices)

    def fetch(self, connection: Connection, book: Book, about: Sequence[Subject]) -> None:
        """Give the book the open holds that it is asked about, and say what is new to all."""
        used = {row[0] for row in self.ids.fetchall()} if self.ids is not None else set()
        keys: dict[tuple[str, str], KeyRow | None] = {}
        if self.keys is not None:
            keys = {one.key: None for one in about if one.key is not None}
            keys |= {(row[0], row[1]): KeyRow(*row) for row in self.keys.fetchall()}
        new = (one.id for one in about if one.id is not None and one.new)
        absent = frozenset(new) - used if self.ids is not None else frozenset()
        holders = None if self.holders is None else holders_of(self.holders.fetchall())
        slices = {each: slices_of(rows.fetchall()) for each, rows in self.slices.items()}
        book.shelve(Rows(connection, Fetched(absent, keys, holders, slices)))
        if used:
            # The rows still show what this transaction itself has given back.
            open_ones = used.difference(book.changes.closed)
            holds = Rows(connection).holds(sorted(open_ones))
            book.holds.update((hold.id, hold) for hold in holds)
