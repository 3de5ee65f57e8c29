"""Options of `llmbudget gateway` that go together."""

import pytest
from click.testing import CliRunner

from llmbudget.cli.gateway import command

NEEDED = ("--config-map=a/b", "--budget=a/b", "--plain-http")
TOGETHER = "--region-postgres goes with --region and --postgres"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name one ledger: --ledger or --postgres"),
        (("--ledger=l", "--postgres=p"), "name one ledger: --ledger or --postgres"),
        (("--postgres=p", "--region-postgres=r"), TOGETHER),
        (("--ledger=l", "--region=eu", "--region-postgres=r"), TOGETHER),
    ],
)
def test_ledgers_that_do_not_go_together_are_refused(options: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(command, [*NEEDED, *options])
    assert result.exit_code == 2
    assert says in result.output
