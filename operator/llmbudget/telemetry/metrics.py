"""The gateway's metrics, their names and labels, in one place.

Tokens and durations follow the OpenTelemetry semantic conventions for generative AI; money has
names of our own. Labels come from the configuration and from verified identities, never from what a
caller wrote, and are bounded even so. docs/observability.md lists all of them.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from llmbudget.telemetry.calls import CallMetrics

REGISTRY: Final = CollectorRegistry()

CALLS: Final = CallMetrics()
"""Tokens, durations and money of calls."""
REGISTRY.register(CALLS)

REFUSALS: Final = Counter(
    "llmbudget_refusals", "Calls that never left, by code.", ("code",), registry=REGISTRY
)
SPENT: Final = Gauge(
    "llmbudget_spent_usd", "Money spent in the period, in USD.", ("budget",), registry=REGISTRY
)
HELD: Final = Gauge(
    "llmbudget_held_usd", "Money held for calls under way, in USD.", ("budget",), registry=REGISTRY
)
LENT: Final = Gauge(
    "llmbudget_lent_usd",
    "Money set aside in envelopes or lent to siblings, in USD.",
    ("budget",),
    registry=REGISTRY,
)
ENVELOPES: Final = Gauge(
    "llmbudget_envelopes", "Open envelopes of a root budget.", ("budget",), registry=REGISTRY
)
CAP: Final = Gauge("llmbudget_cap_usd", "The period's cap, in USD.", ("budget",), registry=REGISTRY)
REMAINING: Final = Gauge(
    "llmbudget_remaining_usd",
    "What may still be spent in the period, in USD, with what siblings lend.",
    ("budget",),
    registry=REGISTRY,
)
LEVEL: Final = Gauge(
    "llmbudget_downgrade_level", "Step of the ladder in force.", ("budget",), registry=REGISTRY
)
OF_BALANCES: Final = (SPENT, HELD, LENT, CAP, REMAINING, LEVEL, ENVELOPES)
"""Written anew each time they are asked for."""
CONFIG_GENERATION: Final = Gauge(
    "llmbudget_config_generation", "Configuration in force.", registry=REGISTRY
)
