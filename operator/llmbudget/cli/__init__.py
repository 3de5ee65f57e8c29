"""The `llmbudget` command: one file a subcommand, loaded only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "operator": ("llmbudget.cli.operator", "Reconcile budgets and providers."),
    "gateway": (
        "llmbudget.cli.gateway",
        "Serve one root budget's calls, or check a configuration.",
    ),
    "usage": ("llmbudget.cli.usage", "Export the calls of a ledger, as JSON or CSV."),
    "ledger": (
        "llmbudget.cli.ledger",
        "Audit, move or migrate a ledger, or take another's history over.",
    ),
    "import": ("llmbudget.cli.importing", "Turn a 371OS installation's files into manifests."),
    "crds": ("llmbudget.cli.crds", "Generate CRDs and the field reference."),
    "local": ("llmbudget.cli.local", "Run a cluster, a provider or a gateway on this machine."),
}
"""Name → module with an attribute `command`, and the line that `--help` shows of it."""


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when it is called, so that `--help` is
    quick and the gateway never loads the operator's libraries."""

    def __init__(self, commands: Mapping[str, tuple[str, str]], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._modules = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the subcommands in the order of the table."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a subcommand."""
        if cmd_name not in self._modules:
            return None
        command: click.Command = import_module(self._modules[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._modules.items()])


main = click.version_option(package_name="llmbudget", message="%(prog)s %(version)s")(
    LazyGroup(
        COMMANDS,
        name="llmbudget",
        help="LLM spending on Kubernetes as a quota that cannot be overrun.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
)
