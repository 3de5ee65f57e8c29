"""What a budget's author may not do: send any Secret anywhere, or run any image with the keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.worlds import Manifest, read, serving_of, world_of

from llmbudget.api.conditions import Reason
from llmbudget.decide.validity.chain import findings
from llmbudget.decide.validity.consent import datadog_of, posthog_of
from llmbudget.decide.world import World
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config

SCENARIOS = Path(__file__).parents[2] / "golden" / "scenarios"


def world(secret: Manifest | None = None, **spec: Any) -> World:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "minimal.yaml")
    documents[-1]["spec"] |= spec
    return world_of([*documents, *([secret] if secret else [])])


def secret(consents: str = "true", host: str = "us.i.posthog.com") -> Manifest:
    metadata = {
        "name": "posthog",
        "namespace": "llm-platform",
        "labels": {"llmbudget.io/provider-key": consents},
        "annotations": {"llmbudget.io/allowed-host": host},
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


def monitored(host: str = "https://us.i.posthog.com") -> Manifest:
    ref = {"name": "posthog", "key": "apiKey"}
    return {"monitoring": {"posthog": {"enabled": True, "host": host, "apiKeySecretRef": ref}}}


def metered(site: str = "datadoghq.com") -> Manifest:
    ref = {"name": "posthog", "key": "apiKey"}
    return {"monitoring": {"datadog": {"enabled": True, "site": site, "apiKeySecretRef": ref}}}


def mounts_posthog(made: World) -> bool:
    return mounts(made, "posthog")


def mounts(made: World, name: str) -> bool:
    found = findings(made)
    rendered = children(made, found, gateway_config(made, found), {}, serving_of(made))
    pod = next(item for item in rendered if item["kind"] == "Deployment")
    volumes = pod["spec"]["template"]["spec"]["volumes"]
    return any(volume["name"] == name for volume in volumes)


def test_a_consenting_secret_is_mounted() -> None:
    made = world(secret(), **monitored())
    assert findings(made) == ()
    assert posthog_of(made) is not None
    assert mounts_posthog(made)


@pytest.mark.parametrize(
    ("given", "host", "reason", "says"),
    [
        (None, "https://us.i.posthog.com", Reason.SECRET_NOT_FOUND, "create it"),
        (secret("no"), "https://us.i.posthog.com", Reason.SECRET_NOT_CONSENTING, "label it"),
        (secret(), "https://evil.example", Reason.SECRET_NOT_CONSENTING, "evil.example"),
    ],
)
def test_another_secret_goes_nowhere(
    given: Manifest | None, host: str, reason: Reason, says: str
) -> None:
    made = world(given, **monitored(host))
    (found,) = findings(made)
    assert found.reason is reason
    assert says in found.message
    assert posthog_of(made) is None
    assert not mounts_posthog(made)


def test_datadogs_key_is_mounted_where_its_secret_consents() -> None:
    made = world(secret(host="api.datadoghq.eu"), **metered("datadoghq.eu"))
    assert findings(made) == ()
    told = datadog_of(made)
    assert told is not None
    assert told.url == "https://api.datadoghq.eu"
    assert mounts(made, "datadog")
    elsewhere = world(secret(host="api.datadoghq.eu"), **metered())
    (found,) = findings(elsewhere)
    assert found.reason is Reason.SECRET_NOT_CONSENTING
    assert "api.datadoghq.com" in found.message
    assert datadog_of(elsewhere) is None
    assert not mounts(elsewhere, "datadog")


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/llmbudget:2.0",
        "registry.example/llmbudget@sha256:" + "0" * 64,
        "registry.example/mirror/llmbudget:1.0",
    ],
)
def test_images_of_the_installation(image: str) -> None:
    assert findings(world(deployment={"image": image})) == ()


@pytest.mark.parametrize(
    "image", ["evil.example/llmbudget:1.0", "registry.example/llmbudget-evil:1.0", "llmbudget:1.0"]
)
def test_other_images_are_refused(image: str) -> None:
    (found,) = findings(world(deployment={"image": image}))
    assert found.fatal
    assert "registry.example/llmbudget" in found.message


@pytest.mark.parametrize(
    ("prefix", "image", "allowed"),
    [
        ("reg.example/llm", "reg.example/llm", True),
        ("reg.example/llm", "reg.example/llm:1", True),
        ("reg.example/llm", "reg.example/llm@sha256:0", True),
        ("reg.example/llm", "reg.example/llm/gateway:1", True),
        ("reg.example/llm", "reg.example/llm-evil:1", False),
        ("reg.example/llm", "reg.example/llmevil", False),
        ("reg.example", "reg.example.evil/llm", False),
        ("reg.example/", "reg.example/llm:1", True),
        ("reg.example/llm:", "reg.example/llm:1", True),
        ("reg.example/llm:1", "reg.example/llm:1.2", False),
    ],
)
def test_an_allowed_prefix_ends_where_a_part_of_the_name_does(
    prefix: str, image: str, allowed: bool
) -> None:
    made = world(deployment={"image": image})
    made = replace(made, installation=replace(made.installation, image_prefixes=(prefix,)))
    assert (findings(made) == ()) is allowed


def test_two_keys_never_come_in_one_variable() -> None:
    documents = read(SCENARIOS / "platform.yaml", SCENARIOS / "environment.yaml")
    twin = next(one for one in documents if one["metadata"]["name"] == "openrouter")
    twin = twin | {"metadata": twin["metadata"] | {"name": "open.router"}}
    other = twin | {"metadata": twin["metadata"] | {"name": "open-router"}}
    documents[-1]["spec"]["providers"] = [{"name": "open.router"}, {"name": "open-router"}]
    (found,) = findings(world_of([*documents, twin, other]))
    assert found.reason is Reason.PROVIDER_INVALID
    assert "OPEN_ROUTER_API_KEY" in found.message


@pytest.mark.parametrize("name", ["system-cluster-critical", "system-node-critical"])
def test_priorities_of_the_cluster_are_refused(name: str) -> None:
    (found,) = findings(world(deployment={"priorityClassName": name}))
    assert (found.reason, found.fatal) == (Reason.INVALID_SPEC, True)
    assert name in found.message
    assert findings(world(deployment={"priorityClassName": "platform-high"})) == ()
