"""The Kubernetes API as plain dicts: read, watch, server-side apply, patch, tokens, reviews.

The `kubernetes` package's generated models are not used, since manifests here are dicts from end
to end.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlencode

from llmbudget.api.meta import FIELD_MANAGER
from llmbudget.clients.connection import WATCH_SECONDS, ApiError, Connection
from llmbudget.clients.kinds import Kind, kind_of
from llmbudget.clients.watch_events import Known, Manifest, Place, WatchEvent

__all__ = ["ApiError", "Cluster", "TokenIdentity", "WatchEvent", "parse_address"]

Manifests = list[Manifest]

PAGE: Final = 100
"""Objects of a list that are read at once."""
_BACKOFF: Final = (0.2, 30.0)
"""Seconds between reconnects: the first, the longest."""

_NEVER: Final = "1"
"""A version that no object has: an apply that names it makes a new object, or is a conflict."""

_APPLY: Final = "application/apply-patch+yaml"
_JSON_PATCH: Final = "application/json-patch+json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


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
    """The API of one cluster. Use it in `async with`, or close it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Connect as the current context of a kubeconfig says."""
        return cls(Connection.from_kubeconfig(path))

    @classmethod
    def in_cluster(cls, directory: Path) -> Self:
        """Connect as a pod does; see `Connection.in_cluster`."""
        return cls(Connection.in_cluster(directory))

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections."""
        await self._connection.close()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Read an object; None: there is none."""
        return await self._found(kind.path(namespace, name))

    async def get_metadata(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Read an object's metadata only: for Secrets, whose data are nobody's business."""
        return await self._found(kind.path(namespace, name), accept=_METADATA)

    async def list(
        self, kind: Kind, namespace: str | None = None, label_selector: str | None = None
    ) -> tuple[Manifests, str]:
        """Read all objects, with the resource version that they are of."""
        query = _query(labelSelector=label_selector)
        pages = [page async for page in self._pages(kind, namespace, query)]
        return [item for items, _ in pages for item in items], pages[-1][1]

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, metadata_only: bool = False
    ) -> AsyncIterator[tuple[Manifests, str]]:
        """Read all objects, or their metadata, a few hundred at a time, each time with the resource
        version that they are of."""
        async for found in self._pages(kind, namespace, {}, metadata_only):
            yield found

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        metadata_only: bool = False,
    ) -> AsyncIterator[WatchEvent]:
        """Follow objects, or their metadata, for ever: list, watch, resume, and list again after a
        gap.

        Errors of the server are waited out with backoff, but what it will never allow (401, 403)
        is raised.
        """
        query = _query(labelSelector=label_selector, fieldSelector=field_selector)
        known = Known()
        failures = 0
        while True:
            try:
                listed: set[Place] = set()
                version = ""
                async for items, page in self._pages(kind, namespace, query, metadata_only):
                    version = page
                    for event in known.told(items, listed):
                        yield event
                for event in known.gone(listed):
                    yield event
                yield WatchEvent("SYNCED", {})
                failures = 0
                async for event in self._follow(kind, namespace, query, version, metadata_only):
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
        return await self._connection.send(
            "POST", path, manifest, query={"fieldManager": FIELD_MANAGER}
        )

    async def replace(self, manifest: Manifest) -> Manifest:
        """Write an object as it was read.

        Raises:
            ApiError: 409 where somebody has written it since.
        """
        query = {"fieldManager": FIELD_MANAGER}
        return await self._connection.send("PUT", _path(manifest), manifest, query=query)

    async def apply(
        self, manifest: Manifest, *, force: bool = True, field_manager: str = FIELD_MANAGER
    ) -> Manifest:
        """Apply on the server; with `force`, what other managers say otherwise becomes ours.

        Raises:
            ApiError: 409 without `force`, where another manager says otherwise.
        """
        return await self._apply(_path(manifest), manifest, force, field_manager)

    async def apply_new(self, manifest: Manifest) -> Manifest:
        """Apply on the server what is not there yet, in one step.

        Raises:
            ApiError: 409 where there is an object of that name.
        """
        metadata = manifest["metadata"] | {"resourceVersion": _NEVER}
        return await self.apply(manifest | {"metadata": metadata})

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the status subresource with our field manager."""
        return await self._apply(_path(manifest) + "/status", manifest, force=True)

    async def json_patch(
        self, kind: Kind, namespace: str | None, name: str, operations: Sequence[Manifest]
    ) -> Manifest:
        """Patch by operations; one that tests in vain is an ApiError 422."""
        path = kind.path(namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._connection.send("PATCH", path, list(operations), _JSON_PATCH, query)

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest
    ) -> Manifest:
        """Patch by merging (RFC 7386)."""
        path = kind.path(namespace, name)
        return await self._connection.send(
            "PATCH", path, patch, _MERGE_PATCH, {"fieldManager": FIELD_MANAGER}
        )

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
            await self._connection.send("DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            if error.status == 404:
                return
            if error.status == 409 and uid is not None:
                # It may be another's, or only have changed meanwhile.
                found = await self.get_metadata(kind, namespace, name)
                if found is None or found["metadata"]["uid"] != uid:
                    return
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
        status = (await self._connection.send("POST", path, body))["status"]
        return status["token"], datetime.fromisoformat(status["expirationTimestamp"])

    async def review_token(self, token: str, audience: str | None) -> TokenIdentity | None:
        """Ask whose token it is; None: it is not valid, or not for this audience."""
        spec: Manifest = {"token": token}
        if audience is not None:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._connection.send(
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", body
        )
        status = answer.get("status", {})
        audiences = tuple(status.get("audiences", ()))
        # An API server that knows no audiences answers without any: that is no confirmation.
        if not status.get("authenticated") or (audience is not None and audience not in audiences):
            return None
        user = status.get("user", {})
        return TokenIdentity(user.get("username", ""), tuple(user.get("groups", ())), audiences)

    async def signing_keys(self) -> tuple[str, Manifests]:
        """Read who issues the cluster's ServiceAccount tokens, and the keys that sign them."""
        found = await self._connection.send("GET", "/.well-known/openid-configuration")
        keys = await self._connection.send(
            "GET", "/openid/v1/jwks", accept="application/jwk-set+json"
        )
        return found["issuer"], keys["keys"]

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
        return bool(
            (await self._connection.send("POST", path, body)).get("status", {}).get("allowed")
        )

    async def server_address(self) -> tuple[str, int] | None:
        """Ask the API server where it is, which everybody may; None: not at an address."""
        found = await self._connection.send("GET", "/api")
        for known in found.get("serverAddressByClientCIDRs") or ():
            try:
                return parse_address(known.get("serverAddress", ""))
            except ValueError:
                continue
        return None

    async def server_time(self) -> datetime:
        """Read the API server's clock, whole seconds."""
        return await self._connection.server_time()

    async def _found(self, path: str, accept: str = _JSON) -> Manifest | None:
        try:
            return await self._connection.send("GET", path, accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _apply(
        self, path: str, manifest: Manifest, force: bool, field_manager: str = FIELD_MANAGER
    ) -> Manifest:
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._connection.send("PATCH", path, manifest, _APPLY, query)

    async def _pages(
        self,
        kind: Kind,
        namespace: str | None,
        query: Mapping[str, str],
        metadata_only: bool = False,
    ) -> AsyncIterator[tuple[Manifests, str]]:
        page = {"limit": str(PAGE), **query}
        accept = _METADATA_LIST if metadata_only else _JSON
        while True:
            answer = await self._connection.send(
                "GET", kind.path(namespace), query=page, accept=accept
            )
            found: Manifests = answer["items"] or []  # null where there is no metadata at all
            for item in found:
                # A list leaves out what all of its items have in common.
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
            yield found, answer["metadata"]["resourceVersion"]
            following = answer["metadata"].get("continue")
            if not following:
                return
            page["continue"] = following

    async def _follow(
        self,
        kind: Kind,
        namespace: str | None,
        query: Mapping[str, str],
        version: str,
        metadata_only: bool,
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
            async for event in self._connection.lines(path, _METADATA if metadata_only else _JSON):
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 0), status.get("reason", ""), status.get("message", "")
                    )
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield WatchEvent(event["type"], event["object"])


def parse_address(text: str) -> tuple[str, int]:
    """Read `ADDRESS:PORT`, an IPv6 address in brackets.

    Raises:
        ValueError.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        raise ValueError(f"{text!r} is no address with a port, such as 192.0.2.1:6443") from None
    if not 0 < number < 65536:
        raise ValueError(f"{text!r}: a port is from 1 to 65535")
    return str(address), number


def _path(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return kind_of(manifest).path(metadata.get("namespace"), metadata["name"])


def _query(**parameters: str | None) -> dict[str, str]:
    return {key: value for key, value in parameters.items() if value}


def _backoff(failures: int) -> float:
    first, longest = _BACKOFF
    return min(longest, first * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
