"""Every check of a World, in the order in which people should read what they find."""

from __future__ import annotations

from typing import Final

from llmbudget.api.conditions import Reason
from llmbudget.decide.validity.consent import (
    datadog_consents,
    ledger_consents,
    posthog_consents,
    secrets_consent,
)
from llmbudget.decide.validity.finding import Check, Finding, used_providers
from llmbudget.decide.validity.gateways import (
    caps_given,
    databases_differ,
    identity_possible,
    image_allowed,
    ledger_engine_kept,
    priority_allowed,
    service_names_differ,
    slices_have_regions,
    time_zone,
)
from llmbudget.decide.validity.providers import (
    key_variables_differ,
    ladders_known,
    models_priced,
    ports_exist,
    private_hosts_allowed,
    providers_exist,
    providers_readable,
    vault_logins_complete,
)
from llmbudget.decide.validity.tracing import collector_allowed
from llmbudget.decide.world import Budget, Provider, World

CHAIN: Final[tuple[Check, ...]] = (
    time_zone,
    providers_exist,
    providers_readable,
    secrets_consent,
    posthog_consents,
    datadog_consents,
    collector_allowed,
    ledger_consents,
    ledger_engine_kept,
    image_allowed,
    priority_allowed,
    vault_logins_complete,
    ports_exist,
    private_hosts_allowed,
    key_variables_differ,
    slices_have_regions,
    service_names_differ,
    databases_differ,
    caps_given,
    identity_possible,
    models_priced,
    ladders_known,
)


def findings(world: World) -> tuple[Finding, ...]:
    """Run the chain."""
    return tuple(found for check in CHAIN for found in check(world))


def callable_providers(world: World, found: tuple[Finding, ...]) -> tuple[Provider, ...]:
    """List the providers that may be configured: an unpriced model does not bar its provider."""
    barred = {f.provider for f in found if f.provider and f.reason is not Reason.MODEL_UNPRICED}
    return tuple(provider for provider in used_providers(world) if provider.name not in barred)


def about(budget: Budget, world: World, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Choose the findings that a budget's own status shows: its own and its providers'."""
    chosen = {ref.name for ref in budget.spec.providers or world.root.spec.providers}
    return tuple(f for f in found if f.account == budget.account or f.provider in chosen)
