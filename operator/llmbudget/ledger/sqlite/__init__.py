"""The ledger in one SQLite file, owned by one process.

Bottom up: `schema` is the file, `records` the rows as Python sees them, `rows` reads and writes
them, `book` moves the money in memory, `store` makes a book's changes one transaction of the file,
`engine` queues operations and commits them in groups.
"""

from llmbudget.ledger.sqlite.engine import SqliteLedger

__all__ = ["SqliteLedger"]
