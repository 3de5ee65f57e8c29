"""What an account had borrowed or lent when its terms were changed; keys of envelopes apart from
those of calls, since a prefix could be a call's own words.

Older programs would change terms without a word of what is lent, and look for an envelope's key
where it is no longer: they refuse from here on.
"""

from alembic import op

revision = "0040"
down_revision = "0030"

CHANGES = """
UPDATE ledger SET requires = 40;
ALTER TABLE accounts ADD COLUMN loan text;
UPDATE idempotency SET consumer = consumer || ' envelopes', key = substr(key, 10)
    WHERE key LIKE 'envelope %' AND entry IN (SELECT id FROM envelopes);
"""


def upgrade() -> None:
    """Add the column, and move the keys."""
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute(CHANGES)
