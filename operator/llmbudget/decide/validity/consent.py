"""Whether Secrets consent to what a budget or a provider wants of them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llmbudget.api.conditions import Reason
from llmbudget.api.gateway_spec import Datadog, PostHog
from llmbudget.api.meta import ANNOTATION_ALLOWED_HOST, LABEL_LEDGER, LABEL_PROVIDER_KEY
from llmbudget.api.model import SecretKeyRef
from llmbudget.decide.databases import database_hosts, databases
from llmbudget.decide.validity.finding import Finding, used_providers
from llmbudget.decide.world import World


def secrets_consent(world: World) -> Iterator[Finding]:
    """Each provider's Secret exists, consents to be sent somewhere, and names the host: the
    endpoint's for a key, Vault's for what logs in there."""
    for provider in used_providers(world):
        if provider.spec is None:
            continue
        credentials = provider.spec.credentials
        problem = None
        if credentials.secret_key_ref is not None:
            ref, url = credentials.secret_key_ref, provider.spec.endpoint
            problem = _consent(world, ref.name, f"the key {ref.key}", url)
        elif credentials.vault is not None and credentials.vault.app_role_secret_ref is not None:
            name, url = credentials.vault.app_role_secret_ref.name, credentials.vault.address
            problem = _consent(world, name, "the keys role_id and secret_id", url)
        if problem is not None:
            yield Finding(*problem, provider=provider.name)


def posthog_consents(world: World) -> Iterator[Finding]:
    """The Secret with PostHog's key consents to be sent there, and nobody on the way reads it: who
    may write a budget must not be able to send any Secret anywhere."""
    posthog = world.root.spec.monitoring.posthog
    if not posthog.enabled or posthog.api_key_secret_ref is None:
        return
    problem = _unusable(world, posthog.host)
    if problem is not None:
        said = f"spec.monitoring.posthog.host: {problem}"
        yield Finding(Reason.INVALID_SPEC, said, account=world.root.account)
        return
    yield from _monitor_consents(world, posthog.api_key_secret_ref, posthog.host)


def _unusable(world: World, url: str) -> str | None:
    """Say why no key can be sent to a URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"{url} is no usable URL: write https://HOST, with a port from 1 to 65535 if any."
    if parts.scheme == "https" or world.installation.lists(url):
        return None
    return (
        f"its key would go there in the clear: write https://{parts.netloc}, or start the operator"
        f" with --allow-private-host={parts.netloc}."
    )


def datadog_consents(world: World) -> Iterator[Finding]:
    """The Secret with Datadog's key consents likewise."""
    datadog = world.root.spec.monitoring.datadog
    if datadog.enabled and datadog.api_key_secret_ref is not None:
        yield from _monitor_consents(world, datadog.api_key_secret_ref, datadog.url)


def _monitor_consents(world: World, ref: SecretKeyRef, url: str) -> Iterator[Finding]:
    problem = _consent(world, ref.name, f"the key {ref.key}", url)
    if problem is not None:
        yield Finding(*problem, account=world.root.account)


def datadog_of(world: World) -> Datadog | None:
    """Find what metrics are sent to; None: nothing is sent, or its Secret does not consent."""
    datadog = world.root.spec.monitoring.datadog
    wanted = datadog.enabled and datadog.api_key_secret_ref is not None
    return datadog if wanted and not any(datadog_consents(world)) else None


def posthog_of(world: World) -> PostHog | None:
    """Find what events are sent to; None: nothing is sent, or its Secret does not consent."""
    posthog = world.root.spec.monitoring.posthog
    wanted = posthog.enabled and posthog.api_key_secret_ref is not None
    return posthog if wanted and not any(posthog_consents(world)) else None


def _consent(world: World, name: str, content: str, url: str) -> tuple[Reason, str] | None:
    """Say what keeps a Secret from being mounted into a gateway and sent to a URL's host."""
    facts = world.secrets.get(name)
    host = urlsplit(url).hostname or ""
    where = f"Secret {name} in namespace {world.root.namespace}"
    if facts is None:
        return (
            Reason.SECRET_NOT_FOUND,
            f"{where} does not exist: create it with {content}.",
        )
    if not facts.consents:
        return (
            Reason.SECRET_NOT_CONSENTING,
            f'{where} does not consent to be a provider key: label it {LABEL_PROVIDER_KEY}="true".',
        )
    if facts.allowed_host != host:
        return (
            Reason.SECRET_NOT_CONSENTING,
            f"{where} may not be sent to {host}: annotate it {ANNOTATION_ALLOWED_HOST}={host}.",
        )
    return None


def ledger_consents(world: World) -> Iterator[Finding]:
    """Each Secret with a database's connection string consents, and names its servers: who may
    write a budget must not be able to have tables made in any database."""
    for postgres in databases(world.root):
        yield from _ledger_consents(world, postgres.secret_key_ref)


def _ledger_consents(world: World, ref: SecretKeyRef) -> Iterator[Finding]:
    facts = world.secrets.get(ref.name)
    where = f"Secret {ref.name} in namespace {world.root.namespace}"
    problem = None
    if facts is None:
        reason, problem = (
            Reason.SECRET_NOT_FOUND,
            f"{where} does not exist: create it with the connection string under {ref.key}.",
        )
    elif not facts.is_ledger:
        reason, problem = (
            Reason.SECRET_NOT_CONSENTING,
            f'{where} does not consent to be a ledger: label it {LABEL_LEDGER}="true".',
        )
    else:
        try:
            database_hosts(facts)
        except ValueError:
            reason, problem = (
                Reason.SECRET_NOT_CONSENTING,
                f"{where} does not say where its database is: annotate it"
                f" {ANNOTATION_ALLOWED_HOST}=HOST[:PORT], several separated by commas.",
            )
    if problem is not None:
        yield Finding(reason, problem, account=world.root.account, fatal=True)
