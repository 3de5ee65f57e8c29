"""The operator's token expires before its file has a new one: it waits for that without haste, and
goes on with it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
import yaml
from tests.support.operator_stage import (
    WAITING,
    budget,
    create,
    create_with_provider,
    until,
    until_cap,
    until_condition,
)

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import SERVICE_ACCOUNTS
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.stage import (
    GATEWAY_IMAGE,
    OPERATOR_ACCOUNT,
    OPERATOR_NAMESPACE,
    PROGRAM,
    Stage,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ISSUER = "https://kubernetes.default.svc"
LIFE_SECONDS = 20
"""A TokenRequest gives ten minutes at least: this token is signed with the cluster's own key."""
GRACE_SECONDS = 60
"""How long the API server takes a token beyond its end."""
LATE_SECONDS = 4
"""How long the file has none that is good: without its Lease an operator ends after ten."""
DECENT = 40
"""Requests a second, in all, while everything is refused."""


async def token(cluster: Cluster, plane: ControlPlane, seconds: int) -> str:
    """Sign a token as the API server does, that it refuses after so many seconds."""
    account = await cluster.get(SERVICE_ACCOUNTS, OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)
    assert account is not None
    name = {"name": OPERATOR_ACCOUNT, "uid": account["metadata"]["uid"]}
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}",
        "aud": [ISSUER],
        **{"iat": now - 600, "nbf": now - 600, "exp": now + seconds - GRACE_SECONDS},
        "kubernetes.io": {"namespace": OPERATOR_NAMESPACE, "serviceaccount": name},
    }
    key = await asyncio.to_thread((plane.folder / "service-accounts.key").read_bytes)
    return jwt.encode(claims, key, "RS256")


def refused(plane: ControlPlane) -> int:
    """Count the requests whose token the API server did not accept."""
    lines = (plane.folder / "audit.log").read_text().splitlines()
    codes = (json.loads(line).get("responseStatus", {}).get("code") for line in lines)
    return sum(code == 401 for code in codes)


async def test_a_token_that_expires_is_read_anew(
    stage: Stage,
    cluster: Cluster,
    namespace: str,
    control_plane: ControlPlane,
    tmp_path: Path,
) -> None:
    config: dict[str, Any] = yaml.safe_load(stage.kubeconfig.read_text())
    entry = config["clusters"][0]["cluster"]
    server = urlsplit(entry["server"])
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(base64.b64decode(entry["certificate-authority-data"]))

    async def bring(seconds: int) -> None:
        """Write a token as the kubelet does. Kopf, which knows a pod's path alone, has a kubeconfig
        beside, that it reads anew as it would the pod's file."""
        made = await token(cluster, control_plane, seconds)
        (folder / "token").write_text(made)
        config["users"] = [
            {"name": each["name"], "user": {"token": made}} for each in config["users"]
        ]
        (folder / "kopf.kubeconfig").write_text(yaml.safe_dump(config))

    await bring(LIFE_SECONDS)
    log = (tmp_path / "operator.log").open("wb")
    environment = os.environ | {
        "KUBECONFIG": str(folder / "kopf.kubeconfig"),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
    }
    operator = await spawn(
        [
            *(PROGRAM, "operator", "--token-dir", folder),
            *("--namespace", OPERATOR_NAMESPACE),
            *("--service-account", f"{OPERATOR_NAMESPACE}/{OPERATOR_ACCOUNT}"),
            *("--gateway-image", GATEWAY_IMAGE),
            *("--allow-private-host", "127.0.0.1"),
            *("--health-port", str(free_port())),
        ],
        environment=environment,
        output=log,
    )
    try:
        await create_with_provider(cluster, namespace)
        await until_condition(cluster, namespace, *WAITING)

        async def expired() -> bool:
            assert operator.returncode is None, (tmp_path / "operator.log").read_text()
            return refused(control_plane) > before

        before = refused(control_plane)
        # The API server itself takes a token for good for ten seconds once it was.
        await until("the token is refused", expired, LIFE_SECONDS + 30)
        await create(cluster, budget(namespace, budget={"monthlyCap": "2.00"}))
        await asyncio.sleep(LATE_SECONDS)
        assert refused(control_plane) - before < DECENT * LATE_SECONDS
        await bring(3600)
        await until_cap(cluster, namespace, "2.00")
        quiet = refused(control_plane)
        await create(cluster, budget(namespace, budget={"monthlyCap": "3.00"}))
        await until_cap(cluster, namespace, "3.00")
        await asyncio.sleep(2)
        assert refused(control_plane) == quiet
        assert operator.returncode is None, "it never ended"
    finally:
        await stop(operator)
        log.close()
