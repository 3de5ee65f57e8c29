"""The plans of the ledger's queries on a large table, and how long each takes.

    python -m bench.ledger.plans [--rows N] [--months N] [--full]

A server of its own gets the ledger's tables by its migrations, and rows that are spread over so
many months. What is printed is PostgreSQL's own EXPLAIN (ANALYZE) of the statements as gateways,
the export and a dashboard send them; `--full` prints whole plans, else only how tables are read.
The exit status is 1 where a call's own statement reads a table of rows from end to end.
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from tests.support.postgres_server import PostgresServer

from llmbudget.decide.periods import months_before
from llmbudget.ledger.postgres.connection import Connection, Database
from llmbudget.ledger.postgres.migrations import migrate
from llmbudget.ledger.postgres.rows import ENTRY, FIGURES, KEYS, KNOWN, NEWS

MONTH = "2026-11"
_ROWS = """
INSERT INTO entries (seq, id, ts, path, period, provider, model, tokens_in, tokens_out, cost, held,
    task_id, agent, status, outcome)
SELECT %(first)s + n, 'call-' || %(month)s || '-' || md5(n::text),
    to_timestamp(%(month)s, 'YYYY-MM') + n * interval '28 days' / %(rows)s,
    ARRAY['llm/team-' || n %% 50, 'llm/org'], %(month)s, 'openrouter', 'model-' || n %% 7,
    1000, 200, 5000 + n %% 1000, 10000, NULL, 'agent-' || n %% 20, 'ok', 'metered'
FROM generate_series(1, %(rows)s) AS n
"""
_SUMS = """
INSERT INTO account_periods (account, period, spent, overage, debit, held, carried, closed, version)
SELECT 'llm/team-' || n, %(month)s, 1000, 0, 0, 0, 0, false, n FROM generate_series(0, 999) AS n
"""


def fill(connection: Connection, rows: int, months: int) -> list[str]:
    """Spread rows over months; return their ids' month names."""
    names = [months_before(MONTH, back) for back in reversed(range(months))]
    each = rows // months
    for number, month in enumerate(names):
        connection.execute("SELECT make_entries_partition(%s)", (month,))
        values = {"first": number * each, "month": month, "rows": each}
        connection.execute(_ROWS, values)
        connection.execute(_SUMS, values)
    connection.execute(
        "INSERT INTO idempotency SELECT 'team/app', md5(n::text), 'call-' || n, NULL, %s "
        "FROM generate_series(1, 100000) AS n",
        (MONTH,),
    )
    connection.execute("UPDATE ledger SET period = %s, last_seq = %s", (MONTH, rows))
    connection.execute("VACUUM ANALYZE")
    return names


def queries(rows: int) -> list[tuple[str, str, Any]]:
    """List what is asked, with values: a call's own statements first, marked `call`."""
    ids = [f"call-{secrets.token_hex(16)}" for _ in range(64)]
    known = f"call-{MONTH}-c4ca4238a0b923820dcc509a6f75849b"
    keys = [secrets.token_hex(8) for _ in ids]
    return [
        ("call: which of 64 ids are in use", KNOWN, {"ids": ids, "since": "2026-10"}),
        ("call: 64 idempotency keys", KEYS, (["team/app"] * 64, keys)),
        ("call: what others changed", NEWS, (MONTH, 990)),
        ("call: GET /ledger/v1/calls/ID", f"SELECT {ENTRY} FROM entries WHERE id = %s", (known,)),
        (
            "status: all accounts of the month",
            f"SELECT {FIGURES} FROM account_periods WHERE period = %s",
            (MONTH,),
        ),
        (
            "events to PostHog: the next 100 rows",
            f"SELECT {ENTRY} FROM entries WHERE seq > %s ORDER BY seq LIMIT 100",
            (rows - 1000,),
        ),
        (
            "retention: the next 500 old rows",
            "SELECT seq FROM entries WHERE period < %s AND seq < (SELECT last_seq FROM ledger) "
            "LIMIT 500",
            (months_before(MONTH, 12),),
        ),
        (
            "export: one month in order, first 5,000 rows",
            "SELECT ts, provider, model, cost FROM entries WHERE period = %s ORDER BY seq "
            "LIMIT 5000",
            (MONTH,),
        ),
        (
            "export: everything in order, first 5,000 rows",
            "SELECT ts, provider, model, cost FROM entries ORDER BY seq LIMIT 5000",
            (),
        ),
        (
            "dashboard: the last hour by model",
            "SELECT model, sum(cost) FROM entries WHERE period = %s AND ts > %s GROUP BY model",
            (MONTH, "2026-11-28 22:00+00"),
        ),
        (
            "dashboard: the year by month and account, from the sums",
            "SELECT period, account, spent + overage FROM account_periods WHERE period > %s "
            "AND account = 'llm/team-7'",
            (months_before(MONTH, 12),),
        ),
    ]


def explain(
    connection: Connection, statement: str, values: Sequence[Any] | Mapping[str, Any]
) -> list[str]:
    """Ask PostgreSQL how it answers, after it has answered once."""
    connection.execute(statement, values)
    found = connection.execute(
        f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY ON) {statement}", values
    )
    return [line for (line,) in found.fetchall()]


def brief(plan: list[str]) -> list[str]:
    """Keep how tables are read, months as one line."""
    kept = [re.sub(r"\d{4}_\d{2}", "YYYY_MM", line.strip(" ->")) for line in plan]
    kept = [re.sub(r"\(actual.*\)|\(never executed\)", "", line).strip() for line in kept]
    kept = [re.sub(r" entries(_\d+)?$", "", line) for line in kept]
    return list(dict.fromkeys(line for line in kept if " on " in line or "Execution" in line))


def main() -> int:
    """Fill, explain, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--months", type=int, default=24)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    server = PostgresServer(("shared_buffers=512MB", "max_wal_size=4GB", "fsync=off"))
    bad = 0
    try:
        server.start()
        server.make_role("ledger")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "uri"
            file.write_text(server.url(user="ledger", schema="ledger"))
            migrate(Database(file))
        url = server.url(user="ledger", schema="ledger")
        with psycopg.connect(url, autocommit=True) as connection:
            began = time.monotonic()
            fill(connection, options.rows, options.months)
            took = time.monotonic() - began
            print(f"{options.rows:,} rows in {options.months} months, made in {took:.0f} s")
            for name, statement, values in queries(options.rows):
                plan = explain(connection, statement, values)
                print(f"\n{name}")
                for line in plan if options.full else brief(plan):
                    print(f"    {line}")
                if name.startswith("call") and any("Seq Scan on entries" in p for p in plan):
                    bad = 1
    finally:
        server.stop()
    return bad


if __name__ == "__main__":
    sys.exit(main())
