"""Authorities and certificates over the years: nobody is ever shown what they can't trust."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.support.worlds import read, world_of
from tests.unit.decide.test_consent_to_gateways import SCENARIOS

from llmbudget.decide.certificates import (
    AUTHORITY_LIFE,
    CERTIFICATE_LIFE,
    PREPARE_BEFORE,
    PUBLISHED_FOR,
    RENEW_BEFORE,
    CertificateFacts,
    Step,
    Validity,
    certificate_fits,
    next_step,
    serving_names,
)

NOW = datetime(2026, 11, 25, tzinfo=UTC)
DAY = timedelta(days=1)


def lasting(days: int) -> Validity:
    """An authority that was made some time ago and ends in so many days."""
    end = NOW + days * DAY
    return Validity(end - AUTHORITY_LIFE, end)


@pytest.mark.parametrize(
    ("current", "following", "previous", "due"),
    [
        (None, None, None, Step.BEGIN),
        (lasting(0), None, None, Step.BEGIN),
        (lasting(PREPARE_BEFORE.days + 1), None, None, None),
        (lasting(PREPARE_BEFORE.days), None, None, Step.PREPARE),
        (lasting(70), lasting(AUTHORITY_LIFE.days - PUBLISHED_FOR.days + 1), None, None),
        (lasting(60), lasting(AUTHORITY_LIFE.days - PUBLISHED_FOR.days), None, Step.PROMOTE),
        (lasting(0), lasting(AUTHORITY_LIFE.days - 1), None, Step.PROMOTE),
        (lasting(700), None, lasting(1), None),
        (lasting(700), None, lasting(0), Step.FORGET),
    ],
)
def test_what_is_due(
    current: Validity | None,
    following: Validity | None,
    previous: Validity | None,
    due: Step | None,
) -> None:
    assert next_step(current, following, previous, NOW) is due


def test_a_client_that_takes_the_bundle_over_every_59_days_always_trusts_the_gateway() -> None:
    current = following = previous = None
    bundle: set[Validity] = set()
    served: tuple[Validity, datetime] | None = None
    for day in range(8 * 365):
        now = NOW + day * DAY
        while (step := next_step(current, following, previous, now)) is not None:
            made = Validity(now, now + AUTHORITY_LIFE)
            if step is Step.BEGIN:
                current = made
            elif step is Step.PREPARE:
                following = made
            elif step is Step.PROMOTE:
                current, following, previous = following, None, current
            else:
                previous = None
        assert current is not None
        assert now < current.not_after
        renewed = served is None or served[0] != current or now >= served[1] - RENEW_BEFORE
        before = served
        if renewed:
            served = current, min(now + CERTIFICATE_LIFE, current.not_after)
        if day % 59 == 0:
            bundle = {known for known in (current, following, previous) if known}
        assert served is not None
        assert served[0] in bundle
        # A gateway that gets its new certificate late, by the kubelet, still shows the one before.
        assert before is None or before[0] in bundle
        assert now < served[1]


def test_when_a_certificate_is_made_anew() -> None:
    names = frozenset({"team-a-gateway", "team-a-gateway.llm-platform"})
    facts = CertificateFacts(names, b"signer", NOW + CERTIFICATE_LIFE)
    assert certificate_fits(facts, names, b"signer", NOW)
    assert not certificate_fits(facts, names | {"team-a-gateway-us-east"}, b"signer", NOW)
    assert not certificate_fits(facts, names, b"next", NOW)
    late = replace(facts, not_after=NOW + RENEW_BEFORE)
    assert not certificate_fits(late, names, b"signer", NOW)


def test_the_names_are_those_by_which_the_services_are_called() -> None:
    world = world_of(read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml"))
    assert serving_names(world, ("a", "b")) == {
        *("a", "a.llm-platform", "a.llm-platform.svc", "a.llm-platform.svc.cluster.local"),
        *("b", "b.llm-platform", "b.llm-platform.svc", "b.llm-platform.svc.cluster.local"),
        "gateway.llmbudget.io",
    }
    here = replace(world, installation=replace(world.installation, loopback=True))
    assert serving_names(here, ("a",)) >= {"localhost", "127.0.0.1", "a"}
