"""Packages that only a bench or a test needs, each set in an environment of its own.

Their requirements are locked with hashes. An environment is made in the user's cache folder when it
is first needed, and again when its requirements change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def installed(name: str, requirements: Path) -> Path:
    """Return the environment's folder, a virtual environment of this Python."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "llmbudget" / f"{name}-{digest}"
    if not (folder / "complete").exists():
        print(f"installing {name} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        install = ["pip", "install", "-q", "--require-hashes", "-r", requirements]
        subprocess.run([*uv, *install, "--python", folder / "bin" / "python"], check=True)
        (folder / "complete").touch()
    return folder
