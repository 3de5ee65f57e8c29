"""A PostgreSQL server of the tests' own: its binaries from PATH, or from Debian's package, which
is installed where this is root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from tests.support.debian import install

from llmbudget.local.process import free_port

PASSWORD = "canary-of-the-database-7d1f"
"""May stand in the connection string's file and nowhere else."""


def find_binaries() -> Path:
    """Find the folder with initdb and postgres."""
    for _ in range(2):
        found = shutil.which("initdb")
        folders = [Path(found).resolve().parent] if found else []
        folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        for folder in folders:
            if (folder / "initdb").exists() and (folder / "postgres").exists():
                return folder
        install("postgresql")
    raise AssertionError("Debian's package postgresql brought no initdb")


def _user() -> dict[str, Any]:
    """Who runs the server: initdb refuses root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class PostgresServer:
    """One server on the loopback; every test gets a schema of its own in it."""

    def __init__(
        self,
        settings: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        standby_of: PostgresServer | None = None,
    ) -> None:
        """Make its files; `standby_of` a server that runs, from which it then takes everything."""
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="llmbudget-postgres-"))
        self._binaries = find_binaries()
        self._user = _user()
        self._settings = settings
        self._environment = os.environ | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.give(self.folder)
        if standby_of is not None:
            source = f"--dbname={standby_of.url(user='admin')}"
            target = f"--pgdata={self.data}"
            self._run("pg_basebackup", source, target, "--write-recovery-conf", "--checkpoint=fast")
            return
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb",
            *("--username=admin", f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--no-locale", f"--pgdata={self.data}"),
        )
        password.unlink()

    @property
    def data(self) -> Path:
        """The server's files."""
        return self.folder / "data"

    def give(self, folder: Path) -> None:
        """Let the server have a folder."""
        if self._user:
            os.chown(folder, self._user["user"], self._user["group"])

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, **self._user)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it serves."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._binaries / "postgres"), "-D", str(self.data)),
                    *("-p", str(self.port), "-k", str(self.folder)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"),
                    *(part for setting in self._settings for part in ("-c", setting)),
                ],
                cwd="/",
                env=self._environment,
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """As if the machine lost its power: no process of it runs on."""
        assert self._process is not None
        # SIGQUIT ends all backends at once without writing anything; the next start recovers.
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def kill_hard(self) -> None:
        """SIGKILL to all of its processes at once."""
        assert self._process is not None
        parent = self._process.pid
        # Each backend is a session of its own: no group holds them all.
        text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        for each in (parent, *map(int, text.split())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.wait(30)

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote(true, 30)")

    def stop(self) -> None:
        """End, and remove all files."""
        if self._process is not None and self._process.poll() is None:
            # Not in order: it would flush to disk what is removed at once, for half a minute.
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as the administrator."""
        with psycopg.connect(self.url(user="admin"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, *, user: str, schema: str = "public", port: int | None = None) -> str:
        """Write a connection string."""
        return (
            f"postgresql://{user}:{PASSWORD}@127.0.0.1:{port or self.port}/postgres"
            f"?sslmode=disable&options=-csearch_path%3D{schema}"
        )

    def make_role(self, name: str) -> None:
        """Make a role and a schema of the same name that it owns, as docs/postgresql.md says."""
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
        self.execute(f"CREATE SCHEMA {name} AUTHORIZATION {name}")
