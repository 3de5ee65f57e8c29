"""Pure decisions: no I/O, the clock passed in.

Each module answers one question of the domain from its arguments alone, so that every rule can be
tested without a cluster, a network or a clock.
"""
