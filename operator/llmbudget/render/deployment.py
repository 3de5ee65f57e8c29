"""The gateway's Deployment: the security that the 371OS guide asks for, and more."""

from __future__ import annotations

from typing import Any, Final

from llmbudget.api.gateway_spec import ResourceAmounts, SecretDelivery
from llmbudget.api.meta import LABEL_OWN_CERTIFICATE
from llmbudget.contract.config import (
    CA_DIRECTORY,
    DATADOG_KEY_FILE,
    GATEWAY_PORT,
    KEYS_DIRECTORY,
    LEDGER_DIRECTORY,
    POSTGRES_FILE,
    POSTHOG_KEY_FILE,
    REGION_POSTGRES_FILE,
    TLS_DIRECTORY,
    TOKEN_DIRECTORY,
    VAULT_DIRECTORY,
)
from llmbudget.decide.databases import region_database
from llmbudget.decide.validity.consent import datadog_of
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import World
from llmbudget.render.names import Manifest, gateway, key_secret, labels, metadata, selector
from llmbudget.render.volumes import volumes

CONTAINER: Final = "gateway"
REGION: Final = "topology.kubernetes.io/region"
_ZONE: Final = "topology.kubernetes.io/zone"
_HOST: Final = "kubernetes.io/hostname"
GRACE_SECONDS: Final = 30
DRAIN_SECONDS: Final = 5
"""For all nodes to learn that a pod is leaving, so that no call comes to it any more."""
_USER: Final = 1000
_GROUP: Final = 2000


def deployment(world: World, found: tuple[Finding, ...], region: str | None) -> Manifest:
    """Build the Deployment of one region."""
    spec = world.root.spec
    replicas: Manifest = {"replicas": spec.deployment.replicas}
    if spec.high_availability.enabled:
        # The autoscaler's: whoever applies this hands the number over first.
        replicas = {}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(world, gateway(world.root, region)),
        "spec": {
            **replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": pod_labels(world, region)},
            "strategy": _strategy(world),
            "template": {
                "metadata": {
                    "labels": labels(world.root)
                    | pod_labels(world, region)
                    | {"security": "aci-dev"}
                    | _certificate_label(world)
                },
                "spec": _pod(world, found, region),
            },
        },
    }


def pod_labels(world: World, region: str | None) -> dict[str, str]:
    """Labels that select the pods of one region, or of all."""
    chosen = selector(world.root)
    return chosen | {REGION: region} if region else chosen


def _certificate_label(world: World) -> dict[str, str]:
    """Tell those who check certificates, as Prometheus does, by what."""
    own = world.root.spec.deployment.tls.secret_name is not None
    return {LABEL_OWN_CERTIFICATE: "true"} if own else {}


def port_name(world: World) -> str:
    """Name the gateway's port after what it speaks, as meshes and probes read it."""
    return "http" if world.root.spec.deployment.tls.plain_http else "https"


def _strategy(world: World) -> Manifest:
    if world.root.spec.ledger.postgres is None:
        # One file, one owner: the new pod can only open it when the old one is gone.
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _pod(world: World, found: tuple[Finding, ...], region: str | None) -> Manifest:
    spec = world.root.spec.deployment
    pairs = volumes(world, found, region)
    pod: Manifest = {
        "serviceAccountName": gateway(world.root),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _GROUP,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [_spread(world, region, key) for key in (_ZONE, _HOST)],
        "containers": [_container(world, region, [mount for _, mount in pairs])],
        "volumes": [volume for volume, _ in pairs],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    if spec.node_selector:
        pod["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        pod["tolerations"] = [
            toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
            for toleration in spec.tolerations
        ]
    if spec.priority_class_name:
        pod["priorityClassName"] = spec.priority_class_name
    if region:
        pod["affinity"] = {"nodeAffinity": _in_region(region)}
    return pod


def _spread(world: World, region: str | None, key: str) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pod_labels(world, region)},
        # Counted among the pods of one version: those that a rollout replaces are about to go.
        "matchLabelKeys": ["pod-template-hash"],
    }


def _in_region(region: str) -> Manifest:
    expression = {"key": REGION, "operator": "In", "values": [region]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


def _container(world: World, region: str | None, mounts: list[Manifest]) -> Manifest:
    root = world.root
    spec = root.spec.deployment
    container: Manifest = {
        "name": CONTAINER,
        "image": spec.image or world.installation.gateway_image,
        "args": _arguments(world, region),
        "ports": [{"name": port_name(world), "containerPort": GATEWAY_PORT, "protocol": "TCP"}],
        "resources": _resources(world),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # A ledger of a busy month may take a while to open.
        "startupProbe": _probe(world, "/livez", period=2, failures=60),
        "livenessProbe": _probe(world, "/livez", period=10, failures=3),
        "readinessProbe": _probe(world, "/readyz", period=5, failures=2),
        "volumeMounts": mounts,
    }
    if spec.secret_delivery is SecretDelivery.ENV:
        container["envFrom"] = [{"secretRef": {"name": key_secret(root)}}]
    return container


def _arguments(world: World, region: str | None) -> list[str]:
    """Every path is said, so that nothing depends on a default of the image."""
    root = world.root
    shared = root.spec.ledger.postgres is not None
    slices = region_database(root, region) is not None
    drain = DRAIN_SECONDS if shared else 0
    plain = root.spec.deployment.tls.plain_http
    return [
        "gateway",
        f"--config-map={root.namespace}/{gateway(root)}",
        f"--budget={root.account}",
        f"--keys={KEYS_DIRECTORY}",
        f"--vault={VAULT_DIRECTORY}",
        f"--ca={CA_DIRECTORY}",
        f"--service-account={TOKEN_DIRECTORY}",
        f"--posthog-key={POSTHOG_KEY_FILE}",
        *([f"--datadog-key={DATADOG_KEY_FILE}"] if datadog_of(world) else []),
        f"--listen=0.0.0.0:{GATEWAY_PORT}",
        f"--drain={drain}",
        # The last seconds are for the ledger.
        f"--grace={GRACE_SECONDS - drain - 5}",
        f"--postgres={POSTGRES_FILE}" if shared else f"--ledger={LEDGER_DIRECTORY}",
        *([f"--region={region}", f"--region-postgres={REGION_POSTGRES_FILE}"] if slices else []),
        "--plain-http" if plain else f"--tls={TLS_DIRECTORY}",
    ]


def _resources(world: World) -> Manifest:
    resources = world.root.spec.deployment.resources

    def amounts(of: ResourceAmounts) -> dict[str, Any]:
        return of.model_dump(mode="json", exclude_none=True)

    return {"requests": amounts(resources.requests), "limits": amounts(resources.limits)}


def _probe(world: World, path: str, *, period: int, failures: int) -> Manifest:
    name = port_name(world)
    return {
        "httpGet": {"path": path, "port": name, "scheme": name.upper()},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
