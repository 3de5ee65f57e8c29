"""Anthropic's package: its key is fixed, so the token is put into each request as it leaves."""

from __future__ import annotations

from pathlib import Path

import anthropic
import httpx

TOKEN = Path("/var/run/secrets/llmbudget/token")


def client(base_url: str, token: Path = TOKEN) -> anthropic.Anthropic:
    """Make a client of the gateway at `base_url`: https://team-a-gateway.llm-platform:8080."""

    def show_token(request: httpx.Request) -> None:
        request.headers.pop("x-api-key", None)
        request.headers["authorization"] = f"Bearer {token.read_text().strip()}"

    http_client = anthropic.DefaultHttpxClient(event_hooks={"request": [show_token]})
    return anthropic.Anthropic(base_url=base_url, api_key="unused", http_client=http_client)
