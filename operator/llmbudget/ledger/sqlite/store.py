"""One transaction of the file around what a book does.

A store whose process owns the file keeps its book between transactions; one that shares the file
(the 371OS guide's interface) reads a new one in each, under SQLite's write lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import apsw

from llmbudget.ledger.book import Book
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.ledger.pages import Clock
from llmbudget.ledger.sqlite.rows import Rows
from llmbudget.ledger.sqlite.schema import connect
from llmbudget.ledger.sqlite.writing import write


class Store:
    """The ledger's file, one transaction at a time. Not for several threads at once."""

    def __init__(self, path: Path, clock: Clock, *, shared: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._shared = shared
        self._connection: apsw.Connection | None = None
        self._book: Book | None = None
        self._lost: set[str] = set()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Book]:
        """Run operations on the book and commit what they changed; all of it or nothing.

        Without `durable` a power failure may lose the transaction, though never a part of it and
        never an earlier one; a crash of the process alone loses nothing.

        Raises:
            LedgerUnavailable: the file can't be used now. The next transaction tries again.
        """
        book: Book | None = None
        try:
            connection = self._connected()
            connection.pragma("synchronous", "full" if durable else "normal")
            connection.execute("BEGIN IMMEDIATE")
            book = self._loaded(connection)
            book.turn()
            yield book
            write(connection, book.header, book.changes)
            connection.execute("COMMIT")
        except (apsw.Error, OSError) as error:
            self._abandon(book)
            raise LedgerUnavailable(f"{self._path}: {error}") from error
        except BaseException:
            self._abandon(book)
            raise
        self._lost.clear()

    @property
    def at_most_one_hold(self) -> bool:
        """Whether the book is known, and has no two holds open."""
        return self._book is not None and len(self._book.holds) <= 1

    def take_over(self) -> None:
        """Begin a new epoch as the file's owner, and charge the holds of earlier ones.

        Raises:
            LedgerUnavailable: the file can't be used.
        """
        with self.transaction() as book:
            book.header.epoch += 1
            book.changes.header = True
            book.sweep([hold for hold in book.holds.values() if hold.epoch < book.header.epoch])

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = connect(self._path)
        return self._connection

    def _loaded(self, connection: apsw.Connection) -> Book:
        if self._book is None or self._shared:
            rows = Rows(connection)
            self._book = Book(
                rows,
                self._clock,
                rows.header(),
                rows.accounts(),
                rows.holds(),
                rows.open_envelopes(),
                rows.last_seq(),
            )
            # A commit may have failed after it reached the disk. Whoever asked for these holds
            # was told no and has sent nothing.
            for hold_id in self._lost & self._book.holds.keys():
                self._book.release(hold_id)
        else:
            self._book.begin()
        return self._book

    def _abandon(self, book: Book | None) -> None:
        """Forget what may differ from the file, the connection too: after an I/O error only a new
        one is sure to see what is on the disk."""
        if book is not None:
            self._lost |= book.changes.opened.keys()
        self._book = None
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # It rolls back what is under way. On a disk that fails, closing fails too, and
            # whatever is committed is in the file all the same.
            with suppress(apsw.Error):
                connection.close(True)


class Ownership:
    """The exclusive right to a ledger's file, until it is given up or the process ends.

    Raises:
        LedgerUnavailable: another process has it, or the lock file can't be written.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = lock.open("a+")
        except OSError as error:
            raise LedgerUnavailable(f"{lock}: {error.strerror}") from error
        try:
            self._claim(path)
        except BaseException:
            self._file.close()
            raise

    def _claim(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read(200).strip() or "another process"
            raise LedgerUnavailable(f"{path}: in use by {owner}") from error
        except OSError as error:
            raise LedgerUnavailable(f"{path}: {error.strerror}") from error
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()
        except OSError:
            # A full disk: the lock holds all the same, only the name of its owner is missing.
            self._file.truncate(0)

    def give_up(self) -> None:
        """Let others have the file."""
        self._file.close()
