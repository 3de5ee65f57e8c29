"""LLM spending as a quota that cannot be overrun, for Kubernetes.

What is imported from here is the 371OS guide's Python interface. It is loaded on first use, so
that `import llmbudget` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmbudget.ledger.guide import BudgetExceededError, BudgetManager, LLMUsage, UsageLedger

__all__ = ["BudgetExceededError", "BudgetManager", "LLMUsage", "UsageLedger"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("llmbudget.ledger.guide"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
