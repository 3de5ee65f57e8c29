"""Argo CD itself, as processes: application controller and repo server from its Go module, Redis
from Debian's package, which is installed where this is root. Nothing of it runs in the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from llmbudget.local import binaries
from llmbudget.local.process import free_port, spawn, stop
from llmbudget.local.stage import ROOT, Stage

Manifest = dict[str, Any]
NAMESPACE = "argocd"
HEALTH = ROOT / "manifests" / "argocd" / "argocd-cm.yaml"


def crd(plural: str, kind: str) -> Manifest:
    """What Argo CD stores, without the schema of its own definition."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1alpha1", "served": True, "storage": True}
    names = {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.argoproj.io"},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": names,
            "versions": [version | {"schema": {"openAPIV3Schema": anything}}],
        },
    }


def object_of(kind: str, name: str, **content: Any) -> Manifest:
    group = "argoproj.io/v1alpha1" if kind in ("AppProject", "Application") else "v1"
    labels = {"app.kubernetes.io/part-of": "argocd"}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": group, "kind": kind, "metadata": metadata, **content}


def redis_server() -> str:
    """Find Redis, installing it where that is possible."""
    if shutil.which("redis-server") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise AssertionError("Redis is missing: install Debian's package redis-server")
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "redis-server"]
        # Debian starts it at once: not here.
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    found = shutil.which("redis-server")
    assert found
    return found


class Repository:
    """A git repository on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def commit(self, **files: list[Manifest]) -> str:
        """Write files (name → documents) and commit them; return the commit."""
        for name, documents in files.items():
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "change")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        author = ("-c", "user.name=tests", "-c", "user.email=tests@example.invalid")
        command = ["git", "-C", str(self.folder), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class ArgoCD:
    """Two processes and their Redis, that end with the test."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._folder = folder
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> ArgoCD:
        self._folder.mkdir()
        (self._folder / "home").mkdir()
        await self._install()
        redis, repo = free_port(), free_port()
        await self._start(
            "redis",
            [redis_server(), "--port", str(redis), "--bind", "127.0.0.1", "--save", ""],
        )
        at = ["--redis", f"127.0.0.1:{redis}", "--loglevel", "warn"]
        await self._start(
            "argocd-repo-server",
            ["--port", str(repo), "--address", "127.0.0.1", "--disable-tls", *at],
            ["--metrics-address", "127.0.0.1", "--metrics-port", str(free_port())],
        )
        await self._start(
            "argocd-application-controller",
            ["--kubeconfig", str(self._stage.kubeconfig), "--namespace", NAMESPACE, *at],
            ["--repo-server", f"127.0.0.1:{repo}", "--repo-server-plaintext"],
            ["--metrics-port", str(free_port()), "--self-heal-timeout-seconds", "1"],
            ["--persist-resource-health"],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await self._stage.kubectl("delete", "application.argoproj.io", "--all", "-n", NAMESPACE)

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    async def _install(self) -> None:
        definitions = [crd("applications", "Application"), crd("appprojects", "AppProject")]
        await self._apply(*definitions)
        await self._stage.kubectl(
            "wait", "--for=condition=Established", "--timeout=30s", "crd/applications.argoproj.io"
        )
        everything = {"group": "*", "kind": "*"}
        anywhere = {"server": "*", "namespace": "*"}
        project = {"sourceRepos": ["*"], "destinations": [anywhere]}
        names = ("argocd-cm", "argocd-rbac-cm", "argocd-gpg-keys-cm", "argocd-tls-certs-cm")
        await self._apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            *(object_of("ConfigMap", name) for name in names),
            object_of("ConfigMap", "argocd-ssh-known-hosts-cm", data={"ssh_known_hosts": ""}),
            object_of("Secret", "argocd-secret", stringData={"server.secretkey": "of-tests"}),
            object_of(
                "AppProject",
                "default",
                spec=project | {"clusterResourceWhitelist": [everything]},
            ),
        )
        # As the manual says.
        await self._stage.kubectl("apply", "--server-side", "-n", NAMESPACE, "-f", str(HEALTH))

    async def _apply(self, *manifests: Manifest) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        await self._stage.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    async def _start(self, name: str, *arguments: list[str]) -> None:
        argv: list[str | Path] = [part for group in arguments for part in group]
        environment = os.environ | {
            "HOME": str(self._folder / "home"),
            "KUBECONFIG": str(self._stage.kubeconfig),
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_BINARY_NAME": name,
        }
        if name != "redis":
            argv.insert(0, binaries.tool("argocd", print))
        log = self._stack.enter_context(self.log(name).open("wb"))
        process = await spawn(argv, output=log, environment=environment)
        self._stack.push_async_callback(stop, process)

    async def application(self, name: str, repository: Repository, **spec: Any) -> None:
        """Have a repository synced into the cluster, by itself and against drift."""
        source = {"repoURL": repository.url, "path": ".", "targetRevision": "main"}
        automated = {"prune": True, "selfHeal": True}
        written = {
            "project": "default",
            "source": source,
            "destination": {"server": "https://kubernetes.default.svc", "namespace": "default"},
            "syncPolicy": {
                "automated": automated,
                "syncOptions": ["RespectIgnoreDifferences=true"],
            },
        }
        await self._apply(object_of("Application", name, spec=written | spec))

    async def refresh(self, name: str) -> None:
        """Have it compared with the repository now."""
        await self._stage.kubectl(
            *("annotate", "application.argoproj.io", name, "-n", NAMESPACE, "--overwrite"),
            "argocd.argoproj.io/refresh=hard",
        )

    async def until_synced(
        self, name: str, commit: str, *, health: str = "Healthy", seconds: float = 90
    ) -> Manifest:
        """Wait until a commit is in the cluster, and as healthy as is said; return the status."""
        seen: Manifest = {}

        async def there() -> Manifest | None:
            found = await self._stage.get("application.argoproj.io", NAMESPACE, name)
            seen.clear()
            seen.update(found.get("status") or {})
            sync = seen.get("sync") or {}
            synced = sync.get("status") == "Synced" and sync.get("revision") == commit
            idle = (seen.get("operationState") or {}).get("phase") in (None, "Succeeded")
            well = (seen.get("health") or {}).get("status") == health
            return dict(seen) if synced and idle and well else None

        await self.refresh(name)
        try:
            return await self._stage.until(f"{name}: synced and {health}", there, seconds)
        except Exception as error:
            raise AssertionError(f"{error}\n{json.dumps(seen, indent=1)[:6000]}") from None

    async def until_out_of_sync(self, name: str) -> None:
        """Wait until what is in the cluster differs from what is in git."""

        async def differs() -> bool | None:
            found = await self._stage.get("application.argoproj.io", NAMESPACE, name)
            return found["status"]["sync"]["status"] == "OutOfSync" or None

        await self.refresh(name)
        await self._stage.until(f"{name}: out of sync", differs)

    async def resource(self, name: str, kind: str) -> Manifest:
        """What it says of the one resource of a kind."""
        status = (await self._stage.get("application.argoproj.io", NAMESPACE, name))["status"]
        (found,) = (one for one in status["resources"] if one["kind"] == kind)
        return dict(found)
