"""LiteLLM's proxy with its provider budgets, in a virtual environment of its own.

Its requirements are locked beside this file. The environment is made in the user's cache folder
when it is first needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final

import httpx
from load import Outcome, Scenario, fire

from llmbudget.local.process import free_port, spawn, stop

VERSION: Final = "1.106.0"
REQUIREMENTS: Final = Path(__file__).with_name("requirements-litellm.txt")
MASTER_KEY: Final = "sk-bench"
START_SECONDS: Final = 180
SETTLE_SECONDS: Final = 5
"""LiteLLM adds costs up in the background; after this long they are all there."""


def installed() -> Path:
    """Return the environment's folder, making it when its requirements are new."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "llmbudget" / f"litellm-{VERSION}-{digest}"
    if not (folder / "complete").exists():
        print(f"installing LiteLLM {VERSION} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        install = ["pip", "install", "-q", "--require-hashes", "-r", REQUIREMENTS]
        subprocess.run([*uv, *install, "--python", folder / "bin" / "python"], check=True)
        (folder / "complete").touch()
    return folder


def configuration(scenario: Scenario, provider: str, key: str) -> dict[str, Any]:
    """Describe the same provider, prices and cap to LiteLLM."""
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
        for name, price in scenario.prices.items()
    ]
    budget = {"budget_limit": float(Decimal(scenario.cap) / 10**9), "time_period": "30d"}
    return {
        "model_list": models,
        "router_settings": {"provider_budget_config": {"openai": budget}, "num_retries": 0},
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": MASTER_KEY},
    }


async def run(scenario: Scenario, provider: str, key: str, folder: Path) -> Outcome:
    """Put a scenario through LiteLLM; `folder` takes its configuration and log."""
    environment = await asyncio.to_thread(installed)
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(configuration(scenario, provider, key)))  # JSON is YAML
    command = [environment / "bin" / "litellm", "--config", config, "--host", "127.0.0.1"]
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with (folder / "litellm.log").open("wb") as log:
        process = await _start([*command, "--port", str(port)], variables, log)
        try:
            return await _measure(scenario, port, provider)
        finally:
            await stop(process)


async def _start(
    command: list[str | Path], variables: dict[str, str], log: IO[bytes]
) -> asyncio.subprocess.Process:
    process = await spawn(command, environment=variables, output=log)
    url = f"http://127.0.0.1:{command[-1]}/health/liveliness"
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(url)).is_success:
                    return process
            except httpx.TransportError:
                pass
            if process.returncode is not None or time.monotonic() > deadline:
                await stop(process)
                raise SystemExit(f"LiteLLM did not start: see {log.name}")
            await asyncio.sleep(0.2)


async def _measure(scenario: Scenario, port: int, provider: str) -> Outcome:
    base = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    answers = await fire(scenario, f"{base}/v1", MASTER_KEY)
    seconds = time.monotonic() - started
    await asyncio.sleep(SETTLE_SECONDS)
    headers = {"authorization": f"Bearer {MASTER_KEY}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        budgets = (await client.get(f"{base}/provider/budgets")).text
        bill = (await client.get(f"{provider.removesuffix('/v1')}/bill")).json()
    spend = json.loads(budgets, parse_float=Decimal)["providers"]["openai"]["spend"]
    recorded = round(Decimal(spend) * 10**9)
    return Outcome(f"LiteLLM {VERSION}", answers, seconds, bill["nano"], recorded)
