"""What must hold of a ledger's rows and sums."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmbudget.api.money import format_usd
from llmbudget.ledger.audit.reading import Key, Reading
from llmbudget.ledger.records import Figures
from llmbudget.ledger.regions import IN_REGION
from llmbudget.ledger.regions.slices import SLICE


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def _months(ledger: Reading) -> Iterator[Finding]:
    """No month is later than the current one, and only that one is open."""
    current = ledger.period
    for (account, period), figures in ledger.figures.items():
        if current is None:
            continue  # The 371OS guide's interface: months are whatever its callers say.
        where = f"{account} in {period}"
        if period > current:
            yield Finding(where, f"has sums, and the ledger's month is {current}")
        elif period < current and not figures.closed:
            yield Finding(where, "is over, and was not closed")
        elif period == current and figures.closed:
            yield Finding(where, "is closed, and the month goes on")
    if current is None:
        return
    for table in ("entries", "holds", "envelopes", "transfers"):
        for (period,) in ledger.all(f"SELECT DISTINCT period FROM {table}"):
            if period > current:
                yield Finding(f"{table} of {period}", f"are later than the ledger's {current}")


def _charged(ledger: Reading) -> Iterator[Finding]:
    """What each account has spent is what its rows were charged."""
    within = ledger.by_account((path, month, n) for (path, month), (n, _) in ledger.charged.items())
    beyond = ledger.by_account((path, month, n) for (path, month), (_, n) in ledger.charged.items())
    for key in sorted({*ledger.figures, *within}):
        figures = ledger.figures.get(key, Figures())
        for what, counted, rows in (
            ("spent", figures.spent, within[key]),
            ("charged beyond holds", figures.overage, beyond[key]),
        ):
            old = key[1] < ledger.forgotten
            if rows > counted or (rows < counted and not old):
                yield _differs(key, what, counted, "its rows", rows)


def _held(ledger: Reading) -> Iterator[Finding]:
    """What each account holds is what its open holds reserve, and what regions have of it."""
    held = ledger.by_account((path, month, n) for (path, month), n in ledger.open.items())
    held += ledger.by_account((each.path, each.period, each.outstanding) for each in ledger.slices)
    of = "its holds and slices" if ledger.slices else "its holds"
    for key in sorted({*ledger.figures, *held}):
        counted = ledger.figures.get(key, Figures()).held
        if counted != held[key]:
            yield _differs(key, "held", counted, of, held[key])


def _set_aside(ledger: Reading) -> Iterator[Finding]:
    """What each account has set aside is what its envelopes reserve."""
    lent = ledger.by_account((each.path, each.period, each.reserved) for each in ledger.envelopes)
    for key in sorted({*ledger.figures, *lent}):
        counted = ledger.figures.get(key, Figures()).lent
        if counted != lent[key]:
            yield _differs(key, "set aside", counted, "its envelopes", lent[key])


def _envelopes(ledger: Reading) -> Iterator[Finding]:
    """Each envelope is as its rows and holds say, and ends with its month."""
    spent: dict[str, int] = dict(
        ledger.all(
            "SELECT envelope, sum(cost) FROM entries WHERE envelope IS NOT NULL GROUP BY envelope"
        )
    )
    held: dict[str, int] = dict(
        ledger.all(
            "SELECT envelope, sum(amount) FROM holds WHERE envelope IS NOT NULL GROUP BY envelope"
        )
    )
    for each in ledger.envelopes:
        where = f"envelope {each.id} of {each.account}"
        rows = int(spent.pop(each.id, 0))
        if rows != each.spent and (rows > each.spent or each.period >= ledger.forgotten):
            yield Finding(where, _difference("spent", each.spent, "its rows", rows))
        if (holds := int(held.pop(each.id, 0))) != each.held:
            yield Finding(where, _difference("held", each.held, "its holds", holds))
        if each.closed is None and ledger.period is not None and each.period < ledger.period:
            yield Finding(where, f"is open, and its month {each.period} is over")
    for id in (*spent, *held):
        yield Finding(f"envelope {id}", "calls were paid from it, and there is none")


def _slices(ledger: Reading) -> Iterator[Finding]:
    """What a region was given is charged, given back or held; what nobody knows has a row."""
    shipped: Counter[Key] = Counter()
    unknown: Counter[Key] = Counter()
    for each in ledger.slices:
        shipped[each.account, each.period] += each.shipped
        unknown[each.account, each.period] += each.unknown
        if each.outstanding < 0:
            where = f"slice of {each.account} in {each.period}"
            what = f"{format_usd(-each.outstanding)} USD more were charged or given back than given"
            yield Finding(where, what)
    within: Counter[Key] = Counter()
    for (path, month), (charged, _) in ledger.charged.items():
        within[path[0], month] += charged
    rows = {
        (account, period): int(cost)
        for account, period, cost in ledger.of_regions(
            "SELECT path[1], period, sum(cost) FROM entries "
            f"WHERE provider = '{SLICE}' AND outcome = 'unknown' GROUP BY 1, 2"
        )
    }
    for key in sorted({*shipped, *rows}):
        if key[1] < ledger.forgotten:
            continue
        if unknown[key] != rows.get(key, 0):
            yield _differs(key, "unknown of slices", unknown[key], "its rows", rows.get(key, 0))
        if shipped[key] > within[key]:
            yield _differs(key, "charged by regions", shipped[key], "its rows", within[key])


def _funded(ledger: Reading) -> Iterator[Finding]:
    """A region spends and holds no more than it was given."""
    for account, period, granted, returned in ledger.of_regions(
        "SELECT account, period, granted, returned FROM account_periods "
        "WHERE spent + held > granted - returned "
        f"AND EXISTS (SELECT 1 FROM ledger WHERE name LIKE '%{IN_REGION}%')"
    ):
        figures = ledger.figures[account, period]
        yield Finding(
            f"{account} in {period}",
            f"{format_usd(figures.spent + figures.held)} USD are spent and held, of"
            f" {format_usd(granted - returned)} USD that the region was given",
        )


def _carried(ledger: Reading) -> Iterator[Finding]:
    """What a month left, for better or worse, came to a later one, and by a transfer."""
    into: dict[str, Counter[Key]] = defaultdict(Counter)
    for kind, account, period, amount in ledger.all(
        "SELECT kind, account, period, sum(amount) FROM transfers WHERE kind <> 'top-up' "
        "GROUP BY kind, account, period"
    ):
        into[kind][account, period] = int(amount)
    debits: Counter[str] = Counter()
    carried: Counter[str] = Counter()
    for key, figures in ledger.figures.items():
        debits[key[0]] += figures.debit
        carried[key[0]] += figures.carried
        for what, counted, kind in (
            ("debit", figures.debit, "debit"),
            ("rolled over", figures.rolled, "rollover"),
        ):
            if counted != into[kind][key]:
                yield _differs(key, what, counted, "its transfers", into[kind][key])
        if figures.due:
            where = f"{key[0]} in {key[1]}"
            yield Finding(
                where, f"{format_usd(figures.due)} USD beyond its cap were not carried on"
            )
    for account in sorted(debits):
        if debits[account] != carried[account]:
            what = _difference("carried on", carried[account], "debits", debits[account])
            yield Finding(account, what)


def _one_row_each(ledger: Reading) -> Iterator[Finding]:
    """Each call is under way, or has one row."""
    both = ledger.ids("SELECT id FROM holds WHERE id IN (SELECT id FROM entries)")
    if both:
        yield Finding("holds", f"have a row already: {both}")
    for column in ("id", "seq"):
        twice = ledger.ids(f"SELECT {column} FROM entries GROUP BY {column} HAVING count(*) > 1")
        if twice:
            yield Finding("rows", f"share one {column}: {twice}")
    # What a region spent beyond its slice is charged beyond what was held for it, also where nobody
    # knows it: at the authority, and nowhere else.
    lends = bool(ledger.of_regions("SELECT id FROM holders LIMIT 1"))
    wrong = ledger.ids(
        f"SELECT id FROM entries WHERE (outcome = 'unknown' AND cost {'<' if lends else '<>'} held)"
        " OR (outcome = 'released' AND cost <> 0)"
    )
    if wrong:
        yield Finding("rows", f"are not charged as their outcome says: {wrong}")


def _keys(ledger: Reading) -> Iterator[Finding]:
    """Each idempotency key belongs to something."""
    lost = ledger.ids(
        "SELECT entry FROM idempotency AS k WHERE NOT EXISTS "
        "(SELECT 1 FROM entries WHERE id = k.entry) AND NOT EXISTS "
        "(SELECT 1 FROM holds WHERE id = k.entry) AND NOT EXISTS "
        f"(SELECT 1 FROM envelopes WHERE id = k.entry) AND period >= '{ledger.forgotten}'"
    )
    if lost:
        yield Finding("idempotency keys", f"belong to calls that left nothing: {lost}")


def _paths(ledger: Reading) -> Iterator[Finding]:
    """Each path leads from account to account, none twice."""
    if ledger.period is None:
        return
    for path in sorted({path for path, _ in (*ledger.charged, *ledger.open)}):
        where = f"rows of {path[0]}"
        if len(set(path)) != len(path):
            yield Finding(where, f"are charged twice to one account: {' → '.join(path)}")
        unknown = [account for account in path if account not in ledger.accounts]
        if unknown:
            yield Finding(where, f"are charged to what is no account: {', '.join(unknown)}")


def lent(ledger: Reading) -> Iterator[Finding]:
    """Siblings that lend have together spent no more than they had when the month was closed, but
    for what they carried on. A cap that was lowered below what was spent leaves no row."""
    beyond: Counter[Key] = Counter()
    for (account, period), figures in ledger.figures.items():
        if account in ledger.cohorts and figures.closing_cap is not None:
            spent = figures.total - figures.carried
            beyond[ledger.cohorts[account], period] += spent - figures.closing_cap
    for (parent, period), amount in sorted(beyond.items()):
        if amount > 0:
            yield Finding(
                f"children of {parent} in {period}",
                f"spent {format_usd(amount)} USD beyond what they had in the end, and carried none "
                "of it on: right only where a cap was lowered or a top-up ended",
            )


def _differs(key: Key, what: str, counted: int, of: str, summed: int) -> Finding:
    return Finding(f"{key[0]} in {key[1]}", _difference(what, counted, of, summed))


def _difference(what: str, counted: int, of: str, summed: int) -> str:
    return f"{what} {format_usd(counted)} USD, {of} {format_usd(summed)} USD"


CHECKS: Final = (
    _months,
    _charged,
    _held,
    _set_aside,
    _envelopes,
    _slices,
    _funded,
    _carried,
    _one_row_each,
    _keys,
    _paths,
)
"""All that must hold."""
