"""What is wrong with providers, their models, and how budgets name them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from llmbudget.api.conditions import Reason
from llmbudget.api.credentials import VaultAuthMethod
from llmbudget.api.gateway_spec import SecretDelivery
from llmbudget.contract.config import key_variable
from llmbudget.decide.media import searches_by_itself
from llmbudget.decide.prices import prices_of
from llmbudget.decide.validity.finding import Finding, used_providers
from llmbudget.decide.world import Provider, World


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
    for provider in used_providers(world):
        for url in private_urls(provider):
            if not world.installation.lists(url):
                where = urlsplit(url).netloc
                yield Finding(
                    Reason.PROVIDER_INVALID,
                    f"{where} is not on this installation's list of private hosts: start the"
                    f" operator with --allow-private-host={where}.",
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


def models_priced(world: World) -> Iterator[Finding]:
    """Each model has a price."""
    for provider in used_providers(world):
        if provider.spec is None:
            continue
        priced = zip(provider.spec.models, prices_of(provider, world.now), strict=True)
        models = [model for model, prices in priced if prices is None]
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
