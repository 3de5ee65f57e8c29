"""Delivery through apprise. Its URLs carry credentials: they are never logged or put in errors."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

import apprise

from llmbudget.notify.notice import Notice


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


async def deliver(notice: Notice, urls: Mapping[str, list[str]], done: set[str]) -> int:
    """Send a notice to every URL that is not `done`, add those that took it, and count them.

    Raises:
        NotDelivered: one of them is not understood or did not take it.
    """
    failed: list[str] = []
    count = 0
    for recipient, addresses in urls.items():
        for number, address in enumerate(addresses, 1):
            if address in done:
                continue
            if await asyncio.to_thread(_send, address, notice):
                done.add(address)
                count += 1
            else:
                failed.append(f"{recipient} (line {number})")
    if failed:
        raise NotDelivered(f"not delivered to {', '.join(failed)}")
    return count


def _send(address: str, notice: Notice) -> bool:
    # In a thread: apprise loads all of its plugins on first use, which takes seconds.
    channel = apprise.Apprise()
    try:
        return bool(channel.add(address) and channel.notify(title=notice.title, body=notice.body))
    except Exception:
        # Whatever a plugin makes of an address, its text may hold the address.
        return False
