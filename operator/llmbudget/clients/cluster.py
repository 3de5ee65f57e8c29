"""The Kubernetes API as plain dicts: read, watch, server-side apply, patch, tokens, reviews.

A thin layer on the asyncio client of the `kubernetes` package, which brings transport, TLS and
kubeconfig; its generated models are not used, since manifests here are dicts from end to end.
Every refusal is an `ApiError` with the API server's own message, whose request bodies, tokens
among them, are never part of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client.rest import RESTResponse

from llmbudget.api.meta import FIELD_MANAGER
from llmbudget.clients.kinds import Kind, kind_of
from llmbudget.clients.watch_events import Known, Manifest, WatchEvent

Manifests = list[Manifest]
Load = Callable[[kubernetes_client.Configuration], Awaitable[None]]

WATCH_SECONDS: Final = 240
"""The server ends a watch after this long; it is then resumed where it was."""
SILENCE_SECONDS: Final = WATCH_SECONDS + 30
"""A watch that is silent for longer is half-open: it is dropped and made anew."""
PAGE: Final = 500
TOKEN_SECONDS: Final = 60
"""How long a token is used before its file is read again."""
_BACKOFF: Final = (0.2, 30.0)
"""Seconds between reconnects: the first, the longest."""

_LIMITS: Final = aiohttp.ClientTimeout(total=30)
_WATCH_LIMITS: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)

_APPLY: Final = "application/apply-patch+yaml"
_JSON_PATCH: Final = "application/json-patch+json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """The API server refused a request (its status), or did not answer (status 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason} ({status}): {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Who a token belongs to, as the API server says."""

    user: str
    groups: tuple[str, ...]
    audiences: tuple[str, ...]

    @property
    def service_account(self) -> tuple[str, str] | None:
        """Namespace and name, where the user is a ServiceAccount."""
        prefix, _, rest = self.user.partition("system:serviceaccount:")
        namespace, colon, name = rest.partition(":")
        return (namespace, name) if not prefix and colon and name else None


class Cluster:
    """A connection to one API server. Use it in `async with`, or close it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._client: kubernetes_client.ApiClient | None = None
        self._opening = asyncio.Lock()

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Connect as the current context of a kubeconfig says."""

        async def load(configuration: kubernetes_client.Configuration) -> None:
            await kubernetes_config.load_kube_config(str(path), client_configuration=configuration)

        return cls(load)

    @classmethod
    def in_cluster(cls, directory: Path) -> Self:
        """Connect as a pod does: address from the environment, token and CA from a directory.

        The token is read again every minute, since the kubelet renews it.

        Raises, on first use:
            KeyError: the environment does not say where the API server is.
            OSError: a file is missing.
        """

        async def load(configuration: kubernetes_client.Configuration) -> None:
            host = os.environ["KUBERNETES_SERVICE_HOST"]
            port = os.environ["KUBERNETES_SERVICE_PORT"]
            configuration.host = f"https://{f'[{host}]' if ':' in host else host}:{port}"
            configuration.ssl_ca_cert = str(directory / "ca.crt")
            refresh = _token_reader(directory / "token")
            refresh(configuration)
            # The client calls this before each request; it declares no type for it.
            vars(configuration)["refresh_api_key_hook"] = refresh

        return cls(load)

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Read an object; None: there is none."""
        return await self._found(kind.path(namespace, name))

    async def get_metadata(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Read an object's metadata only: for Secrets, whose data are nobody's business."""
        return await self._found(kind.path(namespace, name), accept=_METADATA)

    async def list(
        self, kind: Kind, namespace: str | None = None, label_selector: str | None = None
    ) -> tuple[Manifests, str]:
        """Read all objects in pages, with the resource version that they are of."""
        return await self._list(kind, namespace, _query(labelSelector=label_selector))

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Follow objects for ever: list, watch, resume, and list again after a gap.

        Errors of the server are waited out with backoff, but what it will never allow (401, 403)
        is raised.
        """
        query = _query(labelSelector=label_selector, fieldSelector=field_selector)
        known = Known()
        failures = 0
        while True:
            try:
                items, version = await self._list(kind, namespace, query)
                for event in known.relisted(items):
                    yield event
                yield WatchEvent("SYNCED", {})
                failures = 0
                async for event in self._follow(kind, namespace, query, version):
                    known.remember(event)
                    yield event
            except ApiError as error:
                if error.status in (401, 403):
                    raise
                if error.status != 410:
                    failures += 1
                    await asyncio.sleep(_backoff(failures))

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; a create of a subresource names it by `metadata.name`."""
        kind = kind_of(manifest)
        path = kind.path(manifest["metadata"].get("namespace"))
        return await self._send("POST", path, manifest, query={"fieldManager": FIELD_MANAGER})

    async def apply(
        self, manifest: Manifest, *, force: bool = True, field_manager: str = FIELD_MANAGER
    ) -> Manifest:
        """Apply on the server; with `force`, what other managers say otherwise becomes ours.

        Raises:
            ApiError: 409 without `force`, where another manager says otherwise.
        """
        return await self._apply(_path(manifest), manifest, force, field_manager)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the status subresource with our field manager."""
        return await self._apply(_path(manifest) + "/status", manifest, force=True)

    async def json_patch(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Manifest]
    ) -> Manifest:
        """Patch by operations; one that tests in vain is an ApiError 422."""
        path = kind.path(namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._send("PATCH", path, list(operations), _JSON_PATCH, query)

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest
    ) -> Manifest:
        """Patch by merging (RFC 7386)."""
        path = kind.path(namespace, name)
        return await self._send("PATCH", path, patch, _MERGE_PATCH, {"fieldManager": FIELD_MANAGER})

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object and, in the background, what it owns; none there is fine.

        With `uid`, another object of the same name stays.
        """
        options: Manifest = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._send("DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            if error.status != 404 and not (error.status == 409 and uid is not None):
                raise

    async def create_token(
        self,
        namespace: str,
        service_account: str,
        audience: str | None,
        seconds: int,
        pod: tuple[str, str] | None = None,
    ) -> tuple[str, datetime]:
        """Request a ServiceAccount's token, for a pod (name, uid) where one is given."""
        spec: Manifest = {"expirationSeconds": seconds}
        if audience is not None:
            spec["audiences"] = [audience]
        if pod is not None:
            name, uid = pod
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status = (await self._send("POST", path, body))["status"]
        return status["token"], datetime.fromisoformat(status["expirationTimestamp"])

    async def review_token(self, token: str, audience: str | None) -> TokenIdentity | None:
        """Ask whose token it is; None: it is not valid, or not for this audience."""
        spec: Manifest = {"token": token}
        if audience is not None:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._send("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)
        status = answer.get("status", {})
        audiences = tuple(status.get("audiences", ()))
        # An API server that knows no audiences answers without any: that is no confirmation.
        if not status.get("authenticated") or (audience is not None and audience not in audiences):
            return None
        user = status.get("user", {})
        return TokenIdentity(user.get("username", ""), tuple(user.get("groups", ())), audiences)

    async def review_access(self, user: str, groups: Sequence[str], verb: str, path: str) -> bool:
        """Ask whether a user may use a path that is no resource, such as /metrics."""
        spec = {
            "user": user,
            "groups": list(groups),
            "nonResourceAttributes": {"verb": verb, "path": path},
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": spec,
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool((await self._send("POST", path, body)).get("status", {}).get("allowed"))

    async def server_time(self) -> datetime:
        """Read the API server's clock from the header of its answer, whole seconds."""
        response = await self._request("GET", "/version", None, {})
        try:
            return parsedate_to_datetime(response.headers["Date"])
        finally:
            response.response.release()

    # Below: how requests are made.

    async def _connected(self) -> kubernetes_client.ApiClient:
        async with self._opening:
            if self._client is None:
                configuration = kubernetes_client.Configuration()
                # Ambient proxies must not see a token; a kubeconfig's own proxy-url is honoured.
                configuration.client_session_kwargs = {"trust_env": False}
                await self._load(configuration)
                self._client = kubernetes_client.ApiClient(configuration)
        return self._client

    async def _request(
        self,
        method: str,
        path: str,
        body: object,
        headers: Mapping[str, str],
        limits: aiohttp.ClientTimeout = _LIMITS,
    ) -> RESTResponse:
        client = await self._connected()
        sent = dict(headers)
        await client.update_params_for_auth(sent, [], ["BearerToken"], path, method, body)
        try:
            response: RESTResponse = await client.call_api(
                method, client.configuration.host + path, sent, body, _request_timeout=limits
            )
            if response.status >= 400:
                raise _error(response.status, await response.read())
        except TimeoutError:
            raise ApiError(0, "Timeout", "the API server did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = type(error).__name__
            raise ApiError(0, reason, f"the API server can't be reached: {reason}") from None
        return response

    async def _send(
        self,
        method: str,
        path: str,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        accept: str = "application/json",
    ) -> Manifest:
        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Content-Type": content_type, "Accept": accept}
        response = await self._request(method, url, body, headers)
        try:
            document: Manifest = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, type(error).__name__, "the API server's answer broke off") from None
        return document

    async def _found(self, path: str, accept: str = "application/json") -> Manifest | None:
        try:
            return await self._send("GET", path, accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _apply(
        self, path: str, manifest: Manifest, force: bool, field_manager: str = FIELD_MANAGER
    ) -> Manifest:
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._send("PATCH", path, manifest, _APPLY, query)

    async def _list(
        self, kind: Kind, namespace: str | None, query: Mapping[str, str]
    ) -> tuple[Manifests, str]:
        items: Manifests = []
        page = {"limit": str(PAGE), **query}
        while True:
            answer = await self._send("GET", kind.path(namespace), query=page)
            for item in answer["items"]:
                # A list leaves out what all of its items have in common.
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
            items += answer["items"]
            following = answer["metadata"].get("continue")
            if not following:
                return items, answer["metadata"]["resourceVersion"]
            page["continue"] = following

    async def _follow(
        self, kind: Kind, namespace: str | None, query: Mapping[str, str], version: str
    ) -> AsyncIterator[WatchEvent]:
        """Watch from a version on; ends by ApiError, 410 where the version is too old."""
        while True:
            parameters = {
                **query,
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            path = f"{kind.path(namespace)}?{urlencode(parameters)}"
            async for event in self._lines(path):
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 0), status.get("reason", ""), status.get("message", "")
                    )
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield WatchEvent(event["type"], event["object"])

    async def _lines(self, path: str) -> AsyncIterator[Manifest]:
        response = await self._request(
            "GET", path, None, {"Accept": "application/json"}, _WATCH_LIMITS
        )
        try:
            async for line in response.response.content:
                yield json.loads(line)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, type(error).__name__, "the watch broke off") from None
        finally:
            response.response.close()


def _token_reader(path: Path) -> Callable[[kubernetes_client.Configuration], None]:
    """Read a token again when it is due."""
    due = 0.0

    def refresh(configuration: kubernetes_client.Configuration) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            configuration.api_key["BearerToken"] = f"Bearer {path.read_text().strip()}"
            due = now + TOKEN_SECONDS

    return refresh


def _path(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return kind_of(manifest).path(metadata.get("namespace"), metadata["name"])


def _query(**parameters: str | None) -> dict[str, str]:
    return {key: value for key, value in parameters.items() if value}


def _error(status: int, body: bytes) -> ApiError:
    try:
        answer = json.loads(body)
        return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(status, "", body[:200].decode(errors="replace"))


def _backoff(failures: int) -> float:
    first, longest = _BACKOFF
    return min(longest, first * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
