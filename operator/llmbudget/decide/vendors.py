"""Whose API an endpoint is, where that decides what a call may cost or how its limit is written."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit


class Vendor(StrEnum):
    """Who answers at an endpoint."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    AZURE = "azure"
    """Azure OpenAI, by either of its APIs."""
    OPENROUTER = "openrouter"
    XAI = "xai"
    OTHER = "other"


_DOMAINS: Final = {
    "api.openai.com": Vendor.OPENAI,
    "api.anthropic.com": Vendor.ANTHROPIC,
    "openrouter.ai": Vendor.OPENROUTER,
    "api.x.ai": Vendor.XAI,
}
"""Each with the hosts below it, such as those of a region."""
_AZURE_HOSTS: Final = tuple(
    f".{service}.azure.{cloud}"
    for service in ("openai", "cognitiveservices", "services.ai")
    for cloud in ("com", "us", "cn")
)
"""Ends of the names of Azure's resources that serve OpenAI's models, in each of its clouds."""


@lru_cache(maxsize=1024)
def vendor_of(endpoint: str, api_version: str | None = None) -> Vendor:
    """Tell whose API an endpoint is; one with an `api_version` is Azure's, whatever its host."""
    host = (urlsplit(endpoint).hostname or "").rstrip(".")
    if api_version is not None or host.endswith(_AZURE_HOSTS):
        return Vendor.AZURE
    found = (
        vendor
        for domain, vendor in _DOMAINS.items()
        if host == domain or host.endswith(f".{domain}")
    )
    return next(found, Vendor.OTHER)
