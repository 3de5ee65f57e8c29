"""The base's packages in the bill of materials: the same that dpkg itself lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STATUS = """\
Package: zlib1g
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: zlib
Version: 1:1.2.13.dfsg-1
Description: compression library
 Package: of no meaning here

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Source: gcc-12 (12.2.0-14+deb12u1)
Version: 12.2.0-14+b1
"""
RELEASE = 'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n'


def bill_of(folder: Path, **files: str) -> tuple[dict[str, Any], str]:
    bill = folder / "sbom.json"
    python = {"bom-ref": "p", "name": "click", "purl": "pkg:pypi/click@8", "version": "8"}
    bill.write_text(json.dumps({"components": [python], "dependencies": [{"ref": "p"}]}))
    for name, text in files.items():
        path = folder / "root" / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, ROOT / "scripts" / "sbom-base", bill, folder / "root"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(bill.read_text()), done.stdout


def test_what_is_installed_is_listed_by_package_urls(tmp_path: Path) -> None:
    found, _ = bill_of(tmp_path, var__lib__dpkg__status=STATUS, etc__os_release=RELEASE)
    assert [(part["name"], part["version"]) for part in found["components"]] == [
        ("click", "8"),
        ("libstdc++6", "12.2.0-14+b1"),
        ("zlib1g", "1:1.2.13.dfsg-1"),
    ]
    assert [part["purl"] for part in found["components"][1:]] == [
        "pkg:deb/debian/libstdc++6@12.2.0-14%2Bb1"
        "?arch=amd64&distro=debian-12&upstream=gcc-12%4012.2.0-14%2Bdeb12u1",
        "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-12&upstream=zlib",
    ]
    refs = {part["bom-ref"] for part in found["components"]}
    assert refs == {each["ref"] for each in found["dependencies"]}


def test_distroless_images_have_a_list_a_package(tmp_path: Path) -> None:
    one = "Package: base-files\nArchitecture: amd64\nVersion: 12.4\n"
    files = {"var__lib__dpkg__status.d__base": one, "etc__os_release": RELEASE}
    found, _ = bill_of(tmp_path, **files)
    assert [part["name"] for part in found["components"]] == ["click", "base-files"]


def test_a_base_that_is_no_debian_is_told_of(tmp_path: Path) -> None:
    found, said = bill_of(tmp_path)
    assert len(found["components"]) == 1
    assert "has no list of Debian packages" in said
