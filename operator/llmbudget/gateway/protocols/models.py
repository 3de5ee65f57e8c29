"""GET /v1/models: what a caller may ask for, in the form of its own API."""

from __future__ import annotations

import json
from collections.abc import Iterable

from llmbudget.api.provider import Protocol
from llmbudget.decide.catalogue import Offer

_EPOCH = "1970-01-01T00:00:00Z"
"""Nobody knows when a model was made: both APIs ask for an instant all the same."""


def models_body(offers: Iterable[Offer], protocol: Protocol) -> bytes:
    """Write the answer: each name once, and PROVIDER/name where two offer it."""
    listed = _listed(offers)
    if protocol is Protocol.ANTHROPIC:
        data: list[dict[str, object]] = [
            {"type": "model", "id": name, "display_name": name, "created_at": _EPOCH}
            for name, _ in listed
        ]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return json.dumps({"data": data, "has_more": False, **ends}).encode()
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in listed
    ]
    return json.dumps({"object": "list", "data": data}).encode()


def _listed(offers: Iterable[Offer]) -> list[tuple[str, str]]:
    owners: dict[str, list[str]] = {}
    for offer in offers:
        owners.setdefault(offer.name, []).append(offer.provider.name)
    names = [(name, found[0]) for name, found in owners.items()]
    return names + [
        (f"{owner}/{name}", owner)
        for name, found in owners.items()
        if len(found) > 1
        for owner in found
    ]
