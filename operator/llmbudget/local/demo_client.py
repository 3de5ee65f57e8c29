"""The application in the demo: many workers, the official OpenAI client, and a token.

It runs as a process of its own and knows two things: where the gateway is, and a file with a
ServiceAccount token. Each worker asks one question after the other until the answer is 402. What
happens is written to the output, a JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count
from pathlib import Path
from typing import Final

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

MODEL: Final = "claude-3-sonnet"
"""What the application would like; the budget may move it to another."""
LIMIT: Final = 200
"""Most tokens that an answer may have."""


def say(**event: object) -> None:
    """Write one event."""
    print(json.dumps(event), flush=True)


async def work(client: AsyncOpenAI, number: int) -> None:
    """Spend until there is nothing left; answers are of all lengths, the same in every run."""
    for question in count():
        words = 60 + (37 * number + 53 * question) % (LIMIT - 60)
        prompt = f"What should a platform team know about LLM spending? Answer in {words} words."
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, max_tokens=LIMIT, messages=[{"role": "user", "content": prompt}]
            )
        except APIStatusError as error:
            say(status=error.status_code, message=_message(error))
            if error.status_code != 429:
                return
        except APIConnectionError as error:
            say(status=0, message=str(error))
            return
        else:
            say(status=200, model=raw.headers.get("x-llmbudget-model"))


def _message(error: APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)


async def main(base_url: str, token: str, workers: int) -> None:
    """Run the workers to their end."""
    async with AsyncOpenAI(base_url=base_url, api_key=token, timeout=60) as client:
        await asyncio.gather(*(work(client, number) for number in range(workers)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().strip(), int(sys.argv[3])))
