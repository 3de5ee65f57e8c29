"""`llmbudget local release`: what `kubectl apply -f` installs, from this checkout's manifests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from llmbudget.local import binaries
from llmbudget.local.stage import ROOT


@dataclass(frozen=True, slots=True)
class _File:
    folder: str
    """Of manifests/, that it is built from."""
    use: str
    """How it is applied."""
    images: int = 0
    """How often it names the image: the operator's own, and the gateways' that it starts."""


FILES: Final = {
    "llmbudget.yaml": _File("default", "kubectl apply -f llmbudget.yaml", images=2),
    "llmbudget-namespace.yaml": _File(
        "namespace", "kubectl apply -n NAMESPACE -f llmbudget-namespace.yaml"
    ),
    "llmbudget-prerequisites.yaml": _File(
        "prerequisites", "kubectl apply -f llmbudget-prerequisites.yaml"
    ),
    "llmbudget-namespaced.yaml": _File(
        "namespaced",
        "sed s/llmbudget-team/NAMESPACE/ llmbudget-namespaced.yaml | kubectl apply -f -",
        images=2,
    ),
}
"""What is released."""


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
    for name, file in FILES.items():
        text = f"# LLM Budget {version('llmbudget')}: {file.use}\n"
        text += _with_image(kustomize(kubectl, file.folder), name, image)
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


def _with_image(text: str, name: str, image: str | None) -> str:
    default = f"llmbudget:{version('llmbudget')}"
    if text.count(default) != FILES[name].images:
        raise NotWhole(
            f"{name} names the image {default} {text.count(default)} times instead of"
            f" {FILES[name].images}: bring manifests/ and the version of pyproject.toml together"
        )
    return text.replace(default, image or default)
