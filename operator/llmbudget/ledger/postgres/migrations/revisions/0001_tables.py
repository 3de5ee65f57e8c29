"""The tables, as the SQLite file has them; entries are partitioned by month.

`version` counts the commits that changed something: owners find what others changed by it.
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE ledger (
    id integer PRIMARY KEY CHECK (id = 1),
    name text,
    requires integer NOT NULL,
    epoch bigint NOT NULL,
    version bigint NOT NULL,
    rare_version bigint NOT NULL,
    last_seq bigint NOT NULL,
    generation bigint NOT NULL CHECK (generation >= 0),
    period text COLLATE "C",
    time_zone text,
    next_time_zone text
) WITH (fillfactor = 10);
INSERT INTO ledger VALUES (1, NULL, 1, 0, 0, 0, 0, 0, NULL, NULL, NULL);

CREATE TABLE owners (
    epoch bigint PRIMARY KEY,
    commits bigint NOT NULL
) WITH (fillfactor = 20);

CREATE TABLE accounts (
    name text PRIMARY KEY,
    parent text,
    cap bigint CHECK (cap >= 0),
    blocks boolean NOT NULL,
    thresholds text NOT NULL,
    steps integer NOT NULL CHECK (steps >= 0),
    approved_period text,
    active boolean NOT NULL,
    revision bigint NOT NULL
);

CREATE TABLE account_periods (
    account text NOT NULL,
    period text COLLATE "C" NOT NULL,
    spent bigint NOT NULL CHECK (spent >= 0),
    overage bigint NOT NULL CHECK (overage >= 0),
    debit bigint NOT NULL CHECK (debit >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    carried bigint NOT NULL CHECK (carried BETWEEN 0 AND overage + debit),
    closed boolean NOT NULL,
    closing_cap bigint CHECK (closing_cap >= 0),
    version bigint NOT NULL,
    PRIMARY KEY (period, account)
) WITH (fillfactor = 50);

CREATE TABLE holds (
    id text PRIMARY KEY,
    path text[] NOT NULL,
    period text COLLATE "C" NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    provider text NOT NULL,
    model text NOT NULL,
    agent text,
    task_id text,
    epoch bigint NOT NULL,
    consumer text,
    idempotency_key text
);
CREATE INDEX ON holds (epoch);

CREATE TABLE entries (
    seq bigint NOT NULL,
    id text NOT NULL,
    ts timestamptz NOT NULL,
    path text[] NOT NULL,
    period text COLLATE "C" NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    tokens_in bigint NOT NULL CHECK (tokens_in >= 0),
    tokens_out bigint NOT NULL CHECK (tokens_out >= 0),
    cost bigint NOT NULL CHECK (cost >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    task_id text,
    agent text,
    status text,
    outcome text NOT NULL CHECK (outcome IN ('metered', 'unknown', 'released')),
    PRIMARY KEY (period, id)
) PARTITION BY LIST (period);
CREATE INDEX ON entries (seq);

CREATE TABLE actions (
    id text PRIMARY KEY,
    account text NOT NULL,
    period text COLLATE "C" NOT NULL,
    percentage integer NOT NULL,
    action text NOT NULL,
    spent bigint NOT NULL,
    cap bigint NOT NULL,
    fired_at timestamptz NOT NULL,
    acknowledged boolean NOT NULL,
    UNIQUE (account, period, percentage)
);
CREATE INDEX ON actions (period);
CREATE INDEX ON actions (id) WHERE NOT acknowledged;

CREATE TABLE idempotency (
    consumer text NOT NULL,
    key text NOT NULL,
    entry text NOT NULL,
    fingerprint text,
    period text COLLATE "C" NOT NULL,
    PRIMARY KEY (consumer, key)
);
CREATE INDEX ON idempotency (period);

CREATE TABLE cursors (
    name text PRIMARY KEY,
    seq bigint NOT NULL CHECK (seq >= 0)
);
"""

PARTITION = """
CREATE FUNCTION make_entries_partition(month text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    partition text := 'entries_' || replace(month, '-', '_');
BEGIN
    IF month !~ '^[0-9]{4}-[0-9]{2}$' THEN
        RAISE EXCEPTION 'no month: %', month;
    END IF;
    IF to_regclass(partition) IS NULL THEN
        -- Made apart and attached: making it as a partition would wait for every reader.
        EXECUTE format('CREATE TABLE %I (LIKE entries INCLUDING ALL)', partition);
        EXECUTE format('ALTER TABLE entries ATTACH PARTITION %I FOR VALUES IN (%L)',
            partition, month);
    END IF;
END
$$;
"""
"""It runs with its owner's rights, so that a gateway's role needs none to make tables."""


def upgrade() -> None:
    """Make everything."""
    # Not through SQLAlchemy, which would look for parameters in the function's text.
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(TABLES)
    connection.execute(PARTITION)
    connection.execute("REVOKE ALL ON FUNCTION make_entries_partition FROM PUBLIC")
