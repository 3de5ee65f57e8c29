"""Fixtures that all tests share: one real control plane and one PostgreSQL server a process of the
run, each started when it is asked for."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.support.gateway_process import Simulator
from tests.support.operator_stage import start_operator
from tests.support.postgres_server import PostgresServer

from llmbudget.clients.cluster import Cluster
from llmbudget.local import binaries
from llmbudget.local.controlplane import ControlPlane
from llmbudget.local.stage import Stage

REPOSITORY = Path(__file__).parent.parent
Kubectl = Callable[..., str]

# How long an example takes is the machine's affair: no test is about time.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make golden`."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--storm", action="store_true", help="1,000 callers, and a larger cap")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Build what a whole run needs and the cache has not, before any test's time begins."""
    whole = session.config.getoption("dist", "no") != "no"
    if whole and not hasattr(session.config, "workerinput"):
        binaries.find(lambda text: print(text, file=sys.stderr, flush=True))


class KubectlError(Exception):
    """kubectl failed; the text is what it said."""


@pytest.fixture(scope="session")
def control_plane(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ControlPlane]:
    """A control plane with an audit log, that ends with this process."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", file=sys.stderr, flush=True)

    plane = ControlPlane(tmp_path_factory.mktemp("cluster") / "plane", say=say, audit=True)
    asyncio.run(plane.start())
    yield plane
    asyncio.run(plane.stop(keep_logs=True))


@pytest.fixture
async def empty_cluster(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane of the test's own, where nothing is installed."""
    async with ControlPlane(tmp_path / "plane", say=lambda _: None) as plane:
        yield plane


@pytest.fixture(scope="session")
def kubeconfig(control_plane: ControlPlane) -> Path:
    """The administrator's kubeconfig."""
    return control_plane.kubeconfig


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """Run kubectl: `kubectl("get", "pods", stdin=...)` returns what it printed.

    Raises KubectlError with what it printed to stderr.
    """
    program = binaries.find(lambda _: None).kubectl

    def run(*arguments: str, stdin: str | None = None) -> str:
        result = subprocess.run(
            [program, f"--kubeconfig={kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode:
            raise KubectlError(result.stderr.strip())
        return result.stdout

    return run


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    """A provider, which keeps its own bill."""
    process = Simulator(tmp_path)
    await process.ready()
    yield process
    process.stop()


@pytest.fixture
async def cluster(kubeconfig: Path) -> AsyncIterator[Cluster]:
    """Our own client, as the administrator."""
    async with Cluster.from_kubeconfig(kubeconfig) as connected:
        yield connected


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> None:
    """Our two resources, established."""
    kubectl("apply", "--server-side", "-k", str(REPOSITORY / "crds"))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own, removed afterwards without waiting."""
    name = f"test-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    kubectl("wait", "--for=create", "--timeout=30s", "serviceaccount/default", "-n", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def get(kubectl: Kubectl) -> Callable[..., dict[str, Any]]:
    """Read one object: `get("deployment", "name", namespace)`."""

    def read(kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        where = ["-n", namespace] if namespace else []
        found: dict[str, Any] = json.loads(kubectl("get", kind, name, *where, "-o", "json"))
        return found

    return read


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run."""
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def stage(kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """Everything but the operator installed, and one namespace that it may manage."""
    kubectl = binaries.find(lambda _: None).kubectl
    async with Stage(tmp_path, kubeconfig, kubectl) as made:
        await made.install()
        await made.allow_namespace(namespace)
        yield made


@pytest.fixture
async def operator(stage: Stage) -> asyncio.subprocess.Process:
    """The operator as a process, with the rights of its own ServiceAccount."""
    return await start_operator(stage)
