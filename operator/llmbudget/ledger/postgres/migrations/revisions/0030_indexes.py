"""Find an entry by its id alone, and those of a span of time.

The primary key begins with the period, which a call does not know of the id that it asks for: in a
month of millions of rows it was read from end to end. `bench/ledger/plans.py` shows the plans.
"""

from alembic import op

revision = "0030"
down_revision = "0020"

INDEXES = """
CREATE INDEX ON entries (id);
CREATE INDEX ON entries USING brin (ts);
"""


def upgrade() -> None:
    """Make both, on all months."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(INDEXES)
