"""Regions that spend from slices of the budget, each counted in a database of its own.

The authority is the budget's own database. A region asks it for slices: money that is held there on
the whole path of accounts, and that the region may then spend without asking. Its rows are shipped
to the authority and booked against what it holds; what it does not need it gives back.

Both sides count in totals that only grow: granted, shipped, returned. Each is told as a total, so
a message that comes late, twice or not at all changes nothing. A region tells as returned what it
has first written down as no longer its own, so what goes to others was never spent. Whatever fails:

    spent and held in the region <= granted - returned there <= what is charged and held for it here

Bottom up: `messages` is what they say to each other, `slices` what is known of each holder,
`authority` and `local` are the two sides' books, `ledgers` are these in PostgreSQL,
`evidence` compares them, `asking` gets slices when calls need them, `shipping` brings rows and
rests to the authority, `regional` is the ledger that a region's gateways use.
"""

from typing import Final

IN_REGION: Final = " in region "
"""In the name of a region's own ledger, between the budget's and the region's."""
