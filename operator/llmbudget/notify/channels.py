"""Delivery through apprise. Its URLs carry credentials: they are never logged or put in errors."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import socket
from collections.abc import Collection, Mapping
from typing import Any

import apprise

from llmbudget.decide.addresses import ForbiddenAddress, choose
from llmbudget.notify.notice import Notice

log = logging.getLogger(__name__)


class NotDelivered(Exception):
    """A channel did not take a notice; the message names the recipients, never the URL."""


def urls_of(secret: Mapping[str, Any], recipients: tuple[str, ...]) -> dict[str, list[str]]:
    """Read the URLs of recipients from a Secret: one a line; lines with # are remarks."""
    data = secret.get("data") or {}
    found: dict[str, list[str]] = {}
    for recipient in recipients:
        try:
            text = base64.b64decode(data.get(recipient, ""), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise NotDelivered(f"the key {recipient} of the Secret is no text") from None
        lines = [line.strip() for line in text.splitlines()]
        found[recipient] = [line for line in lines if line and not line.startswith("#")]
    return found


async def deliver(
    notice: Notice,
    urls: Mapping[str, list[str]],
    done: set[str],
    private_hosts: Collection[str] = (),
) -> int:
    """Send a notice to every URL that is not `done`, add those that took it, and count them.

    Whoever writes the URLs must not reach through us what is not theirs: no private address gets
    anything, unless its host, or HOST:PORT, is one of `private_hosts`.

    Raises:
        NotDelivered: one of them is not understood or did not take it.
    """
    failed: list[str] = []
    count = 0
    for recipient, addresses in urls.items():
        for number, address in enumerate(addresses, 1):
            if address in done:
                continue
            if await asyncio.to_thread(_send, address, notice, private_hosts):
                done.add(address)
                count += 1
            else:
                failed.append(f"{recipient} (line {number})")
    if failed:
        raise NotDelivered(f"not delivered to {', '.join(failed)}")
    return count


def _send(address: str, notice: Notice, private_hosts: Collection[str]) -> bool:
    # In a thread: apprise loads all of its plugins on first use, which takes seconds.
    channel = apprise.Apprise()
    try:
        if not channel.add(address) or not all(_may_go(to, private_hosts) for to in channel):
            return False
        return bool(channel.notify(title=notice.title, body=notice.body))
    except Exception:
        # Whatever a plugin makes of an address, its text may hold the address.
        return False


def _may_go(plugin: Any, private_hosts: Collection[str]) -> bool:  # noqa: ANN401
    """Tell whether a channel is where notices may go. What is no host, such as a token in its
    place, has no address: then the plugin knows a public one."""
    for host in {plugin.host, getattr(plugin, "smtp_host", None)} - {None, ""}:
        if host in private_hosts or f"{host}:{plugin.port}" in private_hosts:
            continue
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            choose(host, [str(entry[4][0]) for entry in found], allow_private=False)
        except ForbiddenAddress:
            log.warning("a notice's channel is at a private address, which is not on the list")
            return False
    return True
