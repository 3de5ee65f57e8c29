"""The ledger in one SQLite file, owned by one process.

Bottom up: `schema` is the file, `rows` reads its rows and `writing` writes them, `store` makes a
book's changes one transaction of the file, `writer` commits operations in groups, `engine` is the
ledger for an event loop.
"""

from llmbudget.ledger.sqlite.engine import SqliteLedger

__all__ = ["SqliteLedger"]
