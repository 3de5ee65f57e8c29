"""The command itself: its version, and lines of help that are not cut off."""

from __future__ import annotations

from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner

from llmbudget.cli import COMMANDS, main


def test_it_tells_its_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"llmbudget {version('llmbudget')}\n"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_command_is_listed_with_half_a_sentence(name: str) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80)
    assert result.exit_code == 0
    listed = result.output.partition("Commands:")[2]
    assert "..." not in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    group = main.get_command(click.Context(main), name)
    assert group is not None
    commands = list(group.commands.values()) if isinstance(group, click.Group) else [group]
    for command in commands:
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert [each.name for each in options if not each.help] == []
