"""The gateway's serving certificate, and the bundle by which its clients check it."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from llmbudget.contract.config import CA_BUNDLE_KEY
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, ca_bundle, metadata, serving_secret


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Serving:
    """How a gateway is to be spoken to."""

    tls: bool
    pair: Pair | None = None
    """A certificate by the operator's authority; None: the budget names a Secret of its own."""
    bundle: str | None = None
    """Authorities that clients are to trust, in PEM; None: the public ones."""
    problem: str | None = None
    """Why what there was had to stay, and what to do."""


PLAIN_HTTP = Serving(tls=False)


def certificate(world: World, pair: Pair) -> Manifest:
    """Build the Secret that the gateway serves with."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(world, serving_secret(world.root)),
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": b64encode(pair.certificate).decode(),
            "tls.key": b64encode(pair.key).decode(),
        },
    }


def bundle(world: World, authorities: str) -> Manifest:
    """Build the ConfigMap for clients."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(world, ca_bundle(world.root)),
        "data": {CA_BUNDLE_KEY: authorities},
    }
