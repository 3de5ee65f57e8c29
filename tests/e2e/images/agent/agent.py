"""An application in a pod: it calls the model of its environment until it is told to stop.

Each answer is one line of JSON on the output. WORKERS callers work at once, each waiting PAUSE
seconds between calls; every call asks for WORDS words. SIGTERM ends the work, and the process
stays, so that its output can be read to the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

MODEL = os.environ["LLM_MODEL"]
WORDS = int(os.environ.get("WORDS", "100"))
PAUSE = float(os.environ.get("PAUSE", "0.2"))
WORKERS = int(os.environ.get("WORKERS", "1"))
TOKEN = Path("/var/run/secrets/llmbudget/token")


def say(**event: object) -> None:
    print(json.dumps({"at": round(time.time(), 3), **event}), flush=True)


async def token() -> str:
    """Read the token anew for each call: it rotates."""
    return await asyncio.to_thread(TOKEN.read_text)


async def work(client: AsyncOpenAI, enough: asyncio.Event) -> None:
    while not enough.is_set():
        started = time.monotonic()
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL,
                max_tokens=WORDS,
                messages=[{"role": "user", "content": f"Answer in {WORDS} words."}],
            )
            answered = {
                "status": 200,
                "model": raw.headers.get("x-llmbudget-model"),
                "cost": raw.headers.get("x-llmbudget-cost-usd"),
            }
        except APIStatusError as error:
            answered = {"status": error.status_code, "message": error.message}
        except APIConnectionError as error:
            answered = {"status": 0, "message": repr(error.__cause__ or error)}
        say(**answered, seconds=round(time.monotonic() - started, 3))
        await asyncio.sleep(PAUSE)


async def main() -> None:
    say(started=MODEL)
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)
    retries = int(os.environ.get("RETRIES", "0"))
    async with AsyncOpenAI(api_key=token, max_retries=retries, timeout=30) as client:
        await asyncio.gather(*(work(client, enough) for _ in range(WORKERS)))
    say(ended=True)
    while True:
        signal.pause()


asyncio.run(main())
