"""Auditing a ledger from its rows: whether its sums are those of its rows, and nothing else.

Every row is counted on each account of its path, so a charge that is missing on one of them, or is
there twice, shows as a difference. Whatever the size of the ledger, the database adds up, and only
sums by path and month come here. All is read as of one instant; a gateway may go on meanwhile.

Single rows of old months may have been dropped (`retention`): of those months only what the sums
say of each other is audited, and that no more rows are left than were counted.
"""
