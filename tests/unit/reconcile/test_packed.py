"""What is packed comes back as it was, in little room."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmbudget.reconcile.packed import PackedResources, Packer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def resource(name: str, version: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "llm", "name": name, "resourceVersion": str(version)}
    containers = [{"name": "gateway", "image": "registry.example/gateway:1", "args": ["serve"] * 9}]
    return {"metadata": metadata, "spec": {"containers": containers, "serviceAccountName": name}}


@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=5), st.booleans()
)
def test_all_come_back_as_they_were(values: list[dict[str, Any]], alike: bool) -> None:
    packer = Packer(alike=alike)
    packed = [packer.pack(value) for value in values]
    assert [packer.unpack(each) for each in packed] == values
    assert [packer.pack(value) for value in values][1:] == packed[1:], "the same is packed the same"


def test_what_is_like_the_first_takes_little_room() -> None:
    packer = Packer()
    packer.pack(resource("team-a"))
    another = resource("team-b")
    assert len(packer.pack(another)) < len(json.dumps(another)) / 3


def test_of_what_is_secret_nothing_is_kept_for_others() -> None:
    secret = {"data": {"tls.key": "c2VjcmV0IG9mIHNvbWVib2R5"}}
    packer = Packer(alike=False)
    packer.pack(secret)
    assert not any("c2VjcmV0" in str(value) for value in vars(packer).values())


def test_a_resource_that_was_read_may_be_changed() -> None:
    kept = PackedResources()
    key = ("LLMBudget", "llm/team-a")
    kept[key] = resource("team-a", 7)
    kept[key]["metadata"]["name"] = "another"
    assert kept[key] == resource("team-a", 7)
    assert kept.version(key) == 7
    changed = copy.deepcopy(kept[key])
    changed["metadata"]["resourceVersion"] = "8"
    kept[key] = changed
    assert (kept.version(key), len(kept), list(kept)) == (8, 1, [key])
    del kept[key]
    assert kept == {}
