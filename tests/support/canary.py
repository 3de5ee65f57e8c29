"""A canary: what must stand nowhere, looked for in everything that a test leaves behind.

Everything that a gateway answers is taken down as it comes off the wire, whichever package the
caller uses: all of them read through httpx or, as the official clients do, through httpx2.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import httpx2
import pytest

Taken = dict[int, bytearray]
"""What came from each port."""


def take_down(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """Take down the heads and bodies of all answers from now on."""
    taken: Taken = {}
    for library in (httpx, httpx2):
        _listen_in(library.Response, taken, monkeypatch)
    return taken


def _listen_in(kind: Any, taken: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take down what comes through one library's responses."""

    def sink(response: Any) -> bytearray:
        # Answers apart from each other, and the pieces of one of them in a row.
        found = taken.setdefault(response.url.port or 0, bytearray())
        heads = b"\n".join(name + b": " + value for name, value in response.headers.raw)
        found += b"\n\n" + str(response.url).encode() + b"\n" + heads + b"\n"
        return found

    whole, pieces = kind.iter_raw, kind.aiter_raw

    def iter_raw(response: Any, chunk_size: int | None = None) -> Iterator[bytes]:
        body = bytearray()
        try:
            for chunk in whole(response, chunk_size):
                body += chunk
                yield chunk
        finally:
            found = sink(response)
            found += body

    async def aiter_raw(
        response: Any,
        chunk_size: int | None = None,
    ) -> AsyncIterator[bytes]:
        body = bytearray()
        try:
            async for chunk in pieces(response, chunk_size):
                body += chunk
                yield chunk
        finally:
            found = sink(response)
            found += body

    monkeypatch.setattr(kind, "iter_raw", iter_raw)
    monkeypatch.setattr(kind, "aiter_raw", aiter_raw)


def forms(secret: str) -> Iterable[bytes]:
    """List the ways in which a secret may be written."""
    yield secret.encode()
    yield json.dumps(secret)[1:-1].encode()
    yield quote(secret, safe="").encode()
    yield "".join(f"\\u{ord(character):04x}" for character in secret).encode()
    yield secret.encode().hex().encode()
    for shift in range(3):
        # The first and the last characters depend on what stands around the secret.
        yield b64encode(b"\0" * shift + secret.encode())[4:-4]


def assert_nowhere(secret: str, where: str, text: bytes | bytearray) -> None:
    """Fail if a secret stands in a text, however it is written."""
    for form in forms(secret):
        at = text.find(form)
        assert at < 0, f"{where} has the canary: {bytes(text[max(0, at - 200) : at + 200])!r}"


def sweep(secret: str, folder: Path, leaving: Iterable[Path]) -> None:
    """Look through all files of a folder but those where a secret belongs."""
    left = [path.resolve() for path in leaving]
    for path in folder.rglob("*"):
        inside = any(path.resolve().is_relative_to(known) for known in left)
        if path.is_file() and not inside:
            assert_nowhere(secret, str(path), path.read_bytes())
