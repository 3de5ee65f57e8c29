"""The client against a real API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import yaml

from llmbudget.clients.cluster import ApiError, Cluster, WatchEvent
from llmbudget.clients.kinds import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS

pytestmark = pytest.mark.cluster
Kubectl = Callable[..., str]


def config_map(namespace: str, name: str = "one", **data: str) -> dict[str, object]:
    labels = {"test": "yes"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def test_apply_get_list_delete(cluster: Cluster, namespace: str) -> None:
    assert await cluster.get(CONFIG_MAPS, namespace, "one") is None
    applied = await cluster.apply(config_map(namespace, a="1"))
    again = await cluster.apply(config_map(namespace, a="1"))
    assert applied["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]
    assert applied["metadata"]["managedFields"][0]["manager"] == "llmbudget"
    items, version = await cluster.list(CONFIG_MAPS, namespace, label_selector="test=yes")
    assert [item["kind"] for item in items] == ["ConfigMap"]
    assert int(version) >= int(applied["metadata"]["resourceVersion"])
    await cluster.delete(CONFIG_MAPS, namespace, "one", uid="another")
    assert await cluster.get(CONFIG_MAPS, namespace, "one")
    await cluster.delete(CONFIG_MAPS, namespace, "one")
    await cluster.delete(CONFIG_MAPS, namespace, "one")


async def test_metadata_of_a_secret_has_no_data(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    kubectl("create", "secret", "generic", "key", "--from-literal=k=canary", "-n", namespace)
    found = await cluster.get_metadata(SECRETS, namespace, "key")
    assert found is not None
    assert found["metadata"]["name"] == "key"
    assert "data" not in found


async def test_lists_are_paged(cluster: Cluster, namespace: str, monkeypatch) -> None:
    monkeypatch.setattr("llmbudget.clients.cluster.PAGE", 3)
    await asyncio.gather(*(cluster.apply(config_map(namespace, f"m{i}")) for i in range(8)))
    items, _ = await cluster.list(CONFIG_MAPS, namespace, label_selector="test=yes")
    assert len(items) == 8


async def collect(events: AsyncIterator[WatchEvent], count: int) -> list[tuple[str, str]]:
    found = []
    async with asyncio.timeout(20):
        async for event in events:
            found.append((event.type, event.object.get("metadata", {}).get("name", "")))
            if len(found) == count:
                break
    return found


async def test_watch_tells_everything_in_order(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(config_map(namespace))
    events = cluster.watch(CONFIG_MAPS, namespace, label_selector="test=yes")
    assert await collect(events, 2) == [("ADDED", "one"), ("SYNCED", "")]
    events = cluster.watch(CONFIG_MAPS, namespace, label_selector="test=yes")
    reader = asyncio.create_task(collect(events, 5))
    await asyncio.sleep(0.2)
    await cluster.apply(config_map(namespace, a="2"))
    await cluster.apply(config_map(namespace, "two"))
    await cluster.delete(CONFIG_MAPS, namespace, "one")
    assert (await reader)[2:] == [("MODIFIED", "one"), ("ADDED", "two"), ("DELETED", "one")]


async def test_a_watch_of_metadata_has_nothing_else(cluster: Cluster, namespace: str) -> None:
    nothing = cluster.watch(CONFIG_MAPS, namespace, label_selector="test=yes", metadata_only=True)
    assert (await anext(nothing)).type == "SYNCED"
    await cluster.apply(config_map(namespace, a="1"))
    events = cluster.watch(CONFIG_MAPS, namespace, label_selector="test=yes", metadata_only=True)
    listed = (await anext(events)).object
    assert (await anext(events)).type == "SYNCED"
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.2)
    await cluster.apply(config_map(namespace, a="2"))
    watched = (await waiting).object
    for found in (listed, watched):
        assert found["metadata"]["name"] == "one"
        assert found.keys() <= {"apiVersion", "kind", "metadata"}


async def test_watch_resumes_when_the_server_ends_it(
    cluster: Cluster, namespace: str, monkeypatch
) -> None:
    monkeypatch.setattr("llmbudget.clients.cluster.WATCH_SECONDS", 1)
    await cluster.apply(config_map(namespace))
    reader = asyncio.create_task(
        collect(cluster.watch(CONFIG_MAPS, namespace, label_selector="test=yes"), 3)
    )
    await asyncio.sleep(2.5)
    await cluster.apply(config_map(namespace, "two"))
    assert await reader == [("ADDED", "one"), ("SYNCED", ""), ("ADDED", "two")]


async def test_tokens_are_made_and_reviewed(cluster: Cluster, namespace: str) -> None:
    token, expires = await cluster.create_token(namespace, "default", "llmbudget", 600)
    assert expires.tzinfo is not None
    identity = await cluster.review_token(token, "llmbudget")
    assert identity is not None
    assert identity.service_account == (namespace, "default")
    assert await cluster.review_token(token, "another") is None
    assert await cluster.review_token("nonsense", "llmbudget") is None
    assert not await cluster.review_access(identity.user, identity.groups, "get", "/metrics")


async def test_json_patch_tests_the_version(cluster: Cluster, namespace: str) -> None:
    await cluster.apply(config_map(namespace, a="1"))
    operations = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "1"},
        {"op": "replace", "path": "/data/a", "value": "2"},
    ]
    with pytest.raises(ApiError) as caught:
        await cluster.json_patch(CONFIG_MAPS, namespace, "one", operations)
    assert caught.value.status in (409, 422)


async def test_errors_carry_the_servers_message(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match='namespaces "nowhere" not found') as caught:
        await cluster.apply(config_map("nowhere"))
    assert caught.value.status == 404


async def test_a_pods_way_in(
    cluster: Cluster, namespace: str, kubeconfig: Path, tmp_path: Path, monkeypatch
) -> None:
    text = await asyncio.to_thread(kubeconfig.read_text)
    entry = yaml.safe_load(text)["clusters"][0]["cluster"]
    host, port = entry["server"].removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(entry["certificate-authority-data"]))
    token, _ = await cluster.create_token(namespace, "default", None, 600)
    (tmp_path / "token").write_text(token)
    async with Cluster.in_cluster(tmp_path) as pod:
        with pytest.raises(ApiError, match="forbidden"):
            await pod.list(SERVICE_ACCOUNTS, namespace)
        with pytest.raises(ApiError, match="forbidden"):
            await anext(pod.watch(SERVICE_ACCOUNTS, namespace))


async def test_nobody_there_is_an_api_error(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "canary"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    async with Cluster.from_kubeconfig(path) as away:
        with pytest.raises(ApiError, match="can't be reached") as caught:
            await away.get(CONFIG_MAPS, "default", "one")
        assert "canary" not in str(caught.value)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await anext(away.watch(CONFIG_MAPS))
                pytest.fail("there was nobody to watch")
