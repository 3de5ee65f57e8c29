"""The paths of the gateway, and what stands between a request and each of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from llmbudget.api.budget import IdentityMode
from llmbudget.api.meta import AUDIENCE, operator_audience
from llmbudget.api.provider import Protocol
from llmbudget.clients.cluster import TokenIdentity
from llmbudget.contract.config import GatewayConfig, Unit
from llmbudget.contract.events import (
    ACTIONS_PATH,
    BALANCES_PATH,
    CALLS_PATH,
    ENVELOPE_HEADER,
    ENVELOPES_PATH,
)
from llmbudget.decide.consumers import Consumer, NoBudget
from llmbudget.gateway import envelopes, openapi
from llmbudget.gateway.call import Calls
from llmbudget.gateway.clock import TrustedClock
from llmbudget.gateway.configuration import Configuration
from llmbudget.gateway.identity import Identify
from llmbudget.gateway.keys import Keys
from llmbudget.gateway.ledger_api import entry_document, envelope_document, stream_balances
from llmbudget.gateway.limits import ConsumerLimits
from llmbudget.gateway.memory import RequestMemory
from llmbudget.gateway.observe import CallStory
from llmbudget.gateway.probes import JSON, Monitoring
from llmbudget.gateway.protocols import azure, errors
from llmbudget.gateway.protocols.errors import Refusal
from llmbudget.gateway.protocols.messages import MESSAGES
from llmbudget.gateway.protocols.models import models_body
from llmbudget.gateway.protocols.operation import Operation
from llmbudget.gateway.protocols.operations import OPERATIONS
from llmbudget.gateway.refusals import refusal_of
from llmbudget.gateway.routes import Routes
from llmbudget.gateway.wire import REQUEST_ID, CallerGone, Exchange, Request, request_id_of
from llmbudget.ledger.interface import Envelope, Ledger, LedgerError
from llmbudget.telemetry import metrics
from llmbudget.telemetry.logs import CallLog
from llmbudget.telemetry.spans import Spans
from llmbudget.telemetry.trace_context import read_traceparent

log = logging.getLogger(__name__)

Handler = Callable[[Request, Exchange], Awaitable[None]]
_BUDGET_HEADER: Final = "x-llmbudget-budget"
_LEAVING: Final = "The gateway is shutting down."


class App:
    """Answers every request; nothing goes upstream but from a handler of this table."""

    def __init__(
        self,
        *,
        configuration: Configuration,
        ledger: Ledger,
        keys: Keys,
        calls: Calls,
        identify: Callable[[IdentityMode, str], Identify],
        monitoring: Monitoring,
        limits: ConsumerLimits,
        memory: RequestMemory,
        clock: TrustedClock,
        engine: str,
        spans: Spans,
        call_log: CallLog,
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._keys = keys
        self._calls = calls
        self._identify = identify
        """By mode and audience."""
        self._monitoring = monitoring
        self._limits = limits
        self._memory = memory
        self._clock = clock
        self._engine = engine
        self.draining = False
        """Calls are still taken, but whoever asks is told to come back by another connection."""
        self._spans = spans
        self._call_log = call_log
        self.stopping = False
        """No new calls are taken."""
        self.finished = False
        """The last call has been settled: streams end."""
        self._calls_running: set[asyncio.Task[Any]] = set()
        """The process waits for them, or ends them."""
        self._handlers: Mapping[tuple[str, str], Handler] = {
            **{("POST", operation.path): self._calling(operation) for operation in OPERATIONS},
            ("GET", "/v1/models"): self._models,
            ("POST", ENVELOPES_PATH): self._open_envelope,
            ("GET", BALANCES_PATH): self._balances,
            ("GET", openapi.PATH): self._openapi,
            ("GET", "/livez"): self._livez,
            ("GET", "/readyz"): self._readyz,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }
        self._operations = {operation.path: operation for operation in OPERATIONS}
        self._document = openapi.written(OPERATIONS)
        self._methods = {path: method for method, path in self._handlers}

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request_id = request_id_of(exchange.fields)
        exchange.answer_headers = [(REQUEST_ID, request_id)]
        if self.draining:
            exchange.keep_alive = False
        try:
            await self._answer(exchange, request_id)
        except Refusal as refusal:
            metrics.REFUSALS.labels(refusal.code).inc()
            anthropic = exchange.path.startswith(MESSAGES.path)
            spoken = Protocol.ANTHROPIC if anthropic else Protocol.OPENAI
            exchange.response_bytes(*errors.render(refusal, spoken))
        except CallerGone:
            log.info("the caller left", extra={"fields": {"request_id": request_id}})
        except Exception:
            # The edge: whatever is wrong with one request must not end the server, nor be told.
            log.exception("request failed", extra={"fields": {"request_id": request_id}})
            body = (
                b'{"error":{"message":"Internal error.","type":"server_error","code":"internal"}}'
            )
            if not exchange.answered:
                exchange.response_bytes(500, [*JSON, ("x-should-retry", "false")], body)

    async def _answer(self, exchange: Exchange, request_id: str) -> None:
        request = Request(exchange, request_id)
        handler = self._handlers.get((request.method, request.path))
        if handler is None:
            handler = self._by_prefix(request)
        try:
            await handler(request, exchange)
        except LedgerError as error:
            refusal = refusal_of(error)
            if refusal.status == 503:
                log.error("ledger", extra={"fields": {"why": str(error)}})
            raise refusal from None

    def _by_prefix(self, request: Request) -> Handler:
        method, path = request.method, request.path
        if path.startswith(azure.PREFIX):
            known, model = azure.standard(path)
            operation = self._operations.get(known) if method == "POST" else None
            if operation is not None and model is not None:
                return self._calling(azure.of_deployment(operation, model))
            if known != path and (method, known) in self._handlers:
                return self._handlers[method, known]
        if method == "GET" and path.startswith(f"{CALLS_PATH}/"):
            return self._call
        if method == "POST" and path.startswith(f"{ACTIONS_PATH}/") and path.endswith("/ack"):
            return self._acknowledge
        if path.startswith(f"{ENVELOPES_PATH}/"):
            if method == "GET":
                return self._envelope
            if method == "DELETE" or (method == "POST" and path.endswith("/close")):
                return self._close_envelope
        allowed = self._methods.get(path)
        if allowed is not None:
            message = f"{path} takes {allowed} only."
            raise Refusal(405, "method_not_allowed", message)
        message = (
            f"There is nothing at {method} {path[:200]}: base_url ends with /v1, and"
            f" GET {openapi.PATH} lists what is served."
        )
        raise Refusal(404, "not_found", message)

    def _calling(self, operation: Operation) -> Handler:
        async def call(request: Request, exchange: Exchange) -> None:
            task = asyncio.current_task()
            assert task is not None
            parent = read_traceparent(request.headers.get("traceparent"))
            story = CallStory(self._spans, request.id, parent, operation)
            try:
                routes = self._serving()
                consumer, envelope = await self._payer(request, routes)
                story.by(consumer)
                async with self._limits.admitted(consumer) as count_tokens:
                    with self._memory.claim() as claim:
                        self._calls_running.add(task)
                        body = await request.body(operation.max_body, claim.add)
                        await self._calls.serve(
                            operation,
                            routes,
                            consumer,
                            request,
                            body,
                            exchange,
                            count_tokens,
                            story,
                            envelope,
                        )
            except (Refusal, LedgerError) as error:
                refusal = error if isinstance(error, Refusal) else refusal_of(error)
                story.refused(refusal.status, refusal.code)
                raise
            except BaseException:
                story.refused(500, "internal")
                raise
            finally:
                self._calls_running.discard(task)
                story.end(self._call_log)

        return call

    @property
    def calls_running(self) -> int:
        """Calls under way."""
        return len(self._calls_running)

    def end_calls(self) -> None:
        """End the calls under way; each is charged what it holds."""
        for task in self._calls_running:
            task.cancel()

    async def _models(self, request: Request, exchange: Exchange) -> None:
        routes = self._serving()
        consumer = await self._consumer(request, routes)
        asked = "anthropic-version" in request.headers
        protocol = Protocol.ANTHROPIC if asked else Protocol.OPENAI
        offers = routes.catalogues[consumer.account.name].speaking(protocol, frozenset(Unit))
        exchange.response_bytes(200, JSON, models_body(offers, protocol))

    async def _openapi(self, request: Request, exchange: Exchange) -> None:
        exchange.response_bytes(200, JSON, self._document)

    async def _call(self, request: Request, exchange: Exchange) -> None:
        routes = self._serving()
        consumer = await self._consumer(request, routes)
        entry_id = request.path.removeprefix(f"{CALLS_PATH}/")
        entry = await self._ledger.entry(entry_id)
        if entry is None:
            # An answer leaves before its row is written, which is queued by then.
            await self._ledger.tick()
            entry = await self._ledger.entry(entry_id)
        # Another budget's call is as unknown as one that never was.
        if entry is None or entry.account != consumer.account.name:
            raise Refusal(404, "not_found", "No call of yours has this id, or it is under way.")
        exchange.response_bytes(200, JSON, entry_document(entry))

    async def _open_envelope(self, request: Request, exchange: Exchange) -> None:
        routes = self._serving()
        consumer = await self._consumer(request, routes)
        async with self._limits.admitted(consumer):
            asked = envelopes.opening(
                await request.body(), consumer, routes.consumers, request.headers
            )
            envelope = await self._ledger.open_envelope(asked)
        exchange.response_bytes(201, JSON, envelope_document(envelope))

    async def _envelope(self, request: Request, exchange: Exchange) -> None:
        caller = "/".join(await self._service_account(request, self._serving()))
        envelope = await self._ledger.envelope(request.path.removeprefix(f"{ENVELOPES_PATH}/"))
        if envelope is None or caller not in envelope.users:
            raise errors.no_envelope()
        exchange.response_bytes(200, JSON, envelope_document(envelope))

    async def _close_envelope(self, request: Request, exchange: Exchange) -> None:
        caller = "/".join(await self._service_account(request, self._serving()))
        envelope_id = request.path.removeprefix(f"{ENVELOPES_PATH}/").removesuffix("/close")
        envelope = await self._ledger.close_envelope(envelope_id, caller)
        exchange.response_bytes(200, JSON, envelope_document(envelope))

    async def _balances(self, request: Request, exchange: Exchange) -> None:
        await self._operator(request)
        await stream_balances(
            self._ledger, self._keys, self._configured, exchange, lambda: self.finished
        )

    async def _acknowledge(self, request: Request, exchange: Exchange) -> None:
        await self._operator(request)
        action_id = request.path.removeprefix(f"{ACTIONS_PATH}/").removesuffix("/ack")
        await self._ledger.acknowledge(unquote(action_id))
        exchange.response_bytes(200, JSON, b"{}")

    async def _livez(self, request: Request, exchange: Exchange) -> None:
        exchange.response_bytes(200, JSON, b'{"status":"ok"}')

    async def _readyz(self, request: Request, exchange: Exchange) -> None:
        reason = _LEAVING if self.draining else self._not_serving()
        body = json.dumps({"status": "ok"} if reason is None else {"status": reason}).encode()
        exchange.response_bytes(200 if reason is None else 503, JSON, body)

    async def _health(self, request: Request, exchange: Exchange) -> None:
        await self._monitoring.admit(request, self._configured())
        await self._readyz(request, exchange)

    async def _metrics(self, request: Request, exchange: Exchange) -> None:
        await self._monitoring.admit(request, self._configured())
        headers, body = self._monitoring.metrics(self._configured())
        exchange.response_bytes(200, headers, body)

    def _configured(self) -> GatewayConfig | None:
        return self._configuration.document

    def _not_serving(self) -> str | None:
        """Tell why no call is taken; None: calls are."""
        routes = self._configuration.routes
        if self.stopping:
            return _LEAVING
        if self._ledger.problem is not None:
            # What it is exactly names hosts and users: it is for the log and the operator.
            return "The gateway can't count money now: its ledger is away."
        if routes is None:
            return "The gateway has no configuration yet."
        if self._clock.wrong:
            return "The gateway's clock is off by more than a minute."
        if routes.config.ledger != self._engine:
            return f"This gateway counts in {self._engine}, its budget in {routes.config.ledger}."
        return None

    def _serving(self) -> Routes:
        reason = self._not_serving()
        routes = self._configuration.routes
        if reason is not None or routes is None:
            raise errors.unavailable(reason or "The gateway has no configuration yet.")
        return routes

    async def _consumer(self, request: Request, routes: Routes) -> Consumer:
        account = await self._service_account(request, routes)
        return _match(routes, account, request.headers.get(_BUDGET_HEADER))

    async def _payer(self, request: Request, routes: Routes) -> tuple[Consumer, Envelope | None]:
        """Find whose money a call takes: that of an envelope, where it names one."""
        wanted = request.headers.get(ENVELOPE_HEADER)
        if wanted is None:
            return await self._consumer(request, routes), None
        account = await self._service_account(request, routes)
        envelope = await self._ledger.envelope(wanted)
        if envelope is None or "/".join(account) not in envelope.users:
            raise errors.no_envelope()
        return _match(routes, account, envelope.account), envelope

    async def _service_account(self, request: Request, routes: Routes) -> tuple[str, str]:
        identify = self._identify(routes.config.identity_mode, AUDIENCE)
        identity = await identify(request.token, request.client)
        if identity.service_account is None:
            raise errors.unidentified(f"The token's audience is {AUDIENCE}, but not its owner's.")
        return identity.service_account

    async def _operator(self, request: Request) -> TokenIdentity:
        config = self._configured()
        if config is None:
            raise errors.unavailable("The gateway has no configuration yet.")
        identify = self._identify(config.identity_mode, operator_audience(config.root))
        identity = await identify(request.token, request.client)
        account = identity.service_account
        if account is None or "/".join(account) != config.operator:
            raise errors.forbidden("Only the operator may read this.", "forbidden")
        return identity


def _match(routes: Routes, account: tuple[str, str], budget: str | None) -> Consumer:
    try:
        return routes.consumers.match(*account, budget)
    except NoBudget as error:
        raise errors.no_budget(error) from None
