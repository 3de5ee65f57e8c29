"""One attempt's record, as a call of one consumer makes it."""

from __future__ import annotations

import time

from llmbudget.contract.config import AccountConfig, Limits
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.gateway.observe import CallRecord

ACCOUNT = AccountConfig(name="ns/team", cap_nano=1, providers=("openrouter",))
CONSUMER = Consumer("ns", "app", ACCOUNT, "researcher", Limits())


def call_record(offer: Offer, waited: float = 0) -> CallRecord:
    """Begin an attempt of a call that came `waited` seconds ago."""
    return CallRecord("call-1", "chat", CONSUMER, offer, time.monotonic() - waited)
