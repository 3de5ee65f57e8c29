"""The parts of an LLMBudget that shape its gateway: pods, scaling, regions, ledger, network,
monitoring."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from llmbudget.api.model import (
    SET,
    Fraction,
    LabelName,
    Labels,
    Model,
    ObjectName,
    QualifiedName,
    Quantity,
    Rate,
    SecretKeyRef,
    Url,
    keyed_by,
    rules,
)


class ResourceAmounts(Model):
    """Amounts of compute."""

    cpu: Quantity | None = None
    """CPU, such as 1000m."""
    memory: Quantity | None = None
    """Memory, such as 2Gi."""


class Resources(Model):
    """Requests and limits of the gateway's container."""

    model_config = {
        "json_schema_extra": rules(
            *(
                (
                    f"!has(self.requests) || !has(self.limits) || !has(self.requests.{name})"
                    f" || !has(self.limits.{name}) || quantity(self.requests.{name})"
                    f".compareTo(quantity(self.limits.{name})) <= 0",
                    f"requests.{name} must not be above limits.{name}: raise the limit or lower"
                    " the request",
                )
                for name in ("cpu", "memory")
            )
        )
    }

    requests: ResourceAmounts = ResourceAmounts(cpu="100m", memory="256Mi")
    """What the scheduler sets aside."""
    limits: ResourceAmounts = ResourceAmounts(memory="512Mi")
    """What the container can't exceed."""


class SecretDelivery(StrEnum):
    """How provider keys reach the gateway."""

    VOLUME = "Volume"
    ENV = "Env"


class Toleration(Model):
    """A taint that the gateway's pods tolerate."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
                "operator Exists compares no value: remove value or set operator to Equal",
            ),
            (
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "operator Equal needs a key: set key, or operator to Exists for all taints",
            ),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds is for effect NoExecute: set it or remove tolerationSeconds",
            ),
        )
    }

    key: Annotated[str, Field(max_length=317)] | None = None
    """Taint key; omitted with operator Exists: all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; omitted: all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""


class Tls(Model):
    """How the gateway is spoken to; where nothing is said: by TLS, with a certificate that the
    operator's own authority signs and renews."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.secretName) || !has(self.plainHttp) || !self.plainHttp",
                "plain HTTP shows no certificate: remove tls.secretName or tls.plainHttp",
            ),
        )
    }

    secret_name: ObjectName | None = None
    """Secret of type kubernetes.io/tls in the same namespace with a certificate of one's own, such
    as cert-manager's; its ca.crt, where it has one, is published to clients."""
    plain_http: bool = False
    """Serve plain HTTP: whoever is on the way reads prompts and tokens."""


class Deployment(Model):
    """The gateway's pods."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of pods, in each region; more than one needs a PostgreSQL ledger, and has a
    PodDisruptionBudget."""
    resources: Resources = Resources()
    """Requests and limits."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the gateway; default: the operator's own."""
    image_pull_secrets: Annotated[
        list[ObjectName], Field(max_length=16, json_schema_extra=SET)
    ] = []
    """Names of Secrets in the same namespace that the image is pulled with."""
    node_selector: Annotated[Labels, Field(max_length=16)] = {}
    """Labels of the nodes to run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Taints to tolerate."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    secret_delivery: SecretDelivery = SecretDelivery.VOLUME
    """Volume: the providers' Secrets projected, read by no operator. Env: the 371OS guide's
    llm-provider-secrets by envFrom, rendered by the operator."""
    tls: Tls = Tls()
    """How the gateway is spoken to."""


class AutoScaling(Model):
    """HorizontalPodAutoscaler of the gateway."""

    min_replicas: Annotated[int, Field(ge=1, le=100)] = 3
    """Fewest pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 10
    """Most pods."""
    cpu_threshold: Annotated[int, Field(ge=1, le=100)] = 70
    """Average CPU use in percent of the request that is aimed at."""


class HighAvailability(Model):
    """Autoscaling and disruption budget."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.autoScaling)"
                " || (has(self.autoScaling.minReplicas) ? self.autoScaling.minReplicas : 3)"
                " <= (has(self.autoScaling.maxReplicas) ? self.autoScaling.maxReplicas : 10)",
                "autoScaling.minReplicas (3 if omitted) must not be above maxReplicas (10 if"
                " omitted): raise maxReplicas or lower minReplicas",
            ),
        )
    }

    enabled: bool = False
    """Whether the gateway is autoscaled, by the metrics API (metrics-server)."""
    auto_scaling: AutoScaling = AutoScaling()
    """Bounds of the autoscaling."""


class PostgresRef(Model):
    """A PostgreSQL database, or one that speaks its protocol."""

    secret_key_ref: SecretKeyRef
    """Secret of the same namespace with the connection URI, and the authority of the server's
    certificate under ca.crt. It consents by the label llmbudget.io/ledger: "true", and its
    annotation llmbudget.io/allowed-host names the database's servers: HOST or HOST:PORT, separated
    by commas."""


class Region(Model):
    """A region with a gateway of its own."""

    name: LabelName
    """Value of the node label topology.kubernetes.io/region."""
    postgres: PostgresRef | None = None
    """The region's own database, with `ledger.mode: Slices`: its calls are counted there, from
    slices of the budget. Default: they are counted in the ledger's, wherever that is."""


class GlobalDistribution(Model):
    """Gateways in several regions."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.trafficManager) || !self.trafficManager.startsWith('gateway')",
                "trafficManager begins as the gateway's own Services do, BUDGET-gateway-REGION:"
                " choose another word, such as global-load-balancer",
            ),
            (
                "!has(self.regions) || self.regions.all(one, !has(one.postgres)"
                " || self.regions.exists_one(other, has(other.postgres)"
                " && other.postgres.secretKeyRef == one.postgres.secretKeyRef))",
                "two regions name the same key of the same Secret: give each a database, or a"
                " schema and a role, of its own",
            ),
        )
    }

    regions: Annotated[
        list[Region],
        Field(max_length=16, json_schema_extra=keyed_by("name")),
    ] = []
    """Regions; empty: one gateway, anywhere."""
    traffic_manager: LabelName | None = None
    """Ending of the name of a Service, BUDGET-TRAFFICMANAGER, that has the gateways of all regions
    and prefers those that are near."""
    service_annotations: Annotated[
        dict[QualifiedName, Annotated[str, Field(max_length=1024)]], Field(max_length=16)
    ] = {}
    """Annotations of that Service, for whoever carries calls between regions or clusters: Cilium's
    service.cilium.io/global and service.cilium.io/affinity, say."""


class SqliteLedger(Model):
    """The embedded ledger: one pod, one file, on a volume that outlives the budget."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.storage) || quantity(self.storage).isGreaterThan(quantity('0'))",
                "storage must be more than 0: the ledger needs a volume, such as 10Gi",
            ),
            (
                "!has(self.storage) || !has(oldSelf.storage)"
                " || !quantity(self.storage).isLessThan(quantity(oldSelf.storage))",
                "storage can't shrink, a volume only grows: keep the size or raise it",
            ),
            (
                "has(self.storageClassName) == has(oldSelf.storageClassName)"
                " && (!has(self.storageClassName)"
                " || self.storageClassName == oldSelf.storageClassName)",
                "storageClassName is immutable, as the volume's: keep it",
            ),
        )
    }

    storage: Quantity = "10Gi"
    """Size of the PersistentVolumeClaim."""
    storage_class_name: ObjectName | None = None
    """StorageClass; default: the cluster's."""


class LedgerMode(StrEnum):
    """How many gateways share one PostgreSQL ledger."""

    CENTRAL = "Central"
    SLICES = "Slices"


class LedgerSpec(Model):
    """Where the money is counted: sqlite (default) or postgres."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.sqlite) || !has(self.postgres)",
                "choose one ledger: remove sqlite or postgres",
            ),
            (
                "!has(self.mode) || has(self.postgres)",
                "mode is for a PostgreSQL ledger: set postgres or remove mode",
            ),
        )
    }

    sqlite: SqliteLedger | None = None
    """The embedded ledger."""
    postgres: PostgresRef | None = None
    """A database that many gateways share."""
    mode: LedgerMode = LedgerMode.CENTRAL
    """Central: every hold goes to the database. Slices: a region that has a database of its own is
    given slices of the budget, which it spends without asking."""
    retention: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,2}(mo|y)$", max_length=8)] = "24mo"
    """How long single rows are kept before they are compacted into monthly totals."""


class Egress(StrEnum):
    """Where the gateway may connect to on TCP 443."""

    PUBLIC = "Public"
    NAMESPACES_ONLY = "NamespacesOnly"


class Network(Model):
    """What the gateway's NetworkPolicy allows."""

    ingress_namespaces: Annotated[list[LabelName], Field(max_length=32, json_schema_extra=SET)] = [
        "monitoring"
    ]
    """Namespaces that may connect besides the consumers' and the operator's."""
    egress_namespaces: Annotated[list[LabelName], Field(max_length=32, json_schema_extra=SET)] = [
        "external-apis"
    ]
    """Namespaces that the gateway may connect to on TCP 443."""
    egress: Egress = Egress.PUBLIC
    """Public: also TCP 443 to public addresses. NamespacesOnly: the 371OS guide, strictly."""


class Endpoint(Model):
    """One monitoring endpoint of the gateway."""

    path: Literal["/metrics", "/health"]
    """Path on the gateway's port."""
    auth_required: bool = True
    """Whether the caller must be authorised by the API server."""
    rate_limit: Rate = "60/min"
    """Most requests of one client."""


class PostHog(Model):
    """`llm_usage` events to PostHog."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.enabled) || !self.enabled || has(self.apiKeySecretRef)",
                "posthog needs a key when it is enabled: set apiKeySecretRef, or enabled to false",
            ),
        )
    }

    enabled: bool = False
    """Whether events are sent. Enabled by a profile, it stays off until a key is named."""
    host: Url = "https://us.i.posthog.com"
    """PostHog's API, by HTTPS. A private address, and plain HTTP, need the operator's
    --allow-private-host."""
    sample_rate: Fraction = "1.0"
    """Share of calls that are sent, 0 to 1, as a decimal string."""
    api_key_secret_ref: SecretKeyRef | None = None
    """The project's API key, in a Secret that consents as a provider's does: label
    llmbudget.io/provider-key, and annotation llmbudget.io/allowed-host with PostHog's host."""


class Datadog(Model):
    """Metrics to Datadog's API, without an agent."""

    model_config = {
        "json_schema_extra": rules(
            (
                "!has(self.enabled) || !self.enabled || has(self.apiKeySecretRef)",
                "datadog needs a key when it is enabled: set apiKeySecretRef, or enabled to false",
            ),
        )
    }

    enabled: bool = False
    """Whether metrics are sent. Enabled by a profile, it stays off until a key is named."""
    site: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$", max_length=253)] = "datadoghq.com"
    """Datadog's site: metrics go to `https://api.SITE`."""
    api_key_secret_ref: SecretKeyRef | None = None
    """The API key, in a Secret that consents as a provider's does: label llmbudget.io/provider-key,
    and annotation llmbudget.io/allowed-host with `api.SITE`."""

    @property
    def url(self) -> str:
        """Where metrics are sent."""
        return f"https://api.{self.site}"


_JAEGER_PORTS: Final = frozenset({14268, 14250, 4317})
"""Ports that speak no OTLP over HTTP: Jaeger's own, which its version 2 has no more, and OTLP's
over gRPC."""
OTLP_PORT: Final = 4318


class Tracing(Model):
    """Distributed tracing: spans by OTLP over HTTP."""

    enabled: bool = False
    """Whether spans are sent."""
    collector: (
        Annotated[str, Field(pattern=r"^[a-zA-Z0-9.-]+:[0-9]{1,5}$", max_length=260)] | None
    ) = None
    """Collector as HOST:PORT: a Service of the cluster on 4318, or a public host on 443, spoken to
    by TLS; any other needs the operator's --allow-private-host. Jaeger's ports 14268 and 14250, and
    4317, stand for 4318 of the same host, where it takes OTLP over HTTP."""

    @property
    def otlp(self) -> tuple[str, int] | None:
        """Host and port that spans go to; None: nowhere."""
        if not self.enabled or self.collector is None:
            return None
        host, _, written = self.collector.rpartition(":")
        port = int(written)
        return host, OTLP_PORT if port in _JAEGER_PORTS else port


class Monitoring(Model):
    """Metrics, analytics and traces."""

    endpoints: Annotated[
        list[Endpoint],
        Field(max_length=2, json_schema_extra=keyed_by("path")),
    ] = [
        Endpoint(path="/metrics", auth_required=True, rate_limit="100/min"),
        Endpoint(path="/health", auth_required=False, rate_limit="60/min"),
    ]
    """Endpoints, their authentication and limits."""
    posthog: PostHog = PostHog()
    """`llm_usage` events to PostHog."""
    datadog: Datadog = Datadog()
    """Metrics to Datadog."""
    distributed_tracing: Tracing = Tracing()
    """Spans to an OpenTelemetry collector."""
