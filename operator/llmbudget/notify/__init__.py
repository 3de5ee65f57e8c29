"""A notice of a crossed threshold, to the people it concerns.

The ledger keeps an action until it is acknowledged, so a notice is delivered at least once: what
is delivered here is acknowledged there.
"""
