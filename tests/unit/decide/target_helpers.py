"""Deployments, targets and JSON Patches for the tests of decide/targets.py."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from llmbudget.api.budget import Target
from llmbudget.decide.targets import Lower, decide

Manifest = dict[str, Any]
Env = list[dict[str, Any]]

ACCOUNT = "llm-platform/team-a"
VARIABLE = "LLM_MODEL"
CONSENT = {"llmbudget.io/allow-budget": ACCOUNT, "llmbudget.io/model-env": VARIABLE}
ORDER = ("dear", "middling", "cheap")
"""Models, dearest first."""


class Conflict(Exception):
    """An operation's `test` fails."""


def patched(document: Manifest, operations: Iterable[Manifest]) -> Manifest:
    """Apply a JSON Patch (RFC 6902), as far as the API server is asked to."""
    document = copy.deepcopy(document)
    for operation in operations:
        *above, last = [
            step.replace("~1", "/").replace("~0", "~") for step in operation["path"][1:].split("/")
        ]
        here: Any = document
        for step in above:
            here = here[int(step)] if isinstance(here, list) else here[step]
        key: Any = last
        if isinstance(here, list):
            key = len(here) if last == "-" else int(last)
        match operation["op"]:
            case "test":
                if here[key] != operation["value"]:
                    raise Conflict(operation["path"])
            case "add" if isinstance(here, list):
                assert key <= len(here)
                here.insert(key, operation["value"])
            case "add":
                here[key] = operation["value"]
            case "replace":
                assert here[key] is not None
                here[key] = operation["value"]
            case "remove":
                del here[key]
            case other:
                raise AssertionError(other)
    return document


def stored(document: Manifest) -> Manifest:
    """Keep a Deployment as the API server does: with a new version, without empty lists."""
    document = copy.deepcopy(document)
    metadata = document["metadata"]
    metadata["resourceVersion"] = str(int(metadata.get("resourceVersion", 0)) + 1)
    for container in document["spec"]["template"]["spec"]["containers"]:
        if not container.get("env", True):
            del container["env"]
    return document


def deployment(
    *envs: Env | None, annotations: dict[str, str] | None = None, names: Sequence[str] = "abc"
) -> Manifest:
    """A Deployment with one container for each env, called a, b, c."""
    containers = [
        {"name": name, "image": "app:1"} | ({} if env is None else {"env": env})
        for name, env in zip(names, envs, strict=False)
    ]
    metadata: Manifest = {"name": "researcher", "namespace": "team-a"}
    metadata["annotations"] = dict(CONSENT if annotations is None else annotations)
    return stored(
        {"metadata": metadata, "spec": {"template": {"spec": {"containers": containers}}}}
    )


def target(container: str | None = None, env: str = VARIABLE) -> Target:
    selector = {"matchLabels": {"app": "researcher"}}
    return Target.model_validate(
        {"namespace": "team-a", "selector": selector, "container": container, "env": env}
    )


def lower_to(model: str) -> Lower:
    """A ceiling: what is dearer goes to it, and so does what can't be read."""
    return lambda asked: asked if asked in ORDER[ORDER.index(model) :] else model


def step(found: Manifest, lower: Lower | None, where: Target | None = None) -> Manifest:
    """Decide once and store what comes of it."""
    decision = decide(found, ACCOUNT, where or target(), lower)
    assert decision.refusal is None
    return stored(patched(found, decision.operations)) if decision.operations else found


def unversioned(found: Manifest) -> Manifest:
    found = copy.deepcopy(found)
    del found["metadata"]["resourceVersion"]
    return found


def env_of(found: Manifest, container: int = 0) -> Env | None:
    env: Env | None = found["spec"]["template"]["spec"]["containers"][container].get("env")
    return env


def with_env(found: Manifest, env: Env, container: int = 0) -> Manifest:
    """What a person made of it."""
    found = copy.deepcopy(found)
    found["spec"]["template"]["spec"]["containers"][container]["env"] = env
    return stored(found)


def value(model: str, name: str = VARIABLE) -> dict[str, Any]:
    return {"name": name, "value": model}
