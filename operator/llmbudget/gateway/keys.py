"""The providers' keys: from the volume, the environment or Vault, and never told to anyone.

The kubelet swaps a volume's content when a Secret changes, so a file is read again when it is
another one; at most once a second, since a stat costs more than a dict.
"""

from __future__ import annotations

import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from llmbudget.contract.config import VAULT_DIRECTORY, ProviderConfig
from llmbudget.gateway.vault_keys import VaultKeys, clean

CHECK_SECONDS: Final = 1.0
_MOST_BYTES: Final = 16 * 1024
_NO_FILE: Final = (
    "its Secret lacks the key that credentials.secretKeyRef names, or the kubelet has not brought"
    " it yet"
)
MASK: Final = b"[masked]"
_LEAST_BASE64: Final = 12
"""Characters of base64 below which a match would be chance."""


class Keys:
    """The keys of all providers."""

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
        vault: Path = Path(VAULT_DIRECTORY),
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._vault = VaultKeys(vault, clock)
        self._read: dict[str, tuple[float, tuple[int, int] | None, str | None]] = {}

    def get(self, provider: ProviderConfig) -> str | None:
        """Return a provider's key as it is known now; None: there is none."""
        if provider.vault is not None:
            return self._vault.of(provider, provider.vault).get()
        if provider.key_env is not None:
            return clean(os.environ.get(provider.key_env))
        now = self._clock()
        checked, version, key = self._read.get(provider.name, (-CHECK_SECONDS, None, None))
        if now - checked >= CHECK_SECONDS:
            path = self._directory / provider.name
            found = _version(path)
            if found != version:
                try:
                    version, key = found, clean(_read(path))
                except OSError:
                    version, key = None, None
            self._read[provider.name] = (now, version, key)
        return key

    async def awaited(self, provider: ProviderConfig) -> str | None:
        """Return a provider's key, after asking Vault where it is not known."""
        if provider.vault is not None:
            return await self._vault.of(provider, provider.vault).awaited()
        return self.get(provider)

    async def other_than(self, provider: ProviderConfig, refused: str) -> str | None:
        """Return a key in place of one that the provider refuses, which may have been rotated;
        None: there is no other."""
        if provider.vault is not None:
            return await self._vault.of(provider, provider.vault).other_than(refused)
        checked, version, key = self._read.get(provider.name, (0.0, None, None))
        self._read[provider.name] = (checked - CHECK_SECONDS, version, key)
        found = self.get(provider)
        return None if found == refused else found

    def configured(self, providers: Iterable[ProviderConfig]) -> None:
        """Keep the keys of these providers fresh, and forget all others."""
        self._vault.keep(providers)

    def missing(self, providers: Iterable[ProviderConfig]) -> Mapping[str, str]:
        """Name the providers that have no key, and say why."""
        return {each.name: self._why(each) for each in providers if self.get(each) is None}

    def _why(self, provider: ProviderConfig) -> str:
        if provider.vault is None:
            return _NO_FILE
        key = self._vault.of(provider, provider.vault)
        return f"Vault at {provider.vault.address}: {key.problem or 'its time is over'}"


def mask(data: bytes, key: str) -> bytes:
    """Take a key out of what goes back to a caller, however it is written there: as it is, escaped
    in JSON or in a URL, or in base64."""
    return data if _unescaped_without(data, key) else _pattern(key).sub(MASK, data)


def _unescaped_without(data: bytes, key: str) -> bool:
    """Tell that nothing is escaped but a text's newlines and quotes, and that no plain form of the
    key is there: nearly every answer, told in a tenth of the time that the expression takes."""
    if b"%" in data or '"' in key:
        return False
    if b"\\" in data and b"\\" in data.replace(rb"\n", b"").replace(rb"\"", b""):
        return False
    for form in _plain(key):  # noqa: SIM110 - a generator would cost more than the search
        if form in data:
            return False
    return True


def longest_mask(key: str) -> int:
    """Tell how many bytes a key may take in any of its forms."""
    return 6 * len(key)


@lru_cache(maxsize=256)
def _pattern(key: str) -> re.Pattern[bytes]:
    """Build the expression for a key: each character in any of its spellings, or the whole as the
    middle of a base64 text."""
    spelled = "".join(_spellings(character) for character in key)
    return re.compile("|".join([spelled, *map(re.escape, _encoded(key))]).encode())


@lru_cache(maxsize=256)
def _plain(key: str) -> tuple[bytes, ...]:
    """List the forms that a key has where nothing is escaped."""
    return tuple(form.encode() for form in (key, *_encoded(key)))


def _encoded(key: str) -> list[str]:
    """List the ends that a key may have in a base64 text: its first characters depend on how many
    bytes stand before the key."""
    encoded = [
        b64encode(b"\0" * shift + key.encode())[-(-4 * shift // 3) : -4].decode()
        for shift in range(3)
    ]
    return [text for text in encoded if len(text) >= _LEAST_BASE64]


def _spellings(character: str) -> str:
    code = ord(character)
    forms = {re.escape(character), f"%(?i:{code:02x})", rf"\\u(?i:{code:04x})"}
    if not character.isalnum():
        forms.add(rf"\\{re.escape(character)}")
    return f"(?:{'|'.join(sorted(forms))})"


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(path: Path) -> str:
    return path.read_bytes()[:_MOST_BYTES].decode("ascii", errors="replace")
