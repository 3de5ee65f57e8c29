"""LiteLLM's proxy in a virtual environment of its own.

Its requirements are locked beside this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx
from bench import environment

from llmbudget.local.process import free_port, spawn, stop

VERSION: Final = "1.106.0"
REQUIREMENTS: Final = Path(__file__).with_name("requirements-litellm.txt")
MASTER_KEY: Final = "sk-bench"
START_SECONDS: Final = 180


def configuration(
    prices: Mapping[str, Mapping[str, str]], provider: str, key: str, cap: int | None
) -> dict[str, Any]:
    """Describe the same provider, prices and cap (nano-USD; None: no budget) to LiteLLM."""
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": provider,
                "api_key": key,
                "input_cost_per_token": float(Decimal(price["inputPer1K"]) / 1000),
                "output_cost_per_token": float(Decimal(price["outputPer1K"]) / 1000),
            },
        }
        for name, price in prices.items()
    ]
    router: dict[str, Any] = {"num_retries": 0}
    if cap is not None:
        budget = {"budget_limit": float(Decimal(cap) / 10**9), "time_period": "30d"}
        router["provider_budget_config"] = {"openai": budget}
    return {
        "model_list": models,
        "router_settings": router,
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": MASTER_KEY},
    }


@contextlib.asynccontextmanager
async def running(
    config: Mapping[str, Any], folder: Path, *, prefix: Sequence[str] = ()
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Serve for the block; the value is the base URL and the process."""
    name = f"litellm-{VERSION}"
    packages = await asyncio.to_thread(environment.installed, name, REQUIREMENTS)
    port = free_port()
    file = folder / "litellm.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    program = packages / "bin" / "litellm"
    command = [*prefix, program, "--config", file, "--host", "127.0.0.1", "--port", str(port)]
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    url = f"http://127.0.0.1:{port}"
    with (folder / "litellm.log").open("wb") as log:
        process = await spawn(command, environment=variables, output=log)
        try:
            await _ready(process, url, Path(log.name))
            yield url, process
        finally:
            await stop(process)


async def _ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while process.returncode is None and time.monotonic() < deadline:
            try:
                if (await client.get(f"{url}/health/liveliness")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit(f"LiteLLM did not start: see {log}")


async def recorded(url: str) -> int:
    """Read what its provider budget has counted, rounded to nano-USD."""
    headers = {"authorization": f"Bearer {MASTER_KEY}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        budgets = (await client.get(f"{url}/provider/budgets")).text
    spend = json.loads(budgets, parse_float=Decimal)["providers"]["openai"]["spend"]
    return round(Decimal(spend) * 10**9)
