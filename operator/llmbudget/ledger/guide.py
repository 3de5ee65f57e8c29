"""The 371OS guide's Python interface, on the ledger's own code.

    budget = BudgetManager(monthly_cap=20.00)
    budget.check_budget()                       # raises BudgetExceededError
    ...                                         # the call
    budget.ledger.record_usage(LLMUsage(...))   # llm_usage.json, PostHog

The guide speaks of money in floats. They are converted here, once, by their shortest decimal;
sums are integers. The rows are in an SQLite file beside `llm_usage.json`, which is written anew
from it, atomically, after each record. Any number of processes may share them. An existing
`llm_usage.json` is taken over on first use; later edits of that file are not.

The interface checks before a call and records after it, so that calls at the same time can exceed
a cap together. The gateway's holds are what makes a cap hold.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Protocol
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmbudget.api.money import NANO_PER_USD, Nano, round_up
from llmbudget.decide.periods import period_at
from llmbudget.ledger.book import Book
from llmbudget.ledger.export import export, file_rows, replacing
from llmbudget.ledger.interface import Entry, LedgerUnavailable, Outcome
from llmbudget.ledger.sqlite.store import Store

logger = logging.getLogger(__name__)

_ACCOUNT: Final = "llm_usage"
_TAKEN_OVER: Final = "llm_usage.json"
_LARGEST_USD: Final = 10**9
# A float carries 15 decimal digits; what is beyond them, as in 0.1 + 0.2, nobody wrote.
_FLOAT: Final = Context(prec=15)
_EXACT: Final = Context(prec=60)


class PostHogClient(Protocol):
    """The part of PostHog's client that is used."""

    def capture(self, event: str, *, properties: dict[str, Any]) -> object:
        """Send one event."""


class BudgetExceededError(Exception):
    """The month's budget is spent."""


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class LLMUsage(BaseModel):
    """One call. `ts` without an offset is UTC; `cost` is in USD."""

    model_config = ConfigDict(validate_assignment=True)

    ts: datetime = Field(default_factory=_utc_now)
    provider: str
    model: str
    tokens_in: Annotated[int, Field(ge=0, lt=2**62)]
    tokens_out: Annotated[int, Field(ge=0, lt=2**62)]
    cost: Annotated[float, Field(ge=0, le=_LARGEST_USD, allow_inf_nan=False)]
    task_id: str | None = None
    agent: str | None = None
    status: str | None = None


class UsageLedger:
    """Records calls and tells what the month has cost.

    Every method raises LedgerUnavailable where the files can't be used.
    """

    def __init__(
        self,
        usage_file: Path | str = "llm_usage.json",
        posthog_client: PostHogClient | None = None,
    ) -> None:
        self.usage_file = Path(usage_file)
        self.posthog_client = posthog_client
        self._database = self.usage_file.with_name(self.usage_file.name + ".db")

    def record_usage(self, usage_data: LLMUsage) -> None:
        """Add a call durably, write `usage_file` anew and tell PostHog, whose failure is logged.

        Raises:
            ValueError: the cost is negative, NaN, infinite or absurd, or the existing
                `usage_file` is none.
        """
        draft = _draft(usage_data, usd_to_nano(usage_data.cost), _ACCOUNT)
        with self._transaction() as book:
            book.record(_ACCOUNT, draft.period, draft)
        try:
            self._capture_posthog_event(usage_data)
        except Exception as error:
            # Somebody else's code, and analytics only: the call is recorded.
            logger.warning("PostHog event not sent: %s", type(error).__name__)

    def get_total_cost_for_current_month(self) -> float:
        """Tell what the current month (UTC) has cost, in USD.

        Raises:
            ValueError: the existing `usage_file` is none.
        """
        with self._transaction() as book:
            spent = book.spent(_ACCOUNT, period_at(datetime.now(UTC), "UTC").name)
        return spent / NANO_PER_USD

    def _capture_posthog_event(self, usage_data: LLMUsage) -> None:
        """Send the guide's `llm_usage` event."""
        if self.posthog_client is None:
            return
        properties = usage_data.model_dump(exclude={"ts"})
        self.posthog_client.capture("llm_usage", properties=properties)

    @contextmanager
    def _transaction(self) -> Iterator[Book]:
        """Change the rows alone among all processes, then write `usage_file` if they changed."""
        with self._lock():
            store = Store(self._database, lambda: datetime.now(UTC), shared=True)
            try:
                with store.transaction() as book:
                    self._take_over(book)
                    yield book
                    changed = bool(book.changes.entries)
            finally:
                store.close()
            if changed:
                self._write_usage_file()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self._database.with_name(self._database.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise LedgerUnavailable(f"{path}: {error.strerror}") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write_usage_file(self) -> None:
        try:
            with file_rows(self._database) as rows, replacing(self.usage_file) as output:
                export(rows, output, "json")
        except OSError as error:
            # The rows are safe in the database; raising would make callers record them twice.
            logger.warning("%s: not written: %s", self.usage_file, error.strerror)

    def _take_over(self, book: Book) -> None:
        """Read the rows of a `usage_file` that is older than the database, once."""
        if not book.cursor(_TAKEN_OVER):
            known = self.usage_file.exists()
            drafts = read_usage_file(self.usage_file, _ACCOUNT) if known else ()
            book.take_over(_TAKEN_OVER, _ACCOUNT, drafts)


class MonthlyCost(Protocol):
    """What a budget must know of a ledger."""

    def get_total_cost_for_current_month(self) -> float:
        """Tell what the current month has cost, in USD."""


class BudgetManager:
    """The guide's budget guard: a hard stop when the month's cap, in USD, is spent.

    Raises:
        ValueError: the cap is negative, NaN or infinite.
    """

    def __init__(self, monthly_cap: float = 20.00, ledger: MonthlyCost | None = None) -> None:
        self._cap = usd_to_nano(monthly_cap)
        self.monthly_cap = monthly_cap
        self.ledger: MonthlyCost = UsageLedger() if ledger is None else ledger

    def get_remaining_budget_percentage(self) -> float:
        """Tell which part of the cap is left: from 1.0, all of it, to 0.0, nothing."""
        return self._left() / self._cap if self._cap else 0.0

    def is_budget_exceeded(self) -> bool:
        """Tell whether nothing is left."""
        return self._left() == 0

    def check_budget(self) -> None:
        """Stop here when nothing is left.

        Raises:
            BudgetExceededError: the month's cap is spent.
        """
        if self.is_budget_exceeded():
            raise BudgetExceededError(f"Monthly budget of ${self.monthly_cap} has been exceeded.")

    def _left(self) -> int:
        spent = usd_to_nano(self.ledger.get_total_cost_for_current_month())
        return max(0, self._cap - spent)


def usd_to_nano(amount: float | Decimal) -> Nano:
    """Convert USD to nano-USD: a float by its shortest decimal, what is below a nano rounded up.

    Raises:
        ValueError: the amount is negative, NaN, infinite or above a billion USD.
    """
    try:
        exact = amount if isinstance(amount, Decimal) else Decimal(repr(amount))
    except InvalidOperation:
        exact = Decimal("NaN")
    if not math.isfinite(exact) or not 0 <= exact <= _LARGEST_USD:
        raise ValueError(f"{amount!r} is no amount in USD: write a number from 0 to a billion")
    rounded = exact if isinstance(amount, Decimal) else _FLOAT.plus(exact)
    return round_up(_EXACT.multiply(rounded, Decimal(NANO_PER_USD)))


def read_usage_file(path: Path, account: str, time_zone: str = "UTC") -> Iterator[Entry]:
    """Read the guide's file, or one that gzip made of it, as calls of an account whose months turn
    in a time zone. A cost is read by its text, since JSON's numbers are exact decimals, and
    rounded up once.

    Raises:
        ValueError: it is no such file; the message says which row.
        LedgerUnavailable: it can't be read.
    """
    number = 0
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        rows = json.loads(text, parse_float=Decimal) if text.strip() else []
        for number, row in enumerate(rows, 1):  # noqa: B007, the message names it
            cost = usd_to_nano(Decimal(row["cost"]))
            usage = LLMUsage.model_validate({**row, "cost": cost / NANO_PER_USD})
            yield _draft(usage, cost, account, time_zone)
    except OSError as error:
        raise LedgerUnavailable(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, InvalidOperation, RecursionError) as error:
        where = f"row {number}: {_why(error)}" if number else type(error).__name__
        raise ValueError(
            f"{path}: not the guide's usage rows ({where}): mend the file or move it away"
        ) from error


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _draft(usage: LLMUsage, cost: Nano, account: str, time_zone: str = "UTC") -> Entry:
    ts = usage.ts.replace(tzinfo=UTC) if usage.ts.tzinfo is None else usage.ts.astimezone(UTC)
    return Entry(
        seq=0,
        id=uuid4().hex,
        ts=ts,
        account=account,
        period=period_at(ts, time_zone).name,
        provider=usage.provider,
        model=usage.model,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        cost=cost,
        held=cost,
        task_id=usage.task_id,
        agent=usage.agent,
        status=usage.status,
        outcome=Outcome.METERED,
    )
