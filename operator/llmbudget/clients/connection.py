"""One connection to an API server: requests as they go over the wire, and how they fail.

Transport, TLS and kubeconfig are the `kubernetes` package's. Every refusal is an `ApiError` with
the API server's own message, whose request bodies, tokens among them, are never part of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client.rest import RESTResponse
from pydantic_core import from_json

from llmbudget.clients.watch_events import Manifest

Load = Callable[[kubernetes_client.Configuration], Awaitable[None]]

WATCH_SECONDS: Final = 240
"""The server ends a watch after this long; it is then resumed where it was."""
SILENCE_SECONDS: Final = 100
"""A watch that is silent for longer is half-open: it is dropped and made anew. The server sends a
bookmark every minute."""
TOKEN_SECONDS: Final = 60
"""How long a token is used before its file is read again."""

CONNECTIONS: Final = 100
"""At once, beside those of watches: making one costs as much as ten requests."""
_LIMITS: Final = aiohttp.ClientTimeout(total=30)
_WATCH_LIMITS: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)


class ApiError(Exception):
    """The API server refused a request (its status), or did not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        where = f"{reason} ({status})" if reason else f"status {status}"
        super().__init__(f"{where}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message


class Connection:
    """Requests to one API server."""

    def __init__(self, load: Load, token: _TokenFile | None = None) -> None:
        self._load = load
        self._token = token
        self._client: kubernetes_client.ApiClient | None = None
        self._watcher: kubernetes_client.ApiClient | None = None
        """Watches keep their connections: among the others they would keep those out. And what a
        long list has made large is no connection for a watch, which would keep it so."""
        self._opening = asyncio.Lock()

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Connect as the current context of a kubeconfig says.

        Raises, on first use:
            ApiError: it is no kubeconfig, or has no such context.
        """

        async def load(configuration: kubernetes_client.Configuration) -> None:
            try:
                await kubernetes_config.load_kube_config(
                    str(path), client_configuration=configuration
                )
            except (kubernetes_config.ConfigException, yaml.YAMLError) as error:
                raise ApiError(0, type(error).__name__, f"{path}: {error}") from None
            except TypeError:
                # The package's own words for a file in which nothing is.
                raise ApiError(0, "Empty", f"{path}: it is no kubeconfig, but empty") from None

        return cls(load)

    @classmethod
    def in_cluster(cls, directory: Path) -> Self:
        """Connect as a pod does: address from the environment, token and CA from a directory.

        The token is read again every minute, since the kubelet renews it, and when it is refused.

        Raises, on first use:
            KeyError: the environment does not say where the API server is.
            OSError: a file is missing.
        """

        token = _TokenFile(directory / "token")

        async def load(configuration: kubernetes_client.Configuration) -> None:
            host = os.environ["KUBERNETES_SERVICE_HOST"]
            port = os.environ["KUBERNETES_SERVICE_PORT"]
            configuration.host = f"https://{f'[{host}]' if ':' in host else host}:{port}"
            configuration.ssl_ca_cert = str(directory / "ca.crt")
            token.refresh(configuration)
            # The client calls this before each request; it declares no type for it.
            vars(configuration)["refresh_api_key_hook"] = token.refresh

        return cls(load, token)

    async def open(self) -> kubernetes_client.ApiClient:
        """Read the configuration and be ready; done by the first request otherwise."""
        async with self._opening:
            if self._client is None:
                configuration = kubernetes_client.Configuration()
                # Ambient proxies must not see a token; a kubeconfig's own proxy-url is honoured.
                configuration.client_session_kwargs = {"trust_env": False}
                await self._load(configuration)
                configuration.connection_pool_maxsize = 0
                self._watcher = kubernetes_client.ApiClient(configuration)
                configuration.connection_pool_maxsize = CONNECTIONS
                self._client = kubernetes_client.ApiClient(configuration)
        return self._client

    async def close(self) -> None:
        """Let go of all connections."""
        for client in (self._client, self._watcher):
            if client is not None:
                await client.close()
        self._client = self._watcher = None

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Manifest:
        """Send a request and read its answer.

        Raises:
            ApiError.
        """
        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Content-Type": content_type, "Accept": accept}
        response = await self._request(method, url, body, headers)
        try:
            document: Manifest = from_json(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, type(error).__name__, "the API server's answer broke off") from None
        return document

    async def server_time(self) -> datetime:
        """Read the API server's clock from the header of its answer, whole seconds."""
        response = await self._request("GET", "/version", None, {})
        try:
            return parsedate_to_datetime(response.headers["Date"])
        finally:
            response.response.release()

    async def lines(self, path: str, accept: str) -> AsyncIterator[Manifest]:
        """Follow an answer of JSON lines.

        Raises:
            ApiError.
        """
        response = await self._request("GET", path, None, {"Accept": accept}, watch=True)
        try:
            async for line in response.response.content:
                yield from_json(line)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, type(error).__name__, "the watch broke off") from None
        finally:
            response.response.close()

    async def _request(
        self,
        method: str,
        path: str,
        body: object,
        headers: Mapping[str, str],
        *,
        watch: bool = False,
    ) -> RESTResponse:
        client = await self.open()
        if watch:
            assert self._watcher is not None
            client = self._watcher
        limits = _WATCH_LIMITS if watch else _LIMITS
        sent = dict(headers)
        try:
            await client.update_params_for_auth(sent, [], ["BearerToken"], path, method, body)
            response: RESTResponse = await client.call_api(
                method, client.configuration.host + path, sent, body, _request_timeout=limits
            )
            if response.status == HTTPStatus.UNAUTHORIZED and self._token is not None:
                self._token.due = 0.0
            if response.status >= 400:
                raise _error(response.status, await response.read())
        except TimeoutError:
            raise ApiError(0, "Timeout", "the API server did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = type(error).__name__
            raise ApiError(0, reason, f"the API server can't be reached: {reason}") from None
        return response


class _TokenFile:
    """A token that is read again when it is due."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.due = 0.0
        """When, by the steady clock."""

    def refresh(self, configuration: kubernetes_client.Configuration) -> None:
        """Read it where it is due."""
        now = time.monotonic()
        if now >= self.due:
            configuration.api_key["BearerToken"] = f"Bearer {self._path.read_text().strip()}"
            self.due = now + TOKEN_SECONDS


def _error(status: int, body: bytes) -> ApiError:
    try:
        answer = json.loads(body)
        return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(status, "", body[:200].decode(errors="replace"))
