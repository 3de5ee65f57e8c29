"""The ledger in a PostgreSQL database that many gateways share.

Bottom up: `connection` speaks to the database, `migrations` are its tables, `rows` reads and
writes them, `store` makes a book's changes one transaction, `writer` commits operations in groups,
`engine` is the ledger for an event loop.
"""

from llmbudget.ledger.postgres.engine import PostgresLedger

__all__ = ["PostgresLedger"]
