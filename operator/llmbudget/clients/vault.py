"""A secret in HashiCorp Vault, or in what speaks its API: OpenBao, RustyVault.

Four requests over httpx. The hvac package was weighed and left: it is synchronous, so that every
read would need a thread of the event loop's pool; its `requests` session follows redirects with
the token still attached and obeys proxies of the environment; and it offers no place where a
connection could be held to the address that was checked, as the gateway's all are.

No message here has a token, a secret or a text that the server sent.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
from pydantic import BaseModel, Field, ValidationError

from llmbudget.api.credentials import VaultAuthMethod
from llmbudget.contract.config import VaultConfig

TIMEOUT_SECONDS: Final = 5.0
"""For one request, the connection included."""
_MOST_BYTES: Final = 1024 * 1024
_RENEW_AT: Final = 2 / 3
"""Part of a token's lease after which it is renewed."""
_FORBIDDEN: Final = 403
_MEANINGS: Final = {
    400: "its request is refused",
    403: "permission is denied",
    404: "there is nothing",
    429: "it limits its rate",
    503: "it is sealed, or a standby without an active node",
}
"""What a status means, where Vault's documentation says it."""

Transport = Callable[[], Awaitable[httpx.AsyncBaseTransport]]
"""Makes the connections of one read."""


class VaultError(Exception):
    """The server can't be asked now, or lets nobody in."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class SecretRefused(VaultError):
    """The server has said for certain that there is no such secret for us."""


class _Auth(BaseModel):
    client_token: str = Field(repr=False, pattern=r"^[!-~]+$")
    lease_duration: float = Field(ge=0, allow_inf_nan=False)
    renewable: bool


class _Login(BaseModel):
    auth: _Auth


class _Versioned(BaseModel):
    data: dict[str, Any] = Field(repr=False)


class _Answer(BaseModel):
    data: dict[str, Any] = Field(repr=False)
    lease_duration: float = Field(default=0, ge=0, allow_inf_nan=False)


class _AnswerVersioned(BaseModel):
    data: _Versioned


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as it was read."""

    entries: Mapping[str, Any] = field(repr=False)
    lease_seconds: float | None
    """How long it is good for; None: the server does not say."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renewable: bool
    lease: float
    """Seconds; 0: for ever."""
    since: float

    def reached(self, part: float, now: float) -> bool:
        """Tell whether this part of the lease is over."""
        return 0 < self.lease * part <= now - self.since


class VaultClient:
    """Reads one secret, with a token that is renewed as long as that is possible."""

    def __init__(
        self,
        config: VaultConfig,
        credentials: Path,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._credentials = credentials
        """Folder with `token`, or with `role_id` and `secret_id`."""
        self._transport = transport
        self._clock = clock
        self._token: _Token | None = None

    @property
    def renewal_seconds(self) -> float | None:
        """Tell how long after a read the token wants to be renewed; None: never."""
        token = self._token
        if token is None or not token.lease:
            return None
        return max(0.0, token.since + token.lease * _RENEW_AT - self._clock())

    async def read(self) -> Secret:
        """Read the secret, after logging in or renewing where that is due.

        Raises:
            SecretRefused: the server is there, and does not give it.
            VaultError: nothing is known.
        """
        limits = httpx.Timeout(TIMEOUT_SECONDS)
        # Neither proxies of the environment nor redirects: either would carry a token elsewhere.
        async with httpx.AsyncClient(
            transport=await self._transport(),
            base_url=self._config.address.rstrip("/") + "/v1/",
            timeout=limits,
            trust_env=False,
            follow_redirects=False,
        ) as http:
            known = self._token
            token = await self._valid_token(http)
            try:
                return await self._secret(http, token)
            except SecretRefused as error:
                # A token may be revoked before its lease ends; a fresh one is not.
                if error.status != _FORBIDDEN or token != known:
                    raise
            return await self._secret(http, await self._logged_in(http))

    async def _secret(self, http: httpx.AsyncClient, token: _Token) -> Secret:
        config = self._config
        middle = "/data/" if config.kv_version == 2 else "/"
        path = f"{config.mount}{middle}{config.path}"
        try:
            found = await self._send(http, "GET", path, token=token)
        except VaultError as error:
            if error.status in (_FORBIDDEN, 404):
                raise SecretRefused(str(error), error.status) from None
            raise
        try:
            if config.kv_version == 2:
                return Secret(_AnswerVersioned.model_validate(found).data.data, None)
            answer = _Answer.model_validate(found)
        except ValidationError:
            version = f"a KV engine of version {config.kv_version}"
            raise SecretRefused(
                f"{path} is not answered as by {version}: check kvVersion"
            ) from None
        return Secret(answer.data, answer.lease_duration or None)

    async def _valid_token(self, http: httpx.AsyncClient) -> _Token:
        token, now = self._token, self._clock()
        if token is None or token.reached(1, now):
            return await self._logged_in(http)
        if not token.reached(_RENEW_AT, now):
            return token
        renewed = await self._renewed(http, token) if token.renewable else None
        if renewed is None or renewed.lease < token.lease:
            # Its longest life is near: what is left of it is not worth another renewal.
            return await self._logged_in(http)
        self._token = renewed
        return renewed

    async def _renewed(self, http: httpx.AsyncClient, token: _Token) -> _Token | None:
        """Renew a token; None: the server does not want to."""
        try:
            answer = await self._send(http, "POST", "auth/token/renew-self", token=token, body={})
        except VaultError as error:
            if error.status is None:
                raise
            return None
        return self._token_of(answer)

    async def _logged_in(self, http: httpx.AsyncClient) -> _Token:
        config = self._config
        body = await asyncio.to_thread(self._login_body)
        answer = await self._send(http, "POST", f"auth/{config.auth_path}/login", body=body)
        self._token = self._token_of(answer)
        return self._token

    def _login_body(self) -> Mapping[str, str]:
        """Read the credentials anew: either may have been rotated."""
        if self._config.auth_method is VaultAuthMethod.KUBERNETES:
            return {"role": self._config.role or "", "jwt": self._credential("token")}
        return {name: self._credential(name) for name in ("role_id", "secret_id")}

    def _credential(self, name: str) -> str:
        try:
            text = (self._credentials / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            text = ""
        if not text:
            raise VaultError(f"the gateway's volume has no {name} to log in with")
        return text

    def _token_of(self, answer: object) -> _Token:
        try:
            auth = _Login.model_validate(answer).auth
        except ValidationError:
            raise VaultError("its answer to the login has no usable token") from None
        return _Token(auth.client_token, auth.renewable, auth.lease_duration, self._clock())

    async def _send(
        self,
        http: httpx.AsyncClient,
        method: str,
        path: str,
        *,
        token: _Token | None = None,
        body: Mapping[str, str] | None = None,
    ) -> object:
        """Send one request and read its answer.

        Raises:
            VaultError: with the status, where there was an answer.
        """
        headers = {"x-vault-request": "true", "accept-encoding": "identity"}
        if self._config.namespace is not None:
            headers["x-vault-namespace"] = self._config.namespace
        if token is not None:
            headers["x-vault-token"] = token.text
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                http.stream(method, f"/{path}", headers=headers, json=body) as answer,
            ):
                text = await _bounded(answer)
        except (httpx.HTTPError, TimeoutError) as error:
            _away(error)
        if answer.status_code != httpx.codes.OK:
            _refused(method, path, answer)
        try:
            return json.loads(text)
        except ValueError:
            raise VaultError(f"its answer to {method} {path} is no JSON") from None


async def _bounded(answer: httpx.Response) -> bytes:
    text = b""
    async for chunk in answer.aiter_bytes():
        text += chunk
        if len(text) > _MOST_BYTES:
            raise VaultError(f"its answer is larger than {_MOST_BYTES} bytes")
    return text


def _away(error: Exception) -> NoReturn:
    """Say why nothing was answered, without what the exception may have of the request."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        raise VaultError(f"it does not answer within {TIMEOUT_SECONDS:g} s") from None
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        reason = error.__cause__.verify_message
        raise VaultError(f"its certificate is not accepted: {reason}") from None
    if isinstance(error, httpx.ConnectError):
        raise VaultError(f"can't connect: {error}") from None
    raise VaultError(f"the connection failed ({type(error).__name__})") from None


def _refused(method: str, path: str, answer: httpx.Response) -> NoReturn:
    status = answer.status_code
    if answer.is_redirect:
        meaning = "it redirects, which is never followed: name the active node or a load balancer"
    else:
        meaning = _MEANINGS.get(status, "it failed" if status >= 500 else "that is unexpected")
    raise VaultError(f"status {status} to {method} {path}: {meaning}", status)
