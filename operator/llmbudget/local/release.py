"""`llmbudget local release`: what `kubectl apply -f` and `helm install` take, from this checkout's
manifests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
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
    "llmbudget.yaml": _File("default", "kubectl apply --server-side -f llmbudget.yaml", images=2),
    "llmbudget-namespace.yaml": _File(
        "namespace", "kubectl apply --server-side -n NAMESPACE -f llmbudget-namespace.yaml"
    ),
    "llmbudget-monitoring.yaml": _File(
        "monitoring", "kubectl apply --server-side -f llmbudget-monitoring.yaml"
    ),
    "llmbudget-prerequisites.yaml": _File(
        "prerequisites", "kubectl apply --server-side -f llmbudget-prerequisites.yaml"
    ),
    "llmbudget-namespaced.yaml": _File(
        "namespaced",
        "sed s/llmbudget-team/NAMESPACE/ llmbudget-namespaced.yaml"
        " | kubectl apply --server-side -f -",
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
        NotWhole: kustomize or helm failed, or the manifests name another image than this version's.
    """
    kubectl = binaries.find(lambda _: None).kubectl
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, file in FILES.items():
        text = f"# LLM Budget {version('llmbudget')}: {file.use}\n"
        text += _with_image(kustomize(kubectl, file.folder), name, image)
        (directory / name).write_text(text, encoding="utf-8")
        written.append(directory / name)
    return [*written, package(directory, image)]


def package(directory: Path, image: str | None) -> Path:
    """Package the chart, whose values name the release's image.

    Raises:
        NotWhole: helm refuses it, or its values have no such place.
    """
    with TemporaryDirectory() as folder:
        chart = Path(shutil.copytree(ROOT / "manifests" / "chart", Path(folder) / "llmbudget"))
        values = chart / "values.yaml"
        text = values.read_text(encoding="utf-8")
        if text.count(_DEFAULT_IMAGE) != 1:
            raise NotWhole("the chart's values.yaml has another image than this version's")
        values.write_text(text.replace(_DEFAULT_IMAGE, _image_values(image)), encoding="utf-8")
        helm = binaries.tool("helm", lambda text: click.echo(text, err=True))
        _run(f"chart {chart.name}", [helm, "package", chart, "--destination", directory])
    return directory / f"llmbudget-{version('llmbudget')}.tgz"


def _image_values(image: str | None) -> str:
    name, _, digest = (image or "llmbudget").partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # a port of the registry
        repository, tag = name, ""
    return f'  repository: {repository}\n  tag: "{tag}"\n  digest: "{digest}"\n'


_DEFAULT_IMAGE: Final = _image_values(None)


def kustomize(kubectl: Path, folder: str) -> str:
    """Build a folder of manifests/.

    Raises:
        NotWhole: kustomize refuses it.
    """
    return _run(f"manifests/{folder}", [kubectl, "kustomize", ROOT / "manifests" / folder])


def _run(what: str, command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotWhole(f"{what}: {done.stderr.strip()}")
    return done.stdout


def _with_image(text: str, name: str, image: str | None) -> str:
    default = f"llmbudget:{version('llmbudget')}"
    if text.count(default) != FILES[name].images:
        raise NotWhole(
            f"{name} names the image {default} {text.count(default)} times instead of"
            f" {FILES[name].images}: bring manifests/ and the version of pyproject.toml together"
        )
    return text.replace(default, image or default)
