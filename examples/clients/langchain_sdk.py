"""LangChain: it hands a function on to OpenAI's package, which calls it before each request."""

from __future__ import annotations

from pathlib import Path

from langchain_openai import ChatOpenAI

TOKEN = Path("/var/run/secrets/llmbudget/token")


def client(base_url: str, model: str, token: Path = TOKEN) -> ChatOpenAI:
    """Make a model of the gateway at `base_url`: https://team-a-gateway.llm-platform:8080/v1."""
    return ChatOpenAI(base_url=base_url, model=model, api_key=lambda: token.read_text().strip())
