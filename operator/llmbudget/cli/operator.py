"""`llmbudget operator`: reconcile budgets and providers."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import click
import uvloop

from llmbudget.cli.options import log_level_option
from llmbudget.clients.cluster import ApiError, parse_address
from llmbudget.contract.config import TOKEN_DIRECTORY
from llmbudget.decide.world import Installation
from llmbudget.reconcile.memory import begin_frugally
from llmbudget.reconcile.operator import OperatorEnded, Options, run
from llmbudget.telemetry import logs

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Cluster to work on, as its current context says; default: the pod's own.",
)
@click.option(
    "--token-dir",
    type=_PATH,
    default=TOKEN_DIRECTORY,
    help="Without --kubeconfig: folder of the pod's token and ca.crt.",
)
@click.option(
    "--namespace",
    default="llmbudget-system",
    show_default=True,
    help="Namespace that the operator is in: of its Lease, and of its certificate authority.",
)
@click.option(
    "--service-account",
    default="llmbudget-system/llmbudget-operator",
    show_default=True,
    metavar="NS/NAME",
    help="The operator's own ServiceAccount: gateways let only this one read their ledger.",
)
@click.option("--gateway-image", required=True, help="Image of the gateways' pods.")
@click.option(
    "--allow-image",
    "image_prefixes",
    multiple=True,
    metavar="PREFIX",
    help="Prefix of images that budgets may choose for their gateways, beside the repository of"
    " --gateway-image, up to the end of a part of the name; repeatable. A gateway sees the"
    " providers' keys.",
)
@click.option(
    "--allow-private-host",
    "private_hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="A private host for providers with allowPrivate, PostHog or spans; repeatable.",
)
@click.option(
    "--namespaces",
    callback=lambda _context, _option, text: _names(text),
    metavar="NS[,NS]",
    help="Serve only these namespaces, by Roles in each, with no cluster-wide right; default: all.",
)
@click.option(
    "--api-server",
    "api_servers",
    multiple=True,
    callback=lambda _context, _option, texts: tuple(_address(text) for text in texts),
    metavar="IP:PORT",
    help="With --namespaces: address of an API server, for the gateways' NetworkPolicies;"
    " repeatable. Default: the one that the API server itself tells.",
)
@click.option(
    "--local-gateways",
    type=_PATH,
    help="Folder in which gateways that run as processes of this machine say where they listen:"
    " the --state of `llmbudget local gateway`.",
)
@click.option(
    "--health-port", default=8081, show_default=True, help="Port of /healthz and /metrics."
)
@click.option(
    "--identity",
    default=socket.gethostname,
    show_default="the pod's name",
    help="Name of this process in the election of the replica that acts.",
)
@log_level_option
def command(
    kubeconfig: Path | None,
    token_dir: Path,
    namespace: str,
    service_account: str,
    gateway_image: str,
    image_prefixes: tuple[str, ...],
    private_hosts: tuple[str, ...],
    namespaces: tuple[str, ...],
    api_servers: tuple[tuple[str, int], ...],
    local_gateways: Path | None,
    health_port: int,
    identity: str,
    log_level: str,
) -> None:
    """Reconcile LLMBudgets and LLMProviders."""
    if api_servers and not namespaces:
        raise click.UsageError(
            "--api-server is for --namespaces: without it the operator reads the addresses from the"
            " cluster"
        )
    if namespaces and namespace not in namespaces:
        raise click.UsageError(f"--namespaces must name {namespace} too, where its own Lease is")
    logs.set_up(log_level)
    if kubeconfig is not None:
        # Kopf logs in by itself, and reads the environment.
        os.environ["KUBECONFIG"] = str(kubeconfig)
    options = Options(
        kubeconfig=kubeconfig,
        service_account=token_dir,
        installation=Installation(
            namespace=namespace,
            service_account=service_account,
            gateway_image=gateway_image,
            image_prefixes=image_prefixes,
            private_hosts=frozenset(private_hosts),
            loopback=local_gateways is not None,
            namespaces=namespaces,
        ),
        api_servers=api_servers,
        local_gateways=local_gateways,
        health_port=health_port,
        identity=identity,
    )
    begin_frugally()
    try:
        uvloop.run(run(options))
    except KeyError as error:
        raise click.ClickException(f"the environment lacks {error}: set --kubeconfig") from None
    except (ApiError, OSError, OperatorEnded) as error:
        raise click.ClickException(str(error)) from None


def _names(text: str | None) -> tuple[str, ...]:
    """Read a list of namespaces.

    Raises:
        BadParameter: it is no such list: an empty one must not mean the whole cluster.
    """
    if text is None:
        return ()
    names = tuple(text.split(","))
    for name in names:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            raise click.BadParameter(
                f"{name!r} is no name of a namespace", param_hint="--namespaces"
            )
    return names


def _address(text: str) -> tuple[str, int]:
    """Read an address with a port.

    Raises:
        BadParameter.
    """
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--api-server") from None
