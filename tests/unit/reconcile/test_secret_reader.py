"""What Secrets say of themselves: read once for all who ask at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmbudget.clients.cluster import ApiError, Cluster
from llmbudget.clients.connection import Connection
from llmbudget.clients.kinds import Kind
from llmbudget.reconcile import gather as gathering
from llmbudget.reconcile.gather import SecretReader


class Api(Cluster):
    """Answers when it is let, and counts."""

    def __init__(self) -> None:
        super().__init__(Connection.in_cluster(Path("/nowhere")))
        self.asked: list[str] = []
        self.error: ApiError | None = None
        self.consent = "true"
        self.let = asyncio.Event()

    async def get_metadata(
        self, kind: Kind, namespace: str | None, name: str
    ) -> dict[str, Any] | None:
        self.asked.append(f"{namespace}/{name}")
        await self.let.wait()
        if self.error is not None:
            raise self.error
        if name == "none":
            return None
        return {"metadata": {"labels": {"llmbudget.io/provider-key": self.consent}}}


async def test_all_who_ask_at_once_are_answered_by_one_read() -> None:
    api = Api()
    reader = SecretReader(api)
    asking = [asyncio.create_task(reader.facts("llm", "keys")) for _ in range(20)]
    other = asyncio.create_task(reader.facts("llm", "none"))
    await asyncio.sleep(0)
    asking[0].cancel()
    api.let.set()
    assert [facts.consents for facts in await asyncio.gather(*asking[1:]) if facts] == [True] * 19
    assert await other is None
    assert sorted(api.asked) == ["llm/keys", "llm/none"]


async def test_a_refusal_is_no_answer_for_those_who_ask_later() -> None:
    api = Api()
    api.let.set()
    api.error = ApiError(500, "InternalError", "no")
    reader = SecretReader(api)
    with pytest.raises(ApiError):
        await reader.facts("llm", "keys")
    api.error = None
    found = await reader.facts("llm", "keys")
    assert found is not None
    assert found.consents


async def test_what_was_read_holds_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()
    api.let.set()
    reader = SecretReader(api)
    await reader.facts("llm", "keys")
    api.consent = "false"
    before = await reader.facts("llm", "keys")
    assert before is not None
    assert before.consents
    monkeypatch.setattr(gathering, "_FRESH_SECONDS", 0.0)
    after = await reader.facts("llm", "keys")
    assert after is not None
    assert not after.consents
