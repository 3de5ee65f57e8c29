"""Where a shared ledger's database is: its Secret says so in an annotation, since nobody but the
gateway reads the connection string."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from llmbudget.decide.world import SecretFacts, World

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


def ledger_hosts(world: World) -> tuple[DatabaseHost, ...]:
    """List the servers of a root's shared ledger; empty: it has none, or none that is known."""
    postgres = world.root.spec.ledger.postgres
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
