"""Slices of regions: what each was given, and, in a region's own ledger, what it has.

An older program beside a newer one counts what is held for regions as held, and does no more with
it.
"""

from alembic import op

revision = "0050"
down_revision = "0040"

TABLES = """
ALTER TABLE ledger ADD COLUMN incarnation text NOT NULL DEFAULT gen_random_uuid()::text;
ALTER TABLE account_periods
    ADD COLUMN granted bigint NOT NULL DEFAULT 0 CHECK (granted >= 0),
    ADD COLUMN returned bigint NOT NULL DEFAULT 0 CHECK (returned BETWEEN 0 AND granted);

CREATE TABLE holders (
    id text PRIMARY KEY,
    region text NOT NULL,
    shipped_seq bigint NOT NULL CHECK (shipped_seq >= 0),
    beats bigint NOT NULL,
    lost boolean NOT NULL
) WITH (fillfactor = 20);

CREATE TABLE slices (
    holder text NOT NULL,
    account text NOT NULL,
    period text COLLATE "C" NOT NULL,
    path text[] NOT NULL,
    granted bigint NOT NULL CHECK (granted >= shipped + returned + unknown),
    shipped bigint NOT NULL CHECK (shipped >= 0),
    returned bigint NOT NULL CHECK (returned >= 0),
    unknown bigint NOT NULL CHECK (unknown >= 0),
    PRIMARY KEY (holder, account, period)
) WITH (fillfactor = 50);
"""


def upgrade() -> None:
    """Add the columns and tables."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(TABLES)
