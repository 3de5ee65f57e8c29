"""The simulator's own price table, arithmetic and bill: nothing here is shared with the ledger."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any


class Prices:
    """What the provider charges: USD for 1,000 tokens, by model, from a JSON file of its own.

    A model's `longContext` lists what is charged instead `above` a number of input tokens. One that
    is not charged by tokens has a price `perMinute`, `per1KCharacters` or `perImage`: a list, of
    which the dearest counts. `per1KSearches` is charged beside tokens, and `serviceTiers` lists
    what tokens cost in a tier that was asked for.
    """

    def __init__(self, table: Mapping[str, Mapping[str, Any]]) -> None:
        self._nano = {
            model: [
                (int(each.get("above", -1)), _nano(each["inputPer1K"]), _nano(each["outputPer1K"]))
                for each in (entry, *entry.get("longContext", ()))
            ]
            for model, entry in table.items()
            if "inputPer1K" in entry
        }
        self._units = {
            model: {
                "seconds": Fraction(entry.get("perMinute", 0)) * 10**9 / 60,
                "characters": _nano(entry.get("per1KCharacters", "0")),
                "searches": _nano(entry.get("per1KSearches", "0")),
                "images": max(
                    (Fraction(image["price"]) * 10**9 for image in entry.get("perImage", ())),
                    default=Fraction(0),
                ),
            }
            for model, entry in table.items()
        }

        self._tiers = {
            (model, tier["name"]): (_nano(tier["inputPer1K"]), _nano(tier["outputPer1K"]))
            for model, entry in table.items()
            for tier in entry.get("serviceTiers", ())
        }

    @property
    def models(self) -> Iterable[str]:
        """Names of all models."""
        return self._units

    def by_token(self, model: str) -> bool:
        """Tell whether a model is charged by tokens."""
        return model in self._nano

    def cost(
        self,
        model: str,
        tokens_in: int,
        tokens_out: int,
        units: Mapping[str, int],
        service: str | None = None,
    ) -> int:
        """Price a call in nano-USD, rounded up once; `units` counts what else is charged.

        Raises:
            KeyError: no such model.
        """
        exact = sum(
            (each * units.get(unit, 0) for unit, each in self._units[model].items()), Fraction(0)
        )
        if self.by_token(model):
            _, *usual = max(tier for tier in self._nano[model] if tokens_in > tier[0])
            price_in, price_out = self._tiers.get((model, service or ""), usual)
            exact += price_in * tokens_in + price_out * tokens_out
        return -(-exact.numerator // exact.denominator)


def _nano(usd_per_1k: str) -> Fraction:
    return Fraction(usd_per_1k) * 10**9 / 1000


class Bill:
    """What was charged: one JSON line a call, appended before its answer leaves."""

    def __init__(self, path: Path) -> None:
        self.calls: Counter[str] = Counter()
        self.nano: Counter[str] = Counter()
        if path.exists():
            for line in path.read_text().splitlines():
                self._count(json.loads(line))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _count(self, row: Mapping[str, Any]) -> None:
        self.calls[row["model"]] += 1
        self.nano[row["model"]] += row["nano"]

    def charge(self, model: str, tokens_in: int, tokens_out: int, nano: int) -> None:
        """Write one call down. One write, so that a kill leaves a whole line or none."""
        row = {"model": model, "tokensIn": tokens_in, "tokensOut": tokens_out, "nano": nano}
        os.write(self._file, json.dumps(row).encode() + b"\n")
        self._count(row)

    def total(self) -> dict[str, Any]:
        """Sum the bill up: amounts in nano-USD."""
        models = {
            model: {"calls": self.calls[model], "nano": self.nano[model]} for model in self.calls
        }
        return {"calls": self.calls.total(), "nano": self.nano.total(), "models": models}
