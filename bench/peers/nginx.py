"""nginx, twice: as the provider that answers at once, and as the plain proxy that is the limit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from llmbudget.local.process import free_port, spawn, stop

ANSWER: Final = {
    "id": "chatcmpl-bench",
    "object": "chat.completion",
    "created": 1,
    "model": "bench",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Lorem ipsum dolor sit amet. " * 16},
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120},
}

_MAIN: Final = """
daemon off;
worker_processes 1;
pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-fastcgi;
  uwsgi_temp_path {folder}/{name}-uwsgi;
  scgi_temp_path {folder}/{name}-scgi;
  {body}
}}
"""
_UPSTREAM: Final = """
  server {{
    listen 127.0.0.1:{port} reuseport;
    default_type application/json;
    location / {{ return 200 '{answer}'; }}
  }}
"""
_PROXY: Final = """
  upstream provider {{ server 127.0.0.1:{to}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port}{ssl};
    {certificate}
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {buffering}
    }}
  }}
"""


def program() -> str:
    """Find nginx, which Debian keeps where only root looks.

    Raises:
        SystemExit: it is not installed.
    """
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if found is None:
        raise SystemExit("bench: nginx is missing: apt-get install nginx-light")
    return found


@contextlib.asynccontextmanager
async def upstream(folder: Path) -> AsyncIterator[int]:
    """Answer every request with one completion; the value is the port."""
    port = free_port()
    body = _UPSTREAM.format(port=port, answer=json.dumps(ANSWER))
    async with _running(folder, "upstream", body):
        yield port


@contextlib.asynccontextmanager
async def proxy(
    folder: Path, to: int, tls: Path | None = None, *, buffered: bool = True
) -> AsyncIterator[str]:
    """Pass every request on to a port; the value is the base URL. Streams are not for buffers."""
    port = free_port()
    files = f"ssl_certificate {tls}/tls.crt; ssl_certificate_key {tls}/tls.key;" if tls else ""
    ssl = " ssl" if tls else ""
    name = "tls-proxy" if tls else "proxy"
    buffering = "" if buffered else "proxy_buffering off;"
    body = _PROXY.format(port=port, to=to, ssl=ssl, certificate=files, buffering=buffering)
    async with _running(folder, name, body):
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def _running(folder: Path, name: str, body: str) -> AsyncIterator[None]:
    file = folder / f"{name}.conf"
    file.write_text(_MAIN.format(folder=folder, name=name, body=body))
    process = await spawn([program(), "-e", folder / f"{name}.start.log", "-c", file])
    try:
        yield
    finally:
        await stop(process)
