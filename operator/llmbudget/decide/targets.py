"""How a workload's Deployment is moved to a cheaper model, and back.

The whole env entry is replaced, by JSON Patch with a test of the resource version, and the old
entry is kept in an annotation: releasing a field by server-side apply would leave the variable
without a value. It is put back only while the value is still ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llmbudget.api.budget import LabelSelector, Target
from llmbudget.api.meta import (
    ANNOTATION_ALLOW_BUDGET,
    ANNOTATION_DOWNGRADED_CONTAINER,
    ANNOTATION_DOWNGRADED_TO,
    ANNOTATION_MODEL_ENV,
    ANNOTATION_ORIGINAL_ENV,
)

Manifest = Mapping[str, Any]
Operation = dict[str, Any]
Lower = Callable[[str], str | None]
"""From a model to the one that the ceiling allows; None: none."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one Deployment."""

    operations: tuple[Operation, ...] = ()
    """JSON Patch; empty: it is as it should be."""
    model: str | None = None
    """The value of ours that it has then; None: it has none."""
    refusal: str | None = None
    """Why it is not touched."""


def decide(deployment: Manifest, account: str, target: Target, lower: Lower | None) -> Decision:
    """Decide about one Deployment; `lower` None: no downgrade is in force, put things back."""
    metadata = deployment["metadata"]
    annotations = metadata.get("annotations") or {}
    original = _original(annotations, target.env)
    refusal = _refusal(annotations, account, target)
    if refusal is not None:
        return Decision(refusal=refusal)
    index = _container(deployment, target.container)
    if index is None:
        return Decision(refusal=f"it has no container {target.container}")
    containers = deployment["spec"]["template"]["spec"]["containers"]
    if original is not None and original.container not in (None, containers[index]["name"]):
        if lower is not None:
            # The annotations keep the entry of one container.
            refusal = f"its container {original.container} is changed already"
            return Decision(model=original.model, refusal=refusal)
        index = _container(deployment, original.container)
        if index is None:
            return Decision(operations=_patch(metadata, _forget(annotations)))
    env = containers[index].get("env")
    # Of a variable that is set twice, Kubernetes takes the last.
    entry = next((e for e in reversed(env or ()) if e["name"] == target.env), None)
    ours = (
        original is not None
        and original.model is not None
        and entry is not None
        and entry.get("value") == original.model
    )
    before = original.entry if original is not None and ours else entry
    current = (before or {}).get("value") or ""
    # A variable that is absent or comes from elsewhere can't be read here: it gets the ceiling.
    wanted = current if lower is None else lower(current)
    if wanted is None:
        # No model is left to move it to: it stays as it is.
        return Decision(model=entry.get("value") if ours and entry is not None else None)
    if wanted == current:
        if original is None:
            return Decision()
        put_back = _replace(index, env, target.env, original.entry) if ours else []
        return Decision(operations=_patch(metadata, [*put_back, *_forget(annotations)]))
    if ours and entry is not None and entry.get("value") == wanted:
        return Decision(model=wanted)
    changed = _replace(index, env, target.env, {"name": target.env, "value": wanted})
    operations = [*_remember(before, wanted, containers[index]["name"]), *changed]
    return Decision(operations=_patch(metadata, operations), model=wanted)


def consents(deployment: Manifest, account: str) -> bool:
    """Tell whether a Deployment lets this budget change it."""
    annotations = deployment["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_ALLOW_BUDGET) == account)


def former_target(deployment: Manifest) -> Target | None:
    """Reconstruct the target that a changed Deployment was, from its annotations; None: none
    of its containers was changed."""
    metadata = deployment["metadata"]
    annotations = metadata.get("annotations") or {}
    variable = annotations.get(ANNOTATION_MODEL_ENV)
    container = annotations.get(ANNOTATION_DOWNGRADED_CONTAINER)
    if not variable or container is None or _container(deployment, container) is None:
        return None
    try:
        return Target(
            namespace=metadata["namespace"],
            selector=LabelSelector(match_labels={"llmbudget.io/former": "target"}),
            container=container,
            env=variable,
        )
    except ValidationError:
        # Someone else's writing: we change no variable of such a name.
        return None


@dataclass(frozen=True, slots=True)
class _Original:
    """What the annotations keep: the entry as it was (None: there was none), our value, and the
    container that has it."""

    entry: Mapping[str, Any] | None
    model: str | None
    container: str | None


def _original(annotations: Mapping[str, str], variable: str) -> _Original | None:
    text = annotations.get(ANNOTATION_ORIGINAL_ENV)
    if text is None:
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        # Someone else's writing: nothing here is ours to put back.
        return _Original(None, None, None)
    known = entry is None or (isinstance(entry, dict) and entry.get("name") == variable)
    if not known:
        return _Original(None, None, None)
    container = annotations.get(ANNOTATION_DOWNGRADED_CONTAINER)
    return _Original(entry, annotations.get(ANNOTATION_DOWNGRADED_TO), container)


def _refusal(annotations: Mapping[str, str], account: str, target: Target) -> str | None:
    if annotations.get(ANNOTATION_ALLOW_BUDGET) != account:
        return f"it does not consent: annotate it {ANNOTATION_ALLOW_BUDGET}={account}"
    if annotations.get(ANNOTATION_MODEL_ENV) != target.env:
        return f"it does not offer that variable: annotate it {ANNOTATION_MODEL_ENV}={target.env}"
    return None


def _container(deployment: Manifest, name: str | None) -> int | None:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    if name is None:
        return 0
    return next((i for i, found in enumerate(containers) if found["name"] == name), None)


def _replace(
    index: int, env: list[Any] | None, name: str, entry: Mapping[str, Any] | None
) -> list[Operation]:
    """Write, add or remove one whole env entry."""
    path = f"/spec/template/spec/containers/{index}/env"
    positions = [i for i, found in enumerate(env or ()) if found["name"] == name]
    if entry is None:
        return [{"op": "remove", "path": f"{path}/{positions[-1]}"}]
    if positions:
        return [{"op": "replace", "path": f"{path}/{positions[-1]}", "value": dict(entry)}]
    if env is None:
        return [{"op": "add", "path": path, "value": [dict(entry)]}]
    return [{"op": "add", "path": f"{path}/-", "value": dict(entry)}]


def _remember(before: Mapping[str, Any] | None, model: str, container: str) -> list[Operation]:
    # The consent's annotations are there, so the map is; "add" replaces what is there.
    values = {
        ANNOTATION_ORIGINAL_ENV: json.dumps(before, sort_keys=True),
        ANNOTATION_DOWNGRADED_TO: model,
        ANNOTATION_DOWNGRADED_CONTAINER: container,
    }
    return [{"op": "add", "path": _path(name), "value": value} for name, value in values.items()]


def _forget(annotations: Mapping[str, str]) -> list[Operation]:
    ours = (ANNOTATION_ORIGINAL_ENV, ANNOTATION_DOWNGRADED_TO, ANNOTATION_DOWNGRADED_CONTAINER)
    return [{"op": "remove", "path": _path(name)} for name in ours if name in annotations]


def _path(annotation: str) -> str:
    return "/metadata/annotations/" + annotation.replace("~", "~0").replace("/", "~1")


def _patch(metadata: Manifest, operations: list[Operation]) -> tuple[Operation, ...]:
    version = metadata["resourceVersion"]
    return ({"op": "test", "path": "/metadata/resourceVersion", "value": version}, *operations)
