"""wrk: load from a process of its own, on one thread."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

BODY: Final = {
    "model": "bench",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Tell me about money in a hundred words."}],
}
_SCRIPT: Final = """
local tokens = {{{tokens}}}
local requests = {{}}
local number = 0
local refused = 0
function init(args)
  for i, token in ipairs(tokens) do
    requests[i] = wrk.format("POST", "/v1/chat/completions", {{
      ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token
    }}, {body})
  end
end
function request()
  number = number % #tokens + 1
  return requests[number]
end
function done(summary, latency, requests)
  io.write(string.format(
    '\\n{{"requests":%d,"microseconds":%d,"median":%d,"p99":%d,"most":%d,"refused":%d,"broken":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What one run measured."""

    requests: int
    """Answers in all."""
    per_second: float
    median_ms: float
    p99_ms: float
    most_ms: float
    refused: int
    """Answers with a status of 400 or more."""
    broken: int
    """Connections that failed."""


async def measure(
    url: str, tokens: Sequence[str], *, connections: int, seconds: int, folder: Path
) -> Load:
    """Send chat completions for some seconds, over so many connections, as each caller in turn.

    Raises:
        SystemExit: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("bench: wrk is missing: apt-get install wrk")
    # Of its own: several may run at once.
    script = folder / f"calls-{urlsplit(url).port}.lua"
    quoted = ", ".join(json.dumps(token) for token in tokens)
    script.write_text(_SCRIPT.format(tokens=quoted, body=f"[==[{json.dumps(BODY)}]==]"))
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"),
        *("-s", script, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode:
        raise SystemExit(f"bench: wrk failed: {err.decode()}{out.decode()}")
    found = json.loads(out.decode().strip().splitlines()[-1])
    return Load(
        requests=found["requests"],
        per_second=found["requests"] / found["microseconds"] * 1_000_000,
        median_ms=found["median"] / 1000,
        p99_ms=found["p99"] / 1000,
        most_ms=found["most"] / 1000,
        refused=found["refused"],
        broken=found["broken"],
    )
