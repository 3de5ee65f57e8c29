"""What an answer that is an error may have cost.

An error is free only where it is certain that the provider charges nothing for it: where it refuses
the call in its own words before it works on it. What stands between here and the provider may give
up on a call that the provider goes on with, and some providers charge for what they refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llmbudget.api.money import NANO_PER_USD, Nano
from llmbudget.contract.config import ProviderConfig
from llmbudget.decide.vendors import Vendor, vendor_of
from llmbudget.gateway.protocols.sse import MAX_EVENT, as_object, parse

_DOUBTFUL: Final = frozenset({408, 499, 502, 504, *range(520, 528)})
"""Errors of something between here and the provider: it may have worked on the call. 529 is none:
with it Anthropic refuses a call when it is overloaded."""
_FIELD_AT_FAULT: Final = re.compile(
    r"(unknown|unsupported|missing_required)_\w+|invalid_(value|type|json\w*|function_parameters)"
    r"|\w+_(above_max|below_min|above_max_length|below_min_length)\w*|empty_array"
    r"|OperationNotSupported|DeploymentNotFound",
    re.ASCII,
)
"""Codes by which Azure refuses a field before anything is read of the prompt. For a filtered
prompt, or one that is too long, it charges, as its page on planning costs documents."""
_GUIDELINES: Final = re.compile(rb"usage guidelines", re.IGNORECASE)
_VIOLATION: Final = Nano(NANO_PER_USD // 20)
"""xAI's fee for a request that violates its guidelines, as its page of models documents."""


def is_complete(status: int) -> bool:
    """Tell whether an error is the provider's last word on a call, as far as its status says."""
    return status >= 400 and status not in _DOUBTFUL


def least_charge(provider: ProviderConfig, status: int, body: bytes) -> Nano | None:
    """Tell what the provider charges at least for a complete error, where it may have charged up to
    the hold; None: it certainly charged nothing."""
    if provider.bills_errors or (status >= 500 and not _is_error(_read(body))):
        return Nano(0)
    if provider.errors_by_host:
        vendor = vendor_of(provider.endpoint, provider.api_version)
        if vendor is Vendor.AZURE and status == 400 and not _names_a_field(body):
            return Nano(0)
        if vendor is Vendor.XAI and status < 500 and _GUIDELINES.search(body):
            return _VIOLATION
    return None


def _read(body: bytes) -> Mapping[str, object]:
    """Read an error; Gemini sends it in a list. None is so long that it could be something else,
    and reading that would take a multiple of its size."""
    found = parse(body) if len(body) <= MAX_EVENT else None
    return as_object(found[0] if isinstance(found, list) and found else found)


def _is_error(document: Mapping[str, object]) -> bool:
    """Tell an API's own error from the page of a proxy, behind which the call may go on."""
    return "error" in document or "error" in (document.get("type"), document.get("object"))


def _names_a_field(body: bytes) -> bool:
    code = as_object(_read(body).get("error")).get("code")
    return isinstance(code, str) and _FIELD_AT_FAULT.fullmatch(code) is not None
