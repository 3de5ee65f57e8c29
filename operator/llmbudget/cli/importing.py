"""`llmbudget import`: a 371OS installation's files, turned into resources and an opening ledger."""

from __future__ import annotations

import ast
import base64
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import yaml
from pydantic import BaseModel, ValidationError

from llmbudget.api.budget import BudgetSpec
from llmbudget.api.crd import BUDGET_NAME, MAX_BUDGET_NAME
from llmbudget.api.model import DNS_LABEL
from llmbudget.api.provider import ProviderSpec
from llmbudget.cli.guide_files import (
    Manifest,
    Place,
    Remarks,
    budget,
    is_base64,
    label,
    providers,
    secrets,
)
from llmbudget.cli.opening import opening
from llmbudget.ledger.export import exact_usd
from llmbudget.ledger.guide import read_usage_file
from llmbudget.ledger.interface import LedgerUnavailable
from llmbudget.local.stage import write_private

_SKIPPED: Final = frozenset({".git", ".venv", "node_modules"})
_MOST_USAGE: Final = 900_000
"""Bytes of a ConfigMap, which ends at a mebibyte."""


class NotImported(Exception):
    """The files can't be imported; the message says which, and why."""


def _namespace(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if len(text) > 63 or not re.fullmatch(DNS_LABEL, text):
        raise click.BadParameter(
            f"{text!r} is no name of a namespace: lower-case letters, digits and dashes, 63 at most"
        )
    return text


def _name(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if len(text) > MAX_BUDGET_NAME or not re.fullmatch(BUDGET_NAME, text):
        raise click.BadParameter(
            f"{text!r} is no name of a budget: lower-case letters, digits and dashes, beginning"
            f" with a letter, {MAX_BUDGET_NAME} at most"
        )
    return text


@click.command(name="import")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--namespace",
    default="llm-platform",
    callback=_namespace,
    show_default=True,
    help="Of the resources.",
)
@click.option("--name", default="org", callback=_name, show_default=True, help="Of the budget.")
@click.option("--profile", help="Which production-PROFILE.yaml, where there are several.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="PROVIDER=URL",
    help="Where a provider is, which providers.json does not say; repeatable.",
)
@click.option(
    "--image",
    default=f"llmbudget:{version('llmbudget')}",
    show_default=True,
    help="Image that brings the opening ledger to its volume.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("imported"),
    show_default=True,
    help="Where the resources are written; a new folder.",
)
def command(
    directory: Path,
    namespace: str,
    name: str,
    profile: str | None,
    endpoints: tuple[str, ...],
    image: str,
    output: Path,
) -> None:
    """Turn a 371OS installation's files in DIRECTORY into resources, and say what is missing.

    Read are production-*.yaml, providers.json, secrets.yaml, llm_usage.json and config.py, wherever
    they are below DIRECTORY. Nothing is applied, and no key is printed.
    """
    place, remarks = Place(namespace, name), Remarks()
    for each in endpoints:
        if "=" not in each:
            raise click.BadParameter(f"write PROVIDER=URL, not {each}", param_hint="--endpoint")
    known = dict(each.partition("=")[::2] for each in endpoints)
    try:
        files = _files(directory)
        written, sums = _resources(files, profile, known, image, place, remarks)
        _write(output, written)
    except (NotImported, LedgerUnavailable, OSError) as error:
        raise click.ClickException(str(error)) from None
    _tell(output, written, sums, place, remarks)


def _resources(
    files: Mapping[str, Path],
    profile: str | None,
    endpoints: Mapping[str, str],
    image: str,
    place: Place,
    remarks: Remarks,
) -> tuple[dict[str, list[Manifest]], dict[str, int]]:
    """Make every file that is written, and the months' sums in nano-USD.

    Raises:
        NotImported: a production file is missing, or a file says what no resource may.
    """
    entries = _entries(files["providers.json"])
    names = {str(entry.get("name")) for entry in entries}
    unknown = ", ".join(sorted(endpoints.keys() - names - set(map(label, names))))
    if unknown:
        raise NotImported(
            f"--endpoint: providers.json has no provider {unknown}, but {', '.join(sorted(names))}"
        )
    made = providers(entries, place, endpoints, remarks)
    chosen, content = _production(files, profile)
    org, asked = budget(content, chosen, place, made, remarks)
    remarks.fill_in.append(
        "spec.consumers of the budget: who may call, by namespace and ServiceAccount; until then"
        " nobody may"
    )
    keys = _keys(files.get("secrets.yaml"), remarks)
    written = {
        "secrets.yaml": secrets(made, asked, keys, place, remarks),
        "providers.yaml": made,
        "budget.yaml": [org],
    }
    for manifest in made:
        if "endpoint" in manifest["spec"]:
            _check(manifest, ProviderSpec, "providers.json")
    _check(org, BudgetSpec, chosen)
    sums: dict[str, int] = defaultdict(int)
    usage = files.get("llm_usage.json")
    if usage is not None:
        try:
            for row in read_usage_file(usage, f"{place.namespace}/{place.name}"):
                sums[row.period] += row.cost
        except ValueError as error:
            raise NotImported(str(error)) from None
        packed = gzip.compress(usage.read_bytes(), mtime=0)
        if len(packed) > _MOST_USAGE:
            remarks.left_out.append(
                f"llm_usage.json: too large for a ConfigMap ({len(packed)} bytes): mount it some"
                " other way and run `llmbudget ledger take-over` (docs/import.md)"
            )
        else:
            written["opening.yaml"] = opening(org, packed, image)
    return written, sums


def _files(directory: Path) -> dict[str, Path]:
    """Find the files by name.

    Raises:
        NotImported: one is there twice, or there is no providers.json.
    """
    found: dict[str, Path] = {}
    names = {"providers.json", "secrets.yaml", "llm_usage.json", "config.py", "production.yaml"}
    for path in sorted(directory.rglob("*")):
        wanted = path.name in names or path.match("production-*.yaml")
        if not wanted or _SKIPPED & set(path.parts) or not path.is_file():
            continue
        if path.name in found:
            raise NotImported(f"there are {found[path.name]} and {path}: name the folder of one")
        found[path.name] = path
    if "providers.json" not in found:
        raise NotImported(f"{directory}: there is no providers.json in it, nor below it")
    return found


def _production(files: Mapping[str, Path], profile: str | None) -> tuple[str, dict[str, Any]]:
    """Read the one production file that is meant, on top of production.yaml.

    Raises:
        NotImported: there is none, or several and nobody said which.
    """
    profiles = sorted(
        name.removeprefix("production-").removesuffix(".yaml")
        for name in files
        if name.startswith("production-")
    )
    if profile is None and len(profiles) > 1:
        raise NotImported(f"there are several production files: --profile {' | '.join(profiles)}")
    chosen = profile or (profiles[0] if profiles else None)
    name = f"production-{chosen}.yaml" if chosen else "production.yaml"
    if name not in files:
        there = f": there are those of {', '.join(profiles)}" if profiles else ""
        raise NotImported(f"there is no {name}{there}")
    content = _yaml(files[name])
    if "production.yaml" in files and name != "production.yaml":
        content = _merged(_yaml(files["production.yaml"]), content)
    money = content.get("budget") or {}
    if not isinstance(money, dict):
        raise NotImported(f"{name}: budget: no mapping: write monthly_cap below it")
    if money.get("monthly_cap") is None and "config.py" in files:
        cap = _cap(files["config.py"])
        if cap is not None:
            content["budget"] = money | {"monthly_cap": cap}
    return name, content


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _cap(path: Path) -> Decimal | None:
    """Read MONTHLY_BUDGET_CAP of the guide's config.py, without running it."""
    text = _text(path)
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # Its text would show what stands there, which may be a key.
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise NotImported(f"{path}{where}: no Python") from None
    for statement in statements:
        if not isinstance(statement, ast.Assign):
            continue
        named = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        if "MONTHLY_BUDGET_CAP" in named:
            try:
                return Decimal(ast.get_source_segment(text, statement.value) or "")
            except InvalidOperation:
                where = f"{path}, line {statement.lineno}"
                raise NotImported(f"{where}: MONTHLY_BUDGET_CAP is no plain number") from None
    return None


def _keys(path: Path | None, remarks: Remarks) -> dict[str, str]:
    """Read the keys in base64, by variable."""
    keys: dict[str, str] = {}
    if path is None:
        return keys
    for number, document in enumerate(_documents(path), 1):
        if not isinstance(document, dict):
            continue
        for part in ("data", "stringData"):
            content = document.get(part) or {}
            if not isinstance(content, dict):
                raise NotImported(f"{path}: document {number}: {part} is no mapping of keys")
            for variable, value in content.items():
                if variable in keys:
                    remarks.left_out.append(
                        f"secrets.yaml: {variable} is there several times: the one of document"
                        f" {number} ({part}) is taken, what stood before it is not"
                    )
                text = "" if value is None else str(value)
                if part == "stringData":
                    text = base64.b64encode(text.encode()).decode()
                keys[variable] = text.strip() if is_base64(text.strip()) else ""
    return keys


class _Loader(yaml.SafeLoader):
    """Reads numbers as the exact decimals that they are, and no aliases: of a few bytes of them
    much is made, or what never ends."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _AliasError(None, None, "an alias", mark)
        return super().compose_node(parent, index)


class _AliasError(yaml.MarkedYAMLError):
    """There is an alias."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | str:
    try:
        return Decimal(node.value.replace("_", ""))
    except InvalidOperation:
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def _documents(path: Path) -> list[Any]:
    """Read a file of YAML.

    Raises:
        NotImported: it is none; the message shows nothing of what stands there, which may be a key.
    """
    try:
        return list(yaml.load_all(_text(path), Loader=_Loader))
    except _AliasError as error:
        where = _line(error)
        raise NotImported(
            f"{path}{where}: a YAML alias (*): write out what it stands for"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise NotImported(f"{path}{_line(error)}: no YAML that can be read ({kind})") from None


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NotImported(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None


def _yaml(path: Path) -> dict[str, Any]:
    found = _documents(path)
    if len(found) != 1 or not isinstance(found[0], dict):
        raise NotImported(f"{path}: no mapping: write one document of keys and values")
    return dict(found[0])


def _entries(path: Path) -> list[dict[str, Any]]:
    """Read the providers: one at least, each with what makes it one."""
    try:
        found = json.loads(_text(path), parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise NotImported(f"{path}: no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise NotImported(f"{path}: no list of providers")
    if not found:
        raise NotImported(f"{path}: no provider is there, and a budget needs one: add an entry")
    for number, entry in enumerate(found, 1):
        for key in ("name", "model", "endpoint_env"):
            if not isinstance(entry.get(key), str) or not entry[key].strip():
                raise NotImported(f"{path}: entry {number}: {key} is missing, or no text: write it")
    return found


def _check(manifest: Manifest, model: type[BaseModel], file: str) -> None:
    try:
        model.model_validate(manifest["spec"])
    except ValidationError as error:
        wrong = "; ".join(
            f"spec.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5]
        )
        name = manifest["metadata"]["name"]
        raise NotImported(f"{file}: as {manifest['kind']} {name} it is refused: {wrong}") from None


def _write(output: Path, written: Mapping[str, list[Manifest]]) -> None:
    if output.exists() and any(output.iterdir()):
        raise NotImported(f"{output} has files: name a new folder by --output")
    output.mkdir(parents=True, exist_ok=True)
    for name, manifests in written.items():
        text = yaml.safe_dump_all(manifests, sort_keys=False, width=100)
        write_private(output / name, text)


def _tell(
    output: Path,
    written: Mapping[str, list[Manifest]],
    sums: Mapping[str, int],
    place: Place,
    remarks: Remarks,
) -> None:
    for name, manifests in written.items():
        told = ", ".join(f"{each['kind']} {each['metadata']['name']}" for each in manifests)
        click.echo(f"{output / name}: {told}")
    for month, spent in sorted(sums.items()):
        click.echo(f"spent in {month}: {exact_usd(spent)} USD")
    for title, lines in (
        ("To fill in", remarks.fill_in),
        ("Not carried over", remarks.left_out),
    ):
        if lines:
            click.echo(f"\n{title}:")
        for line in lines:
            click.echo(f"  - {line}")
    click.echo("\nThen, where the operator is installed (docs/install.md), in this order:")
    # On the server: a client's apply would keep a copy in an annotation, of keys too.
    apply = "  kubectl apply --server-side -f"
    click.echo(f"  kubectl create namespace {place.namespace}")
    click.echo(f"  kubectl apply --server-side -n {place.namespace} -k manifests/namespace")
    click.echo(f"{apply} {output / 'secrets.yaml'} -f {output / 'providers.yaml'}")
    if "opening.yaml" in written:
        job = f"job/{place.name}-opening"
        click.echo(f"{apply} {output / 'opening.yaml'}")
        click.echo(
            f"  kubectl wait -n {place.namespace} --for=condition=Complete --timeout=5m {job}"
        )
    click.echo(f"{apply} {output / 'budget.yaml'}")
