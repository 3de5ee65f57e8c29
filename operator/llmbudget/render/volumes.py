"""The volumes of the gateway's pod, each with where it is mounted."""

from __future__ import annotations

from typing import Final

from llmbudget.api.gateway_spec import PostgresRef, SecretDelivery
from llmbudget.contract.config import (
    CA_DIRECTORY,
    DATADOG_KEY_FILE,
    KEYS_DIRECTORY,
    LEDGER_DIRECTORY,
    POSTGRES_FILE,
    POSTHOG_KEY_FILE,
    REGION_POSTGRES_FILE,
    TLS_DIRECTORY,
    TOKEN_DIRECTORY,
    VAULT_CA_FILE,
    VAULT_DIRECTORY,
)
from llmbudget.decide.databases import region_database
from llmbudget.decide.validity.chain import callable_providers
from llmbudget.decide.validity.consent import datadog_of, posthog_of
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, ledger_claim, serving_secret

CA_KEY: Final = "ca.crt"
"""Key of a Secret: authority of the database's certificate."""
_TOKEN_SECONDS: Final = 3607
_READ_ONLY_MODE: Final = 0o440


def volumes(
    world: World, found: tuple[Finding, ...], region: str | None
) -> list[tuple[Manifest, Manifest]]:
    """List (volume, mount) of a region's pods, in a fixed order."""
    pairs = [
        _token(),
        ({"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, _mount("tmp", "/tmp", False)),  # noqa: S108
    ]
    pairs += _keys(world, found)
    pairs += _vault_logins(world, found)
    pairs += _ca_bundles(world, found)
    pairs += _ledger(world)
    own = region_database(world.root, region)
    if own is not None:
        pairs.append(_database("region-database", own, REGION_POSTGRES_FILE))
    pairs += _others(world)
    return pairs


def _token() -> tuple[Manifest, Manifest]:
    """The pod's own token, with the API server's CA and the namespace, as clients expect them."""
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources: list[Manifest] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": _TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return _projected("token", sources, TOKEN_DIRECTORY)


def _keys(world: World, found: tuple[Finding, ...]) -> list[tuple[Manifest, Manifest]]:
    """The providers' own Secrets, one file a provider: no copy, and live on rotation."""
    if world.root.spec.deployment.secret_delivery is SecretDelivery.ENV:
        return []
    sources = []
    for provider in callable_providers(world, found):
        ref = provider.spec.credentials.secret_key_ref if provider.spec else None
        if ref is not None:
            sources.append(_files("secret", ref.name, (ref.key, provider.name)))
    return [_projected("keys", sources, KEYS_DIRECTORY)] if sources else []


def _vault_logins(world: World, found: tuple[Finding, ...]) -> list[tuple[Manifest, Manifest]]:
    """What the gateway logs in to Vault with, one folder a provider."""
    sources: list[Manifest] = []
    for provider in callable_providers(world, found):
        vault = provider.spec.credentials.vault if provider.spec else None
        if vault is None:
            continue
        if vault.app_role_secret_ref is not None:
            logins = [(key, f"{provider.name}/{key}") for key in ("role_id", "secret_id")]
            sources.append(_files("secret", vault.app_role_secret_ref.name, *logins))
        else:
            token = {
                # Of no use anywhere else, the API server included.
                "audience": vault.address,
                "expirationSeconds": _TOKEN_SECONDS,
                "path": f"{provider.name}/token",
            }
            sources.append({"serviceAccountToken": token})
        if vault.ca_bundle is not None:
            ref = vault.ca_bundle.config_map_key_ref
            file = f"{provider.name}/{VAULT_CA_FILE}"
            sources.append(_files("configMap", ref.name, (ref.key, file)))
    return [_projected("vault", sources, VAULT_DIRECTORY)] if sources else []


def _ca_bundles(world: World, found: tuple[Finding, ...]) -> list[tuple[Manifest, Manifest]]:
    sources = []
    for provider in callable_providers(world, found):
        if provider.spec is not None and provider.spec.ca_bundle is not None:
            ref = provider.spec.ca_bundle.config_map_key_ref
            sources.append(_files("configMap", ref.name, (ref.key, f"{provider.name}.pem")))
    return [_projected("ca", sources, CA_DIRECTORY)] if sources else []


def _ledger(world: World) -> list[tuple[Manifest, Manifest]]:
    postgres = world.root.spec.ledger.postgres
    if postgres is not None:
        return [_database("database", postgres, POSTGRES_FILE)]
    claim = {"claimName": ledger_claim(world.root)}
    volume = {"name": "ledger", "persistentVolumeClaim": claim}
    return [(volume, _mount("ledger", LEDGER_DIRECTORY, False))]


def _database(name: str, postgres: PostgresRef, path: str) -> tuple[Manifest, Manifest]:
    ref = postgres.secret_key_ref
    directory, _, file = path.rpartition("/")
    source = _files("secret", ref.name, (ref.key, file), (CA_KEY, CA_KEY))
    return _projected(name, [source], directory)


def _others(world: World) -> list[tuple[Manifest, Manifest]]:
    spec = world.root.spec
    pairs = []
    for name, told, path in (
        ("posthog", posthog_of(world), POSTHOG_KEY_FILE),
        ("datadog", datadog_of(world), DATADOG_KEY_FILE),
    ):
        ref = None if told is None else told.api_key_secret_ref
        if ref is not None:
            directory, _, file = path.rpartition("/")
            source = _files("secret", ref.name, (ref.key, file))
            pairs.append(_projected(name, [source], directory))
    if not spec.deployment.tls.plain_http:
        name = spec.deployment.tls.secret_name or serving_secret(world.root)
        # What else the Secret has is not the gateway's.
        items = [{"key": key, "path": key} for key in ("tls.crt", "tls.key")]
        secret = {"secretName": name, "defaultMode": _READ_ONLY_MODE, "items": items}
        pairs.append(({"name": "tls", "secret": secret}, _mount("tls", TLS_DIRECTORY)))
    return pairs


def _files(kind: str, name: str, *files: tuple[str, str]) -> Manifest:
    """Take (key, path) out of a Secret or ConfigMap. Optional: a gateway that lacks it says so, and
    one that is made anew needs no restart."""
    items = [{"key": key, "path": path} for key, path in files]
    return {kind: {"name": name, "optional": True, "items": items}}


def _projected(name: str, sources: list[Manifest], path: str) -> tuple[Manifest, Manifest]:
    projected = {"defaultMode": _READ_ONLY_MODE, "sources": sources}
    return {"name": name, "projected": projected}, _mount(name, path)


def _mount(name: str, path: str, read_only: bool = True) -> Manifest:
    mount: Manifest = {"name": name, "mountPath": path}
    return mount | {"readOnly": True} if read_only else mount
