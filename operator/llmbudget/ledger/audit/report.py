"""The audit, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass

from llmbudget.ledger.audit.checks import CHECKS, Finding, lent
from llmbudget.ledger.audit.reading import Reading
from llmbudget.ledger.audit.sources import Source


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit looked at, and what it found."""

    findings: tuple[Finding, ...]
    rows: int
    holds: int
    accounts: int
    months: int
    envelopes: int
    """Open ones."""
    notes: tuple[Finding, ...] = ()
    """What may be right, but the rows don't tell."""

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.accounts} accounts, {self.months} months, "
            f"{self.holds} holds under way, {self.envelopes} envelopes open"
        )


def audit(source: Source) -> Report:
    """Look at everything."""
    ledger = Reading(source)
    return Report(
        findings=tuple(finding for check in CHECKS for finding in check(ledger)),
        rows=ledger.rows,
        holds=ledger.holds,
        accounts=len({account for account, _ in ledger.figures}),
        months=len({period for _, period in ledger.figures}),
        envelopes=sum(each.closed is None for each in ledger.envelopes),
        notes=tuple(lent(ledger)),
    )
