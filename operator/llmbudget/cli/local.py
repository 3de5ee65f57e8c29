"""Everything on this machine, for the demo, the tests and a first look."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Final

import click

from llmbudget.cli import LazyGroup
from llmbudget.local.binaries import BuildFailed
from llmbudget.local.controlplane import ControlPlane, NotStarted, state_directory

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "up": (__name__, "Start a control plane that stays."),
    "down": (__name__, "Stop the control plane and remove its state."),
    "status": (__name__, "Tell whether the control plane runs."),
    "kubeconfig": (__name__, "Print the path of the control plane's kubeconfig."),
    "provider": ("llmbudget.local.provider", "Simulate a provider that keeps its own bill."),
    "gateway": ("llmbudget.local.gateway", "Run a budget's gateway pod as a process."),
    "chart": ("llmbudget.local.chart", "Write the Helm chart's templates from the manifests."),
    "release": ("llmbudget.local.release", "Write the files that install it by kubectl apply -f."),
    "demo": ("llmbudget.local.demo", "Spend a budget before your eyes."),
}

_NAME: Final = click.option(
    "--name", default="default", show_default=True, help="Which control plane: several may run."
)


@click.command()
@_NAME
def up(name: str) -> None:
    """Start etcd, kube-apiserver and kube-controller-manager on free ports of the loopback."""
    plane = ControlPlane(state_directory(name), say=_say)
    if plane.running():
        _say(f"control plane {name!r} already runs")
    else:
        try:
            asyncio.run(plane.start(detached=True))
        except (NotStarted, BuildFailed, OSError) as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"export KUBECONFIG={plane.kubeconfig}")


@click.command()
@_NAME
def down(name: str) -> None:
    """Stop the control plane and remove its state."""
    plane = ControlPlane(state_directory(name), say=_say)
    asyncio.run(plane.stop())
    _say(f"control plane {name!r} is down")


@click.command()
@_NAME
def status(name: str) -> None:
    """Tell whether the control plane runs; exit 1 if it doesn't."""
    plane = ControlPlane(state_directory(name), say=_say)
    if not plane.running():
        click.echo(f"{name}: down")
        sys.exit(1)
    click.echo(f"{name}: up, KUBECONFIG={plane.kubeconfig}")


@click.command()
@_NAME
def kubeconfig(name: str) -> None:
    """Print the path of the kubeconfig, for KUBECONFIG=$(llmbudget local kubeconfig)."""
    plane = ControlPlane(state_directory(name), say=_say)
    if not plane.running():
        raise click.ClickException(f"control plane {name!r} is down: llmbudget local up")
    click.echo(plane.kubeconfig)


def _say(text: str) -> None:
    click.echo(text, err=True)


class _LocalGroup(LazyGroup):
    """The four commands of this module, and those of `llmbudget.local`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a subcommand."""
        own = {"up": up, "down": down, "status": status, "kubeconfig": kubeconfig}
        return own.get(cmd_name) or super().get_command(ctx, cmd_name)


command = _LocalGroup(COMMANDS, name="local", help=__doc__)
