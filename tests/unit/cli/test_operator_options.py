"""The operator's options: what can't be meant is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from llmbudget.cli.operator import command
from llmbudget.clients.cluster import parse_address
from llmbudget.reconcile.operator import Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--namespaces="], "'' is no name of a namespace"),
        (["--namespaces=a,,b"], "'' is no name of a namespace"),
        (["--namespaces=a b"], "'a b' is no name of a namespace"),
        (["--api-server=192.0.2.1:6443"], "--api-server is for --namespaces"),
        (["--namespaces=a", "--api-server=192.0.2.1"], "is no address with a port"),
        (["--namespaces=a", "--api-server=api.example:6443"], "is no address with a port"),
        (["--namespaces=a", "--api-server=192.0.2.1:65536"], "a port is from 1 to 65535"),
        (["--namespaces=b"], "--namespaces must name a too"),
        (["--kubeconfig=/nowhere"], "File '/nowhere' does not exist"),
        (["--log-level=loud"], "'loud' is not one of 'debug', 'info'"),
    ],
)
def test_what_can_not_be_meant_is_refused(arguments: list[str], message: str) -> None:
    given = ["--gateway-image=image", "--namespace=a", *arguments]
    result = CliRunner().invoke(command, given)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "namespaces", "servers"),
    [
        ([], (), ()),
        (["--namespaces=a"], ("a",), ()),
        (
            ["--namespaces=a,b", "--api-server=192.0.2.1:6443", "--api-server=[2001:db8::1]:443"],
            ("a", "b"),
            (("192.0.2.1", 6443), ("2001:db8::1", 443)),
        ),
    ],
)
def test_what_is_served(
    arguments: list[str],
    namespaces: tuple[str, ...],
    servers: tuple[tuple[str, int], ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Options] = []

    async def run(options: Options) -> None:
        given.append(options)

    monkeypatch.setattr("llmbudget.cli.operator.run", run)
    monkeypatch.setattr("llmbudget.telemetry.logs.set_up", lambda _: None)
    result = CliRunner().invoke(command, ["--gateway-image=image", "--namespace=a", *arguments])
    assert result.exit_code == 0, result.output
    assert given[0].installation.namespaces == namespaces
    assert given[0].api_servers == servers


@pytest.mark.parametrize(
    ("content", "wrong"), [("{}", "current-context"), ("", "empty"), ("a: [", "flow")]
)
def test_a_file_that_is_no_kubeconfig_is_named(content: str, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    given = [f"--kubeconfig={file}", "--gateway-image=image", "--health-port=0"]
    result = CliRunner().invoke(command, given)
    assert result.exit_code == 1
    assert f"Error: {file}: " in result.output
    assert wrong in result.output


@pytest.mark.parametrize("text", ["", ":443", "192.0.2.1:", "192.0.2.1:x", "host:443", "::1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address with a port"):
        parse_address(text)
