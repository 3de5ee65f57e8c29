"""Real servers of Vault's API: RustyVault, built from its crate, and whichever VAULT_ADDR names."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from llmbudget.local import binaries
from llmbudget.local.process import die_with_parent, free_port

RUSTY_VAULT_VERSION: Final = "0.2.1"
_BUILD_SECONDS: Final = 210
"""That a cold build takes on two cores."""


@dataclass(frozen=True, slots=True)
class AppRole:
    """What a gateway logs in with."""

    auth_path: str
    role_id: str
    secret_id: str


@dataclass
class VaultServer:
    """A server that can be set up: as Vault documents it, with a token that may."""

    address: str
    token: str
    has_policies: bool = True

    def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = httpx.request(
            method,
            f"{self.address}/v1/{path}",
            json=body,
            headers={"x-vault-token": self.token, "x-vault-request": "true"},
            trust_env=False,
            timeout=20,
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    @contextlib.contextmanager
    def engine(self, kv_version: int) -> Iterator[str]:
        """Mount a KV engine of the test's own."""
        mount = f"llmbudget-{secrets.token_hex(4)}"
        options = {"options": {"version": "2"}} if kv_version == 2 else {}
        self.request("POST", f"sys/mounts/{mount}", {"type": "kv", **options})
        try:
            yield mount
        finally:
            self.request("DELETE", f"sys/mounts/{mount}")

    @contextlib.contextmanager
    def app_role(self, reads: str, ttl_seconds: int) -> Iterator[AppRole]:
        """Let a role of the test's own log in, and read this path."""
        name = f"llmbudget-{secrets.token_hex(4)}"
        policy = json.dumps({"path": {reads: {"capabilities": ["read"]}}})
        if self.has_policies:
            self.request("POST", f"sys/policy/{name}", {"policy": policy})
        self.request("POST", f"sys/auth/{name}", {"type": "approle"})
        role = f"auth/{name}/role/gateway"
        ttl = {"token_ttl": ttl_seconds, "token_max_ttl": 3 * ttl_seconds}
        self.request("POST", role, {"token_policies": name, **ttl})
        try:
            role_id = self.request("GET", f"{role}/role-id")["data"]["role_id"]
            secret_id = self.request("POST", f"{role}/secret-id")["data"]["secret_id"]
            yield AppRole(name, role_id, secret_id)
        finally:
            self.request("DELETE", f"sys/auth/{name}")
            if self.has_policies:
                self.request("DELETE", f"sys/policy/{name}")


def named() -> VaultServer:
    """Take the server that VAULT_ADDR names, as the vault command does, or skip the test."""
    address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN")
    if not address or not token:
        pytest.skip(
            "set VAULT_ADDR and VAULT_TOKEN to try a Vault or an OpenBao: its token must be allowed"
            " to mount KV engines and AppRole and to write policies, all of them called llmbudget-…"
            " and removed again"
        )
    return VaultServer(address.rstrip("/"), token)


@contextlib.contextmanager
def rusty_vault(folder: Path) -> Iterator[VaultServer]:
    """Start RustyVault, with a file for its storage, initialised and unsealed."""
    program = _program()
    address = f"127.0.0.1:{free_port()}"
    config = {
        "listener": {"tcp": {"ltype": "tcp", "address": address, "tls_disable": True}},
        "storage": {"file": {"stype": "file", "path": str(folder / "storage")}},
        "api_addr": f"http://{address}",
        "log_level": "info",
        "pid_file": str(folder / "pid"),
        "work_dir": str(folder),
        "daemon": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "rusty-vault.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "server", "--config", str(folder / "config.json")],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        yield _unsealed(f"http://{address}", process, folder / "rusty-vault.log")
    finally:
        process.terminate()
        process.wait(20)


def _unsealed(address: str, process: subprocess.Popen[bytes], log: Path) -> VaultServer:
    server = VaultServer(address, "", has_policies=False)
    deadline = time.monotonic() + 30
    while True:
        try:
            server.request("GET", "sys/init")
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            break
    made = server.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
    server.request("PUT", "sys/unseal", {"key": made["keys"][0]})
    server.token = made["root_token"]
    return server


def _program() -> Path:
    """Take RustyVault from the cache, or build it with cargo; without cargo the test is skipped."""
    root = binaries.cache_directory().parent / f"rusty-vault-{RUSTY_VAULT_VERSION}"
    program = root / "bin" / "rvault"
    if program.is_file():
        return program
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip(
            f"RustyVault is built with cargo, which is not there: install Rust, or put its rvault"
            f" {RUSTY_VAULT_VERSION} at {program}"
        )
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            print(f"building RustyVault: about {_BUILD_SECONDS} s", file=sys.stderr, flush=True)
            command = [cargo, "install", "rusty_vault", "--locked", "--quiet"]
            command += ["--version", RUSTY_VAULT_VERSION, "--root", str(root)]
            subprocess.run(command, check=True)
    return program
