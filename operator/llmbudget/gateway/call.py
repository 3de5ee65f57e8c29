"""A chat completion, from the caller's request to its answer.

Each physical attempt at a provider has a hold and a row of its own. What happened to an attempt
decides what it is charged: what certainly did not reach the provider, and a complete answer that
says it failed, is released; a metered answer is charged as metered; all else is charged in full.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from llmbudget.api.budget import OnExceeded
from llmbudget.api.money import Nano, format_usd
from llmbudget.api.provider import Protocol
from llmbudget.contract.config import Prices
from llmbudget.decide.bounds import affordable_limit, default_limit, plausible_tokens, upper_bound
from llmbudget.decide.catalogue import Catalogue, Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.decide.prices import cost
from llmbudget.decide.routing import NoRoute, Route, free_route, route
from llmbudget.gateway.admission import Admission, HeldCall
from llmbudget.gateway.keys import Keys, mask
from llmbudget.gateway.observe import CallRecord
from llmbudget.gateway.protocols import errors
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.openai import ChatRequest, parse_chat, upstream_body
from llmbudget.gateway.protocols.openai_answers import usage_of
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.stream import relay
from llmbudget.gateway.upstream import Answer, Doubtful, NotSent
from llmbudget.gateway.wire import Exchange, Headers, Request
from llmbudget.ledger.interface import (
    AwaitingApproval,
    BudgetExceeded,
    HoldRequest,
    Ledger,
    LedgerError,
    RepeatedCall,
    Settlement,
    Status,
)

PATH: Final = "/chat/completions"
_DOUBTFUL_STATUSES: Final = frozenset({408, 499, 502, 504, *range(520, 530)})
"""Errors of something between here and the provider: it may have worked on the call."""
_CALLERS_FAULT: Final = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422})
"""Errors that another provider would answer too: they go back to the caller."""
_MOST_TASK_ID: Final = 256
_MOST_KEY: Final = 256


@dataclass(slots=True)
class Failed:
    """An attempt that the next provider may make good."""

    refusal: Refusal


@dataclass(slots=True)
class Attempt:
    """One attempt under way."""

    held: HeldCall
    offer: Offer
    prices: Prices
    record: CallRecord
    plausible: int
    """Highest token count of the provider's answer that is believed."""
    status: Status
    headers: Headers

    async def charge(self, settlement: Settlement) -> Nano:
        """Settle, and tell what it cost."""
        await self.held.settle(settlement)
        return self.held.hold.amount if settlement.cost is None else settlement.cost


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and what its headers ask."""

    consumer: Consumer
    task_id: str | None
    idempotency_key: str | None
    fingerprint: str | None


class ChatCalls:
    """Serves POST /v1/chat/completions."""

    def __init__(self, ledger: Ledger, admission: Admission, keys: Keys) -> None:
        self._ledger = ledger
        self._admission = admission
        self._keys = keys

    async def serve(
        self,
        routes: Routes,
        consumer: Consumer,
        request: Request,
        exchange: Exchange,
        count_tokens: Callable[[int], None],
    ) -> None:
        """Answer one call.

        Raises:
            Refusal: nothing was answered yet.
        """
        body = await request.body()
        chat = parse_chat(body)
        caller = _caller(consumer, request, body)
        catalogue = routes.catalogues[consumer.account.name]
        found = self._route(catalogue, chat)
        try:
            await self._attempts(routes, catalogue, caller, chat, found, exchange, count_tokens)
        except BudgetExceeded as error:
            free = _goes_on_free(catalogue, chat, error)
            if free is None:
                raise
            await self._attempts(routes, catalogue, caller, chat, free, exchange, count_tokens)

    def _route(self, catalogue: Catalogue, chat: ChatRequest) -> Route:
        levels = {a.name: self._ledger.balance(a.name).level for a in catalogue.path}
        try:
            return route(catalogue, chat.model, Protocol.OPENAI, chat.demand, levels)
        except NoRoute as error:
            raise errors.no_route(error) from None

    async def _attempts(
        self,
        routes: Routes,
        catalogue: Catalogue,
        caller: Caller,
        chat: ChatRequest,
        found: Route,
        exchange: Exchange,
        count_tokens: Callable[[int], None],
    ) -> None:
        """Try the offers in order until one answers."""
        last: Refusal | None = None
        status = Status.OK
        for offer in found.offers:
            key = self._keys.get(offer.provider)
            if key is None:
                name = offer.provider.name
                last = last or errors.unavailable(f"The gateway has no key for provider {name}.")
                continue
            failed = await self._attempt(
                routes, catalogue, caller, chat, offer, found, key, status, exchange, count_tokens
            )
            if failed is None:
                return
            last, status = failed.refusal, Status.FALLBACK
            # A repeated attempt of one call must not look like a repetition by the caller.
            caller = Caller(caller.consumer, caller.task_id, None, None)
        raise last or errors.unavailable("No provider can answer now.")

    async def _attempt(
        self,
        routes: Routes,
        catalogue: Catalogue,
        caller: Caller,
        chat: ChatRequest,
        offer: Offer,
        found: Route,
        key: str,
        status: Status,
        exchange: Exchange,
        count_tokens: Callable[[int], None],
    ) -> Failed | None:
        assert offer.prices is not None  # Routing leaves the others out.
        path = tuple(account.name for account in catalogue.path)
        left = self._admission.left_beside_spent(path)
        limit = affordable_limit(chat.demand, offer.model, offer.prices, left)
        # One that doesn't fit is refused by the ledger, which knows whose cap it is.
        limit = limit or default_limit(chat.demand, offer.model)
        amount = upper_bound(chat.demand, offer.model, offer.prices, limit)
        entry_id = new_entry_id()
        consumer = caller.consumer
        hold_request = HoldRequest(
            id=entry_id,
            account=consumer.account.name,
            amount=amount,
            provider=offer.provider.name,
            model=offer.name,
            agent=consumer.agent,
            task_id=caller.task_id,
            consumer=consumer.name,
            idempotency_key=caller.idempotency_key,
            fingerprint=caller.fingerprint,
        )
        async with self._admission.held(hold_request) as held:
            attempt = Attempt(
                held=held,
                offer=offer,
                prices=offer.prices,
                record=CallRecord(entry_id, consumer.account.name, consumer.agent, offer),
                plausible=plausible_tokens(chat.demand, offer.model, limit),
                status=status,
                headers=_answer_headers(entry_id, offer, found),
            )
            if chat.demand.limit is None:
                attempt.headers.append(("x-llmbudget-output-limit", str(limit)))
            upstream = routes.upstreams[offer.provider.name]
            body = upstream_body(chat, offer, limit)
            attempt.record.sent = time.monotonic()
            try:
                async with upstream.post(PATH, body, key) as answer:
                    return await self._answer(
                        attempt, answer, chat, key, path, exchange, count_tokens
                    )
            except NotSent as error:
                await held.release()
                attempt.record.end(Status.ERROR, Nano(0), None, str(error))
                name = offer.provider.name
                return Failed(errors.upstream_failed(502, f"Provider {name}: {error}.", 1))
            except Doubtful as error:
                return await self._doubt(attempt, str(error))

    async def _answer(
        self,
        attempt: Attempt,
        answer: Answer,
        chat: ChatRequest,
        key: str,
        path: Sequence[str],
        exchange: Exchange,
        count_tokens: Callable[[int], None],
    ) -> Failed | None:
        """Bring the provider's answer to the caller, and charge it."""
        if answer.status != 200:
            return await self._error_answer(attempt, answer, key, exchange)
        if answer.content_type.startswith("text/event-stream"):
            attempt.headers += self._left(attempt, path)
            await relay(attempt, answer, chat.include_usage, key, exchange, count_tokens)
            return None
        body = await answer.read()
        usage = usage_of(body, attempt.plausible)
        charged = await attempt.charge(
            Settlement(None, status=attempt.status)
            if usage is None
            else Settlement(
                cost(usage, attempt.prices), usage.tokens_in, usage.tokens_out, attempt.status
            )
        )
        if usage is not None:
            count_tokens(usage.tokens_in + usage.tokens_out)
        headers = attempt.headers + self._left(attempt, path)
        headers.append(("x-llmbudget-cost-usd", format_usd(charged)))
        headers.append(("content-type", _content_type(answer)))
        attempt.record.end(attempt.status, charged, usage, None if usage else "no usage")
        exchange.response_bytes(200, headers, mask(body, key))
        return None

    async def _error_answer(
        self, attempt: Attempt, answer: Answer, key: str, exchange: Exchange
    ) -> Failed | None:
        """Charge what an error may have cost; send it on where it is the caller's own."""
        certain = answer.status >= 400 and answer.status not in _DOUBTFUL_STATUSES
        if not certain or attempt.offer.provider.bills_errors:
            return await self._doubt(attempt, f"status {answer.status}")
        body = await answer.read()
        await attempt.held.release()
        attempt.record.end(Status.ERROR, Nano(0), None, f"status {answer.status}")
        if answer.status in _CALLERS_FAULT:
            headers = [*attempt.headers, ("content-type", _content_type(answer))]
            headers += [("x-llmbudget-cost-usd", "0.00"), ("x-should-retry", "false")]
            exchange.response_bytes(answer.status, headers, mask(body, key))
            return None
        name = attempt.offer.provider.name
        if answer.status == 429:
            wait = _seconds(answer.retry_after)
            return Failed(errors.rate_limited(f"Provider {name} limits its rate.", wait))
        message = f"Provider {name} answered with status {answer.status}."
        return Failed(errors.upstream_failed(502, message, 1))

    async def _doubt(self, attempt: Attempt, why: str) -> Failed:
        """Charge in full: the provider may have done the work."""
        unknown = Settlement(cost=None, status=Status.ERROR)
        charged = await attempt.charge(unknown)
        attempt.record.end(Status.ERROR, charged, None, why)
        name = attempt.offer.provider.name
        message = f"Provider {name}: {why}. The call was charged {format_usd(charged)} USD."
        return Failed(errors.upstream_failed(502, message))

    def _left(self, attempt: Attempt, path: Sequence[str]) -> Headers:
        """Tell what is left on the path, in dollars and in tokens of the model."""
        balances = [self._ledger.balance(account) for account in path]
        lefts = [left for left in (balance.remaining for balance in balances) if left is not None]
        if not lefts:
            return []
        left = min(lefts)
        headers = [("x-llmbudget-remaining-usd", format_usd(left))]
        rate = max(attempt.prices.input, attempt.prices.output)
        if rate:
            headers.append(("x-llmbudget-remaining-tokens", str(int(left // rate))))
        return headers


def refusal_of(error: LedgerError) -> Refusal:
    """Say in HTTP what the ledger refused."""
    if isinstance(error, BudgetExceeded):
        if error.only_held:
            message = f"Budget {error.account}: calls under way hold what is left."
            return errors.rate_limited(message, 2)
        return errors.budget_exceeded(
            account=error.account,
            asked=error.asked,
            left=error.left,
            cap=error.cap,
            turns=error.period.end,
        )
    if isinstance(error, AwaitingApproval):
        return errors.awaiting_approval(
            account=error.account, period=error.period.name, turns=error.period.end
        )
    if isinstance(error, RepeatedCall):
        if error.same_request:
            return errors.repeated(error.entry_id, error.cost)
        return errors.reused_key(error.entry_id)
    return errors.unavailable("The ledger can't count money now.")


def new_entry_id() -> str:
    """Make an id that sorts by time and can't be guessed."""
    return f"call-{time.time_ns() // 1_000_000:011x}-{secrets.token_hex(8)}"


def _goes_on_free(catalogue: Catalogue, chat: ChatRequest, error: BudgetExceeded) -> Route | None:
    """Find what costs nothing, where the spent budget goes on with that."""
    exceeded = next((a for a in catalogue.path if a.name == error.account), None)
    if error.only_held or exceeded is None or exceeded.on_exceeded is not OnExceeded.DOWNGRADE:
        return None
    try:
        return free_route(catalogue, chat.model, Protocol.OPENAI, chat.demand)
    except NoRoute:
        return None


def _caller(consumer: Consumer, request: Request, body: bytes) -> Caller:
    key = request.headers.get("idempotency-key")
    task_id = request.headers.get("x-llmbudget-task-id")
    if key is not None and not 0 < len(key) <= _MOST_KEY:
        raise errors.malformed(f"Idempotency-Key must have 1 to {_MOST_KEY} characters.")
    if task_id is not None and not 0 < len(task_id) <= _MOST_TASK_ID:
        raise errors.malformed(f"x-llmbudget-task-id must have 1 to {_MOST_TASK_ID} characters.")
    fingerprint = hashlib.sha256(body).hexdigest() if key is not None else None
    return Caller(consumer, task_id, key, fingerprint)


def _answer_headers(entry_id: str, offer: Offer, found: Route) -> Headers:
    headers = [("x-llmbudget-entry-id", entry_id), ("x-llmbudget-model", offer.name)]
    if found.downgraded_from is not None:
        headers.append(("x-llmbudget-downgraded-from", found.downgraded_from))
    return headers


def _content_type(answer: Answer) -> str:
    # Whatever a provider says, a browser must not take its answer for a page.
    json = answer.content_type.startswith("application/json")
    return answer.content_type if json else "application/octet-stream"


def _seconds(retry_after: str | None) -> int:
    return int(retry_after) if retry_after and retry_after.isdigit() else 1
