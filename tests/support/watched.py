"""A gateway process that nobody but its provider may learn a secret from."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from tests.support.canary import Taken, assert_nowhere, sweep
from tests.support.gateway_process import PROMPT, GatewayProcess, rows


@contextlib.asynccontextmanager
async def watched(
    process: GatewayProcess, taken: Taken, keys: Iterable[str], leaving: Iterable[Path]
) -> AsyncIterator[GatewayProcess]:
    """Start a gateway and, when the test is over, look for the keys and the prompt in all that it
    answered and left behind; `leaving` are the files where they belong."""
    left = list(leaving)
    process.start()
    await process.ready()
    yield process
    await process.scrape()
    assert process.stop() == 0
    answered = taken.get(process.port, bytearray())
    for secret in (*keys, PROMPT):
        assert_nowhere(secret, "an answer", answered)
        sweep(secret, process.folder, left)
    entries = [str(entry) for entry in await rows(process)]
    assert_nowhere(PROMPT, "the ledger", "\n".join(entries).encode())
