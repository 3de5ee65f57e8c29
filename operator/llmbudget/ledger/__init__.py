"""The only code that moves money.

Two-phase entries: a hold is taken before a call leaves, and is settled or released once. See
`interface.py` for the promises that every engine keeps.

What the engines share, bottom up: `records` are the rows as Python sees them, `pages` knows what
is in memory and how months end, `book` moves the money, `feed` tells those who follow,
`operations` is the interface on top of a book. `sqlite` and `postgres` are where the rows live.
"""
