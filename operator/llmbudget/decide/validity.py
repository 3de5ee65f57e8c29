"""What is wrong with a root budget, its children and its providers, beyond what the CRDs refuse.

A chain of pure functions over one World, each looking for one kind of fault. A finding says what
is wrong and what to do; what it is about is left out of the gateway's configuration, and the rest
goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmbudget.api.budget import IdentityMode
from llmbudget.api.conditions import Reason
from llmbudget.api.gateway_spec import Datadog, LedgerMode, PostHog, SecretDelivery
from llmbudget.api.meta import ANNOTATION_ALLOWED_HOST, LABEL_LEDGER, LABEL_PROVIDER_KEY
from llmbudget.api.model import SecretKeyRef
from llmbudget.api.provider import VaultAuthMethod
from llmbudget.contract.config import key_variable
from llmbudget.decide.databases import database_hosts, databases
from llmbudget.decide.media import searches_by_itself
from llmbudget.decide.prices import resolve_prices
from llmbudget.decide.world import Budget, Provider, World


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault."""

    reason: Reason
    message: str
    account: str | None = None
    """The budget that it is about."""
    provider: str | None = None
    """The provider that it is about, which then can't be called."""
    fatal: bool = False
    """Nothing can be rendered: what was rendered before stays."""


Check = Callable[[World], Iterator[Finding]]


def time_zone(world: World) -> Iterator[Finding]:
    """The root's time zone is one of IANA's."""
    name = world.root.spec.budget.time_zone or "UTC"
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield Finding(
            Reason.INVALID_SPEC,
            f"There is no time zone {name!r}: write an IANA name such as Europe/Berlin.",
            account=world.root.account,
            fatal=True,
        )


def providers_exist(world: World) -> Iterator[Finding]:
    """Each budget names providers that exist, a child only such as its root has."""
    of_root = {ref.name for ref in world.root.spec.providers}
    for budget in world.budgets:
        for ref in budget.spec.providers:
            if ref.name in world.providers and ref.name not in of_root:
                yield Finding(
                    Reason.PROVIDER_NOT_FOUND,
                    f"The root budget {world.root.account} does not use LLMProvider {ref.name}:"
                    " add it to its spec.providers, or remove it here.",
                    account=budget.account,
                )
            if ref.name not in world.providers:
                yield Finding(
                    Reason.PROVIDER_NOT_FOUND,
                    f"There is no LLMProvider {ref.name} in namespace {world.root.namespace}:"
                    " create it, or remove it from spec.providers.",
                    account=budget.account,
                )


def providers_readable(world: World) -> Iterator[Finding]:
    """Each provider's spec can be read."""
    for provider in used_providers(world):
        if provider.spec is None:
            yield Finding(Reason.PROVIDER_INVALID, provider.error, provider=provider.name)


def key_variables_differ(world: World) -> Iterator[Finding]:
    """No two providers' keys come in one environment variable."""
    if world.root.spec.deployment.secret_delivery is not SecretDelivery.ENV:
        return
    taken: dict[str, str] = {}
    for provider in used_providers(world):
        if provider.spec is None or provider.spec.credentials.vault is not None:
            continue
        variable = key_variable(provider.name)
        if variable in taken:
            yield Finding(
                Reason.PROVIDER_INVALID,
                f"Its key would come in the variable {variable}, as that of {taken[variable]} does:"
                " rename one of them, or use secretDelivery Volume.",
                provider=provider.name,
            )
        taken.setdefault(variable, provider.name)


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
    """The Secret with PostHog's key consents to be sent there: who may write a budget must not be
    able to send any Secret anywhere."""
    posthog = world.root.spec.monitoring.posthog
    if posthog.enabled and posthog.api_key_secret_ref is not None:
        yield from _monitor_consents(world, posthog.api_key_secret_ref, posthog.host)


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


def ledger_engine_kept(world: World) -> Iterator[Finding]:
    """A budget that was made again with another engine does not leave its month's spend behind."""
    if world.root.spec.ledger.postgres is None or not world.embedded_ledger:
        return
    claim = f"PersistentVolumeClaim {world.root.name}-ledger"
    yield Finding(
        Reason.LEDGER_ENGINE_CHANGED,
        f"The ledger of this budget is in {claim}: keep the embedded ledger, or delete the claim to"
        " begin with an empty one.",
        account=world.root.account,
        fatal=True,
    )


def image_allowed(world: World) -> Iterator[Finding]:
    """The gateway's image is one that this installation allows: it sees the keys."""
    image = world.root.spec.deployment.image
    installation = world.installation
    own = _repository(installation.gateway_image)
    if image is None or _repository(image) == own:
        return
    if not any(image.startswith(prefix) for prefix in installation.image_prefixes):
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.deployment.image must be of the repository {own}: this installation allows no"
            " other (the operator's --allow-image).",
            account=world.root.account,
            fatal=True,
        )


def priority_allowed(world: World) -> Iterator[Finding]:
    """The gateway's pods push no part of the cluster itself aside."""
    name = world.root.spec.deployment.priority_class_name or ""
    if name.startswith("system-"):
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.deployment.priorityClassName {name} is for the cluster's own parts: choose"
            " another PriorityClass.",
            account=world.root.account,
            fatal=True,
        )


def _repository(image: str) -> str:
    """Take tag and digest off."""
    path = image.partition("@")[0]
    head, colon, tag = path.rpartition(":")
    return head if colon and "/" not in tag else path


def vault_logins_complete(world: World) -> Iterator[Finding]:
    """Each login to Vault has what its method needs, also where an older version stored it."""
    for provider in used_providers(world):
        vault = provider.spec.credentials.vault if provider.spec else None
        if vault is None:
            continue
        kubernetes = vault.auth_method is VaultAuthMethod.KUBERNETES
        if (vault.role if kubernetes else vault.app_role_secret_ref) is None:
            field = "role" if kubernetes else "appRoleSecretRef"
            yield Finding(
                Reason.PROVIDER_INVALID,
                f"spec.credentials.vault.{field} is needed with authMethod {vault.auth_method}.",
                provider=provider.name,
            )


def ports_exist(world: World) -> Iterator[Finding]:
    """Each URL has a port that there is."""
    for provider in used_providers(world):
        if provider.spec is None:
            continue
        vault = provider.spec.credentials.vault
        for url in (provider.spec.endpoint, *([vault.address] if vault else [])):
            try:
                _ = urlsplit(url).port
            except ValueError:
                yield Finding(
                    Reason.PROVIDER_INVALID,
                    f"{url} is no usable URL: its port must be from 1 to 65535.",
                    provider=provider.name,
                )


def private_hosts_allowed(world: World) -> Iterator[Finding]:
    """Each private endpoint, and each private Vault, is on the installation's allow list."""
    allowed = world.installation.private_hosts
    for provider in used_providers(world):
        for url in private_urls(provider):
            parts = urlsplit(url)
            if parts.hostname not in allowed and parts.netloc not in allowed:
                yield Finding(
                    Reason.PROVIDER_INVALID,
                    f"{parts.netloc} is not on this installation's list of private hosts: start the"
                    f" operator with --allow-private-host={parts.netloc}.",
                    provider=provider.name,
                )


def private_urls(provider: Provider) -> list[str]:
    """List the URLs of a provider that may be at private addresses."""
    spec = provider.spec
    if spec is None:
        return []
    urls = [spec.endpoint] if spec.allow_private else []
    vault = spec.credentials.vault
    return [*urls, vault.address] if vault is not None and vault.allow_private else urls


def slices_have_regions(world: World) -> Iterator[Finding]:
    """Slices are for regions with a database of their own, and such a database is for slices."""
    spec = world.root.spec
    slices = spec.ledger.mode is LedgerMode.SLICES
    own = [each for each in spec.global_distribution.regions if each.postgres is not None]
    problem = None
    if slices and not own:
        problem = (
            "spec.ledger.mode Slices is for regions that have a database of their own, and there is"
            " none: set spec.globalDistribution.regions[].postgres, or remove spec.ledger.mode."
        )
    elif own and not slices:
        problem = (
            f"Nothing is counted in the database of region {own[0].name}: set spec.ledger.mode to"
            " Slices, or remove spec.globalDistribution.regions[].postgres."
        )
    if problem is not None:
        yield Finding(Reason.INVALID_SPEC, problem, account=world.root.account)


def databases_differ(world: World) -> Iterator[Finding]:
    """No two ledgers are in one place: each needs tables of its own."""
    seen: set[tuple[str, str]] = set()
    for postgres in databases(world.root):
        ref = postgres.secret_key_ref
        if (ref.name, ref.key) in seen:
            yield Finding(
                Reason.INVALID_SPEC,
                f"Two ledgers would be in the database of Secret {ref.name}, key {ref.key}: give"
                " each region a database, or a schema and a role, of its own.",
                account=world.root.account,
                fatal=True,
            )
        seen.add((ref.name, ref.key))


def caps_given(world: World) -> Iterator[Finding]:
    """What raises a cap, or lends of it, has one to raise or lend of."""
    for budget in world.budgets:
        money = budget.spec.budget
        asked = {
            "rollover": money.rollover is not None,
            "borrowing": money.borrowing is not None,
            "topUps": bool(money.top_ups),
        }
        without = [field for field, wanted in asked.items() if wanted]
        if without and money.monthly_cap is None:
            yield Finding(
                Reason.INVALID_SPEC,
                f"spec.budget.{without[0]} does nothing without a cap: set spec.budget.monthlyCap,"
                " or remove it.",
                account=budget.account,
            )


def identity_possible(world: World) -> Iterator[Finding]:
    """Tokens are reviewed only where the gateway can be bound in the whole cluster."""
    mode = world.root.spec.identity.mode
    if world.installation.namespaces and mode is IdentityMode.TOKEN_REVIEW:
        yield Finding(
            Reason.NOT_SUPPORTED,
            "This operator has no rights in the whole cluster (--namespaces), so that its gateways"
            " can't have tokens reviewed: set spec.identity.mode to Offline.",
            account=world.root.account,
            fatal=True,
        )


def models_priced(world: World) -> Iterator[Finding]:
    """Each model has a price."""
    for provider in used_providers(world):
        if provider.spec is None:
            continue
        models = [
            model
            for model in provider.spec.models
            if resolve_prices(model, provider.spec, world.now) is None
        ]
        searching = [
            model.name
            for model in models
            if searches_by_itself(model.name, model.upstream_name or model.name)
        ]
        if searching:
            yield Finding(
                Reason.MODEL_UNPRICED,
                f"{', '.join(searching)} searches the web by itself, and nobody knows how often:"
                " calls to it are refused.",
                provider=provider.name,
            )
        unpriced = [model.name for model in models if model.name not in searching]
        if unpriced:
            yield Finding(
                Reason.MODEL_UNPRICED,
                f"Nobody knows what {', '.join(unpriced)} costs: set models[].cost; until then"
                " calls to it are refused.",
                provider=provider.name,
            )


def ladders_known(world: World) -> Iterator[Finding]:
    """Each step of a ladder is a model of a provider."""
    offered = {
        model.name
        for provider in used_providers(world)
        if provider.spec is not None
        for model in provider.spec.models
    }
    for budget in world.budgets:
        ladder = budget.spec.downgrade.ladder if budget.spec.downgrade else []
        unknown = [name for name in ladder if name not in offered]
        if unknown and offered:
            yield Finding(
                Reason.LADDER_UNKNOWN_MODEL,
                f"No provider of this budget has the model {', '.join(unknown)}: name one of"
                f" {', '.join(sorted(offered))} in spec.downgrade.ladder.",
                account=budget.account,
            )


CHAIN: Final[tuple[Check, ...]] = (
    time_zone,
    providers_exist,
    providers_readable,
    secrets_consent,
    posthog_consents,
    datadog_consents,
    ledger_consents,
    ledger_engine_kept,
    image_allowed,
    priority_allowed,
    vault_logins_complete,
    ports_exist,
    private_hosts_allowed,
    key_variables_differ,
    slices_have_regions,
    databases_differ,
    caps_given,
    identity_possible,
    models_priced,
    ladders_known,
)


def findings(world: World) -> tuple[Finding, ...]:
    """Run the chain."""
    return tuple(found for check in CHAIN for found in check(world))


def used_providers(world: World) -> tuple[Provider, ...]:
    """List the root's providers that exist, in its order of preference."""
    return tuple(
        world.providers[ref.name]
        for ref in world.root.spec.providers
        if ref.name in world.providers
    )


def callable_providers(world: World, found: tuple[Finding, ...]) -> tuple[Provider, ...]:
    """List the providers that may be configured: an unpriced model does not bar its provider."""
    barred = {f.provider for f in found if f.provider and f.reason is not Reason.MODEL_UNPRICED}
    return tuple(provider for provider in used_providers(world) if provider.name not in barred)


def about(budget: Budget, world: World, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Choose the findings that a budget's own status shows: its own and its providers'."""
    chosen = {ref.name for ref in budget.spec.providers or world.root.spec.providers}
    return tuple(f for f in found if f.account == budget.account or f.provider in chosen)
