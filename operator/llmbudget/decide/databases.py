"""Where a shared ledger's databases are: their Secrets say so in an annotation, since nobody but
the gateway reads a connection string."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from llmbudget.api.gateway_spec import LedgerMode, PostgresRef
from llmbudget.decide.world import Budget, SecretFacts, World

PORT: Final = 5432
"""PostgreSQL's own."""


@dataclass(frozen=True, slots=True)
class DatabaseHost:
    """One server of a database."""

    host: str
    port: int


def database_hosts(facts: SecretFacts) -> tuple[DatabaseHost, ...]:
    """Read the annotation: HOST or HOST:PORT, several separated by commas.

    Raises:
        ValueError: one of them is neither, or there is none.
    """
    return tuple(_host(each.strip()) for each in (facts.allowed_host or "").split(","))


def region_database(root: Budget, region: str | None) -> PostgresRef | None:
    """Find the database of a region that works from slices; None: it counts in the ledger's."""
    if root.spec.ledger.mode is not LedgerMode.SLICES:
        return None
    regions = root.spec.global_distribution.regions
    return next((each.postgres for each in regions if each.name == region), None)


def databases(root: Budget) -> tuple[PostgresRef, ...]:
    """List the databases of a root's ledger: its own first, then those of its regions."""
    regions = [each.name for each in root.spec.global_distribution.regions]
    found = [root.spec.ledger.postgres, *(region_database(root, region) for region in regions)]
    return tuple(each for each in found if each is not None)


def ledger_hosts(world: World, postgres: PostgresRef | None) -> tuple[DatabaseHost, ...]:
    """List the servers of a database; empty: there is none, or none that is known."""
    facts = world.secrets.get(postgres.secret_key_ref.name) if postgres is not None else None
    try:
        return database_hosts(facts) if facts is not None and facts.is_ledger else ()
    except ValueError:
        return ()


def _host(text: str) -> DatabaseHost:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or "@" in text or parts.port == 0:
        raise ValueError(f"{text!r} is no HOST or HOST:PORT")
    return DatabaseHost(parts.hostname, parts.port or PORT)
