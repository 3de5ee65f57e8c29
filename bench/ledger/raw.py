"""The raw limit: what the ledger tells its database, told by the driver alone.

The statements are the ledger's own, with the same rows for the same tables, in transactions of as
many calls. What is left out is what makes a ledger of them: callers, caps, paths, thresholds,
months, who is refused, who is told. It adds up two sums, since the tables refuse wrong ones.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from typing import Any, Final

import apsw
import psycopg
from bench.ledger.measuring import COST, HELD, ROOT, TOKENS, Done, Load, accounts

from llmbudget.ledger.postgres import rows as postgres_rows
from llmbudget.ledger.postgres import standing
from llmbudget.ledger.postgres import writing as postgres
from llmbudget.ledger.sqlite import writing as sqlite
from llmbudget.ledger.sqlite.rows import to_microseconds
from llmbudget.ledger.sqlite.schema import connect

_OTHERS: Final = 1_000
"""Number of the first owner."""
_MODEL: Final = ("provider", "model")
_OUTCOME: Final = (None, None, "ok", "metered", None)


class _Sums:
    """What was spent and is held of each account."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    def change(self, names: Sequence[str], spent: int, held: int) -> list[str]:
        """Change those of accounts, each once for a call, and the root's; list which."""
        for name in (*names, *[ROOT] * len(names)):
            self.spent[name] += spent
            self.held[name] += held
        return [*dict.fromkeys((*names, ROOT))]


class Postgres:
    """One owner of a database that a ledger has made and configured."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], owner: int) -> None:
        self._connection = connection
        self._epoch = _OTHERS + owner
        self._commits = self._seen = 0
        self._sums = _Sums()
        found = connection.execute("SELECT period FROM ledger").fetchone()
        assert found is not None
        self._period = found[0]
        connection.execute("INSERT INTO owners VALUES (%s, 0)", (self._epoch,))

    def hold(self, ids: Sequence[str], names: Sequence[str]) -> None:
        """Open holds."""
        ledger = self._begin(ids)
        n = len(ids)
        values = [
            *(_array(ids), _paths(names), _same(self._period, n), _same(HELD, n)),
            *(_same("provider", n), _same("model", n), _same("NULL", n), _same("NULL", n)),
            *(_same(self._epoch, n), *[_same("NULL", n)] * 3),
        ]
        changed = self._sums.change(names, 0, HELD)
        self._commit(ledger, [(postgres.OPENED, values)], changed, ledger[6])

    def settle(self, ids: Sequence[str], names: Sequence[str]) -> None:
        """Close them with an entry each."""
        ledger = self._begin(())
        n, first = len(ids), ledger[6] + 1
        values = [
            *(_array(range(first, first + n)), _array(ids), _same(datetime.now(UTC), n)),
            *(_paths(names), _same(self._period, n), _same("provider", n), _same("model", n)),
            *(_same(TOKENS[0], n), _same(TOKENS[1], n), _same(COST, n), _same(HELD, n)),
            *(_same("NULL", n), _same("NULL", n), _same("ok", n), _same("metered", n)),
            _same("NULL", n),
        ]
        changed = self._sums.change(names, COST, -HELD)
        statements = [(postgres.ENTRIES, values), (postgres.CLOSED, [_array(ids)])]
        self._commit(ledger, statements, changed, ledger[6] + n)

    def _begin(self, ids: Sequence[str]) -> tuple[Any, ...]:
        connection = self._connection
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            locked = connection.execute(standing.LOCK)
            about = {"epoch": self._epoch, "period": self._period, "seen": self._seen}
            news = connection.execute(postgres_rows.NEWS, about)
            if ids:
                known = {"ids": _array(ids), "since": self._period}
                connection.execute(postgres_rows.KNOWN, known)
        for row in news.fetchall():
            if row[2] is not None:
                self._sums.spent[row[2]], self._sums.held[row[2]] = row[4], row[7]
        ledger = locked.fetchone()
        assert ledger is not None
        return ledger

    def _commit(
        self,
        ledger: tuple[Any, ...],
        calls: Sequence[tuple[str, list[str]]],
        changed: Sequence[str],
        last_seq: int,
    ) -> None:
        _, name, epoch, version, rare, envelopes, _, generation, *rest = ledger
        n, none, zero = len(changed), _same("NULL", len(changed)), _same(0, len(changed))
        self._commits += 1
        self._seen = version + 1
        last = [
            *(_array(changed), _same(self._period, n)),
            *(_array([self._sums.spent[each] for each in changed]), zero, zero),
            *(_array([self._sums.held[each] for each in changed]), zero, _same("f", n), none),
            *(zero, zero, zero, zero, _same(self._seen, n)),
            *(self._commits, self._epoch),
            *(name, epoch, self._seen, rare, envelopes, last_seq, generation, *rest[:3]),
        ]
        connection = self._connection
        with connection.pipeline():
            texts = tuple(text for text, _ in calls)
            connection.execute(postgres.together(texts), [v for _, values in calls for v in values])
            ends = (postgres.SUMS, standing.COUNT, standing.WRITE)
            connection.execute(postgres.together(ends), last)
            connection.execute("COMMIT")


class Sqlite:
    """A file that a ledger has made and configured."""

    def __init__(self, file: apsw.Connection) -> None:
        self._file = file
        self._sums = _Sums()
        self._period = file.execute("SELECT period FROM ledger").fetchone()[0]
        self._seq = 0

    def hold(self, ids: Sequence[str], names: Sequence[str]) -> None:
        """Open holds."""
        rows = [
            (id, f"{name} {ROOT}", self._period, HELD, *_MODEL, None, None, 1, None, None, None)
            for id, name in zip(ids, names, strict=True)
        ]
        self._file.pragma("synchronous", "full")
        self._file.execute("BEGIN IMMEDIATE")
        for id in ids:
            self._file.execute("SELECT * FROM entries WHERE id = ?", (id,)).fetchone()
        self._write_sums(self._sums.change(names, 0, HELD))
        self._file.executemany(sqlite.OPENED, rows)
        self._file.execute("COMMIT")

    def settle(self, ids: Sequence[str], names: Sequence[str]) -> None:
        """Close them with an entry each."""
        now = to_microseconds(datetime.now(UTC))
        rows = [
            (seq, id, now, f"{name} {ROOT}", self._period, *_MODEL, *TOKENS, COST, HELD, *_OUTCOME)
            for seq, (id, name) in enumerate(zip(ids, names, strict=True), self._seq + 1)
        ]
        self._seq += len(ids)
        self._file.pragma("synchronous", "normal")
        self._file.execute("BEGIN IMMEDIATE")
        self._write_sums(self._sums.change(names, COST, -HELD))
        self._file.executemany(sqlite.CLOSED, [(id,) for id in ids])
        self._file.executemany(sqlite.ENTRIES, rows)
        self._file.execute("COMMIT")

    def _write_sums(self, changed: Sequence[str]) -> None:
        sums = self._sums
        rows = [
            (each, self._period, sums.spent[each], 0, 0, sums.held[each], 0, 0, None, 0, 0)
            for each in changed
        ]
        self._file.executemany(sqlite.SUMS, rows)


def postgres_run(load: Load, owner: int, start: Barrier) -> Done:
    """Hold and settle in a database."""
    with psycopg.connect(load.file.read_text(), autocommit=True) as connection:
        raw = Postgres(connection, owner)
        start.wait()
        return _repeat(raw, load, owner)


def sqlite_run(load: Load) -> Done:
    """Hold and settle in a file."""
    file = connect(load.file)
    done = _repeat(Sqlite(file), load, 0)
    file.close()
    return done


def _repeat(raw: Postgres | Sqlite, load: Load, owner: int) -> Done:
    names = itertools.cycle(accounts(load.budgets))
    took: list[float] = []
    began = time.perf_counter()
    for number in itertools.count():
        start = time.perf_counter()
        if start - began >= load.seconds:
            break
        ids = [f"call-{owner}-{number}-{each}" for each in range(load.group)]
        of = [next(names) for _ in ids]
        raw.hold(ids, of)
        raw.settle(ids, of)
        took.append(time.perf_counter() - start)
    return Done(len(took) * load.group, time.perf_counter() - began, took)


def _array(values: Sequence[object]) -> str:
    return f"{{{','.join(map(str, values))}}}"


def _same(value: object, times: int) -> str:
    return _array([value] * times)


def _paths(names: Sequence[str]) -> str:
    return _array([f"{name} {ROOT}" for name in names])
