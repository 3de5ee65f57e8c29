"""A configuration, checked without a gateway: what is wrong, where, and what to do.

Faults keep a gateway from taking a configuration over, or make calls fail for certain. Warnings are
what a gateway goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmbudget.contract.config import (
    CONFIG_KEY,
    AccountConfig,
    GatewayConfig,
    ProviderConfig,
)

_MOST_CAP: Final = 2**63 - 1
"""What the ledger's columns hold, in nano-USD."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    path: str
    """Of the field, such as accounts[0].parent."""
    what: str
    to_do: str
    fault: bool = True

    def __str__(self) -> str:
        kind = "" if self.fault else "warning: "
        return f"{self.path}: {kind}{self.what}: {self.to_do}"


def check(text: str) -> tuple[GatewayConfig | None, list[Problem]]:
    """Read a configuration and tell what is wrong with it; None: it can't be read.

    `text` is the document, or the ConfigMap that holds it, in JSON or YAML.
    """
    try:
        document = _document(text)
    except ValueError as error:
        return None, [Problem("(document)", str(error), "write the ConfigMap's gateway.json")]
    unknown = list(_unknown(document, GatewayConfig, ""))
    try:
        config = GatewayConfig.model_validate(document)
    except ValidationError as error:
        return None, [*map(_invalid, error.errors()), *unknown]
    return config, [*_of_accounts(config), *_of_providers(config), *_of_the_whole(config), *unknown]


def _document(text: str) -> dict[str, Any]:
    """Find the document.

    Raises:
        ValueError: there is none; the message says what there is.
    """
    try:
        found = yaml.safe_load(text)
        if isinstance(found, dict) and found.get("kind") == "ConfigMap":
            inner = (found.get("data") or {}).get(CONFIG_KEY)
            if inner is None:
                raise ValueError(f"the ConfigMap has no key {CONFIG_KEY}")
            found = json.loads(inner)
    except yaml.MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"this is neither JSON nor YAML{place}: {error.problem}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{CONFIG_KEY} is no JSON: {error.msg} in {where}") from None
    if not isinstance(found, dict):
        raise ValueError("this is no JSON object")
    return found


def _invalid(error: ErrorDetails) -> Problem:
    message = str(error["msg"])
    what = f"{message[0].lower()}{message[1:]}"
    if error["type"] == "missing":
        return Problem(_path(error["loc"]), "it is missing", "add it")
    given = "" if isinstance(error["input"], dict | list) else f", and not {error['input']!r}"
    return Problem(_path(error["loc"]), f"{what}{given}", "correct it")


def _path(location: tuple[str | int, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).lstrip(".")


def _unknown(value: object, model: type[BaseModel], path: str) -> Iterator[Problem]:
    """Find fields that no gateway reads."""
    if not isinstance(value, dict):
        return
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, inner in value.items():
        place = f"{path}.{name}".lstrip(".")
        field = known.get(name)
        if field is None:
            yield Problem(place, "no gateway of this version reads it", "remove it", fault=False)
            continue
        nested = _model_of(field.annotation)
        if nested is None:
            continue
        items = enumerate(inner) if isinstance(inner, list) else ((None, inner),)
        for index, item in items:
            yield from _unknown(item, nested, place if index is None else f"{place}[{index}]")


def _model_of(annotation: object) -> type[BaseModel] | None:
    """Find the model in an annotation such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = getattr(annotation, "__args__", ())
    return next((found for found in map(_model_of, inner) if found is not None), None)


def _of_accounts(config: GatewayConfig) -> Iterator[Problem]:
    if not config.accounts:
        yield Problem("accounts", "there is none", "add the root's")
        return
    if config.accounts[0].name != config.root:
        what = f"the first account is not the root {config.root}"
        yield Problem("accounts[0].name", what, "put the root first")
    known = {provider.name for provider in config.providers}
    before: set[str] = set()
    for index, account in enumerate(config.accounts):
        path = f"accounts[{index}]"
        yield from _of_account(account, path, before, root=index == 0)
        for at, name in enumerate(account.providers):
            if name not in known:
                what = f"there is no provider {name}"
                to_do = f"name one of {', '.join(sorted(known)) or 'those to be added'}"
                yield Problem(f"{path}.providers[{at}]", what, to_do, fault=False)
        before.add(account.name)


def _of_account(
    account: AccountConfig, path: str, before: set[str], *, root: bool
) -> Iterator[Problem]:
    if account.name in before:
        yield Problem(f"{path}.name", f"{account.name} is there twice", "remove one")
    if account.name.count("/") != 1 or not all(account.name.split("/")):
        yield Problem(f"{path}.name", f"{account.name!r} is no account", "write NAMESPACE/NAME")
    if root and account.parent is not None:
        yield Problem(f"{path}.parent", "the root has no parent", "remove it")
    if not root and account.parent not in before:
        what = f"no account before it is called {account.parent}"
        yield Problem(f"{path}.parent", what, "name an account that stands before it")
    if account.cap_nano is not None and not 0 <= account.cap_nano <= _MOST_CAP:
        what = f"{account.cap_nano} is no cap"
        yield Problem(f"{path}.capNano", what, f"write 0 to {_MOST_CAP} nano-USD")
    if not account.consumers:
        what = "nobody may spend from this account itself"
        yield Problem(f"{path}.consumers", what, "name who may", fault=False)


def _of_providers(config: GatewayConfig) -> Iterator[Problem]:
    if not config.providers:
        yield Problem("providers", "there is none, so no call can be made", "add one", fault=False)
    seen: set[str] = set()
    for index, provider in enumerate(config.providers):
        path = f"providers[{index}]"
        if provider.name in seen:
            yield Problem(f"{path}.name", f"{provider.name} is there twice", "rename one")
        seen.add(provider.name)
        yield from _of_endpoint(provider, f"{path}.endpoint")
        for at, model in enumerate(provider.models):
            if model.prices is None:
                what = f"nobody knows what {model.name} costs, so calls to it are refused"
                yield Problem(f"{path}.models[{at}].prices", what, "add its prices", fault=False)


def _of_endpoint(provider: ProviderConfig, path: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(provider.endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        yield Problem(path, f"{provider.endpoint!r} is no URL", "write https://HOST/PATH")
    elif parts.scheme == "http" and not provider.allow_private:
        what = "a key would travel in clear"
        yield Problem(path, what, "use https, or set allowPrivate for a host of the cluster")


def _of_the_whole(config: GatewayConfig) -> Iterator[Problem]:
    try:
        ZoneInfo(config.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        what = f"there is no time zone {config.time_zone!r}"
        yield Problem("timeZone", what, "write an IANA name such as Europe/Berlin")
    if config.operator.count("/") != 1:
        what = f"{config.operator!r} is no ServiceAccount"
        yield Problem("operator", what, "write NAMESPACE/NAME")


def summary(config: GatewayConfig) -> Mapping[str, int]:
    """Count what a configuration has."""
    models = sum(len(provider.models) for provider in config.providers)
    return {
        "accounts": len(config.accounts),
        "providers": len(config.providers),
        "models": models,
    }
