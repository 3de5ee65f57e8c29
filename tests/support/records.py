"""One attempt's record, as a call of one consumer makes it."""

from __future__ import annotations

from llmbudget.contract.config import AccountConfig, Limits
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.consumers import Consumer
from llmbudget.gateway.observe import CallRecord, CallStory
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.telemetry.spans import Spans

ACCOUNT = AccountConfig(name="ns/team", cap_nano=1, providers=("openrouter",))
CONSUMER = Consumer("ns", "app", ACCOUNT, "researcher", Limits())


def call_record(offer: Offer, waited: float = 0) -> CallRecord:
    """Begin an attempt of a call that came `waited` seconds ago."""
    return CallRecord(call_story(waited), "call-1", CONSUMER, offer)


def call_story(waited: float = 0) -> CallStory:
    """A call that came `waited` seconds ago."""
    story = CallStory(Spans("ns/team"), "request-1", None, CHAT)
    story.arrived -= waited
    story.by(CONSUMER)
    return story
