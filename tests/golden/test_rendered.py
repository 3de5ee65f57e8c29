"""All that is rendered for a budget, file by file: a change to it is seen in the diff.

`make golden` writes the files anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.worlds import read, serving_of, world_of

from llmbudget.decide.validity.chain import findings
from llmbudget.render.children import children
from llmbudget.render.gateway_config import gateway_config

HERE = Path(__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples"
SCENARIOS = {
    **{
        name: [HERE / "scenarios" / "platform.yaml", HERE / "scenarios" / f"{name}.yaml"]
        for name in ("minimal", "environment", "strict-network", "tree", "scheduling", "regions")
    },
    "vault": [HERE / "scenarios" / "vault.yaml"],
    **{
        name: [EXAMPLES / name / f"{part}.yaml" for part in ("platform", "providers", "budget")]
        for name in ("quickstart", "smb", "enterprise", "global")
    },
}
KEYS = {"openrouter": "c2stMQ==", "requesty": "c2stMg=="}


def rendered(name: str) -> list[dict[str, Any]]:
    world = world_of(read(*SCENARIOS[name]))
    found = findings(world)
    return list(children(world, found, gateway_config(world, found), KEYS, serving_of(world)))


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, nothing as an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def written(name: str) -> str:
    documents = rendered(name)
    for document in documents:
        if "gateway.json" in document.get("data", {}):
            config = json.loads(document["data"]["gateway.json"])
            document["data"]["gateway.json"] = json.dumps(config, indent=2) + "\n"
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)


@pytest.mark.parametrize("name", SCENARIOS)
def test_rendered(name: str, request: pytest.FixtureRequest) -> None:
    golden = HERE / "rendered" / f"{name}.yaml"
    now = written(name)
    if request.config.getoption("--update-golden"):
        golden.write_text(now)
    assert golden.exists(), f"{golden} is missing: make golden writes it"
    assert now == golden.read_text(), f"{golden.name} differs: look at it, then make golden"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in (HERE / "rendered").iterdir()} == set(SCENARIOS)


def test_providers_json_is_the_guides() -> None:
    config = next(item for item in rendered("tree") if "providers.json" in item.get("data", {}))
    assert config["data"]["providers.json"] == (HERE / "providers.json").read_text()
