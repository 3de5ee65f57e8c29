"""The 371OS guide's files as resources: pure, from what they say to manifests and remarks.

What a file says and no resource can say is left over and named, never dropped in silence.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from llmbudget.api.meta import (
    ANNOTATION_ALLOWED_HOST,
    API_VERSION,
    LABEL_PROVIDER_KEY,
)

Manifest = dict[str, Any]

_ENDPOINTS: Final = {
    "openrouter": "https://openrouter.ai/api/v1",
    "requesty": "https://router.requesty.ai/v1",
    "openai": "https://api.openai.com/v1",
}
_ROUTERS: Final = frozenset({"openrouter", "requesty"})
"""They name models VENDOR/MODEL."""
_VENDORS: Final = {"gpt": "openai", "claude": "anthropic", "gemini": "google"}
_SERVICES: Final = {
    "posthog": "https://us.i.posthog.com",
    "datadog": "https://api.datadoghq.com",
}
"""Where their keys are sent, unless the file says otherwise."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LEDGER: Final = {"postgres": {"secretKeyRef": {"name": "llm-ledger", "key": "uri"}}}


@dataclass(slots=True)
class Remarks:
    """What people have to know and to do."""

    fill_in: list[str] = field(default_factory=list)
    """Without it the resources are refused, or serve nobody."""
    left_out: list[str] = field(default_factory=list)
    """What was in the files and is in no resource."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything goes."""

    namespace: str
    name: str
    """Of the budget."""


class Words:
    """A file's mapping, read word by word: what nobody asked for is left over."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = _copied(content)

    def take(self, path: str) -> Any:  # noqa: ANN401
        """Take what stands at a path of keys, parted by dots; None: nothing does."""
        *above, last = path.split(".")
        trail = [self._content]
        for key in above:
            below = trail[-1].get(key)
            if not isinstance(below, dict):
                return None
            trail.append(below)
        found = trail[-1].pop(last, None)
        for key, parent in zip(reversed(above), reversed(trail[:-1]), strict=True):
            if not parent[key]:
                del parent[key]
        return found

    def left(self) -> list[str]:
        """Name what nobody took."""
        return list(_paths(self._content))


def _copied(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _paths(content: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def decimal_text(value: Any) -> Any:  # noqa: ANN401
    """Write a number as resources want money: a decimal without an exponent."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return value
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def providers(
    entries: Sequence[Mapping[str, Any]],
    place: Place,
    endpoints: Mapping[str, str],
    remarks: Remarks,
) -> list[Manifest]:
    """Turn providers.json into LLMProviders: one for each name and key, with all its models."""
    found: dict[tuple[str, str], Manifest] = {}
    for number, entry in enumerate(entries, 1):
        words = Words(entry)
        name, variable = label(str(words.take("name"))), str(words.take("endpoint_env"))
        model = _model(words, name, remarks)
        manifest = found.get((name, variable))
        if manifest is None:
            known = sum(1 for other, _ in found if other == name)
            called = f"{name}-{known + 1}" if known else name
            manifest = _provider(called, name, variable, place, endpoints, remarks)
            found[name, variable] = manifest
        manifest["spec"]["models"].append(model)
        remarks.left_out += [
            f"providers.json: entry {number} ({name}): {path}" for path in words.left()
        ]
    return list(found.values())


def _provider(
    called: str,
    name: str,
    variable: str,
    place: Place,
    endpoints: Mapping[str, str],
    remarks: Remarks,
) -> Manifest:
    spec: Manifest = {}
    endpoint = endpoints.get(called) or endpoints.get(name) or _ENDPOINTS.get(name)
    if endpoint is None:
        remarks.fill_in.append(
            f"LLMProvider {called}: spec.endpoint, which providers.json does not say"
            f" (or --endpoint {called}=URL); in the cluster it needs allowPrivate: true and the"
            " operator's --allow-private-host"
        )
    else:
        spec["endpoint"] = endpoint
        if urlsplit(endpoint).scheme == "http":
            spec["allowPrivate"] = True
            host = urlsplit(endpoint).netloc
            remarks.fill_in.append(f"the operator's --allow-private-host={host}, for {called}")
    spec["credentials"] = {"secretKeyRef": {"name": f"{called}-key", "key": variable}}
    spec["models"] = []
    return _resource("LLMProvider", called, place, spec)


def _model(words: Words, provider: str, remarks: Remarks) -> Manifest:
    name = str(words.take("model"))
    model: Manifest = {"name": name}
    if provider in _ROUTERS and "/" not in name:
        vendor = _VENDORS.get(re.split(r"[-.0-9]", name)[0])
        if vendor is None:
            remarks.fill_in.append(
                f"model {name} of {provider}: spec.models[].upstreamName, where {provider} calls it"
                " VENDOR/MODEL"
            )
        else:
            model["upstreamName"] = f"{vendor}/{name}"
    model["cost"] = {
        "inputPer1K": decimal_text(words.take("cost_in")),
        "outputPer1K": decimal_text(words.take("cost_out")),
    }
    for key, written in (("max_context", "maxContext"), ("latency_ms", "latencyMs")):
        value = words.take(key)
        if value is not None:
            model[written] = value
    return model


def secrets(
    made: Sequence[Manifest],
    wanted: Mapping[str, tuple[str, str, str]],
    keys: Mapping[str, str],
    place: Place,
    remarks: Remarks,
) -> list[Manifest]:
    """Part secrets.yaml into one Secret a provider, since each consents to one host.

    `wanted` are others: Secret's name → variable, key and host. `keys` are in base64 by variable;
    what can't be one is left to be filled in.
    """
    asked = dict(wanted)
    for provider in made:
        ref = provider["spec"]["credentials"]["secretKeyRef"]
        host = urlsplit(provider["spec"].get("endpoint", "")).hostname or ""
        asked[ref["name"]] = (ref["key"], ref["key"], host)
    written = [
        _secret(name, *each, keys=keys, place=place, remarks=remarks)
        for name, each in asked.items()
    ]
    used = {variable for variable, _, _ in asked.values()}
    remarks.left_out += [
        f"secrets.yaml: {variable}, which no provider names"
        for variable in keys
        if variable not in used
    ]
    return written


def _secret(
    name: str,
    variable: str,
    key: str,
    host: str,
    *,
    keys: Mapping[str, str],
    place: Place,
    remarks: Remarks,
) -> Manifest:
    metadata: Manifest = {
        "name": name,
        "namespace": place.namespace,
        "labels": {LABEL_PROVIDER_KEY: "true"},
    }
    if host:
        metadata["annotations"] = {ANNOTATION_ALLOWED_HOST: host}
    else:
        remarks.fill_in.append(
            f"Secret {name}: annotation {ANNOTATION_ALLOWED_HOST}, the endpoint's host"
        )
    value = keys.get(variable, "")
    if not is_base64(value):
        remarks.fill_in.append(f"Secret {name}: {key}, for which no key was found ({variable})")
        value = ""
    secret: Manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
    return secret | {"type": "Opaque", "data": {key: value} if value else {}}


def is_base64(text: str) -> bool:
    """Tell whether a value of a Secret is one."""
    try:
        return bool(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return False


def budget(
    content: Mapping[str, Any],
    file: str,
    place: Place,
    made: Sequence[Manifest],
    remarks: Remarks,
) -> tuple[Manifest, dict[str, tuple[str, str, str]]]:
    """Turn a production file into an LLMBudget, with the Secrets that it names: name → variable,
    key and host."""
    words = Words(content)
    regions = words.take("global_distribution.regions") or []
    regions = regions if isinstance(regions, list) else [regions]
    scaled = words.take("high_availability.enabled")
    asked: dict[str, tuple[str, str, str]] = {}
    spec: Manifest = {
        "budget": _money(words),
        "deployment": _deployment(words),
        "providers": [{"name": each["metadata"]["name"]} for each in made],
        "highAvailability": _availability(words, scaled),
        "globalDistribution": _regions(words, regions),
        "monitoring": _monitoring(words, file, asked, remarks),
    }
    spec = {key: value for key, value in spec.items() if value}
    if "alertThresholds" in spec["budget"]:
        remarks.fill_in.append(
            "spec.notifications of the budget: whom its thresholds tell; until then only Events do"
        )
    replicas = spec.get("deployment", {}).get("replicas", 1)
    shared = isinstance(replicas, int) and replicas > 1  # what is no number is refused later
    if shared or regions or scaled:
        spec["ledger"] = _LEDGER
        remarks.fill_in.append(
            "Secret llm-ledger with the key uri: several gateways share a PostgreSQL ledger"
            " (docs/postgresql.md)"
        )
    remarks.left_out += [f"{file}: {path}" for path in words.left()]
    return _resource("LLMBudget", place.name, place, spec), asked


def _money(words: Words) -> Manifest:
    steps = words.take("budget.alert_thresholds") or []
    money: Manifest = {"monthlyCap": decimal_text(words.take("budget.monthly_cap"))}
    return money | ({"alertThresholds": steps} if steps else {})


def _deployment(words: Words) -> Manifest:
    found = {key: words.take(f"deployment.{key}") for key in ("replicas", "resources")}
    return {key: value for key, value in found.items() if value is not None}


def _availability(words: Words, enabled: Any) -> Manifest:  # noqa: ANN401
    scaling = {
        written: words.take(f"high_availability.auto_scaling.{key}")
        for key, written in (
            ("min_replicas", "minReplicas"),
            ("max_replicas", "maxReplicas"),
            ("cpu_threshold", "cpuThreshold"),
        )
    }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    if enabled is None:
        return {}
    return {"enabled": enabled, **({"autoScaling": scaling} if scaling else {})}


def _regions(words: Words, regions: Sequence[Any]) -> Manifest:
    manager = words.take("global_distribution.traffic_manager")
    if not regions:
        return {}
    named: Manifest = {"regions": [{"name": name} for name in regions]}
    return named | ({"trafficManager": manager} if manager else {})


def _monitoring(
    words: Words, file: str, asked: dict[str, tuple[str, str, str]], remarks: Remarks
) -> Manifest:
    monitoring: Manifest = {}
    endpoints = words.take("monitoring.endpoints") or []
    if endpoints:
        names = {"auth_required": "authRequired", "rate_limit": "rateLimit"}
        monitoring["endpoints"] = [
            {names.get(key, key): value for key, value in each.items()}
            if isinstance(each, dict)
            else each
            for each in (endpoints if isinstance(endpoints, list) else [endpoints])
        ]
    for service, host in _SERVICES.items():
        enabled = words.take(f"monitoring.{service}.enabled")
        key = words.take(f"monitoring.{service}.api_key")
        said = {
            "host": words.take(f"monitoring.{service}.host"),
            "sampleRate": decimal_text(words.take(f"monitoring.{service}.sample_rate")),
        }
        if enabled is None:
            continue
        monitoring[service] = {"enabled": enabled} | {k: v for k, v in said.items() if v}
        if enabled:
            monitoring[service]["apiKeySecretRef"] = {"name": service, "key": "apiKey"}
            variable = _VARIABLE.fullmatch(str(key))
            if key is not None and variable is None:
                remarks.fill_in.append(f"Secret {service}: apiKey, which {file} holds in clear")
            named = variable[1] if variable else f"{service.upper()}_API_KEY"
            asked[service] = (named, "apiKey", urlsplit(str(said["host"] or host)).hostname or "")
    enabled = words.take("monitoring.distributed_tracing.enabled")
    collector = words.take("monitoring.distributed_tracing.collector")
    if enabled is not None:
        tracing = {"enabled": enabled} | ({"collector": collector} if collector else {})
        monitoring["distributedTracing"] = tracing
    return monitoring


def _resource(kind: str, name: str, place: Place, spec: Manifest) -> Manifest:
    metadata = {"name": name, "namespace": place.namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def label(name: str) -> str:
    """Make a resource's name of any."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "provider"
