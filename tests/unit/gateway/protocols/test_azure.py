"""Azure's paths lead to OpenAI's operations, and the deployment is the model."""

from __future__ import annotations

import json

import pytest

from llmbudget.gateway.protocols.azure import of_deployment, standard
from llmbudget.gateway.protocols.chat import CHAT
from llmbudget.gateway.protocols.errors import Refusal


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/openai/deployments/gpt/chat/completions", ("/v1/chat/completions", "gpt")),
        ("/openai/deployments/gpt/completions", ("/v1/completions", "gpt")),
        ("/openai/deployments/azure/gpt/embeddings", ("/v1/embeddings", "azure/gpt")),
        ("/openai/deployments/w/audio/transcriptions", ("/v1/audio/transcriptions", "w")),
        ("/openai/responses", ("/v1/responses", None)),
        ("/openai/models", ("/v1/models", None)),
        ("/openai/v1/chat/completions", ("/v1/chat/completions", None)),
        ("/openai/v1/responses", ("/v1/responses", None)),
    ],
)
def test_paths(path: str, found: tuple[str, str | None]) -> None:
    assert standard(path) == found


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments//chat/completions",
        "/openai/deployments/gpt/responses",
        "/openai/deployments/gpt/chat/completions/",
        "/openai/deployments/gpt/images/edits",
        "/openai/chat/completions",
        "/openai/files",
    ],
)
def test_other_paths_are_nobodys(path: str) -> None:
    assert standard(path) == (path, None)


def test_the_deployment_is_the_model_whatever_the_body_says() -> None:
    body = json.dumps({"model": "other", "messages": [{"role": "user", "content": "x"}]}).encode()
    here, there = (of_deployment(CHAT, name).parse(body) for name in ("gpt", "small"))
    assert (here.model, there.model) == ("gpt", "small")
    assert here.identity is not None
    assert there.identity is not None
    assert here.identity() != there.identity()
    with pytest.raises(Refusal):
        of_deployment(CHAT, "gpt").parse(b"{}")
