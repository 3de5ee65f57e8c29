"""What a run needs and can be built beforehand: binaries and images. `prepare FOLDER` leaves the
images as archives in FOLDER/images, `prepare` alone only builds the product's image; what was built
before is taken from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from llmbudget.local import binaries

ROOT = Path(__file__).parents[3]
BASE = "localhost/llmbudget-base:bookworm"
TOOLS = ("kubelet", "kube-scheduler", "kube-proxy", "kube-router", "coredns", "kwok")
PRODUCT = f"llmbudget:{version('llmbudget')}"
NEXT = PRODUCT.partition(":")[0] + ":next"
"""The product's image by another name: an update."""
AGENT = "llmbudget-e2e-agent:1"
POSTGRES = "llmbudget-e2e-postgres:1"
PAUSE = "llmbudget-e2e-pause:1"
BINARY_IMAGES = {name: f"llmbudget-e2e-{name}:1" for name in ("coredns", "metrics-server")}
"""Images that hold nothing but one static binary."""


def say(text: str) -> None:
    print(f"e2e: {text}", flush=True)


def run(*command: str | Path, **environment: str) -> str:
    """Run a command of the preparation and return what it says."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"e2e: {' '.join(map(str, command))} failed")
    return done.stdout.strip()


def build_product() -> None:
    """Build the product's image, into the storage that the environment names."""
    if not has_image(BASE):
        say("making a base image from Debian's packages: about two minutes, once")
        run("scripts/image-base", BASE)
    say(f"building {PRODUCT}: seconds where its dependencies are cached, or else a minute")
    built = run("scripts/image", IMAGE=PRODUCT, BASE_IMAGE=BASE)
    say(built.splitlines()[0].removeprefix("image: "))


def build_images() -> list[str]:
    """Build all images; return their names."""
    build_product()
    run("buildah", "tag", PRODUCT, NEXT)
    say("building the images around it: seconds, the first time two minutes")
    for name in (AGENT, POSTGRES):
        folder = name.removeprefix("llmbudget-e2e-").partition(":")[0]
        file = ROOT / "tests" / "e2e" / "images" / folder / "Dockerfile"
        run("scripts/image", IMAGE=name, BASE_IMAGE=BASE, DOCKERFILE=str(file))
    make_image(PAUSE, BASE, {}, "--entrypoint", '["/usr/bin/sleep", "infinity"]', "--user", "1000")
    for name, image in BINARY_IMAGES.items():
        program = binaries.tool(name, say)
        entrypoint = ("--entrypoint", f'["/{name}"]', "--user", "1000")
        make_image(image, "scratch", {program: f"/{name}"}, *entrypoint)
    return [PRODUCT, NEXT, AGENT, POSTGRES, PAUSE, *BINARY_IMAGES.values()]


def has_image(name: str) -> bool:
    """Tell whether the storage has an image."""
    command = ["buildah", "inspect", "--type", "image", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_image(name: str, base: str, files: dict[Path, str], *config: str) -> None:
    """Make an image of a base and some files."""
    container = run("buildah", "from", "--pull=never", base)
    for source, target in files.items():
        run("buildah", "copy", "--quiet", container, source, target)
    run("buildah", "config", "--cmd", "", container)
    run("buildah", "config", *config, container)
    run("buildah", "commit", "--quiet", "--rm", "--timestamp", "0", container, name)


def export(images: Sequence[str], folder: Path) -> None:
    """Write each image as an archive that containerd imports."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        target = folder / f"{name.replace(':', '-')}.tar"
        archive = f"docker-archive:{target}:docker.io/library/{name}"
        run("buildah", "push", "--quiet", name, archive)


def main(folder: Path | None) -> None:
    """Build what is missing."""
    if folder is None:
        build_product()
        return
    started = time.monotonic()
    binaries.find(say)
    for name in TOOLS:
        binaries.tool(name, say)
    export(build_images(), folder / "images")
    say(f"binaries and images are there after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
