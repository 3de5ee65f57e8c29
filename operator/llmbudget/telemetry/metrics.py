"""All metrics, their names and labels, in one place.

Tokens and durations follow the OpenTelemetry semantic conventions for generative AI; money has
names of our own. Labels are bounded: models, providers and budgets come from the configuration,
never from what a caller wrote.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY: Final = CollectorRegistry()

_CALL: Final = ("budget", "gen_ai_provider_name", "gen_ai_request_model")
_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 81.92)

CALLS: Final = Counter(
    "llmbudget_calls",
    "Attempts at a provider, by their status in the ledger.",
    (*_CALL, "status"),
    registry=REGISTRY,
)
COST: Final = Counter(
    "llmbudget_cost_usd", "Money charged, in USD.", (*_CALL, "agent"), registry=REGISTRY
)
TOKENS: Final = Counter(
    "gen_ai_client_token_usage",
    "Tokens used.",
    (*_CALL, "gen_ai_token_type"),
    registry=REGISTRY,
)
DURATION: Final = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "From the call's arrival to the end of its answer.",
    _CALL,
    buckets=_SECONDS,
    registry=REGISTRY,
)
FIRST_CHUNK: Final = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From sending a call to the first bytes of its streamed answer.",
    _CALL,
    buckets=_SECONDS,
    registry=REGISTRY,
)
REFUSALS: Final = Counter(
    "llmbudget_refusals", "Calls that never left, by code.", ("code",), registry=REGISTRY
)
SPENT: Final = Gauge(
    "llmbudget_spent_usd", "Money spent in the period, in USD.", ("budget",), registry=REGISTRY
)
HELD: Final = Gauge(
    "llmbudget_held_usd", "Money held for calls under way, in USD.", ("budget",), registry=REGISTRY
)
CAP: Final = Gauge("llmbudget_cap_usd", "The period's cap, in USD.", ("budget",), registry=REGISTRY)
LEVEL: Final = Gauge(
    "llmbudget_downgrade_level", "Step of the ladder in force.", ("budget",), registry=REGISTRY
)
CONFIG_GENERATION: Final = Gauge(
    "llmbudget_config_generation", "Configuration in force.", registry=REGISTRY
)
