"""OpenAI's package: it calls `api_key` before each request, so a rotated token is used at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai

TOKEN = Path("/var/run/secrets/llmbudget/token")


def client(base_url: str, token: Path = TOKEN) -> openai.OpenAI:
    """Make a client of the gateway at `base_url`: https://team-a-gateway.llm-platform:8080/v1."""
    return openai.OpenAI(base_url=base_url, api_key=lambda: token.read_text().strip())


def async_client(base_url: str, token: Path = TOKEN) -> openai.AsyncOpenAI:
    """Make the same for asyncio."""

    async def read() -> str:
        return (await asyncio.to_thread(token.read_text)).strip()

    return openai.AsyncOpenAI(base_url=base_url, api_key=read)
