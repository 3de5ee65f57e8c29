"""A PostgreSQL server in a namespace, for the ledgers of budgets: by TLS, which they verify."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.e2e.cluster.prepare import POSTGRES
from tests.e2e.tenant import RESTRICTED, SMALL, Tenant

from llmbudget.reconcile.x509 import Authority

NAME = "postgres"
SECRET = "llm-ledger"
PASSWORD = "REPLACE-ME"
"""As in the examples."""
LEDGER: dict[str, Any] = {"postgres": {"secretKeyRef": {"name": SECRET, "key": "uri"}}}
"""`spec.ledger` of a budget that keeps its money there."""


async def start_database(tenant: Tenant) -> dict[str, str]:
    """Start the server; return the data of a Secret that names it to gateways."""
    host = f"{NAME}.{tenant.namespace}.svc"
    now, life = datetime.now(UTC), timedelta(days=1)
    authority = Authority.make(now, life)
    served = authority.issue([host], now, life)
    server = {
        "password": PASSWORD,
        "tls.crt": served.certificate.decode(),
        "tls.key": served.key.decode(),
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    mounts = {"data": "/data", "secrets": "/var/run/database", "tmp": "/tmp", "shm": "/dev/shm"}
    container = {
        "name": NAME,
        "image": POSTGRES,
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "securityContext": RESTRICTED,
        "resources": SMALL,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": NAME}},
        # PostgreSQL wants a key that its group may read at most.
        {"name": "secrets", "secret": {"secretName": NAME, "defaultMode": 0o640}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    await tenant.apply(
        tenant.object("v1", "PersistentVolumeClaim", NAME, spec=claim),
        tenant.object("v1", "Secret", NAME, stringData=server),
        tenant.service(NAME, 5432),
        tenant.deployment_of(container, volumes),
    )
    await tenant.rolled_out(NAME)
    uri = f"postgresql://llmbudget:{PASSWORD}@{host}:5432/llmbudget?sslmode=verify-full"
    return {"uri": uri, "ca.crt": authority.pair.certificate.decode()}


async def write_ledger_secret(tenant: Tenant, data: dict[str, str]) -> None:
    """Write the Secret by which budgets may keep their money in that server."""
    secret = tenant.object("v1", "Secret", SECRET, stringData=data)
    secret["metadata"]["labels"] = {"llmbudget.io/ledger": "true"}
    host = f"{NAME}.{tenant.namespace}.svc:5432"
    secret["metadata"]["annotations"] = {"llmbudget.io/allowed-host": host}
    await tenant.apply(secret)
