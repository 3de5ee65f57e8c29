"""One namespace with a provider, a budget and an application, all of them real pods."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any

import yaml
from tests.conftest import Kubectl, KubectlError
from tests.e2e.cluster.prepare import AGENT, PRODUCT
from tests.support.operator_stage import budget as budget_manifest
from tests.support.operator_stage import condition, resource
from tests.support.operator_stage import until as until_asked

from llmbudget.clients.cluster import Cluster
from llmbudget.clients.kinds import BUDGETS, DEPLOYMENTS

Manifest = dict[str, Any]
PROVIDER = "provider"
AGENT_ACCOUNT = "researcher"
APPLICATION = "researcher"
GATEWAY = "team-a-gateway"
GATEWAYS = "app.kubernetes.io/name=llmbudget-gateway"
KEY = "sk-e2e-first"
PRICES = {
    "claude-3-sonnet": {"inputPer1K": "0.003", "outputPer1K": "0.015"},
    "gpt-4o-mini": {"inputPer1K": "0.0006", "outputPer1K": "0.0006"},
}
RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SMALL = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}


def namespace_of(test: str) -> str:
    """Name the namespace of a test's file."""
    return "e2e-" + test.removeprefix("test_").replace("_", "-")


async def until(what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 90) -> Any:
    """Ask until the answer is true; twice a second, since kubectl does the asking."""
    return await until_asked(what, ask, seconds, every=0.5)


class Tenant:
    """The namespace and what is in it."""

    def __init__(self, namespace: str, kubectl: Kubectl, cluster: Cluster) -> None:
        self.namespace = namespace
        self.cluster = cluster
        self._kubectl = kubectl

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return await asyncio.to_thread(self._kubectl, "-n", self.namespace, *arguments, stdin=stdin)

    async def apply(self, *manifests: Manifest) -> None:
        """Apply as a user does."""
        await self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    async def create(self) -> None:
        """Make the namespace, under Pod Security's `restricted`; the operator may work in it."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": self.namespace, "labels": labels}
        await self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        await self.kubectl("apply", "-k", "manifests/namespace")
        await self.apply(self.object("v1", "ServiceAccount", AGENT_ACCOUNT))

    async def delete(self) -> None:
        """Delete the namespace with all that runs in it; `gone` says when it is."""
        await self.kubectl(
            *("delete", "namespace", self.namespace, "--ignore-not-found", "--wait=false")
        )

    async def gone(self) -> None:
        """Wait until the namespace is deleted."""
        namespace = f"namespace/{self.namespace}"
        await self.kubectl("wait", "--for=delete", namespace, "--timeout=55s")

    async def describe(self) -> str:
        """Collect what a person would look at after a failure."""
        asked = [
            ("get", "all,pvc,llmbudgets,llmproviders", "-o", "wide"),
            ("get", "llmbudgets", "-o", "jsonpath={.items[*].status}"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            *(("logs", f"deployment/{each}", "--tail=8") for each in (GATEWAY, APPLICATION)),
            ("logs", "deployment/llmbudget-operator", "-n", "llmbudget-system", "--tail=20"),
        ]
        said = []
        for arguments in asked:
            try:
                answer = await self.kubectl(*arguments)
            except KubectlError as error:
                answer = str(error)
            said.append(f"$ kubectl {' '.join(arguments)}\n{answer}")
        return "\n".join(said)

    def host(self, service: str) -> str:
        """Name a Service of the namespace."""
        return f"{service}.{self.namespace}.svc.cluster.local"

    # What is in it

    async def provide(self, latency_ms: int = 20) -> None:
        """Start a provider and write its LLMProvider, with the key that it takes."""
        host = self.host(PROVIDER)
        key = self.object("v1", "Secret", "keys", stringData={"SIM": KEY})
        key["metadata"]["labels"] = {"llmbudget.io/provider-key": "true"}
        key["metadata"]["annotations"] = {"llmbudget.io/allowed-host": host}
        models = [
            {"name": name, "cost": cost, "maxContext": 128_000} for name, cost in PRICES.items()
        ]
        spec = {
            "endpoint": f"http://{host}:8080/v1",
            "allowPrivate": True,
            "credentials": {"secretKeyRef": {"name": "keys", "key": "SIM"}},
            "models": models,
        }
        await self.apply(key, resource("LLMProvider", self.namespace, "sim", spec))
        await self.start_provider(PROVIDER, PRICES, KEY, latency_ms)

    async def start_provider(
        self, name: str, prices: Mapping[str, Mapping[str, str]], key: str, latency_ms: int = 20
    ) -> None:
        """Start a provider's server, with what it charges and the key that it takes."""
        mounts = {"prices": "/etc/provider", "accepted": "/etc/provider-keys", "bill": "/bill"}
        container = {
            "name": name,
            "image": PRODUCT,
            "args": [
                *("local", "provider", "--host=0.0.0.0", "--port=8080"),
                *("--prices=/etc/provider/prices.json", "--keys=/etc/provider-keys/keys"),
                *("--bill=/bill/bill.jsonl", f"--latency-ms={latency_ms}"),
            ],
            "readinessProbe": {"httpGet": {"path": "/bill", "port": 8080}, "periodSeconds": 1},
            "securityContext": RESTRICTED,
            "resources": SMALL,
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        }
        volumes = [
            {"name": "prices", "configMap": {"name": "prices"}},
            {"name": "accepted", "secret": {"secretName": "accepted-keys"}},
            {"name": "bill", "emptyDir": {}},
        ]
        table = {"prices.json": json.dumps(prices)}
        await self.apply(
            self.object("v1", "Secret", "accepted-keys", stringData={"keys": key}),
            self.object("v1", "ConfigMap", "prices", data=table),
            self.service(name),
            self.deployment_of(container, volumes),
        )
        await self.rolled_out(name)

    async def update_image(self, image: str) -> None:
        """Give the gateways another image; wait until their Deployment has it."""
        patch = json.dumps({"spec": {"deployment": {"image": image}}})
        await self.kubectl("patch", "llmbudget", "team-a", "--type=merge", "-p", patch)

        async def updated() -> bool:
            pod = (await self.deployment(GATEWAY))["spec"]["template"]["spec"]
            return bool(pod["containers"][0]["image"] == image)

        await until("the Deployment has the new image", updated)

    async def write_key(self, key: str) -> None:
        """Change the provider's key, and wait until the gateway's volume has it."""
        data = json.dumps({"stringData": {"SIM": key}})
        await self.kubectl("patch", "secret", "keys", "-p", data)
        await self._until_file(GATEWAY, "/var/run/llmbudget/keys/sim", key)

    async def accept_keys(self, *keys: str) -> None:
        """Change the keys that the provider takes, and wait until it knows."""
        text = "\n".join(keys)
        data = json.dumps({"stringData": {"keys": text}})
        await self.kubectl("patch", "secret", "accepted-keys", "-p", data)
        await self._until_file(PROVIDER, "/etc/provider-keys/keys", text)

    async def _until_file(self, deployment: str, path: str, text: str) -> None:
        """Wait until the kubelet has brought a changed file into a pod of ours."""
        read = f"print(open({path!r}).read(), end='')"
        command = ["exec", f"deployment/{deployment}", "--", "/opt/llmbudget/bin/python", "-c"]

        async def same() -> bool:
            return await self.kubectl(*command, read) == text

        await until(f"{path} of {deployment} is new", same, 120)

    async def spend_by(self, budget: Manifest) -> None:
        """Apply a budget and wait until its gateway takes calls."""
        await self.apply(budget)
        await self.until_ready()

    def budget(self, cap: str, **spec: Any) -> Manifest:
        """Write a budget that the researchers spend."""
        written = {
            "budget": {"monthlyCap": cap},
            "consumers": [{"namespace": self.namespace, "serviceAccounts": [AGENT_ACCOUNT]}],
            # A quarter of a machine's two cores and little memory: many gateways fit.
            "deployment": {
                "resources": {
                    "requests": {"cpu": "20m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": "512Mi"},
                }
            },
        }
        return budget_manifest(self.namespace, **written | spec)

    async def agent(
        self,
        *,
        name: str = APPLICATION,
        budget: str = "team-a",
        server: str | None = None,
        **environment: Any,
    ) -> None:
        """Start the application: the official openai package and a projected token.

        It calls the budget's gateway in this namespace, or the `server` named.
        """
        gateway = f"{budget}-gateway"
        values = {
            "LLM_MODEL": "claude-3-sonnet",
            "OPENAI_BASE_URL": f"https://{server or f'{gateway}.{self.namespace}.svc'}:8080/v1",
            "SSL_CERT_FILE": "/var/run/llmbudget-ca/ca.crt",
        } | environment
        container = {
            "name": "main",
            "image": AGENT,
            "env": [{"name": name, "value": str(value)} for name, value in values.items()],
            "securityContext": RESTRICTED,
            "resources": SMALL,
            "volumeMounts": [
                {"name": "token", "mountPath": "/var/run/secrets/llmbudget"},
                {"name": "authority", "mountPath": "/var/run/llmbudget-ca"},
            ],
        }
        token = {"audience": "llmbudget", "path": "token", "expirationSeconds": 3600}
        volumes = [
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
            {"name": "authority", "configMap": {"name": f"{gateway}-ca"}},
        ]
        made = self.deployment_of(container, volumes, name)
        made["spec"]["template"]["spec"]["serviceAccountName"] = AGENT_ACCOUNT
        made["metadata"]["annotations"] = {
            "llmbudget.io/allow-budget": f"{self.namespace}/{budget}",
            "llmbudget.io/model-env": "LLM_MODEL",
        }
        await self.apply(made)
        await self.rolled_out(name)

    # What it says

    async def rolled_out(self, name: str, seconds: int = 90) -> None:
        """Wait until a Deployment has its pods."""

        async def ask() -> bool:
            said = await self.kubectl("rollout", "status", f"deployment/{name}", "--watch=false")
            return "successfully rolled out" in said

        await until(f"Deployment {name} is rolled out", ask, seconds)

    async def running(self, *deployments: str) -> Mapping[str, str]:
        """Tell which container of each pod is ready, of Deployments with one pod each."""
        listed = json.loads(await self.kubectl("get", "pods", "-o", "json"))
        found = {}
        for pod in listed["items"]:
            [container] = pod["status"].get("containerStatuses") or [{"ready": False}]
            for name in deployments:
                if pod["metadata"]["name"].startswith(f"{name}-") and container["ready"]:
                    found[name] = container["containerID"]
        return found

    async def until_ready(self, seconds: float = 90, name: str = "team-a") -> Manifest:
        """Wait until a budget is Ready; return its status."""

        async def ask() -> Manifest | None:
            now = await self.status(name)
            return now if condition(now, "Ready").get("status") == "True" else None

        found: Manifest = await until(f"{name} is Ready", ask, seconds)
        return found

    async def until_phase(self, phase: str, seconds: float = 90) -> Manifest:
        """Wait for a phase of the budget; return its status."""

        async def ask() -> Manifest | None:
            now = await self.status()
            return now if now.get("phase") == phase else None

        found: Manifest = await until(f"phase {phase}", ask, seconds)
        return found

    async def status(self, name: str = "team-a") -> Manifest:
        """Read a budget's status."""
        found = await self.cluster.get(BUDGETS, self.namespace, name)
        return (found or {}).get("status") or {}

    async def deployment(self, name: str) -> Manifest:
        """Read a Deployment."""
        found = await self.cluster.get(DEPLOYMENTS, self.namespace, name)
        assert found is not None, f"there is no Deployment {name}"
        return found

    async def pods(self, app: str) -> list[Manifest]:
        """List the pods of an application that are not about to end."""
        listed = json.loads(await self.kubectl("get", "pods", "-l", app, "-o", "json"))
        return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]

    async def said(self, pod: str | None = None, *, by: str = APPLICATION) -> list[Manifest]:
        """Read the lines of JSON that an application's pods have written, or one of them."""
        which = [pod] if pod else ["-l", f"app={by}", "--tail=-1"]
        try:
            text = await self.kubectl("logs", *which)
        except KubectlError:
            return []  # it is just being started
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    async def until_said(self, what: str, pod: str | None = None, **wanted: Any) -> Manifest:
        """Wait for a line of the application with these values; return it."""

        async def ask() -> Manifest | None:
            for line in await self.said(pod):
                if all(line.get(key) == value for key, value in wanted.items()):
                    return line
            return None

        found: Manifest = await until(what, ask, 90)
        return found

    async def spending_goes_on(self, application: str = APPLICATION) -> None:
        """Wait for three more answers."""
        before = statuses(await self.said(by=application))[200]

        async def more() -> bool:
            return statuses(await self.said(by=application))[200] >= before + 3

        await until("the application is answered again", more, 90)

    async def stop_agent(self, name: str = APPLICATION) -> list[Manifest]:
        """End an application's work; return all that it said."""
        pods = [pod["metadata"]["name"] for pod in await self.pods(f"app={name}")]
        end = "import os, signal; os.kill(1, signal.SIGTERM)"
        lines = []
        for pod in pods:
            await self.kubectl("exec", pod, "--", "/opt/agent/bin/python", "-c", end)
        for pod in pods:
            await self.until_said("the application ends", pod, ended=True)
            lines += await self.said(pod)
        return lines

    async def bill(self) -> Mapping[str, Any]:
        """Read the provider's own bill."""
        path = f"/api/v1/namespaces/{self.namespace}/services/{PROVIDER}:8080/proxy/bill"
        read: dict[str, Any] = json.loads(await self.kubectl("get", "--raw", path))
        return read

    async def rows(self) -> list[Manifest]:
        """Export the ledger's rows, in a gateway's pod."""
        pod = (await self.deployment(GATEWAY))["spec"]["template"]["spec"]
        arguments = pod["containers"][0]["args"]
        ledger = next(one for one in arguments if one.startswith(("--ledger=", "--postgres=")))
        text = await self.kubectl(
            *("exec", f"deployment/{GATEWAY}", "--", "/opt/llmbudget/bin/llmbudget"),
            *("usage", "export", ledger, "--output=-"),
        )
        read: list[Manifest] = json.loads(text)
        return read

    async def settled(self) -> None:
        """Wait until nothing is held."""

        async def nothing_held() -> bool:
            return Decimal((await self.status()).get("held", "1")) == 0

        await until("nothing is held", nothing_held, 60)

    async def books_agree(self) -> Mapping[str, Any]:
        """Once nothing is held: bill, ledger's rows and status say the same. Returns the bill.

        Attempts that the provider refused have rows without a cost, and are on no bill.
        """
        await self.settled()

        async def agreed() -> Mapping[str, Any] | None:
            bill, status = await self.bill(), await self.status()
            same = Decimal(status["spent"]) * 10**9 == bill["nano"]
            return bill if same else None

        bill: Mapping[str, Any] = await until("bill and status agree", agreed, 30)
        assert sum(row["cost"] > 0 for row in await self.rows()) == bill["calls"]
        return bill

    # Parts

    def object(self, version: str, kind: str, name: str, **rest: Any) -> Manifest:
        """Write an object of the namespace."""
        metadata: Manifest = {"name": name, "namespace": self.namespace}
        return {"apiVersion": version, "kind": kind, "metadata": metadata} | rest

    def service(self, name: str, port: int = 8080) -> Manifest:
        """Write the Service of a Deployment."""
        spec = {"selector": {"app": name}, "ports": [{"port": port}]}
        return self.object("v1", "Service", name, spec=spec)

    def deployment_of(
        self, container: Manifest, volumes: list[Manifest], name: str | None = None
    ) -> Manifest:
        """Write a Deployment of one pod under `restricted`, named after its container."""
        name = name or str(container["name"])
        pod = {
            "securityContext": POD_SECURITY,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": volumes,
        }
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": pod}
        spec = {"selector": {"matchLabels": labels}, "template": template}
        made = self.object("apps/v1", "Deployment", name, spec=spec)
        made["metadata"]["labels"] = labels
        return made


def statuses(lines: list[Manifest]) -> Counter[int]:
    """Count the answers of an application by status."""
    return Counter(line["status"] for line in lines if "status" in line)


def outage(lines: list[Manifest]) -> float:
    """Measure the longest time, in seconds, that passed without an answer of 200."""
    answered = sorted(line["at"] for line in lines if line.get("status") == 200)
    return max((after - before for before, after in pairwise(answered)), default=0.0)
