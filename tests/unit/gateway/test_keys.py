"""A provider's key: the newest one that can stand in a header, or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.support.offers import offer

from llmbudget.contract.config import ProviderConfig
from llmbudget.gateway.keys import CHECK_SECONDS, Keys

KEY = "sk-or-v1-0123456789abcdef"
PROVIDER = offer().provider
OTHER = offer(owner="anthropic").provider
VARIABLE = "OPENROUTER_API_KEY"


class Folder:
    """The keys' volume, written as the kubelet does: a link is swapped to a new folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self._version = 0

    def swap(self, **keys: bytes) -> None:
        self._version += 1
        new = self.path / f"..{self._version}"
        new.mkdir()
        for name, content in keys.items():
            (new / name).write_bytes(content)
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(Path("..data", name))
        link = self.path / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(self.path / "..data")

    def wait(self) -> None:
        self.now += CHECK_SECONDS


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def keys(folder: Folder) -> Keys:
    return Keys(folder.path, lambda: folder.now)


def from_environment() -> ProviderConfig:
    return PROVIDER.model_copy(update={"key_env": VARIABLE})


@pytest.mark.parametrize("written", [KEY, f"{KEY}\n", f"{KEY}\r\n", f"  {KEY}\t\n\n", f"\n{KEY}"])
def test_what_stands_around_a_key_is_left_out(folder: Folder, keys: Keys, written: str) -> None:
    folder.swap(openrouter=written.encode())
    assert keys.get(PROVIDER) == KEY


UNUSABLE = [
    b"",
    b" ",
    b"\n",
    b" \t\r\n",
    b"sk-a\nsk-b",
    b"sk-a\r\nx-admin: true",
    b"sk-a\rsk-b",
    b"sk-a\tsk-b",
    b"sk-a\x00",
    b"sk-\x1b[0m",
    b"sk-a\x7f",
    "sk-ключ".encode(),
    "sk-a\u2028b".encode(),
    "sk-a\u00a0b".encode(),
    b"\xef\xbb\xbfsk-a",
    b"\xff\xfes\x00k\x00",
]


@pytest.mark.parametrize("written", UNUSABLE)
def test_what_cannot_stand_in_a_header_is_no_key(
    folder: Folder, keys: Keys, written: bytes
) -> None:
    folder.swap(openrouter=written)
    assert keys.get(PROVIDER) is None
    assert [*keys.missing([PROVIDER])] == ["openrouter"]


@pytest.mark.parametrize("written", [text for text in UNUSABLE if b"\x00" not in text])
def test_nor_in_the_environment(
    keys: Keys, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, os.fsdecode(written))
    assert keys.get(from_environment()) is None


def test_the_environment_where_it_was_chosen_and_nowhere_else(
    folder: Folder, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.swap(openrouter=b"sk-of-the-file")
    assert keys.get(from_environment()) is None, "the file does not stand in for it"
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    assert keys.get(from_environment()) == KEY
    assert keys.get(PROVIDER) == "sk-of-the-file"


def test_no_folder_no_file_or_a_folder_in_its_place(folder: Folder, keys: Keys) -> None:
    assert Keys(folder.path / "nowhere").get(PROVIDER) is None
    assert keys.get(PROVIDER) is None
    (folder.path / "anthropic").mkdir()
    assert keys.get(OTHER) is None


def test_each_provider_has_a_file_of_its_own_name(folder: Folder, keys: Keys) -> None:
    folder.swap(openrouter=b"sk-router")
    assert (keys.get(PROVIDER), keys.get(OTHER)) == ("sk-router", None)
    assert [*keys.missing([PROVIDER, OTHER])] == ["anthropic"]


def test_a_rotated_key_is_read_within_a_second(folder: Folder, keys: Keys) -> None:
    folder.swap(openrouter=b"sk-old")
    assert keys.get(PROVIDER) == "sk-old"
    folder.swap(openrouter=b"sk-new")
    folder.now += CHECK_SECONDS / 2
    assert keys.get(PROVIDER) == "sk-old", "a stat costs more than a dict"
    folder.now += CHECK_SECONDS / 2
    assert keys.get(PROVIDER) == "sk-new"


def test_asking_often_does_not_put_the_check_off(folder: Folder, keys: Keys) -> None:
    folder.swap(openrouter=b"sk-old")
    keys.get(PROVIDER)
    folder.swap(openrouter=b"sk-new")
    for _ in range(8):
        folder.now += CHECK_SECONDS / 8
        found = keys.get(PROVIDER)
    assert found == "sk-new"


def test_a_file_that_is_written_in_place_is_read_again(folder: Folder, keys: Keys) -> None:
    path = folder.path / "openrouter"
    path.write_text("sk-old")
    assert keys.get(PROVIDER) == "sk-old"
    path.write_text("sk-new")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    folder.wait()
    assert keys.get(PROVIDER) == "sk-new"


def test_a_key_that_is_taken_away_is_used_no_longer_and_one_that_comes_is(
    folder: Folder, keys: Keys
) -> None:
    assert keys.get(PROVIDER) is None
    folder.swap(openrouter=KEY.encode())
    folder.wait()
    assert keys.get(PROVIDER) == KEY
    folder.swap()
    folder.wait()
    assert keys.get(PROVIDER) is None
    folder.swap(openrouter=b"\n")
    folder.wait()
    assert keys.get(PROVIDER) is None
    folder.swap(openrouter=KEY.encode())
    folder.wait()
    assert keys.get(PROVIDER) == KEY


def test_a_file_without_end_is_not_read_without_end(folder: Folder, keys: Keys) -> None:
    folder.swap(openrouter=b"k" * 1_000_000)
    found = keys.get(PROVIDER)
    assert found is None or len(found) <= 16 * 1024


def test_a_file_that_could_not_be_read_once_is_read_again(
    folder: Folder, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.swap(openrouter=KEY.encode())

    def too_many(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(Path, "read_bytes", too_many)
        assert keys.get(PROVIDER) is None
    folder.wait()
    assert keys.get(PROVIDER) == KEY
