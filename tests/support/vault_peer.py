"""A server that answers as HashiCorp documents Vault's API: Kubernetes auth, tokens, KV version 2.

It is strict: what the documentation does not allow is refused, and remembered in `faults`. Who a
ServiceAccount token belongs to is asked of whoever `review` is, as Vault asks a cluster.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmbudget.clients.cluster import TokenIdentity
from llmbudget.local.http1 import Answer, Request, port_of, serve

Review = Callable[[str, str | None], Awaitable[TokenIdentity | None]]


@dataclass
class Role:
    """auth/kubernetes/role/:name."""

    bound_namespace: str
    bound_name: str
    audience: str
    reads: tuple[str, ...]
    """Paths, with `data/`, that its policy lets read."""
    ttl: float = 3600
    max_ttl: float = 86_400
    renewable: bool = True


@dataclass
class _Token:
    role: Role
    issued: float
    expires: float


@dataclass
class VaultPeer:
    """The server. `namespace` is the one in which everything is; empty: the root."""

    review: Review
    clock: Callable[[], float] = time.monotonic
    namespace: str = ""
    roles: dict[str, Role] = field(default_factory=dict)
    secrets: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """Versions by path with `data/`, such as secret/data/llm/openrouter."""
    tokens: dict[str, _Token] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """METHOD PATH of all requests."""
    faults: list[str] = field(default_factory=list)
    sealed: bool = False
    address: str = ""
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on the loopback; a second time on the same port."""
        port = int(self.address.rpartition(":")[2]) if self.address else 0
        self._server = await serve(self._handle, port)
        self.address = f"http://127.0.0.1:{port_of(self._server)}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def put(self, path: str, **entries: Any) -> None:
        """Write a new version of a secret, path without `data/` and below `secret`."""
        self.secrets.setdefault(f"secret/data/{path}", []).append(entries)

    def count(self, request: str) -> int:
        return sum(each.startswith(request) for each in self.asked)

    async def _handle(self, request: Request, answer: Answer) -> None:
        self.asked.append(f"{request.method} {request.path}")
        status, body = await self._answer(request)
        content = b"" if body is None else json.dumps(body).encode()
        answer.send(status, content)

    async def _answer(self, request: Request) -> tuple[int, Any]:
        if request.headers.get("host") != self.address.removeprefix("http://"):
            return self._fault(request, "the header Host is wrong")
        if request.headers.get("x-vault-request") != "true":
            # A Vault Agent may be set to require it, against forged requests.
            return self._fault(request, "the header X-Vault-Request is missing")
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if request.headers.get("x-vault-namespace", "") != self.namespace:
            return _denied()
        match request.method, request.path:
            case "POST" | "PUT", "/v1/auth/kubernetes/login":
                return await self._login(request)
            case "POST" | "PUT", "/v1/auth/token/renew-self":
                return self._renew(request)
            case "GET", path if path.startswith("/v1/secret/"):
                return self._read(request, path.removeprefix("/v1/"))
        return self._fault(request, "no such operation")

    async def _login(self, request: Request) -> tuple[int, Any]:
        if "x-vault-token" in request.headers:
            return self._fault(request, "a login carries no token")
        fields = json.loads(request.body)
        if set(fields) != {"role", "jwt"} or not all(isinstance(v, str) for v in fields.values()):
            return self._fault(request, f"a login has role and jwt, not {sorted(fields)}")
        role = self.roles.get(fields["role"])
        if role is None:
            return 400, {"errors": [f'invalid role name "{fields["role"]}"']}
        identity = await self.review(fields["jwt"], role.audience)
        if identity is None:
            return _denied()
        if identity.service_account != (role.bound_namespace, role.bound_name):
            return 403, {"errors": ["service account name not authorized"]}
        now, token = self.clock(), f"hvs.{secrets.token_urlsafe(24)}"
        self.tokens[token] = _Token(role, now, now + min(role.ttl, role.max_ttl))
        return 200, self._auth(token)

    def _renew(self, request: Request) -> tuple[int, Any]:
        if request.body and set(json.loads(request.body)) - {"increment"}:
            return self._fault(request, "a renewal has no field but increment")
        text, found = self._token(request)
        if found is None:
            return _denied()
        if not found.role.renewable:
            return 400, {"errors": ["lease is not renewable"]}
        now = self.clock()
        longest = found.issued + found.role.max_ttl
        found.expires = min(now + found.role.ttl, longest)
        return 200, self._auth(text)

    def _read(self, request: Request, path: str) -> tuple[int, Any]:
        if "x-vault-token" not in request.headers:
            return 400, {"errors": ["missing client token"]}
        _, found = self._token(request)
        if found is None or path not in found.role.reads:
            return _denied()
        versions = self.secrets.get(path)
        if not versions:
            return 404, {"errors": []}
        metadata = {
            "created_time": "2026-11-24T12:00:00.000000000Z",
            "custom_metadata": None,
            "deletion_time": "",
            "destroyed": False,
            "version": len(versions),
        }
        return 200, _response(data={"data": versions[-1], "metadata": metadata})

    def _token(self, request: Request) -> tuple[str, _Token | None]:
        text = request.headers.get("x-vault-token", "")
        found = self.tokens.get(text)
        return text, found if found is not None and self.clock() < found.expires else None

    def _auth(self, text: str) -> Mapping[str, Any]:
        token = self.tokens[text]
        auth = {
            "client_token": text,
            "accessor": "8609694a-cdbc-db9b-d345-e782dbb562ed",
            "policies": ["default", "llm"],
            "token_policies": ["default", "llm"],
            "metadata": {"role": "gateway"},
            "lease_duration": round(token.expires - self.clock()),
            "renewable": token.role.renewable,
            "entity_id": "",
            "token_type": "service",
            "orphan": True,
        }
        return _response(auth=auth)

    def _fault(self, request: Request, why: str) -> tuple[int, Any]:
        self.faults.append(f"{request.method} {request.path}: {why}")
        return 400, {"errors": [why]}


def _denied() -> tuple[int, Any]:
    return 403, {"errors": ["permission denied"]}


def _response(**content: Any) -> Mapping[str, Any]:
    common = {
        "request_id": "c1a2a7d6-1c9c-3a11-8b66-ffdd3f0f0d2a",
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": None,
        "wrap_info": None,
        "warnings": None,
        "auth": None,
    }
    return common | content
