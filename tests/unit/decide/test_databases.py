"""A shared ledger's Secret: it consents, and says where its database is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.worlds import Manifest, read, world_of

from llmbudget.api.conditions import Reason
from llmbudget.decide.databases import DatabaseHost, database_hosts, ledger_hosts
from llmbudget.decide.validity import findings
from llmbudget.decide.world import SecretFacts, World
from llmbudget.render.network_policy import network_policy

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"
POSTGRES = {"postgres": {"secretKeyRef": {"name": "ledger", "key": "uri"}}}


def secret(label: str = "true", hosts: str | None = "db.databases.svc") -> Manifest:
    metadata = {
        "name": "ledger",
        "namespace": "llm-platform",
        "labels": {"llmbudget.io/ledger": label},
        "annotations": {} if hosts is None else {"llmbudget.io/allowed-host": hosts},
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


def world(given: Manifest | None, *, embedded_ledger: bool = False, **spec: Any) -> World:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml")
    documents[-1]["spec"] |= {"ledger": POSTGRES} | spec
    made = [*documents, *([given] if given else [])]
    return world_of(made, embedded_ledger=embedded_ledger)


def test_a_consenting_secret_has_no_findings() -> None:
    made = world(secret())
    assert findings(made) == ()
    assert ledger_hosts(made) == (DatabaseHost("db.databases.svc", 5432),)


@pytest.mark.parametrize(
    ("given", "reason", "says"),
    [
        (None, Reason.SECRET_NOT_FOUND, "create it with the connection string under uri"),
        (secret("no"), Reason.SECRET_NOT_CONSENTING, 'label it llmbudget.io/ledger="true"'),
        (secret(hosts=None), Reason.SECRET_NOT_CONSENTING, "allowed-host=HOST[:PORT]"),
        (secret(hosts="db,"), Reason.SECRET_NOT_CONSENTING, "allowed-host=HOST[:PORT]"),
        (secret(hosts="db:99999"), Reason.SECRET_NOT_CONSENTING, "allowed-host=HOST[:PORT]"),
        (secret(hosts="u@db"), Reason.SECRET_NOT_CONSENTING, "allowed-host=HOST[:PORT]"),
    ],
)
def test_without_consent_nothing_is_rendered(
    given: Manifest | None, reason: Reason, says: str
) -> None:
    (found,) = findings(world(given))
    assert (found.reason, found.fatal, found.account) == (reason, True, "llm-platform/team-a")
    assert says in found.message
    assert ledger_hosts(world(given)) == ()


def test_a_budget_made_again_with_another_engine_does_not_forget_what_it_spent() -> None:
    (found,) = findings(world(secret(), embedded_ledger=True))
    assert (found.reason, found.fatal) == (Reason.LEDGER_ENGINE_CHANGED, True)
    assert "PersistentVolumeClaim team-a-ledger" in found.message
    assert "delete the claim" in found.message


def test_several_servers_with_and_without_port() -> None:
    facts = SecretFacts(False, "a.db.svc, b.db.svc:6432,10.0.0.7,[fd00::1]:5433", True)
    assert database_hosts(facts) == (
        DatabaseHost("a.db.svc", 5432),
        DatabaseHost("b.db.svc", 6432),
        DatabaseHost("10.0.0.7", 5432),
        DatabaseHost("fd00::1", 5433),
    )


def rules_for(hosts: str, **spec: Any) -> list[tuple[list[Any], int]]:
    made = world(secret(hosts=hosts), **spec)
    egress = network_policy(made, findings(made))["spec"]["egress"]
    return [(rule["to"], rule["ports"][0]["port"]) for rule in egress]


def test_the_gateway_may_connect_to_its_database_only() -> None:
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": "databases"}}
    rules = rules_for("db.databases.svc:6432,10.0.0.7")
    assert ([{"namespaceSelector": namespace}], 6432) in rules
    assert ([{"ipBlock": {"cidr": "10.0.0.7/32"}}], 5432) in rules


def test_a_database_outside_may_be_at_a_public_address_unless_the_budget_says_no() -> None:
    def blocks(**spec: Any) -> set[str]:
        rules = rules_for("db.example.com:5439", **spec)
        (peers,) = (peers for peers, port in rules if port == 5439)
        return {peer["ipBlock"]["cidr"] for peer in peers}

    assert {"10.0.0.0/8", "0.0.0.0/0"} <= blocks()
    inside = blocks(network={"egress": "NamespacesOnly"})
    assert "10.0.0.0/8" in inside
    assert "0.0.0.0/0" not in inside
