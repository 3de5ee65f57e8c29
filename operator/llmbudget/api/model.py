"""The base of all resource models, and the field types that several of them share.

Python defaults are the built-in defaults. They never become an OpenAPI `default`, which the API
server would store before a profile applies: the CRD generator drops them, and `profiles.py`
resolves the effective value from what the user wrote, the profile, and then these.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from llmbudget.api.money import CAP_PATTERN, PRICE_PATTERN, parse_usd

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_OWN_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


class Model(BaseModel):
    """Base: camelCase outside, snake_case inside, unknown fields refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        # At first use: the gateway loads these for their enumerations alone.
        defer_build=True,
    )


def rules(*pairs: tuple[str, str]) -> JsonDict:
    """Build a schema extra with CEL rules from pairs of (rule, message)."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]
    }


SET: Final[JsonDict] = {"x-kubernetes-list-type": "set"}
"""Schema extra of a list whose items are unique."""


def keyed_by(field: str) -> JsonDict:
    """Schema extra of a list of objects that one field identifies: no two have the same."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


def _above_zero(amount: str) -> str:
    if not parse_usd(amount):
        raise ValueError("must be above 0")
    return amount


def _rfc_3339(instant: str) -> str:
    datetime.fromisoformat(instant)
    return instant


def _qualified_name(name: str) -> str:
    prefix, slash, own = name.rpartition("/")
    if not re.fullmatch(_OWN_NAME, own) or (slash and not re.fullmatch(DNS_SUBDOMAIN, prefix)):
        raise ValueError(
            f"must be NAME or PREFIX/NAME, such as service.cilium.io/global, not {name!r}"
        )
    return name


Usd = Annotated[str, Field(pattern=CAP_PATTERN, max_length=20)]
UsdAboveZero = Annotated[Usd, AfterValidator(_above_zero)]
"""Its field's model has a rule in CEL that says the same."""
Instant = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}(Z|[+-][0-9]{2}:[0-9]{2})$",
        max_length=40,
        json_schema_extra={"format": "date-time"},
    ),
    AfterValidator(_rfc_3339),
]
Price = Annotated[str, Field(pattern=PRICE_PATTERN, max_length=20)]
Fraction = Annotated[str, Field(pattern=r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", max_length=8)]
Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}(ms|s|m|h)$", max_length=8)]
Rate = Annotated[str, Field(pattern=r"^[0-9]{1,6}/(s|min|h)$", max_length=12)]
Quantity = Annotated[
    str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$", max_length=24)
]
ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, min_length=1, max_length=253)]
LabelName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=63)]
DataKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
QualifiedName = Annotated[str, Field(max_length=317), AfterValidator(_qualified_name)]
"""Of a label or an annotation: a key of a map, of whose keys the CRD can ask nothing: the operator
does."""
LabelValue = Annotated[str, Field(pattern=rf"^({_OWN_NAME})?$", max_length=63)]
Labels = dict[QualifiedName, LabelValue]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", min_length=1, max_length=128)]
ModelName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._:/@+]*$", min_length=1, max_length=128)
]
Url = Annotated[str, Field(pattern=r"^https?://[^\s?#@]+$", max_length=512)]


class SecretKeyRef(Model):
    """One key of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey
    """Key in the Secret's data."""


class ConfigMapKeyRef(Model):
    """One key of a ConfigMap in the same namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: DataKey
    """Key in the ConfigMap's data."""


class LocalRef(Model):
    """An object of a known kind in the same namespace."""

    name: ObjectName
    """Name of the object."""


_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def milliseconds(duration: str) -> int:
    """Convert a duration such as `5s` or `10m` to milliseconds."""
    number = duration.rstrip("msh")
    return int(number) * _UNITS[duration[len(number) :]]


def months(duration: str) -> int:
    """Convert a duration such as `24mo` or `2y` to months."""
    return int(duration[:-2]) if duration.endswith("mo") else int(duration[:-1]) * 12


def per_minute(rate: str) -> int:
    """Convert a rate such as `100/min` to whole events a minute, at least 1 unless it is 0."""
    number, _, unit = rate.partition("/")
    count = int(number)
    scaled = {"s": count * 60, "min": count, "h": count // 60}[unit]
    return max(scaled, 1) if count else 0
