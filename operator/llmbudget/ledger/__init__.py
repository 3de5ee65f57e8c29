"""The only code that moves money.

Two-phase entries: a hold is taken before a call leaves, and is settled or released once. See
`interface.py` for the promises that every engine keeps.
"""
