"""Azure OpenAI's paths, as its clients use them: each stands for one of OpenAI's own.

An application that uses the `AzureOpenAI` client has to change its endpoint and its credential, and
nothing else. As at Azure, the deployment in the path is the model, whatever the body says.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from llmbudget.gateway.protocols.operation import CallRequest, Operation

PREFIX: Final = "/openai/"
_NEWER: Final = "/openai/v1/"
_BESIDE: Final = ("responses", "models")
"""What has no deployment in its path."""
_DEPLOYMENT: Final = re.compile(
    r"/openai/deployments/([^/].*?)/(chat/completions|completions|embeddings|audio/transcriptions"
    r"|audio/speech|images/generations)"
)


def standard(path: str) -> tuple[str, str | None]:
    """Find OpenAI's own path for one of Azure's, and the model that it names, if it does."""
    if path.startswith(_NEWER):
        return f"/v1/{path.removeprefix(_NEWER)}", None
    if path.removeprefix(PREFIX) in _BESIDE:
        return f"/v1/{path.removeprefix(PREFIX)}", None
    found = _DEPLOYMENT.fullmatch(path)
    return (path, None) if found is None else (f"/v1/{found[2]}", found[1])


def of_deployment(operation: Operation, model: str) -> Operation:
    """Make the operation of one deployment: its body is read as usual, but for the model."""

    def parse(body: bytes) -> CallRequest:
        asked = operation.parse(body)
        # The same body at another deployment is another call.
        same = body if asked.identity is None else asked.identity()
        return replace(asked, model=model, identity=lambda: model.encode() + b"\0" + same)

    return replace(operation, parse=parse)
