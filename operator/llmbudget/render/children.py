"""All children of a root budget, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Mapping

from llmbudget.api.gateway_spec import SecretDelivery
from llmbudget.contract.config import GatewayConfig
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import World
from llmbudget.render.certificate import Serving, bundle, certificate
from llmbudget.render.claim import claim
from llmbudget.render.config_map import config_map
from llmbudget.render.deployment import deployment
from llmbudget.render.names import Manifest, regions
from llmbudget.render.network_policy import network_policy, region_policy
from llmbudget.render.rbac import cluster_role_binding, role, role_binding, service_account
from llmbudget.render.scaling import autoscaler, disruption_budget
from llmbudget.render.secret import secret
from llmbudget.render.service import pods_service, service, traffic_service


def children(
    world: World,
    found: tuple[Finding, ...],
    config: GatewayConfig,
    keys: Mapping[str, str],
    serving: Serving,
) -> tuple[Manifest, ...]:
    """Build every child that there should be.

    `keys` are the providers' keys in base64 where they are delivered by the environment, and empty
    otherwise.
    """
    spec = world.root.spec
    built = [
        service_account(world),
        role(world),
        role_binding(world),
        config_map(world, config),
    ]
    if not world.installation.namespaces:
        built.insert(3, cluster_role_binding(world))
    if spec.deployment.secret_delivery is SecretDelivery.ENV:
        built.append(secret(world, keys))
    if serving.pair is not None:
        built.append(certificate(world, serving.pair))
    if serving.bundle is not None:
        built.append(bundle(world, serving.bundle))
    if spec.ledger.postgres is None:
        built.append(claim(world))
    built.append(network_policy(world, found))
    if (before := traffic_service(world)) is not None:
        built.append(before)
    for region in regions(world):
        if (policy := region_policy(world, region)) is not None:
            built.append(policy)
        built.append(service(world, region))
        built.append(pods_service(world, region))
        built.append(deployment(world, found, region))
        if spec.high_availability.enabled:
            built.append(autoscaler(world, region))
        if spec.high_availability.enabled or spec.deployment.replicas > 1:
            built.append(disruption_budget(world, region))
    return tuple(built)
