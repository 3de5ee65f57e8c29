"""What is rendered, as the real API server takes it: valid, and admitted as `restricted`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.golden.test_rendered import SCENARIOS, rendered

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def platform(kubectl: Kubectl) -> str:
    """The scenarios' namespace; its pods must meet the strictest Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": "llm-platform", "labels": labels}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    kubectl("wait", "--for=create", "--timeout=30s", "serviceaccount/default", "-n", "llm-platform")
    return "llm-platform"


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "pod", "namespace": "llm-platform"}
    spec = dict(template["spec"])
    # Admission wants these to exist; they come with the rest.
    spec["serviceAccountName"] = "default"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_api_server_takes_it_all(name: str, kubectl: Kubectl, platform: str) -> None:
    items = rendered(name)
    items += [pod_of(item) for item in items if item["kind"] == "Deployment"]
    for item in items:
        answer = kubectl(
            *("apply", "--server-side", "--dry-run=server", "--validate=strict"),
            *("-f", "-", "-o", "json"),
            stdin=json.dumps(item),
        )
        taken = json.loads(answer)
        assert taken["kind"] == item["kind"]
        assert "warnings" not in taken


def test_the_standard_is_enforced(kubectl: Kubectl, platform: str) -> None:
    deployment = next(item for item in rendered("minimal") if item["kind"] == "Deployment")
    pod = pod_of(deployment)
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(Exception, match="violates PodSecurity"):
        kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
