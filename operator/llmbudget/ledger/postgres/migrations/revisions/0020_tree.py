"""Rollover, lending, top-ups and envelopes.

Older programs would grant what is set aside in an envelope once more: they refuse from here on.
"""

from alembic import op

revision = "0020"
down_revision = "0001"

TABLES = """
ALTER TABLE ledger ADD COLUMN envelopes_version bigint NOT NULL DEFAULT 0;
UPDATE ledger SET requires = 20;

ALTER TABLE accounts
    ADD COLUMN rollover bigint NOT NULL DEFAULT 0 CHECK (rollover >= 0),
    ADD COLUMN borrows bigint CHECK (borrows >= 0),
    ADD COLUMN lends bigint CHECK (lends >= 0),
    ADD COLUMN top_ups text NOT NULL DEFAULT '[]';
ALTER TABLE account_periods
    ADD COLUMN lent bigint NOT NULL DEFAULT 0 CHECK (lent >= 0),
    ADD COLUMN rolled bigint NOT NULL DEFAULT 0 CHECK (rolled >= 0);
ALTER TABLE holds ADD COLUMN envelope text;
ALTER TABLE entries ADD COLUMN envelope text;

CREATE TABLE envelopes (
    id text PRIMARY KEY,
    account text NOT NULL,
    path text[] NOT NULL,
    period text COLLATE "C" NOT NULL,
    cap bigint NOT NULL CHECK (cap > 0),
    consumer text NOT NULL,
    users text[] NOT NULL,
    task_id text,
    opened timestamptz NOT NULL,
    expires timestamptz NOT NULL,
    closed timestamptz,
    spent bigint NOT NULL CHECK (spent >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    version bigint NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX ON envelopes (id) WHERE closed IS NULL;
CREATE INDEX ON envelopes (version);

CREATE TABLE transfers (
    id text PRIMARY KEY,
    ts timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('top-up', 'rollover', 'debit')),
    account text NOT NULL,
    period text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    source text,
    granted_by text,
    reason text,
    expires timestamptz
);
CREATE INDEX ON transfers (account, period);
INSERT INTO transfers
    SELECT 'debit/' || account || '/' || period || '/before', now(), 'debit', account, period,
        debit FROM account_periods WHERE debit > 0;
"""


def upgrade() -> None:
    """Add the columns and tables."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(TABLES)
