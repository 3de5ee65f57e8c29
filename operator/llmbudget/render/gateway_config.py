"""The gateway's configuration, resolved from the resources."""

from __future__ import annotations

import contextlib
from datetime import datetime
from decimal import Decimal
from functools import lru_cache

from pydantic_core import from_json

from llmbudget.api.budget import Borrowing, Consumer
from llmbudget.api.conditions import Reason
from llmbudget.api.credentials import VaultAuthMethod, VaultSource
from llmbudget.api.gateway_spec import SecretDelivery
from llmbudget.api.meta import ANNOTATION_APPROVED_PERIOD
from llmbudget.api.model import milliseconds, months, per_minute
from llmbudget.api.money import parse_usd
from llmbudget.api.provider import DEFAULT_CONTEXT
from llmbudget.contract.config import (
    AccountConfig,
    BorrowingConfig,
    ConsumerConfig,
    DatadogConfig,
    EndpointConfig,
    EnvelopeLimits,
    GatewayConfig,
    Limits,
    ModelConfig,
    PostHogConfig,
    ProviderConfig,
    Threshold,
    TopUpConfig,
    VaultConfig,
    key_variable,
)
from llmbudget.decide.ladder import default_ladder
from llmbudget.decide.media import audio_seconds, image_tokens, media_output_tokens
from llmbudget.decide.prices import prices_of
from llmbudget.decide.room import NAMESPACE_BYTES, TREE_BYTES, within_room
from llmbudget.decide.validity.chain import callable_providers
from llmbudget.decide.validity.consent import datadog_of, posthog_of
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.validity.tracing import collector_of
from llmbudget.decide.world import Budget, Provider, World


def gateway_config(world: World, found: tuple[Finding, ...]) -> GatewayConfig:
    """Build the configuration; its generation is the last one's where nothing changed."""
    previous = _previous_generation(world)
    config = _config(world, found, max(1, previous))
    if config.to_json() == world.previous_config:
        return config
    # Seconds since the epoch grow even where the last configuration is lost.
    generation = max(previous + 1, int(world.now.timestamp()))
    return config.model_copy(update={"generation": generation})


def _previous_generation(world: World) -> int:
    """Read the number of what was rendered last; 0: that is lost."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return int(from_json(world.previous_config or "")["generation"])
    return 0


def _config(world: World, found: tuple[Finding, ...], generation: int) -> GatewayConfig:
    spec = world.root.spec
    collector = collector_of(world)
    by_environment = spec.deployment.secret_delivery is SecretDelivery.ENV
    # To the minute: what all budgets of a provider have in common is there once.
    at = world.now.replace(second=0, microsecond=0)
    callable_ones = callable_providers(world, found)
    providers = tuple(_provider(each, by_environment, at) for each in callable_ones)
    return GatewayConfig(
        generation=generation,
        root=world.root.account,
        time_zone=spec.budget.time_zone or "UTC",
        retention_months=months(spec.ledger.retention),
        ledger="postgres" if spec.ledger.postgres else "sqlite",
        identity_mode=spec.identity.mode,
        operator=world.installation.service_account,
        accounts=_accounts(world, providers),
        providers=providers,
        endpoints=tuple(
            EndpointConfig(
                path=endpoint.path,
                auth_required=endpoint.auth_required,
                per_minute=per_minute(endpoint.rate_limit),
            )
            for endpoint in spec.monitoring.endpoints
        ),
        posthog=_posthog(world),
        datadog=_datadog(world),
        tracing=collector.url if collector else None,
        tracing_private=collector is not None and collector.private,
    )


def _posthog(world: World) -> PostHogConfig | None:
    posthog = posthog_of(world)
    if posthog is None:
        return None
    return PostHogConfig(
        host=posthog.host,
        allow_private=world.installation.lists(posthog.host),
        sample_rate=Decimal(posthog.sample_rate),
    )


def _datadog(world: World) -> DatadogConfig | None:
    datadog = datadog_of(world)
    return None if datadog is None else DatadogConfig(url=datadog.url)


@lru_cache(maxsize=1024)
def _provider(provider: Provider, by_environment: bool, at: datetime) -> ProviderConfig:
    written = provider.spec
    if written is None:
        raise AssertionError("a provider that can't be read is not callable")
    vault = written.credentials.vault
    return ProviderConfig(
        name=provider.name,
        protocol=written.protocol,
        endpoint=written.endpoint,
        api_version=written.api_version,
        allow_private=written.allow_private,
        key_header=written.credentials.header,
        key_env=key_variable(provider.name) if by_environment and vault is None else None,
        vault=_vault(vault) if vault else None,
        ca_file=f"{provider.name}.pem" if written.ca_bundle else None,
        models=tuple(
            ModelConfig(
                name=model.name,
                upstream_name=upstream,
                prices=prices,
                max_context=model.max_context or DEFAULT_CONTEXT,
                context_bound=model.max_context,
                max_output=model.max_output,
                default_max_output=model.default_max_output,
                latency_ms=model.latency_ms,
                image_tokens=model.image_tokens or image_tokens(upstream),
                media_output_tokens=model.media_output_tokens or media_output_tokens(upstream),
                audio_seconds=model.audio_seconds or audio_seconds(upstream),
                stored=written.hosted.stored_responses or None,
                files=written.hosted.files or None,
            )
            for model, prices in zip(written.models, prices_of(provider, at), strict=True)
            for upstream in (model.upstream_name or model.name,)
        ),
        connect_timeout_ms=milliseconds(written.timeouts.connect),
        idle_timeout_ms=milliseconds(written.timeouts.idle),
        total_timeout_ms=milliseconds(written.timeouts.total),
        limit_field=written.limit_field,
        bills_errors=written.bills_errors is True,
        errors_by_host=written.bills_errors is None,
    )


def _vault(source: VaultSource) -> VaultConfig:
    kubernetes = source.auth_method is VaultAuthMethod.KUBERNETES
    return VaultConfig(
        address=source.address,
        allow_private=source.allow_private,
        ca_bundle=source.ca_bundle is not None,
        namespace=source.namespace,
        auth_method=source.auth_method,
        auth_path=source.auth_path or ("kubernetes" if kubernetes else "approle"),
        role=source.role,
        mount=source.mount,
        kv_version=source.kv_version,
        path=source.path,
        key=source.key,
        ttl_ms=milliseconds(source.ttl),
    )


def _accounts(world: World, providers: tuple[ProviderConfig, ...]) -> tuple[AccountConfig, ...]:
    names = [provider.name for provider in providers]
    models = [model for provider in providers for model in provider.models]
    ladders: dict[str | None, tuple[str, ...]] = {None: default_ladder(models)}
    accounts: list[AccountConfig] = []
    for budget in world.budgets:
        own = budget.spec.downgrade.ladder if budget.spec.downgrade else None
        ladders[budget.account] = tuple(own) if own else ladders[budget.parent]
        named = [ref.name for ref in budget.spec.providers]
        # Where none of those that were chosen can be called, no other stands in for them.
        chosen = [name for name in named if name in names] or named or names
        accounts.append(_account(budget, ladders[budget.account], tuple(chosen)))
    return within_room(accounts)


def left_out(world: World, config: GatewayConfig) -> tuple[Finding, ...]:
    """Say of the children that found no room in a configuration why."""
    there = {account.name for account in config.accounts}
    tree, abroad = TREE_BYTES // 1024, NAMESPACE_BYTES // 1024
    message = (
        "The gateway's configuration has no room for this budget or one above it: a tree may take"
        f" {tree} KiB, and another namespace than the root's {abroad} KiB of it. Name fewer"
        " ServiceAccounts (a consumer without serviceAccounts is all of its namespace), or make it"
        " a root of its own. Until then its consumers are refused, and so is whoever no budget of"
        " the tree names in their namespaces."
    )
    return tuple(
        Finding(Reason.TREE_TOO_LARGE, message, account=budget.account)
        for budget in world.budgets
        if budget.account not in there
    )


def _account(budget: Budget, ladder: tuple[str, ...], providers: tuple[str, ...]) -> AccountConfig:
    spec = budget.spec
    money = spec.budget
    return AccountConfig(
        name=budget.account,
        parent=budget.parent,
        cap_nano=None if money.monthly_cap is None else parse_usd(money.monthly_cap),
        rollover_nano=parse_usd(money.rollover.maximum) if money.rollover else 0,
        borrowing=_borrowing(money.borrowing) if money.borrowing else None,
        top_ups=tuple(
            TopUpConfig(
                id=top_up.id,
                amount_nano=parse_usd(top_up.amount),
                by=top_up.by,
                reason=top_up.reason,
                expires=datetime.fromisoformat(top_up.expires),
            )
            for top_up in money.top_ups
        ),
        on_exceeded=money.on_exceeded,
        thresholds=tuple(
            Threshold(percentage=threshold.percentage, action=threshold.action)
            for threshold in sorted(money.alert_thresholds, key=lambda t: t.percentage)
        ),
        ladder=ladder,
        providers=providers,
        strategy=spec.routing.strategy,
        retries=spec.routing.retries,
        consumers=tuple(_consumer(consumer) for consumer in spec.consumers),
        approved_period=budget.annotations.get(ANNOTATION_APPROVED_PERIOD),
    )


def _borrowing(borrowing: Borrowing) -> BorrowingConfig:
    lent = borrowing.lending_limit
    return BorrowingConfig(
        limit_nano=parse_usd(borrowing.limit),
        lending_limit_nano=None if lent is None else parse_usd(lent),
    )


def _consumer(consumer: Consumer) -> ConsumerConfig:
    limits, envelopes = consumer.rate_limits, consumer.envelopes
    names = consumer.service_accounts
    return ConsumerConfig(
        namespace=consumer.namespace,
        service_accounts=None if names is None else tuple(names),
        agent=consumer.agent,
        limits=Limits(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            concurrent=limits.concurrent,
        )
        if limits
        else Limits(),
        envelopes=EnvelopeLimits(maximum_nano=parse_usd(envelopes.maximum), count=envelopes.count)
        if envelopes
        else None,
    )
