"""Every rule of the CRDs on the real API server: good files pass, bad ones are told why.

The first line of a bad file, `# expect: ...`, is a part of the API server's answer. A file in
update/ holds a budget and what it is changed to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Kubectl = Callable[..., str]

HERE = Path(__file__).parent
GOOD = sorted((HERE / "good").glob("*.yaml"))
BAD = sorted((HERE / "bad").glob("*.yaml"))
UPDATES = sorted((HERE / "update").glob("*.yaml"))

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("crds")]


def expected(path: Path) -> str:
    """The answer that the first line of a file announces."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    prefix = "# expect: "
    assert first.startswith(prefix), f"{path.name} must begin with {prefix!r}"
    return first.removeprefix(prefix)


def answer(kubectl: Kubectl, *arguments: str, stdin: str | None = None) -> str:
    """What the API server says: "accepted", or its refusal."""
    try:
        kubectl(*arguments, stdin=stdin)
    except Exception as refusal:
        return str(refusal)
    return "accepted"


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good(path: Path, kubectl: Kubectl) -> None:
    assert answer(kubectl, "create", "--dry-run=server", "-f", str(path)) == "accepted"


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad(path: Path, kubectl: Kubectl) -> None:
    refusal = answer(kubectl, "create", "--dry-run=server", "-f", str(path))
    assert expected(path) in refusal


@pytest.mark.parametrize("path", UPDATES, ids=lambda path: path.stem)
def test_update(path: Path, kubectl: Kubectl, namespace: str) -> None:
    before, after = path.read_text(encoding="utf-8").split("---\n")
    kubectl("-n", namespace, "create", "-f", "-", stdin=before)
    result = answer(kubectl, "-n", namespace, "replace", "-f", "-", stdin=after)
    assert expected(path) in result
