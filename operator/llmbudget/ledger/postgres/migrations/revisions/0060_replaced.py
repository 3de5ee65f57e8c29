"""Regions' databases that others took the place of, or that come from backups.

An older program beside a newer one leaves the columns as they are.
"""

from alembic import op

revision = "0060"
down_revision = "0050"

COLUMNS = """
ALTER TABLE holders
    ADD COLUMN replaced boolean NOT NULL DEFAULT false,
    ADD COLUMN went_back boolean NOT NULL DEFAULT false,
    ADD COLUMN shipped_id text;
"""


def upgrade() -> None:
    """Add the columns."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(COLUMNS)
