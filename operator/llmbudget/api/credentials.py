"""How a provider is given its key."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from llmbudget.api.model import (
    ConfigMapKeyRef,
    DataKey,
    LocalRef,
    Model,
    SecretKeyRef,
    Url,
    rules,
)


class CaBundle(Model):
    """Certificate authorities to trust for the endpoint instead of the system's."""

    config_map_key_ref: ConfigMapKeyRef
    """PEM bundle in a ConfigMap of the same namespace."""


class KeyHeader(StrEnum):
    """Header that carries the key upstream; `Authorization` as `Bearer KEY`."""

    AUTHORIZATION = "Authorization"
    API_KEY = "api-key"
    X_API_KEY = "x-api-key"


class VaultAuthMethod(StrEnum):
    """How the gateway logs in to Vault."""

    KUBERNETES = "Kubernetes"
    APP_ROLE = "AppRole"


VaultTtl = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}(s|m|h)$", max_length=8)]
VaultPath = Annotated[
    str,
    Field(
        pattern=r"^[-A-Za-z0-9_@=+:~][-A-Za-z0-9_@=+:~.]*(/[-A-Za-z0-9_@=+:~][-A-Za-z0-9_@=+:~.]*)*$",
        min_length=1,
        max_length=512,
    ),
]
"""Segments that need no escape in a URL, none of which climbs."""


class VaultSource(Model):
    """A key in HashiCorp Vault or OpenBao, read by the gateway and never at rest in the cluster.

    The secret has to name, in its entry `allowed_host`, the host that the key may be sent to.
    """

    model_config = {
        "json_schema_extra": rules(
            (
                "self.address.startsWith('https://')"
                " || (has(self.allowPrivate) && self.allowPrivate)",
                "the address of Vault must be https: a key never travels in clear, unless"
                " vault.allowPrivate is true",
            ),
            (
                "has(self.role) != (has(self.authMethod) && self.authMethod == 'AppRole')",
                "role is needed with authMethod Kubernetes, and is no part of AppRole: there"
                " the role_id in appRoleSecretRef says it",
            ),
            (
                "has(self.appRoleSecretRef) == (has(self.authMethod)"
                " && self.authMethod == 'AppRole')",
                "appRoleSecretRef is needed with authMethod AppRole, and is no part of Kubernetes",
            ),
        )
    }

    address: Url
    """URL of the server, such as https://vault.vault.svc:8200. It is also the audience of the
    ServiceAccount token of the Kubernetes method, which thus is of no use at any other server."""
    allow_private: bool = False
    """Whether the server may be at a private or cluster-internal address. It must also be on the
    installation's allow list."""
    ca_bundle: CaBundle | None = None
    """Certificate authorities for the server; default: the public ones."""
    namespace: VaultPath | None = None
    """Namespace of the server (Vault Enterprise, OpenBao); default: its root."""
    auth_method: VaultAuthMethod = VaultAuthMethod.KUBERNETES
    """Kubernetes (the gateway's ServiceAccount) or AppRole."""
    auth_path: VaultPath | None = None
    """Mount path of the auth method; default: `kubernetes` or `approle`."""
    role: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Role to log in as, by the Kubernetes method."""
    app_role_secret_ref: LocalRef | None = None
    """Secret of the same namespace with the entries `role_id` and `secret_id`; it consents by the
    label llmbudget.io/provider-key: "true" and, with the server's host, the annotation
    llmbudget.io/allowed-host."""
    mount: VaultPath = "secret"
    """Mount path of the KV engine."""
    kv_version: Annotated[int, Field(ge=1, le=2)] = 2
    """Version of the KV engine."""
    path: VaultPath
    """Path of the secret below the mount, without `data/`."""
    key: DataKey
    """Entry of the secret."""
    ttl: VaultTtl = "5m"
    """How long a key that was read is used. It is read again well before, so that this is how long
    calls go on while the server is away; shorter where the secret's own lease is."""


class Credentials(Model):
    """Where the provider's key comes from: exactly one source."""

    model_config = {
        "json_schema_extra": rules(
            (
                "has(self.secretKeyRef) != has(self.vault)",
                "exactly one credential source is needed: set secretKeyRef or vault, not both",
            ),
        )
    }

    secret_key_ref: SecretKeyRef | None = None
    """Secret of the same namespace; it consents by the label llmbudget.io/provider-key: "true" and
    the annotation llmbudget.io/allowed-host."""
    vault: VaultSource | None = None
    """HashiCorp Vault, or OpenBao."""
    header: KeyHeader = KeyHeader.AUTHORIZATION
    """Header that carries the key; Authorization sends `Bearer KEY`."""
