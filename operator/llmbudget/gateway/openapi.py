"""The OpenAPI document of what the gateway serves, made from the operations themselves.

The fields of a request body are those that its parser allows, and no others: a body with another
field is refused. What a field may hold is said where the gateway reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from llmbudget.api.provider import Protocol
from llmbudget.contract.events import (
    ACTIONS_PATH,
    BALANCES_PATH,
    CALLS_PATH,
    ENVELOPE_HEADER,
    ENVELOPES_PATH,
)
from llmbudget.gateway import envelopes
from llmbudget.gateway.protocols.fields import MAX_CHOICES, MAX_NAME, MAX_TOKENS
from llmbudget.gateway.protocols.operation import Operation

PATH: Final = "/openapi.json"
Schema = Mapping[str, Any]

_LIMIT: Final = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOKENS}
_KNOWN: Final[Mapping[str, Schema]] = {
    "model": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_NAME,
        "description": "A model's name, PROVIDER/name, or auto, auto:cheapest, auto:fastest.",
    },
    "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    "stream": {"type": ["boolean", "null"]},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHOICES},
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "max_output_tokens": _LIMIT,
    "tools": {"type": ["array", "null"], "items": {"type": "object"}},
    "file": {"type": "string", "format": "binary"},
}
"""What is read here; all other fields are the provider's to read."""
_ERRORS: Final = {
    400: "The request is malformed, or asks for what can't be bounded.",
    401: "No ServiceAccount token with the audience llmbudget.",
    402: "The budget is spent.",
    403: "No budget names this ServiceAccount, or the model is not offered.",
    404: "The provider knows no such thing.",
    405: "Another method.",
    409: "This Idempotency-Key was used for the same request.",
    413: "The body is too large.",
    422: "This Idempotency-Key was used for another request.",
    429: "A rate limit, or what is left is held by calls under way: Retry-After says how long.",
    502: "The provider failed.",
    503: "The ledger, the keys or the API server are away, or the gateway is ending.",
}
_REQUEST_HEADERS: Final = {
    "x-llmbudget-budget": "NAMESPACE/NAME of the budget, where several name this ServiceAccount.",
    ENVELOPE_HEADER: "The envelope that the call is paid from.",
    "x-llmbudget-task-id": "Written into the ledger's row.",
    "idempotency-key": "A call with it is sent and charged once.",
    "x-request-id": "Found again in the answer and in the log.",
    "traceparent": "W3C Trace Context, passed on to the provider.",
}
_OTHERS: Final = (
    ("get", "/v1/models", "models", "The models that this ServiceAccount may call.", True),
    ("get", f"{CALLS_PATH}/{{id}}", "ledgerEntry", "What one of its own calls cost.", True),
    ("get", f"{ENVELOPES_PATH}/{{id}}", "envelope", "An envelope that it may use.", True),
    ("delete", f"{ENVELOPES_PATH}/{{id}}", "deleteEnvelope", "Close an envelope.", True),
    ("post", f"{ENVELOPES_PATH}/{{id}}/close", "closeEnvelope", "Close an envelope.", True),
    ("get", BALANCES_PATH, "balances", "All balances as events; for the operator.", True),
    ("post", f"{ACTIONS_PATH}/{{id}}/ack", "acknowledge", "Acknowledge; for the operator.", True),
    ("get", "/metrics", "metrics", "Metrics for Prometheus.", True),
    ("get", "/health", "health", "Whether calls are taken, for people and load balancers.", False),
    ("get", "/livez", "livez", "Whether the process runs.", False),
    ("get", "/readyz", "readyz", "Whether calls are taken.", False),
    ("get", PATH, "openapi", "This document.", False),
)


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Build the document."""
    paths: dict[str, Any] = {each.path: {"post": _operation(each)} for each in operations}
    for method, path, name, summary, secured in _OTHERS:
        found = paths.setdefault(path, {})
        found[method] = _other(path, name, summary, secured=secured)
    paths[ENVELOPES_PATH] = {"post": _opening()}
    bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "ServiceAccount token"}
    key = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLM Budget gateway", "version": version("llmbudget")},
        "paths": paths,
        "components": {"securitySchemes": {"token": bearer, "key": key}},
    }


def written(operations: Iterable[Operation]) -> bytes:
    """Write the document."""
    return json.dumps(document(operations)).encode()


def _operation(operation: Operation) -> dict[str, Any]:
    plain: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    fields = operation.fields or ()
    if operation.answers_sound:
        plain["audio/*"] = {"schema": {"type": "string", "format": "binary"}}
    if not {"stream", "stream_format"}.isdisjoint(fields):
        plain["text/event-stream"] = {"schema": {"type": "string"}}
    schema: dict[str, Any] = {
        "type": "object",
        "required": [name for name in ("model", "messages", "file") if name in fields],
        "properties": {name: _KNOWN.get(name, {}) for name in sorted(fields)},
        "additionalProperties": operation.fields is None,
    }
    kind = "multipart/form-data" if operation.form else "application/json"
    return {
        "operationId": operation.path.removeprefix("/v1/").replace("/", "_"),
        "summary": f"{operation.name}, in {operation.protocol.value}'s protocol.",
        "security": [{"token": []}, {"key": []}],
        "parameters": [_header(name, text) for name, text in _REQUEST_HEADERS.items()],
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {
            "200": {"description": "The provider's answer.", "content": plain},
            **_errors(operation.protocol),
        },
    }


def _other(path: str, name: str, summary: str, *, secured: bool) -> dict[str, Any]:
    identifier = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "operationId": name,
        "summary": summary,
        "security": [{"token": []}, {"key": []}] if secured else [],
        "parameters": [identifier] if "{id}" in path else [],
        "responses": {"200": {"description": summary}, **_errors(Protocol.OPENAI)},
    }


def _opening() -> dict[str, Any]:
    """Opening an envelope."""
    fields: dict[str, Schema] = {name: {} for name in envelopes.FIELDS}
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    summary = "Set money of the budget aside for a task."
    described = _other(ENVELOPES_PATH, "openEnvelope", summary, secured=True)
    described["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": schema}},
    }
    described["responses"]["201"] = described["responses"].pop("200")
    return described


def _header(name: str, text: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 256}
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _errors(protocol: Protocol) -> dict[str, Any]:
    """Each error in the caller's protocol."""
    error = {"type": "object", "required": ["message", "type"]}
    required = ["error"] if protocol is Protocol.OPENAI else ["type", "error"]
    schema = {"type": "object", "required": required, "properties": {"error": error}}
    content = {"application/json": {"schema": schema}}
    return {
        str(status): {"description": text, "content": content} for status, text in _ERRORS.items()
    }
