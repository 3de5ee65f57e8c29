"""What tests need of Debian's packages: installed where this is root, or else the test is skipped,
but not where everything must run."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def install(package: str) -> None:
    """Install a package, or end the test with a word on what is missing."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        missing = f"Debian's package {package} is missing: apt-get install {package}"
        if "CI" in os.environ:
            raise AssertionError(missing)
        pytest.skip(missing)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-qqy", "--no-install-recommends", package]):
        subprocess.run(
            ["apt-get", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL
        )
