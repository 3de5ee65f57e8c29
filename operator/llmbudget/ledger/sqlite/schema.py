"""The file: its tables, its version, and how a connection to it is set up.

apsw brings an SQLite of its own: versions before 3.51.3 can lose a WAL that is reset while
another connection writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

from llmbudget.ledger.interface import LedgerUnavailable

BUSY_MILLISECONDS: Final = 10_000
FILE_NAME: Final = "ledger.db"
"""Name of the file in a ledger's directory."""

_TABLES: Final = """
CREATE TABLE ledger (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    generation INTEGER NOT NULL CHECK (generation >= 0),
    period TEXT,
    time_zone TEXT,
    next_time_zone TEXT
) STRICT;
INSERT INTO ledger VALUES (1, 0, 0, NULL, NULL, NULL);

CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    parent TEXT,
    cap INTEGER CHECK (cap >= 0),
    blocks INTEGER NOT NULL CHECK (blocks IN (0, 1)),
    thresholds TEXT NOT NULL,
    steps INTEGER NOT NULL CHECK (steps >= 0),
    approved_period TEXT,
    active INTEGER NOT NULL CHECK (active IN (0, 1)),
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE account_periods (
    account TEXT NOT NULL,
    period TEXT NOT NULL,
    spent INTEGER NOT NULL CHECK (spent >= 0),
    overage INTEGER NOT NULL CHECK (overage >= 0),
    debit INTEGER NOT NULL CHECK (debit >= 0),
    held INTEGER NOT NULL CHECK (held >= 0),
    carried INTEGER NOT NULL CHECK (carried BETWEEN 0 AND overage + debit),
    closed INTEGER NOT NULL CHECK (closed IN (0, 1)),
    closing_cap INTEGER CHECK (closing_cap >= 0),
    PRIMARY KEY (account, period)
) STRICT, WITHOUT ROWID;

CREATE TABLE holds (
    id TEXT PRIMARY KEY,
    path TEXT NOT NULL,
    period TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    agent TEXT,
    task_id TEXT,
    epoch INTEGER NOT NULL,
    consumer TEXT,
    idempotency_key TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    ts INTEGER NOT NULL,
    path TEXT NOT NULL,
    period TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    tokens_in INTEGER NOT NULL CHECK (tokens_in >= 0),
    tokens_out INTEGER NOT NULL CHECK (tokens_out >= 0),
    cost INTEGER NOT NULL CHECK (cost >= 0),
    held INTEGER NOT NULL CHECK (held >= 0),
    task_id TEXT,
    agent TEXT,
    status TEXT,
    outcome TEXT NOT NULL CHECK (outcome IN ('metered', 'unknown', 'released'))
) STRICT;
CREATE INDEX entries_by_period ON entries (period);

CREATE TABLE actions (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    period TEXT NOT NULL,
    percentage INTEGER NOT NULL,
    action TEXT NOT NULL,
    spent INTEGER NOT NULL,
    cap INTEGER NOT NULL,
    fired_at INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL CHECK (acknowledged IN (0, 1)),
    UNIQUE (account, period, percentage)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    consumer TEXT NOT NULL,
    key TEXT NOT NULL,
    entry TEXT NOT NULL,
    fingerprint TEXT,
    period TEXT NOT NULL,
    PRIMARY KEY (consumer, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT, WITHOUT ROWID;
"""

_TREE: Final = """
ALTER TABLE accounts ADD COLUMN rollover INTEGER NOT NULL DEFAULT 0 CHECK (rollover >= 0);
ALTER TABLE accounts ADD COLUMN borrows INTEGER CHECK (borrows >= 0);
ALTER TABLE accounts ADD COLUMN lends INTEGER CHECK (lends >= 0);
ALTER TABLE accounts ADD COLUMN top_ups TEXT NOT NULL DEFAULT '[]';
ALTER TABLE account_periods ADD COLUMN lent INTEGER NOT NULL DEFAULT 0 CHECK (lent >= 0);
ALTER TABLE account_periods ADD COLUMN rolled INTEGER NOT NULL DEFAULT 0 CHECK (rolled >= 0);
ALTER TABLE holds ADD COLUMN envelope TEXT;
ALTER TABLE entries ADD COLUMN envelope TEXT;

CREATE TABLE envelopes (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    path TEXT NOT NULL,
    period TEXT NOT NULL,
    cap INTEGER NOT NULL CHECK (cap > 0),
    consumer TEXT NOT NULL,
    users TEXT NOT NULL,
    task_id TEXT,
    opened INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    closed INTEGER,
    spent INTEGER NOT NULL CHECK (spent >= 0),
    held INTEGER NOT NULL CHECK (held >= 0)
) STRICT, WITHOUT ROWID;
CREATE INDEX envelopes_open ON envelopes (id) WHERE closed IS NULL;

CREATE TABLE transfers (
    id TEXT PRIMARY KEY,
    ts INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('top-up', 'rollover', 'debit')),
    account TEXT NOT NULL,
    period TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount > 0),
    source TEXT,
    granted_by TEXT,
    reason TEXT,
    expires INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX transfers_by_account ON transfers (account, period);
INSERT INTO transfers
    SELECT 'debit/' || account || '/' || period || '/before', 0, 'debit', account, period, debit,
        NULL, NULL, NULL, NULL FROM account_periods WHERE debit > 0;
"""

_LOANS: Final = """
ALTER TABLE accounts ADD COLUMN loan TEXT;
UPDATE idempotency SET consumer = consumer || ' envelopes', key = substr(key, 10)
    WHERE key LIKE 'envelope %' AND entry IN (SELECT id FROM envelopes);
"""
"""Keys of envelopes got a scope of their own: a prefix could be a call's own words."""

_STEPS: Final = (_TABLES, _TREE, _LOANS)
"""From each version to the next."""
VERSION: Final = len(_STEPS)


def connect(path: Path) -> apsw.Connection:
    """Open the file for writing, creating it and its tables where they are missing.

    Raises:
        LedgerUnavailable: a newer version of this program wrote the file.
        apsw.Error: SQLite can't use it.
    """
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        _version(connection, path)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reading(path: Path) -> apsw.Connection:
    """Open the file for reading only, beside whoever writes it.

    Raises:
        LedgerUnavailable: there is no such ledger, or a newer version of this program wrote it.
        apsw.Error: SQLite can't use it.
    """
    if not path.is_file():
        raise LedgerUnavailable(f"{path}: there is no ledger")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        if _version(connection, path) == 0:
            raise LedgerUnavailable(f"{path}: this is no ledger")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: apsw.Connection, path: Path) -> None:
    if _version(connection, path) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been first.
        for step in _STEPS[_version(connection, path) :]:
            connection.execute(step)
        connection.pragma("user_version", VERSION)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: apsw.Connection, path: Path) -> int:
    found = int(connection.pragma("user_version"))
    if found > VERSION:
        raise LedgerUnavailable(
            f"{path}: written by a newer version (schema {found}, this program knows {VERSION}): "
            "install that version or a later one"
        )
    return found
