"""`llmbudget crds`: the files that are generated from the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import yaml

from llmbudget.api.compatibility import breaks
from llmbudget.api.crd import KINDS, crd, file_name, to_yaml
from llmbudget.api.reference import reference


@click.group(name="crds")
def command() -> None:
    """Generate CRDs and the field reference."""


@command.command(short_help="Write crds/ and docs/reference.md.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a file differs.")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
def generate(check: bool, directory: Path) -> None:
    """Write crds/ and docs/reference.md below DIRECTORY, the checkout (default: here)."""
    stale = [
        directory / path for path, text in generated().items() if _read(directory / path) != text
    ]
    if check and stale:
        names = ", ".join(str(path) for path in stale)
        raise click.ClickException(f"{names}: not as generated, run `llmbudget crds generate`")
    if check:
        return
    for path, text in generated().items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        click.echo(target)


@command.command(short_help="Compare the CRDs with released ones.")
@click.argument("released", type=click.Path(path_type=Path, file_okay=False, exists=True))
def compare(released: Path) -> None:
    """Check that what the CRDs in RELEASED took, those of this version take too.

    A break that is meant is a line of RELEASED/accepted.txt.
    """
    found = [
        f"{crd(kind)['metadata']['name']}: {found}"
        for kind in KINDS
        for found in breaks(yaml.safe_load((released / file_name(kind)).read_text()), crd(kind))
    ]
    meant = (_read(released / "accepted.txt") or "").splitlines()
    wrong = [line for line in found if line not in meant]
    wrong += [
        f"{released / 'accepted.txt'}: no longer so: {one}" for one in meant if one not in found
    ]
    if wrong:
        raise click.ClickException(
            "stored resources or written manifests would break:\n  "
            + "\n  ".join(wrong)
            + f"\nTake the change back, or name it in CHANGELOG.md and {released / 'accepted.txt'}"
        )


def generated() -> Mapping[str, str]:
    """All generated files: path in the checkout → text."""
    definitions = {f"crds/{file_name(kind)}": to_yaml(crd(kind)) for kind in KINDS}
    return {**definitions, "docs/reference.md": reference(KINDS)}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
