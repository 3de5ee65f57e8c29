"""Names that appear in the cluster: group, labels, annotations, field manager, audience."""

from __future__ import annotations

from typing import Final

GROUP: Final = "llmbudget.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FIELD_MANAGER: Final = "llmbudget"
"""The one field manager of every write that the operator makes."""

AUDIENCE: Final = "llmbudget"
"""Audience of the ServiceAccount tokens that applications present to the gateway."""

LABEL_BUDGET: Final = f"{GROUP}/budget"
"""On every child object: name of the root budget that it belongs to."""
LABEL_BUDGET_NAMESPACE: Final = f"{GROUP}/budget-namespace"
"""On cluster-scoped children, which can't have a namespaced owner: the budget's namespace."""
LABEL_OWN_CERTIFICATE: Final = f"{GROUP}/own-certificate"
"""On a gateway's pods, value "true": their certificate is none of the operator's authority."""
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "llmbudget"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"

LABEL_PROVIDER_KEY: Final = f"{GROUP}/provider-key"
"""On a Secret, value "true": it consents to being mounted as a provider key."""
ANNOTATION_ALLOWED_HOST: Final = f"{GROUP}/allowed-host"
"""On the same Secret: the one host that its key may be sent to."""
LABEL_LEDGER: Final = f"{GROUP}/ledger"
"""On a Secret, value "true": it consents to being a ledger's connection string. The annotation
above then names the database's servers, HOST or HOST:PORT, separated by commas."""

ANNOTATION_ALLOW_BUDGET: Final = f"{GROUP}/allow-budget"
"""On a target Deployment: NAMESPACE/NAME of the budget that may change its model."""
ANNOTATION_MODEL_ENV: Final = f"{GROUP}/model-env"
"""On a target Deployment: the one environment variable that may change."""
ANNOTATION_ORIGINAL_ENV: Final = f"{GROUP}/original-env"
"""On a changed target: the env entry (JSON) as it was before, or null."""
ANNOTATION_DOWNGRADED_TO: Final = f"{GROUP}/downgraded-to"
"""On a changed target: the model that was set, to tell whether the value is still ours."""
ANNOTATION_DOWNGRADED_CONTAINER: Final = f"{GROUP}/downgraded-container"
"""On a changed target: the container whose variable was set."""
ANNOTATION_APPLIED: Final = f"{GROUP}/applied"
"""On every child: digest of what was applied last."""
ANNOTATION_APPROVED_PERIOD: Final = f"{GROUP}/approved-period"
"""On a budget: the period, such as 2026-11, whose executive intervention is approved."""

FINALIZER: Final = f"{GROUP}/restore-targets"
"""On a budget, only while a target of it is changed."""

DEFAULT_MONTHLY_CAP: Final = "20.00"
"""USD; cap of a root budget that names neither a cap nor a profile (the 371OS guide)."""


def account_name(namespace: str, name: str) -> str:
    """Identify a budget in the ledger, in annotations and in headers: `namespace/name`."""
    return f"{namespace}/{name}"


def operator_audience(account: str) -> str:
    """Audience of the operator's token for one gateway, so that no other can replay it."""
    return f"{AUDIENCE}:{account}"
