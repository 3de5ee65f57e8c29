"""Processes that end with the one that started them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
GRACE: Final = 10.0
"""Seconds that a process has to end before it is killed."""


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, however it dies (Linux).

    Meant for the child's side of a fork. SIGINT is ignored: a Ctrl-C at the terminal reaches every
    process of the group, and the parent ends its children in an order of its own.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def spawn(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    stdout: int | None = None,
) -> asyncio.subprocess.Process:
    """Start a process that ends with this one; `output` takes what it says.

    Raises:
        OSError: it can't be started.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout if stdout is not None else output,
        stderr=output,
        env=environment,
        preexec_fn=die_with_parent,
    )


async def stop(process: asyncio.subprocess.Process, grace: float = GRACE) -> None:
    """End a process: ask, wait, and only then kill."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def free_port() -> int:
    """Find a port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
