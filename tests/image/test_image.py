"""The image of the Dockerfile: what is in it, what it needs, and that it can be built again."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = f"llmbudget:{version('llmbudget')}"
BASE = "localhost/llmbudget-base:bookworm"
HOME = "opt/llmbudget"

pytestmark = pytest.mark.skipif(
    "E2E_IMAGES" not in os.environ, reason="the image's tests run by `make test-image`"
)


def buildah(*arguments: str | Path) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    made = buildah("from", "--pull=never", IMAGE)
    yield made
    buildah("rm", made)


@pytest.fixture(scope="module")
def files(container: str) -> Path:
    """The image's root filesystem."""
    return Path(buildah("mount", container))


def digest(image: str) -> str:
    return buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", image)


def distributions(files: Path) -> set[tuple[str, str]]:
    """List (name, version) of the Python packages that are installed."""
    metadata = (files / HOME).glob("lib/python*/site-packages/*.dist-info/METADATA")
    found = set()
    for file in metadata:
        head = file.read_text(encoding="utf-8").split("\n\n")[0]
        name = re.search(r"^Name: (.+)$", head, re.MULTILINE)
        number = re.search(r"^Version: (.+)$", head, re.MULTILINE)
        assert name
        assert number
        found.add((re.sub(r"[-_.]+", "-", name[1]).lower(), number[1]))
    return found


@pytest.mark.timeout(900)
def test_a_second_build_from_nothing_gives_the_same_digest() -> None:
    environment = os.environ | {"IMAGE": "llmbudget:again", "BASE_IMAGE": BASE, "NO_CACHE": "1"}
    subprocess.run([ROOT / "scripts" / "image"], env=environment, check=True)
    assert digest("llmbudget:again") == digest(IMAGE)


def test_it_runs_as_nobody_in_particular() -> None:
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["/opt/llmbudget/bin/llmbudget"]
    assert "Cmd" not in config or not config["Cmd"]


def test_its_user_can_change_nothing_that_it_runs(files: Path) -> None:
    ours = [path for path in (files / HOME).rglob("*") if not path.is_symlink()]
    assert len(ours) > 1000
    for path in ours:
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 0), path
        assert not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def test_it_holds_what_is_locked_and_nothing_else(files: Path) -> None:
    text = (ROOT / "requirements.txt").read_text()
    locked = {
        (name.lower(), number)
        for name, number in re.findall(r"^([A-Za-z0-9_.-]+)==([^ \\]+)", text, re.MULTILINE)
    }
    found = distributions(files)
    assert ("llmbudget", version("llmbudget")) in found
    assert found - {("llmbudget", version("llmbudget"))} <= locked
    # The rest of the lock is for other systems.
    assert len(locked) - len(found) < 10


def test_its_bill_of_materials_lists_every_package(files: Path) -> None:
    text = (files / HOME / "share" / "sbom.cdx.json").read_text()
    bill: dict[str, Any] = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    of_python = [part for part in bill["components"] if part["purl"].startswith("pkg:pypi/")]
    of_base = [part for part in bill["components"] if part["purl"].startswith("pkg:deb/debian/")]
    assert len(of_python) + len(of_base) == len(bill["components"])
    by_dpkg = ["dpkg-query", f"--admindir={files}/var/lib/dpkg", "-W", "-f"]
    told = subprocess.run([*by_dpkg, "${Package} ${Version}\n"], capture_output=True, text=True)
    assert told.stdout, told.stderr
    installed = {f"{part['name']} {part['version']}" for part in of_base}
    assert installed == set(told.stdout.splitlines())
    listed = {(part["name"].lower(), part["version"]) for part in of_python}
    own = bill["metadata"]["component"]
    listed.add((own["name"], own["version"]))
    named = {(re.sub(r"[-_.]+", "-", name), number) for name, number in listed}
    assert named == distributions(files)
    assert "timestamp" not in bill["metadata"]
    assert "serialNumber" not in bill


@pytest.mark.parametrize("plane", ["operator", "gateway"])
def test_it_needs_no_shell(container: str, files: Path, plane: str) -> None:
    for name in ("sh", "bash", "dash"):
        for folder in ("bin", "usr/bin"):
            (files / folder / name).unlink(missing_ok=True)
    assert shutil.which("sh", path=f"{files}/bin:{files}/usr/bin") is None
    said = buildah(
        *("run", "--isolation", "chroot", "--user", "1000:1000", container, "--"),
        *("/opt/llmbudget/bin/llmbudget", plane, "--help"),
    )
    assert f"Usage: llmbudget {plane}" in said
