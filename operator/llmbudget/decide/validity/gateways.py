"""What is wrong with what a root budget says of its gateway, its ledger and its money."""

from __future__ import annotations

from collections.abc import Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmbudget.api.budget import IdentityMode
from llmbudget.api.conditions import Reason
from llmbudget.api.gateway_spec import LedgerMode
from llmbudget.decide.databases import databases
from llmbudget.decide.validity.finding import Finding
from llmbudget.decide.world import World


def time_zone(world: World) -> Iterator[Finding]:
    """The root's time zone is one of IANA's."""
    name = world.root.spec.budget.time_zone or "UTC"
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield Finding(
            Reason.INVALID_SPEC,
            f"There is no time zone {name!r}: write an IANA name such as Europe/Berlin.",
            account=world.root.account,
            fatal=True,
        )


def ledger_engine_kept(world: World) -> Iterator[Finding]:
    """A budget that was made again with another engine does not leave its month's spend behind."""
    if world.root.spec.ledger.postgres is None or not world.embedded_ledger:
        return
    claim = f"PersistentVolumeClaim {world.root.name}-ledger"
    yield Finding(
        Reason.LEDGER_ENGINE_CHANGED,
        f"The ledger of this budget is in {claim}: keep the embedded ledger, or delete the claim to"
        " begin with an empty one.",
        account=world.root.account,
        fatal=True,
    )


def image_allowed(world: World) -> Iterator[Finding]:
    """The gateway's image is one that this installation allows: it sees the keys."""
    image = world.root.spec.deployment.image
    installation = world.installation
    own = _repository(installation.gateway_image)
    if image is None or _repository(image) == own:
        return
    if not any(_begins_with(image, prefix) for prefix in installation.image_prefixes):
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.deployment.image must be of the repository {own}: this installation allows no"
            " other (the operator's --allow-image).",
            account=world.root.account,
            fatal=True,
        )


def priority_allowed(world: World) -> Iterator[Finding]:
    """The gateway's pods push no part of the cluster itself aside."""
    name = world.root.spec.deployment.priority_class_name or ""
    if name.startswith("system-"):
        yield Finding(
            Reason.INVALID_SPEC,
            f"spec.deployment.priorityClassName {name} is for the cluster's own parts: choose"
            " another PriorityClass.",
            account=world.root.account,
            fatal=True,
        )


def _begins_with(image: str, prefix: str) -> bool:
    """Tell whether an image's name begins with a prefix that ends where a part of the name does:
    whoever allows `reg.example/llm` means no `reg.example/llm-evil`."""
    bounds = ("/", ":", "@")
    rest = image.removeprefix(prefix)
    return image.startswith(prefix) and (
        not rest or rest.startswith(bounds) or prefix.endswith(bounds)
    )


def _repository(image: str) -> str:
    """Take tag and digest off."""
    path = image.partition("@")[0]
    head, colon, tag = path.rpartition(":")
    return head if colon and "/" not in tag else path


def slices_have_regions(world: World) -> Iterator[Finding]:
    """Slices are for regions with a database of their own, and such a database is for slices."""
    spec = world.root.spec
    slices = spec.ledger.mode is LedgerMode.SLICES
    own = [each for each in spec.global_distribution.regions if each.postgres is not None]
    problem = None
    if slices and not own:
        problem = (
            "spec.ledger.mode Slices is for regions that have a database of their own, and there is"
            " none: set spec.globalDistribution.regions[].postgres, or remove spec.ledger.mode."
        )
    elif own and not slices:
        problem = (
            f"Nothing is counted in the database of region {own[0].name}: set spec.ledger.mode to"
            " Slices, or remove spec.globalDistribution.regions[].postgres."
        )
    if problem is not None:
        yield Finding(Reason.INVALID_SPEC, problem, account=world.root.account)


def service_names_differ(world: World) -> Iterator[Finding]:
    """No two Services of a budget have one name: the last one would win, in every round."""
    distribution = world.root.spec.global_distribution
    regions = [f"gateway-{region.name}" for region in distribution.regions]
    wanted = [name for region in regions for name in (region, f"{region}-pods")]
    if regions and distribution.traffic_manager:
        wanted.append(distribution.traffic_manager)
    for name in sorted({name for name in wanted if wanted.count(name) > 1}):
        yield Finding(
            Reason.INVALID_SPEC,
            f"Two Services would be called {world.root.name}-{name}: a region's are"
            " BUDGET-gateway-REGION and BUDGET-gateway-REGION-pods, the one before all regions"
            " BUDGET-TRAFFICMANAGER. Rename one in spec.globalDistribution.",
            account=world.root.account,
            fatal=True,
        )


def databases_differ(world: World) -> Iterator[Finding]:
    """No two ledgers are in one place: each needs tables of its own."""
    seen: set[tuple[str, str]] = set()
    for postgres in databases(world.root):
        ref = postgres.secret_key_ref
        if (ref.name, ref.key) in seen:
            yield Finding(
                Reason.INVALID_SPEC,
                f"Two ledgers would be in the database of Secret {ref.name}, key {ref.key}: give"
                " each region a database, or a schema and a role, of its own.",
                account=world.root.account,
                fatal=True,
            )
        seen.add((ref.name, ref.key))


def caps_given(world: World) -> Iterator[Finding]:
    """What raises a cap, or lends of it, has one to raise or lend of."""
    for budget in world.budgets:
        money = budget.spec.budget
        asked = {
            "rollover": money.rollover is not None,
            "borrowing": money.borrowing is not None,
            "topUps": bool(money.top_ups),
        }
        without = [field for field, wanted in asked.items() if wanted]
        if without and money.monthly_cap is None:
            yield Finding(
                Reason.INVALID_SPEC,
                f"spec.budget.{without[0]} does nothing without a cap: set spec.budget.monthlyCap,"
                " or remove it.",
                account=budget.account,
            )


def identity_possible(world: World) -> Iterator[Finding]:
    """Tokens are reviewed only where the gateway can be bound in the whole cluster."""
    mode = world.root.spec.identity.mode
    if world.installation.namespaces and mode is IdentityMode.TOKEN_REVIEW:
        yield Finding(
            Reason.NOT_SUPPORTED,
            "This operator has no rights in the whole cluster (--namespaces), so that its gateways"
            " can't have tokens reviewed: set spec.identity.mode to Offline.",
            account=world.root.account,
            fatal=True,
        )
