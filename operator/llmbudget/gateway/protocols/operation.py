"""What the gateway must know of an API's operation to bound it, send it and meter it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from llmbudget.api.provider import Protocol
from llmbudget.api.values import value
from llmbudget.decide.bounds import Demand
from llmbudget.decide.catalogue import Offer
from llmbudget.decide.cost import Usage
from llmbudget.gateway.protocols.sse import EventMeter
from llmbudget.gateway.wire import MAX_BODY

Write = Callable[[Offer, int], bytes]
"""Write the body for a provider: its own model name, and the output limit that is held for."""


@value
class CallRequest:
    """A request that was read, allowed and measured."""

    model: str
    """As the caller wrote it: a name, PROVIDER/name, or auto."""
    demand: Demand
    write: Write
    meter: Callable[[int], EventMeter]
    """Make the meter of a streamed answer, from the highest count that is believed."""
    usage_of: Callable[[bytes, int], Usage | None]
    """Read the usage of a plain answer, with the highest count that is believed; None: it doesn't
    say."""
    content_type: str = "application/json"
    """Of what `write` writes."""
    identity: Callable[[], bytes] | None = None
    """Write what the same call has in common, where the bytes of its body are others each time."""
    usual: Callable[[], CallRequest] | None = None
    """Make the same request in the usual service tier; None: it asks for no other."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of an API."""

    path: str
    """The gateway's."""
    upstream_path: str
    """The provider's, after its endpoint; Azure's older API has more before it and behind it."""
    protocol: Protocol
    parse: Callable[[bytes], CallRequest]
    """Read a body; raises a Refusal that names what is wrong."""
    name: str
    """`gen_ai.operation.name` of OpenTelemetry's conventions."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent to the provider with every call."""
    generates: bool = True
    """Its models can stand in for each other: the ladder and `auto` apply."""
    fields: frozenset[str] | None = None
    """Fields that a body may have, as its parser allows them; None: it is no JSON."""
    form: bool = False
    """Whether a body is a form with a file instead of JSON."""
    max_body: int = MAX_BODY
    """Bytes of the largest request."""
    answers_sound: bool = False
    """Whether an answer may be sound, which is passed on as it comes."""
    by_deployment: bool = True
    """In Azure's older API, whether its path names the model's deployment."""

    def path_at(self, offer: Offer) -> str:
        """Tell the path at a provider, after its endpoint."""
        version = offer.provider.api_version
        if version is None:
            return self.upstream_path
        name = quote(offer.model.upstream_name, safe="")
        deployment = f"/deployments/{name}" if self.by_deployment else ""
        return f"/openai{deployment}{self.upstream_path}?api-version={version}"
