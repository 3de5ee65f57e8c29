"""What keeps an operator from starting is said in its last line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmbudget.decide.world import Installation
from llmbudget.reconcile.operator import OperatorEnded, Options, run


async def without_crds(request: web.Request) -> web.Response:
    """Keep a Lease, and know nothing else, as an API server says it."""
    if "/leases" not in request.path:
        return web.Response(status=404, text="404 page not found\n")
    if request.method == "GET":
        return web.json_response({"reason": "NotFound", "message": "no lease"}, status=404)
    lease = await request.json()
    return web.json_response({**lease, "metadata": {**lease["metadata"], "resourceVersion": "1"}})


@pytest.fixture
async def kubeconfig(tmp_path: Path) -> AsyncIterator[Path]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", without_crds)
    async with TestServer(app) as server:
        content = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": str(server.make_url(""))}}],
            "users": [{"name": "x", "user": {}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        yield path


async def test_a_cluster_without_the_crds_is_told_what_to_install(kubeconfig: Path) -> None:
    options = Options(
        kubeconfig=kubeconfig,
        service_account=kubeconfig.parent,
        installation=Installation("system", "system/operator", "image"),
        api_servers=(),
        local_gateways=None,
        health_port=0,
        identity="one",
    )
    with pytest.raises(OperatorEnded, match=r"does not know llmbudgets .*: install the CRDs"):
        await run(options)
