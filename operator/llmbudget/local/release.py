"""`llmbudget local release`: what `kubectl apply -f` installs, from this checkout's manifests."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from llmbudget.local import binaries
from llmbudget.local.stage import ROOT

FILES: Final = {"llmbudget.yaml": "default", "llmbudget-namespace.yaml": "namespace"}
"""File → folder of manifests/ that it is built from."""
_MENTIONS: Final = {"llmbudget.yaml": 2, "llmbudget-namespace.yaml": 0}
"""How often each names the image: the operator's own, and the gateways' that it starts."""


class NotWhole(Exception):
    """The manifests don't give what is to be released; the message says why."""


@click.command()
@click.option("--image", help="Image of operator and gateways; default: that of the manifests.")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(image: str | None, directory: Path) -> None:
    """Write the files of a release into DIRECTORY."""
    try:
        for path in release(directory, image):
            click.echo(path)
    except (NotWhole, OSError, binaries.BuildFailed) as error:
        raise click.ClickException(str(error)) from None


def release(directory: Path, image: str | None = None) -> list[Path]:
    """Write every file of the release and return their paths.

    Raises:
        NotWhole: kustomize failed, or the manifests name another image than this version's.
    """
    kubectl = binaries.find(lambda _: None).kubectl
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, folder in FILES.items():
        text = _header(name) + _with_image(kustomize(kubectl, folder), name, image)
        (directory / name).write_text(text, encoding="utf-8")
        written.append(directory / name)
    return written


def kustomize(kubectl: Path, folder: str) -> str:
    """Build a folder of manifests/.

    Raises:
        NotWhole: kustomize refuses it.
    """
    command = [str(kubectl), "kustomize", str(ROOT / "manifests" / folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise NotWhole(f"manifests/{folder}: {built.stderr.strip()}")
    return built.stdout


def _header(name: str) -> str:
    where = " -n NAMESPACE" if name == "llmbudget-namespace.yaml" else ""
    return f"# LLM Budget {version('llmbudget')}: kubectl apply{where} -f {name}\n"


def _with_image(text: str, name: str, image: str | None) -> str:
    default = f"llmbudget:{version('llmbudget')}"
    if text.count(default) != _MENTIONS[name]:
        raise NotWhole(
            f"{name} names the image {default} {text.count(default)} times instead of"
            f" {_MENTIONS[name]}: bring manifests/ and the version of pyproject.toml together"
        )
    return text.replace(default, image or default)
