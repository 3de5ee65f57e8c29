"""The 371OS guide's llm-provider-secrets, where keys are delivered by the environment."""

from __future__ import annotations

from collections.abc import Mapping

from llmbudget.contract.config import key_variable
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, key_secret, metadata


def secret(world: World, keys: Mapping[str, str]) -> Manifest:
    """Build the Secret from base64 values by provider name."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(world, key_secret(world.root)),
        "type": "Opaque",
        "data": {key_variable(name): value for name, value in sorted(keys.items())},
    }
