"""`llmbudget gateway`: serve one root budget's calls. The operator renders these options."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click
import uvloop

from llmbudget.cli.options import log_level_option
from llmbudget.contract.config import (
    CA_DIRECTORY,
    DATADOG_KEY_FILE,
    GATEWAY_PORT,
    KEYS_DIRECTORY,
    POSTHOG_KEY_FILE,
    TOKEN_DIRECTORY,
    VAULT_DIRECTORY,
)
from llmbudget.gateway.check import check, summary
from llmbudget.gateway.server import Settings, run
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.telemetry import logs

_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--check",
    "checked",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Only say what is wrong with a configuration: gateway.json or its ConfigMap; -: stdin.",
)
@click.option("--config-map", metavar="NS/NAME", help="ConfigMap with the configuration to follow.")
@click.option(
    "--keys", type=_PATH, default=KEYS_DIRECTORY, help="Folder with one key file a provider."
)
@click.option("--vault", type=_PATH, default=VAULT_DIRECTORY, help="Folder of logins to Vault.")
@click.option("--ca", type=_PATH, default=CA_DIRECTORY, help="Folder of providers' CA bundles.")
@click.option("--budget", metavar="NS/NAME", help="Root budget: its ledger's name.")
@click.option("--ledger", type=_PATH, help="Folder of the embedded ledger.")
@click.option("--postgres", type=_PATH, help="File with the shared ledger's connection string.")
@click.option("--region", metavar="NAME", help="Region that this gateway is in.")
@click.option(
    "--region-postgres",
    type=_PATH,
    help="File with the connection string of the region's own database: spend from slices.",
)
@click.option(
    "--service-account", type=_PATH, default=TOKEN_DIRECTORY, help="Folder of its token and ca.crt."
)
@click.option(
    "--posthog-key", type=_PATH, default=POSTHOG_KEY_FILE, help="File with PostHog's project key."
)
@click.option(
    "--datadog-key", type=_PATH, default=DATADOG_KEY_FILE, help="File with Datadog's API key."
)
@click.option("--tls", type=_PATH, help="Folder with tls.crt and tls.key, read again on change.")
@click.option("--plain-http", is_flag=True, help="Serve without TLS.")
@click.option(
    "--listen",
    default=f"0.0.0.0:{GATEWAY_PORT}",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to serve at.",
)
@click.option(
    "--drain",
    default=0.0,
    show_default=True,
    help="Seconds on SIGTERM in which late callers are served, and told to connect elsewhere.",
)
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    help="Seconds after that for calls to end; what outlasts them is charged at its hold.",
)
@log_level_option
def command(
    checked: IO[str] | None,
    config_map: str | None,
    keys: Path,
    vault: Path,
    ca: Path,
    budget: str | None,
    ledger: Path | None,
    postgres: Path | None,
    region: str | None,
    region_postgres: Path | None,
    service_account: Path,
    posthog_key: Path,
    datadog_key: Path,
    tls: Path | None,
    plain_http: bool,
    listen: str,
    drain: float,
    grace: float,
    log_level: str,
) -> None:
    """Serve one root budget's calls, as a pod of its Deployment does.

    The operator writes these options into the Deployment. By hand, --check is what you want.
    """
    if checked is not None:
        _check(checked)
        return
    if config_map is None or budget is None:
        raise click.UsageError("say which --config-map of which --budget, or a FILE to --check")
    namespace, slash, name = config_map.partition("/")
    host, colon, port = listen.rpartition(":")
    if not (namespace and slash and name):
        raise click.BadParameter("write NAMESPACE/NAME", param_hint="--config-map")
    if not (colon and port.isdigit()):
        raise click.BadParameter("write HOST:PORT", param_hint="--listen")
    if (tls is None) is not plain_http:
        raise click.UsageError("choose one of --tls DIR and --plain-http")
    if (ledger is None) is (postgres is None):
        raise click.UsageError("name one ledger: --ledger or --postgres")
    if region_postgres is not None and (region is None or postgres is None):
        raise click.UsageError("--region-postgres goes with --region and --postgres")
    logs.set_up(log_level)
    settings = Settings(
        namespace=namespace,
        config_map=name,
        keys=keys,
        vault=vault,
        ca=ca,
        ledger=ledger,
        postgres=postgres,
        region=region,
        region_postgres=region_postgres,
        budget=budget,
        service_account=service_account,
        posthog_key=posthog_key,
        datadog_key=datadog_key,
        tls=tls,
        host=host,
        port=int(port),
        grace_seconds=grace,
        drain_seconds=drain,
    )
    try:
        uvloop.run(run(settings))
    except KeyError as error:
        raise click.ClickException(f"the environment lacks {error}: is this a pod?") from None
    except (LedgerUnavailable, OSError) as error:
        raise click.ClickException(str(error)) from None


def _check(file: IO[str]) -> None:
    """Say what is wrong, a line a field; exit with 1 where a gateway would not take it over."""
    config, problems = check(file.read())
    for problem in problems:
        click.echo(str(problem))
    faults = sum(problem.fault for problem in problems)
    if faults or config is None:
        click.echo(f"{faults} to correct", err=True)
        raise click.exceptions.Exit(1)
    counts = ", ".join(f"{name} {count}" for name, count in summary(config).items())
    click.echo(f"valid: generation {config.generation}, {counts}")
