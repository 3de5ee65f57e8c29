"""Each fault is found, says what to do, and bars nothing but what it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.worlds import INSTALLATION, Manifest, read, world_of

from llmbudget.api.conditions import Reason
from llmbudget.decide.validity.chain import about, callable_providers, findings
from llmbudget.decide.validity.finding import used_providers
from llmbudget.decide.world import World
from llmbudget.render.certificate import PLAIN_HTTP
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config
from llmbudget.render.network_policy import network_policy

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"
DATADOG = {"enabled": True, "apiKeySecretRef": {"name": "d", "key": "k"}}
POSTHOG = {
    "enabled": True,
    "host": "http://events.example",
    "apiKeySecretRef": {"name": "events", "key": "k"},
}
EVENTS = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {
        "name": "events",
        "namespace": "llm-platform",
        "labels": {"llmbudget.io/provider-key": "true"},
        "annotations": {"llmbudget.io/allowed-host": "events.example"},
    },
}
ROOT = "LLMBudget/org"
CHILD = "LLMBudget/agents"

Documents = dict[str, Manifest]
"""By `Kind/name`."""
Edit = Callable[[Documents], object]


def documents() -> Documents:
    """The guide's three providers, a root with a ladder and a child in another namespace."""
    found = read(SCENARIOS / "platform.yaml", SCENARIOS / "tree.yaml")
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}


def world(*edits: Edit, **changes: Any) -> World:
    made = documents()
    for edit in edits:
        edit(made)
    return world_of(made.values(), **changes)


def setting(what: str, path: str, value: object) -> Edit:
    """Set a field of a document, given by dots."""
    *above, last = path.split(".")

    def edit(made: Documents) -> None:
        here = made[what]
        for step in above:
            here = here.setdefault(step, {})
        here[last] = value

    return edit


def without(what: str, path: str | None = None) -> Edit:
    """Remove a document, or a field of it."""
    if path is None:
        return lambda made: made.pop(what)
    first, last = path.split(".")
    return lambda made: made[what][first].pop(last)


def without_ladders(made: Documents) -> None:
    for name in (ROOT, CHILD):
        del made[name]["spec"]["downgrade"]


@dataclass(frozen=True)
class Case:
    """One fault, and what is to be said of it."""

    edit: Edit
    reason: Reason
    said: tuple[str, ...]
    provider: str | None = None
    account: str | None = None
    fatal: bool = False


OPENROUTER = "LLMProvider/openrouter"
VAULT = {"address": "https://vault.example:8200", "path": "keys", "key": "k"}
BY_ROLE = {"vault": {**VAULT, "role": "llm"}}
BY_APP_ROLE = {
    "vault": {**VAULT, "authMethod": "AppRole", "appRoleSecretRef": {"name": "vault-login"}}
}
VAULT_LOGIN = {
    "kind": "Secret",
    "metadata": {
        "name": "vault-login",
        "namespace": "llm-platform",
        "labels": {"llmbudget.io/provider-key": "true"},
        "annotations": {"llmbudget.io/allowed-host": "vault.example"},
    },
}
LISTED = {"name": "gpt-4o-mini", "upstreamName": "openai/gpt-4o-mini"}
TOP_UP = {
    "id": "launch",
    "amount": "5.00",
    "by": "ada",
    "reason": "the launch",
    "expires": "2026-12-01T00:00:00Z",
}

CASES = {
    "time zone unknown": Case(
        setting(ROOT, "spec.budget.timeZone", "Mars/Phobos"),
        Reason.INVALID_SPEC,
        ("'Mars/Phobos'", "write an IANA name"),
        account="llm-platform/org",
        fatal=True,
    ),
    "time zone a folder": Case(
        setting(ROOT, "spec.budget.timeZone", "America"),
        Reason.INVALID_SPEC,
        ("'America'", "Europe/Berlin"),
        account="llm-platform/org",
        fatal=True,
    ),
    "root names no such provider": Case(
        lambda made: made[ROOT]["spec"]["providers"].append({"name": "gone"}),
        Reason.PROVIDER_NOT_FOUND,
        ("LLMProvider gone", "namespace llm-platform", "create it, or remove it"),
        account="llm-platform/org",
    ),
    "child names no such provider": Case(
        setting(CHILD, "spec.providers", [{"name": "gone"}]),
        Reason.PROVIDER_NOT_FOUND,
        ("LLMProvider gone", "namespace llm-platform", "remove it from spec.providers"),
        account="llm-teams/agents",
    ),
    "provider unreadable": Case(
        lambda made: (made[OPENROUTER]["spec"].update(endpoint=17), without_ladders(made)),
        Reason.PROVIDER_INVALID,
        ("spec.endpoint",),
        provider="openrouter",
    ),
    "no Secret": Case(
        without("Secret/openrouter-key"),
        Reason.SECRET_NOT_FOUND,
        ("Secret openrouter-key in namespace llm-platform", "create it", "OPENROUTER_API_KEY"),
        provider="openrouter",
    ),
    "Secret of another namespace": Case(
        setting("Secret/openrouter-key", "metadata.namespace", "elsewhere"),
        Reason.SECRET_NOT_FOUND,
        ("Secret openrouter-key in namespace llm-platform",),
        provider="openrouter",
    ),
    "Secret without label": Case(
        without("Secret/openrouter-key", "metadata.labels"),
        Reason.SECRET_NOT_CONSENTING,
        ("Secret openrouter-key", 'label it llmbudget.io/provider-key="true"'),
        provider="openrouter",
    ),
    "Secret without host": Case(
        without("Secret/openrouter-key", "metadata.annotations"),
        Reason.SECRET_NOT_CONSENTING,
        ("annotate it llmbudget.io/allowed-host=openrouter.ai",),
        provider="openrouter",
    ),
    "Secret for another host": Case(
        setting(OPENROUTER, "spec.endpoint", "https://evil.example/v1"),
        Reason.SECRET_NOT_CONSENTING,
        ("may not be sent to evil.example", "llmbudget.io/allowed-host=evil.example"),
        provider="openrouter",
    ),
    "private host not listed": Case(
        setting(OPENROUTER, "spec.allowPrivate", True),
        Reason.PROVIDER_INVALID,
        ("openrouter.ai is not", "--allow-private-host=openrouter.ai"),
        provider="openrouter",
    ),
    "private Vault not listed": Case(
        setting(
            OPENROUTER, "spec.credentials", {"vault": BY_ROLE["vault"] | {"allowPrivate": True}}
        ),
        Reason.PROVIDER_INVALID,
        ("vault.example:8200 is not", "--allow-private-host=vault.example:8200"),
        provider="openrouter",
    ),
    "no Secret to log in to Vault with": Case(
        setting(OPENROUTER, "spec.credentials", BY_APP_ROLE),
        Reason.SECRET_NOT_FOUND,
        ("Secret vault-login in namespace llm-platform", "role_id and secret_id"),
        provider="openrouter",
    ),
    "login for another Vault": Case(
        lambda made: (
            made[OPENROUTER]["spec"].update(
                credentials={"vault": BY_APP_ROLE["vault"] | {"address": "https://evil.example"}}
            ),
            made.update({"Secret/vault-login": VAULT_LOGIN}),
        ),
        Reason.SECRET_NOT_CONSENTING,
        ("may not be sent to evil.example", "llmbudget.io/allowed-host=evil.example"),
        provider="openrouter",
    ),
    "role not said": Case(
        setting(OPENROUTER, "spec.credentials", {"vault": VAULT}),
        Reason.PROVIDER_INVALID,
        ("vault.role is needed", "Kubernetes"),
        provider="openrouter",
    ),
    "AppRole of an older version": Case(
        setting(
            OPENROUTER,
            "spec.credentials",
            {"vault": {**VAULT, "role": "llm", "authMethod": "AppRole"}},
        ),
        Reason.PROVIDER_INVALID,
        ("vault.appRoleSecretRef is needed", "AppRole"),
        provider="openrouter",
    ),
    "Vault at no port": Case(
        setting(
            OPENROUTER,
            "spec.credentials",
            {"vault": BY_ROLE["vault"] | {"address": "https://v:99999"}},
        ),
        Reason.PROVIDER_INVALID,
        ("https://v:99999", "port"),
        provider="openrouter",
    ),
    "borrowing without a cap": Case(
        setting(CHILD, "spec.budget", {"borrowing": {"limit": "5"}}),
        Reason.INVALID_SPEC,
        ("spec.budget.borrowing does nothing without a cap", "set spec.budget.monthlyCap"),
        account="llm-teams/agents",
    ),
    "rollover without a cap": Case(
        setting(CHILD, "spec.budget", {"rollover": {"maximum": "5"}}),
        Reason.INVALID_SPEC,
        ("spec.budget.rollover", "or remove it"),
        account="llm-teams/agents",
    ),
    "top-up without a cap": Case(
        setting(CHILD, "spec.budget", {"topUps": [TOP_UP]}),
        Reason.INVALID_SPEC,
        ("spec.budget.topUps", "or remove it"),
        account="llm-teams/agents",
    ),
    "datadog": Case(
        setting(ROOT, "spec.monitoring.datadog", DATADOG),
        Reason.SECRET_NOT_FOUND,
        ("Secret d in namespace llm-platform", "create it with the key k"),
        account="llm-platform/org",
    ),
    "posthog in the clear": Case(
        lambda made: (
            made.update({"Secret/events": EVENTS}),
            setting(ROOT, "spec.monitoring.posthog", POSTHOG)(made),
        ),
        Reason.INVALID_SPEC,
        ("in the clear", "https://events.example", "--allow-private-host=events.example"),
        account="llm-platform/org",
    ),
    "a region called as another's pods": Case(
        setting(ROOT, "spec.globalDistribution.regions", [{"name": "x"}, {"name": "x-pods"}]),
        Reason.INVALID_SPEC,
        ("Two Services would be called org-gateway-x-pods", "Rename one"),
        account="llm-platform/org",
        fatal=True,
    ),
    "a traffic manager called as a region": Case(
        setting(
            ROOT,
            "spec.globalDistribution",
            {"regions": [{"name": "us-east"}], "trafficManager": "gateway-us-east"},
        ),
        Reason.INVALID_SPEC,
        ("Two Services would be called org-gateway-us-east:",),
        account="llm-platform/org",
        fatal=True,
    ),
    "a traffic manager called as a region's pods": Case(
        setting(
            ROOT,
            "spec.globalDistribution",
            {"regions": [{"name": "us-east"}], "trafficManager": "gateway-us-east-pods"},
        ),
        Reason.INVALID_SPEC,
        ("Two Services would be called org-gateway-us-east-pods:",),
        account="llm-platform/org",
        fatal=True,
    ),
    "model without price": Case(
        setting(OPENROUTER, "spec.models", [{"name": "nobody-knows"}, LISTED]),
        Reason.MODEL_UNPRICED,
        ("what nobody-knows costs", "set models[].cost"),
        provider="openrouter",
    ),
    "model that searches": Case(
        setting(
            OPENROUTER,
            "spec.models",
            [
                {"name": "perplexity/sonar", "cost": {"inputPer1K": "1", "outputPer1K": "1"}},
                LISTED,
            ],
        ),
        Reason.MODEL_UNPRICED,
        ("perplexity/sonar searches the web by itself", "are refused"),
        provider="openrouter",
    ),
    "ladder of a child": Case(
        setting(CHILD, "spec.downgrade.ladder", ["gpt-4o-mini", "gone"]),
        Reason.LADDER_UNKNOWN_MODEL,
        ("the model gone:", "claude-3-sonnet, gpt-4o-mini, phi-4-14b", "spec.downgrade.ladder"),
        account="llm-teams/agents",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_fault_is_found_alone_says_what_to_do_and_bars_its_provider_only(case: Case) -> None:
    made = world(case.edit)
    (found,) = findings(made)
    assert (found.reason, found.fatal) == (case.reason, case.fatal)
    assert (found.provider, found.account) == (case.provider, case.account)
    for part in case.said:
        assert part in found.message
    barred = None if case.reason is Reason.MODEL_UNPRICED else case.provider
    expected = [provider for provider in used_providers(made) if provider.name != barred]
    assert list(callable_providers(made, (found,))) == expected


def test_a_world_without_fault_has_no_findings() -> None:
    assert findings(world()) == ()


@pytest.mark.parametrize(
    ("listed", "barred"),
    [
        ("localai.ai-models.svc", []),
        ("localai.ai-models.svc:8080", []),
        ("localai.ai-models.svc:9999", ["localai"]),
        ("ai-models.svc", ["localai"]),
    ],
)
def test_a_private_host_is_allowed_on_all_ports_or_on_one(listed: str, barred: list[str]) -> None:
    made = world(installation=replace(INSTALLATION, private_hosts=frozenset({listed})))
    assert [found.provider for found in findings(made)] == barred


def test_a_provider_that_the_root_does_not_use_is_nobodys_concern() -> None:
    made = world(
        setting(ROOT, "spec.providers", [{"name": "requesty"}, {"name": "localai"}]),
        setting(ROOT, "spec.downgrade.ladder", ["claude-3-sonnet", "phi-4-14b"]),
        setting(CHILD, "spec", {"parentRef": {"namespace": "llm-platform", "name": "org"}}),
        without("Secret/openrouter-key"),
    )
    assert findings(made) == ()


@pytest.mark.parametrize("credentials", [BY_ROLE, BY_APP_ROLE])
def test_a_key_in_vault_is_sound(credentials: dict[str, Any]) -> None:
    made = world(
        setting(OPENROUTER, "spec.credentials", credentials),
        lambda made: made.update({"Secret/vault-login": VAULT_LOGIN}),
    )
    assert findings(made) == ()


def test_a_key_in_vault_comes_by_no_environment() -> None:
    made = world(
        setting(OPENROUTER, "spec.credentials", BY_ROLE),
        setting(ROOT, "spec.deployment", {"secretDelivery": "Env"}),
    )
    found = gateway_config(made, findings(made)).providers
    by_environment = {each.name: each.key_env is not None for each in found}
    assert by_environment == {"openrouter": False, "requesty": True, "localai": True}


def test_without_any_readable_provider_ladders_are_not_blamed() -> None:
    unreadable = [
        setting(f"LLMProvider/{name}", "spec.models", [])
        for name in ("openrouter", "requesty", "localai")
    ]
    assert {found.reason for found in findings(world(*unreadable))} == {Reason.PROVIDER_INVALID}


def test_all_faults_are_told_at_once_the_fatal_one_first() -> None:
    chosen = ("time zone unknown", "datadog", "private host not listed", "ladder of a child")
    found = findings(world(*(CASES[name].edit for name in chosen)))
    assert [one.fatal for one in found] == [True, False, False, False]
    assert len({one.reason for one in found}) == 4


def test_a_budgets_status_tells_its_own_faults_and_its_providers() -> None:
    made = world(
        setting(ROOT, "spec.monitoring.datadog", DATADOG),
        without("Secret/openrouter-key"),
        without("Secret/requesty-key"),
    )
    found = findings(made)
    child = about(made.children[0], made, found)
    assert [(one.provider, one.account) for one in child] == [("openrouter", None)]
    assert about(made.root, made, found) == found


def test_a_child_that_chooses_no_provider_is_told_of_all_of_its_roots() -> None:
    made = world(without(CHILD, "spec.providers"), without("Secret/requesty-key"))
    assert [one.provider for one in about(made.children[0], made, findings(made))] == ["requesty"]


def test_a_child_names_only_providers_of_its_root() -> None:
    made = world(
        setting(ROOT, "spec.providers", [{"name": "openrouter"}, {"name": "requesty"}]),
        setting(ROOT, "spec.downgrade.ladder", ["claude-3-sonnet", "gpt-4o-mini"]),
        setting(CHILD, "spec.providers", [{"name": "localai"}]),
    )
    assert [one.account for one in findings(made)] == ["llm-teams/agents"]


def test_a_child_is_never_given_a_provider_that_it_did_not_choose() -> None:
    made = world(without("Secret/openrouter-key"))
    config = gateway_config(made, findings(made))
    child = next(account for account in config.accounts if account.parent is not None)
    assert set(child.providers) <= {"openrouter"}


@pytest.mark.parametrize(
    ("collector", "url"),
    [
        ("jaeger-collector.global:14268", "http://jaeger-collector.global.svc:4318/v1/traces"),
        ("jaeger:14250", "http://jaeger.llm-platform.svc:4318/v1/traces"),
        ("otel.tracing:4317", "http://otel.tracing.svc:4318/v1/traces"),
        ("otel.tracing:4318", "http://otel.tracing.svc:4318/v1/traces"),
        ("otel.tracing.svc:4318", "http://otel.tracing.svc:4318/v1/traces"),
        (
            "otel.tracing.svc.cluster.local:4318",
            "http://otel.tracing.svc.cluster.local:4318/v1/traces",
        ),
        # No name outside the cluster is meant by two words.
        ("example.com:4318", "http://example.com.svc:4318/v1/traces"),
        ("otlp.example.com:443", "https://otlp.example.com:443/v1/traces"),
    ],
)
def test_spans_go_where_otlp_is_spoken(collector: str, url: str) -> None:
    tracing = {"enabled": True, "collector": collector}
    made = world(setting(ROOT, "spec.monitoring.distributedTracing", tracing))
    assert findings(made) == ()
    assert gateway_config(made, ()).tracing == url
    made = world(setting(ROOT, "spec.monitoring.distributedTracing", tracing | {"enabled": False}))
    assert gateway_config(made, ()).tracing is None


@pytest.mark.parametrize(
    "collector",
    [
        "169.254.169.254:80",
        "127.0.0.1:4318",
        "10.1.2.3:4318",
        "10.1.2.3:443",
        "jaeger:80",
        "jaeger:443",
        "otel.tracing:9411",
        "otel.tracing.svc:443",
        "otel.corp.example:4318",
        "otel.corp.example:80",
        "otel.tracing:0",
        "otel.tracing:65536",
    ],
)
def test_spans_go_nowhere_else_by_a_budgets_word_alone(collector: str) -> None:
    made = world(
        setting(
            ROOT,
            "spec.monitoring.distributedTracing",
            {"enabled": True, "collector": collector},
        )
    )
    (found,) = findings(made)
    assert (found.reason, found.fatal) == (Reason.INVALID_SPEC, False)
    assert collector in found.message or "169.254.169.254" in found.message
    assert gateway_config(made, (found,)).tracing is None
    unset = world()
    assert network_policy(made, (found,)) == network_policy(unset, findings(unset))


@pytest.mark.parametrize(
    ("collector", "listed", "url"),
    [
        ("10.1.2.3:9411", "10.1.2.3:9411", "http://10.1.2.3:9411/v1/traces"),
        ("otel.corp.example:9411", "otel.corp.example", "http://otel.corp.example:9411/v1/traces"),
        ("169.254.169.254:80", "169.254.169.254", None),
        ("100.100.100.200:80", "100.100.100.200", None),
    ],
)
def test_spans_go_where_the_installation_allows_it_but_never_to_metadata(
    collector: str, listed: str, url: str | None
) -> None:
    made = world(
        setting(
            ROOT,
            "spec.monitoring.distributedTracing",
            {"enabled": True, "collector": collector},
        ),
        installation=replace(
            INSTALLATION, private_hosts=INSTALLATION.private_hosts | frozenset({listed})
        ),
    )
    config = gateway_config(made, findings(made))
    assert (config.tracing, config.tracing_private) == (url, url is not None)
    assert len(findings(made)) == (url is None)


def test_the_way_to_a_collector_is_open_to_its_namespace_only() -> None:
    tracing = {"enabled": True, "collector": "jaeger:14268"}
    made = world(setting(ROOT, "spec.monitoring.distributedTracing", tracing))
    rules = network_policy(made, ())["spec"]["egress"]
    (to,) = [rule["to"] for rule in rules if {"protocol": "TCP", "port": 4318} in rule["ports"]]
    name = "kubernetes.io/metadata.name"
    assert to == [{"namespaceSelector": {"matchLabels": {name: "llm-platform"}}}]


@pytest.mark.parametrize("host", ["https://events.example:99999", "https://[::1"])
def test_posthog_at_no_usable_url_is_said_and_not_told_anything(host: str) -> None:
    made = world(
        lambda made: made.update({"Secret/events": EVENTS}),
        setting(ROOT, "spec.monitoring.posthog", POSTHOG | {"host": host}),
        installation=replace(
            INSTALLATION, private_hosts=INSTALLATION.private_hosts | {"events.example"}
        ),
    )
    (found,) = findings(made)
    assert found.reason is Reason.INVALID_SPEC
    assert f"{host} is no usable URL" in found.message
    assert gateway_config(made, (found,)).posthog is None
    assert network_policy(made, (found,))


def test_posthog_of_ones_own_is_reached_where_the_installation_allows_it() -> None:
    made = world(
        lambda made: made.update({"Secret/events": EVENTS}),
        setting(ROOT, "spec.monitoring.posthog", POSTHOG),
        installation=replace(
            INSTALLATION, private_hosts=INSTALLATION.private_hosts | {"events.example"}
        ),
    )
    assert findings(made) == ()
    told = gateway_config(made, ()).posthog
    assert told is not None
    assert told.allow_private
    rules = network_policy(made, ())["spec"]["egress"]
    assert [rule for rule in rules if {"protocol": "TCP", "port": 80} in rule["ports"]]


def test_no_two_children_have_one_name() -> None:
    regions = [{"name": name} for name in ("x", "y", "x-pod", "pods")]
    distribution = {"regions": regions, "trafficManager": "gateway-pods-x"}
    made = world(setting(ROOT, "spec.globalDistribution", distribution))
    assert findings(made) == ()
    built = children(made, (), gateway_config(made, ()), {}, PLAIN_HTTP)
    named = [(each["kind"], each["metadata"]["name"]) for each in built]
    assert len(named) == len(set(named))


def test_tokens_are_reviewed_only_by_an_operator_of_the_whole_cluster() -> None:
    small = {"installation": replace(INSTALLATION, namespaces=("llm-platform",))}
    (found,) = findings(world(**small))
    assert found.reason is Reason.NOT_SUPPORTED
    assert found.fatal
    assert "set spec.identity.mode to Offline" in found.message
    offline = world(setting(ROOT, "spec.identity", {"mode": "Offline"}), **small)
    assert findings(offline) == ()

    def kinds(here: World) -> list[str]:
        made = children(here, (), gateway_config(here, ()), {}, PLAIN_HTTP)
        return [one["kind"] for one in made]

    assert not [kind for kind in kinds(offline) if kind.startswith("Cluster")]
    whole = [kind for kind in kinds(world()) if kind != "ClusterRoleBinding"]
    assert kinds(offline) == whole
