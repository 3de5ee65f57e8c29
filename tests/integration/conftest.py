"""A whole installation on the real API server: the operator, a gateway, a provider simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.operator_stage import start_operator

from llmbudget.local import binaries
from llmbudget.local.stage import Stage


@pytest.fixture
async def stage(kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """Everything but the operator installed, and one namespace that it may manage."""
    kubectl = binaries.find(lambda _: None).kubectl
    async with Stage(tmp_path, kubeconfig, kubectl) as made:
        await made.install()
        await made.allow_namespace(namespace)
        yield made


@pytest.fixture
async def operator(stage: Stage) -> asyncio.subprocess.Process:
    """The operator as a process, with the rights of its own ServiceAccount."""
    return await start_operator(stage)
