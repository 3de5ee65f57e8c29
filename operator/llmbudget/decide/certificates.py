"""When certificates are made anew: those of the gateways, and the authority that signs them.

A new authority is published long before it signs, and the one before it is trusted until it ends,
so that a client that takes the bundle over now and then always trusts the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

from llmbudget.decide.world import World

AUTHORITY_LIFE: Final = timedelta(days=730)
PREPARE_BEFORE: Final = timedelta(days=120)
"""Before an authority ends, its successor is made and published."""
PUBLISHED_FOR: Final = timedelta(days=60)
"""A successor is in the bundle for so long before it signs."""
CERTIFICATE_LIFE: Final = timedelta(days=30)
RENEW_BEFORE: Final = timedelta(days=10)
"""Before a certificate ends, it is made anew."""
BACKDATED: Final = timedelta(hours=1)
"""Clocks of clients may be behind."""
ANY_GATEWAY: Final = "gateway.llmbudget.io"
"""A name of every gateway, for who connects to a pod's address: Prometheus checks all by one name.
No Service has it."""


@dataclass(frozen=True, slots=True)
class Validity:
    """What an authority's certificate says."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a gateway's certificate says."""

    names: frozenset[str]
    """Names and addresses of the gateway."""
    issuer: bytes
    """Identifies the key that signed it."""
    not_after: datetime


class Step(Enum):
    """What is to be done with the authorities."""

    BEGIN = auto()
    """There is none that can sign: make one that signs at once."""
    PREPARE = auto()
    """Make the next one, which is published but does not sign yet."""
    PROMOTE = auto()
    """The next one signs from now on, and the present one becomes the previous."""
    FORGET = auto()
    """The previous one has ended: it leaves the bundle."""


def next_step(
    current: Validity | None, following: Validity | None, previous: Validity | None, now: datetime
) -> Step | None:
    """Say what is due; None: nothing is."""
    if previous is not None and now >= previous.not_after:
        return Step.FORGET
    if following is not None:
        shown = now - following.not_before
        over = current is None or now >= current.not_after
        return Step.PROMOTE if over or shown >= PUBLISHED_FOR else None
    if current is None or now >= current.not_after:
        return Step.BEGIN
    return Step.PREPARE if now >= current.not_after - PREPARE_BEFORE else None


def certificate_fits(
    facts: CertificateFacts, names: frozenset[str], signing: bytes, now: datetime
) -> bool:
    """Tell whether a gateway's certificate may stay: for these names, by the authority that signs
    now, and not about to end."""
    return facts.names == names and facts.issuer == signing and now < facts.not_after - RENEW_BEFORE


def serving_names(world: World, services: tuple[str, ...]) -> frozenset[str]:
    """List the names by which the Services of a root's gateway are called, and that of any."""
    namespace = world.root.namespace
    ends = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    local = ("localhost", "127.0.0.1") if world.installation.loopback else ()
    called = (service + end for service in services for end in ends)
    return frozenset((ANY_GATEWAY, *called, *local))
