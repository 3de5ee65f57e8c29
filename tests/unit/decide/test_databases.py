"""A shared ledger's Secret: it consents, and says where its database is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.worlds import Manifest, read, world_of

from llmbudget.api.conditions import Reason
from llmbudget.decide.databases import DatabaseHost, database_hosts, ledger_hosts
from llmbudget.decide.validity.chain import findings
from llmbudget.decide.world import SecretFacts, World
from llmbudget.render.certificate import PLAIN_HTTP
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config
from llmbudget.render.network_policy import network_policy, region_policy

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"
POSTGRES = {"postgres": {"secretKeyRef": {"name": "ledger", "key": "uri"}}}
EAST = {"name": "us-east", "postgres": {"secretKeyRef": {"name": "east", "key": "uri"}}}
SLICES = {"ledger": {**POSTGRES, "mode": "Slices"}}


def secret(
    label: str = "true", hosts: str | None = "db.databases.svc", name: str = "ledger"
) -> Manifest:
    metadata = {
        "name": name,
        "namespace": "llm-platform",
        "labels": {"llmbudget.io/ledger": label},
        "annotations": {} if hosts is None else {"llmbudget.io/allowed-host": hosts},
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


def world(*given: Manifest | None, embedded_ledger: bool = False, **spec: Any) -> World:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml")
    documents[-1]["spec"] |= {"ledger": POSTGRES} | spec
    made = [*documents, *(each for each in given if each)]
    return world_of(made, embedded_ledger=embedded_ledger)


def test_a_consenting_secret_has_no_findings() -> None:
    made = world(secret())
    assert findings(made) == ()
    assert ledger_hosts(made, made.root.spec.ledger.postgres) == (
        DatabaseHost("db.databases.svc", 5432),
    )


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
    made = world(given)
    assert ledger_hosts(made, made.root.spec.ledger.postgres) == ()


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


def regional(*regions: dict[str, Any], **spec: Any) -> World:
    """A budget with a region that has a database of its own."""
    east = secret(hosts="east.databases.svc", name="east")
    distribution = {"regions": [*regions] or [EAST, {"name": "eu-central"}]}
    return world(secret(), east, **({"globalDistribution": distribution} | SLICES | spec))


def test_regions_with_and_without_a_database_of_their_own_work_from_slices() -> None:
    assert findings(regional()) == ()


def test_a_regions_secret_consents_as_the_ledgers_does() -> None:
    silent = world(secret(), globalDistribution={"regions": [EAST]}, **SLICES)
    (found,) = findings(silent)
    assert (found.reason, found.fatal) == (Reason.SECRET_NOT_FOUND, True)
    assert "Secret east" in found.message


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (SLICES, "set spec.globalDistribution.regions[].postgres, or remove spec.ledger.mode"),
        (
            {**SLICES, "globalDistribution": {"regions": [{"name": "us-east"}]}},
            "set spec.globalDistribution.regions[].postgres",
        ),
        (
            {"globalDistribution": {"regions": [EAST]}},
            "Nothing is counted in the database of region us-east: set spec.ledger.mode to Slices",
        ),
    ],
)
def test_slices_and_databases_of_regions_go_together(spec: dict[str, Any], says: str) -> None:
    (found,) = findings(world(secret(), **spec))
    assert (found.reason, found.fatal) == (Reason.INVALID_SPEC, False)
    assert says in found.message


def test_no_two_ledgers_are_in_one_database() -> None:
    (found,) = findings(regional({**EAST, **POSTGRES}))
    assert (found.reason, found.fatal) == (Reason.INVALID_SPEC, True)
    assert "Secret ledger, key uri" in found.message


def test_only_the_pods_of_a_region_may_connect_to_its_database() -> None:
    made = regional()
    policy = region_policy(made, "us-east")
    assert policy is not None
    assert policy["spec"]["podSelector"]["matchLabels"]["topology.kubernetes.io/region"] == (
        "us-east"
    )
    assert len(policy["spec"]["egress"]) == 1
    assert region_policy(made, "eu-central") is None


def rendered(made: World) -> tuple[Manifest, ...]:
    return children(made, (), gateway_config(made, ()), {}, PLAIN_HTTP)


def test_the_pods_of_a_region_mount_its_database_beside_the_authoritys() -> None:
    built = rendered(regional())
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in built
        if each["kind"] == "Deployment"
    }
    east, central = (pods[f"team-a-gateway-{name}"] for name in ("us-east", "eu-central"))
    args = east["containers"][0]["args"]
    assert "--region=us-east" in args
    assert "--region-postgres=/var/run/llmbudget/region-database/uri" in args
    assert "--postgres=/var/run/llmbudget/database/uri" in args
    mounted = [volume["name"] for volume in east["volumes"]]
    assert {"database", "region-database"} <= set(mounted)
    assert not [arg for arg in central["containers"][0]["args"] if "region" in arg]
    assert "region-database" not in [volume["name"] for volume in central["volumes"]]


def test_a_service_before_all_regions_prefers_the_near() -> None:
    distribution = {"regions": [EAST], "trafficManager": "global"}
    built = rendered(regional(globalDistribution=distribution))
    (service,) = (each for each in built if each["metadata"]["name"] == "team-a-global")
    assert service["kind"] == "Service"
    assert service["spec"]["trafficDistribution"] == "PreferClose"
    assert "topology.kubernetes.io/region" not in service["spec"]["selector"]
