"""The cluster that all end-to-end tests share, with the operator installed from `manifests/`."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml
from tests.conftest import Kubectl, KubectlError
from tests.e2e.cluster.machine import Machine
from tests.e2e.tenant import PROVIDER, Tenant, namespace_of

from llmbudget.clients.cluster import Cluster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXISTING = "USE_EXISTING_CLUSTER"
FOLDER = "E2E_FOLDER"
"""Set by `scripts/e2e`, in whose namespaces a cluster may be started."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test a quarter of an hour: machines for tests are slow, and outages may be long."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(900), append=False)


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Machine | None:
    """The machine that is the cluster; None where the cluster is somebody else's."""
    if os.environ.get(EXISTING) == "true":
        return None
    if FOLDER not in os.environ:
        pytest.skip("end-to-end tests run by `make e2e`")
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\ne2e: {text}", end="", file=sys.stderr, flush=True)

    made = Machine(Path(os.environ[FOLDER]), say)
    made.start()
    return made


@pytest.fixture
def node(machine: Machine | None) -> Machine:
    """The machine, for tests that break it."""
    if machine is None:
        pytest.skip("an existing cluster's nodes are left alone")
    return machine


@pytest.fixture(scope="session")
def kubeconfig(machine: Machine | None) -> Path:
    """The administrator's kubeconfig."""
    if machine is not None:
        return machine.kubeconfig
    return Path(os.environ["KUBECONFIG"]).expanduser()


@pytest.fixture(scope="session")
def installed(kubectl: Kubectl) -> Iterator[None]:
    """The operator, as `kubectl apply -k manifests/default` installs it.

    The only change: it may be told of providers inside the cluster, those of the tests.
    """
    documents = list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / "manifests" / "default"))))
    operator = next(one for one in documents if one["kind"] == "Deployment")
    container = operator["spec"]["template"]["spec"]["containers"][0]
    tests = sorted(file.stem for file in HERE.glob("test_*.py"))
    container["args"] += [
        f"--allow-private-host={PROVIDER}.{namespace_of(test)}.svc.cluster.local:8080"
        for test in tests
    ]
    container["args"].append("--allow-private-host=localai.localai.svc.cluster.local:8080")
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(documents))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
    kubectl(
        *("rollout", "status", "deployment/llmbudget-operator", "-n", "llmbudget-system"),
        "--timeout=50s",
    )
    yield
    # Each test has deleted its namespace and not waited.
    for test in tests:
        _wait_until_gone(kubectl, namespace_of(test))


def _wait_until_gone(kubectl: Kubectl, namespace: str) -> None:
    """Wait for a namespace's end: while pods are ending, that is tried but now and then."""
    for tries_left in (3, 2, 1, 0):
        try:
            kubectl("wait", "--for=delete", "--timeout=50s", "namespace", namespace)
        except KubectlError:
            if not tries_left:
                raise
        else:
            return


@pytest.fixture
async def tenant(
    request: pytest.FixtureRequest, kubectl: Kubectl, cluster: Cluster, installed: None
) -> AsyncIterator[Tenant]:
    """A namespace named after the test's file, that holds everything of the test."""
    made = Tenant(namespace_of(request.path.stem), kubectl, cluster)
    failed = request.session.testsfailed
    await made.create()
    yield made
    if request.session.testsfailed > failed:
        print(await made.describe())
    await made.delete()


@pytest.fixture(autouse=True)
def healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A part of the cluster that ended by itself fails the test that saw it."""
    yield
    machine = request.getfixturevalue("machine") if "machine" in request.fixturenames else None
    for daemon in machine.daemons.values() if machine else ():
        daemon.check()
