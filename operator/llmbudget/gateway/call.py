"""A call, from the caller's request to its answer.

Each physical attempt at a provider has a hold and a row of its own. What happened to an attempt
decides what it is charged: what certainly did not reach the provider, and a complete answer that
says it failed, is released; a metered answer is charged as metered; all else is charged in full.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

from llmbudget.api.budget import OnExceeded
from llmbudget.api.money import Nano
from llmbudget.decide.bounds import (
    Unbounded,
    plausible_tokens,
    to_hold,
)
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.decide.routing import NoRoute, Route, free_route, only_named, route
from llmbudget.gateway.admission import Admission
from llmbudget.gateway.answers import bring, doubt
from llmbudget.gateway.attempt import Attempt, Call, Failed
from llmbudget.gateway.connections import Doubtful, NotSent
from llmbudget.gateway.ids import new_entry_id
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.observe import CallRecord, CallStory
from llmbudget.gateway.protocols import errors
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.messages import check_betas
from llmbudget.gateway.protocols.operation import CallRequest, Operation
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.wire import Exchange, Headers, Request, checked_headers
from llmbudget.ledger.interface import (
    BudgetExceeded,
    Envelope,
    HoldRequest,
    Ledger,
    Status,
)

_LARGE: Final = 1024 * 1024
"""Bytes of a body that is read in a thread of its own."""


class Calls:
    """Serves the operations of all APIs."""

    def __init__(self, ledger: Ledger, admission: Admission, keys: Keys) -> None:
        self._ledger = ledger
        self._admission = admission
        self._keys = keys

    async def serve(
        self,
        operation: Operation,
        routes: Routes,
        consumer: Consumer,
        request: Request,
        body: bytes,
        exchange: Exchange,
        count_tokens: Callable[[int], None],
        story: CallStory,
        envelope: Envelope | None = None,
    ) -> None:
        """Answer one call; `count_tokens` is told what it used, `story` all that happens.

        Raises:
            Refusal, LedgerError: nothing was answered yet.
        """
        key, task_id = checked_headers(request.headers)
        betas = check_betas(request.headers.get("anthropic-beta"))
        asked = await _parsed(operation, body)
        call = Call(
            consumer=consumer,
            operation=operation,
            asked=asked,
            catalogue=routes.catalogues[consumer.account.name],
            upstreams=routes.upstreams,
            exchange=exchange,
            count_tokens=count_tokens,
            envelope=envelope,
            task_id=task_id if task_id is not None or envelope is None else envelope.task_id,
            idempotency_key=key,
            fingerprint=_fingerprint(asked, body) if key is not None else None,
            betas=betas,
            story=story,
        )
        try:
            await self._within_budget(call)
        except BudgetExceeded as error:
            free = _goes_on_free(call, error)
            if free is None:
                raise
            await self._attempts(call, free)

    async def _within_budget(self, call: Call) -> None:
        found = self._route(call)
        try:
            await self._attempts(call, found)
        except BudgetExceeded:
            # While the call waited for money, a threshold may have moved it to a cheaper model.
            lowered = self._route(call)
            if lowered.offers == found.offers:
                raise
            await self._attempts(call, lowered)

    def _route(self, call: Call) -> Route:
        operation, asked = call.operation, call.asked
        try:
            if not operation.generates:
                return only_named(call.catalogue, asked.model, operation.protocol, asked.demand)
            levels = {account: self._ledger.balance(account).level for account in call.path}
            return route(call.catalogue, asked.model, operation.protocol, asked.demand, levels)
        except NoRoute as error:
            raise errors.no_route(error) from None

    async def _attempts(self, call: Call, found: Route) -> None:
        """Try the offers in order until one answers."""
        last: Refusal | None = None
        charged: Refusal | None = None
        status = Status.OK
        for offer in found.offers:
            key = self._keys.get(offer.provider) or await self._keys.awaited(offer.provider)
            if key is None:
                name = offer.provider.name
                last = last or errors.unavailable(f"The gateway has no key for provider {name}.")
                continue
            wait = call.upstreams[offer.provider.name].breaker.wait()
            if wait:
                last = last or errors.left_alone(offer.provider.name, wait)
                continue
            failed = await self._attempt(call, offer, found, key, status)
            if failed is not None and failed.key_refused:
                other = await self._keys.other_than(offer.provider, key)
                if other is not None and not failed.charged:
                    failed = await self._attempt(call, offer, found, other, status)
            if failed is None:
                return
            last, status = failed.refusal, Status.FALLBACK
            if failed.charged:
                # Its row keeps the key: what follows is the same call. And a caller that was
                # charged is not told to try again.
                call.idempotency_key = call.fingerprint = None
                charged = charged or failed.refusal
        raise charged or last or errors.unavailable("No provider can answer now.")

    async def _attempt(
        self, call: Call, offer: Offer, found: Route, key: str, status: Status
    ) -> Failed | None:
        """Hold, send, and bring the answer back; None: the caller has its answer."""
        if offer.prices is None:
            raise AssertionError("routing leaves out what has no price")
        asked = _in_its_tier(call.asked, offer, found)
        demand = asked.demand
        left = self._left_beside_spent(call)
        try:
            limit, amount = to_hold(demand, offer.model, offer.prices, left)
        except Unbounded as error:
            raise errors.malformed(f"{error}.", code="unbounded") from None
        async with self._admission.held(_hold_request(call, offer, amount)) as held:
            attempt = Attempt(
                held=held,
                offer=offer,
                prices=offer.prices,
                record=CallRecord(call.story, held.hold.id, call.consumer, offer),
                plausible=plausible_tokens(demand, offer.model, limit),
                status=status,
                key=key,
                headers=_answer_headers(held.hold.id, offer, found),
                kinds=demand.kinds,
            )
            if demand.adjustable:
                attempt.headers.append(("x-llmbudget-output-limit", str(limit)))
            if asked is not call.asked:
                attempt.headers.append(("x-llmbudget-service-tier", "default"))
            body = asked.write(offer, limit)
            upstream = call.upstreams[offer.provider.name]
            headers = call.upstream_headers + attempt.record.trace_headers
            try:
                answer = await upstream.post(
                    call.operation.path_at(offer), body, key, headers, asked.content_type
                )
                try:
                    return await bring(self._ledger, call, asked, attempt, answer)
                finally:
                    answer.close()
            except NotSent as error:
                await held.release()
                attempt.record.end(Status.ERROR, Nano(0), None, str(error), "not_sent")
                name = offer.provider.name
                return Failed(errors.upstream_failed(502, f"Provider {name}: {error}.", 1))
            except Doubtful as error:
                return await doubt(attempt, str(error), "no_answer")
            except asyncio.CancelledError:
                # What is held is charged, as the end of the block sees to.
                cost = held.hold.amount
                attempt.record.end(Status.ERROR, cost, None, "the gateway ended", "ended")
                raise

    def _left_beside_spent(self, call: Call) -> Nano | None:
        if call.envelope is None:
            return self._admission.left_beside_spent(call.path)
        return Nano(call.envelope.left + call.envelope.held)


def _in_its_tier(asked: CallRequest, offer: Offer, found: Route) -> CallRequest:
    """Ask a model for the usual service tier in place of one that it has no price for, where it was
    not the caller who chose it: after a downgrade, or when the first provider has failed."""
    if asked.usual is None or offer.prices is None:
        return asked
    named = asked.model in (offer.name, offer.qualified)
    chosen = named and found.downgraded_from is None and offer is found.offers[0]
    priced = asked.demand.service in (offer.prices.services or {})
    return asked if chosen or priced else asked.usual()


async def _parsed(operation: Operation, body: bytes) -> CallRequest:
    """Read a body. Going through a large file takes the time of everybody else's calls."""
    if len(body) <= _LARGE:
        return operation.parse(body)
    return await asyncio.to_thread(operation.parse, body)


def _fingerprint(asked: CallRequest, body: bytes) -> str:
    return hashlib.sha256(body if asked.identity is None else asked.identity()).hexdigest()


def _goes_on_free(call: Call, error: BudgetExceeded) -> Route | None:
    """Find what costs nothing, where the spent budget goes on with that."""
    catalogue, operation, asked = call.catalogue, call.operation, call.asked
    exceeded = next((a for a in catalogue.path if a.name == error.account), None)
    if error.only_held or exceeded is None or exceeded.on_exceeded is not OnExceeded.DOWNGRADE:
        return None
    try:
        if not operation.generates:
            return None
        return free_route(catalogue, asked.model, operation.protocol, asked.demand)
    except NoRoute:
        return None


def _hold_request(call: Call, offer: Offer, amount: Nano) -> HoldRequest:
    consumer = call.consumer
    return HoldRequest(
        id=new_entry_id(),
        account=consumer.account.name,
        amount=amount,
        provider=offer.provider.name,
        model=offer.name,
        agent=consumer.agent,
        task_id=call.task_id,
        consumer=consumer.name,
        idempotency_key=call.idempotency_key,
        fingerprint=call.fingerprint,
        envelope=None if call.envelope is None else call.envelope.id,
    )


def _answer_headers(entry_id: str, offer: Offer, found: Route) -> Headers:
    headers = [("x-llmbudget-entry-id", entry_id), ("x-llmbudget-model", offer.name)]
    if found.downgraded_from is not None:
        headers.append(("x-llmbudget-downgraded-from", found.downgraded_from))
    return headers
