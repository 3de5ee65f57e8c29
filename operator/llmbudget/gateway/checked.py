"""What the gateway trusts: certificates, and addresses that were checked, for httpx too."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import certifi
import httpx

from llmbudget.decide.addresses import ForbiddenAddress, choose


class BadBundle(Exception):
    """A CA bundle can't be used; the message says why."""


def trusted(bundle: Path | None) -> ssl.SSLContext:
    """Build what certificates are checked by: the public authorities, and those of a bundle.

    Raises:
        BadBundle.
    """
    context = ssl.create_default_context(cafile=certifi.where())
    if bundle is not None:
        try:
            context.load_verify_locations(cafile=bundle)
        except ssl.SSLError as error:
            raise BadBundle(f"the CA bundle {bundle.name} can't be used: {error.reason}") from None
        except OSError:
            raise BadBundle(f"the CA bundle {bundle.name} is missing") from None
    return context


async def resolve(host: str, port: int) -> list[str]:
    """List the addresses of a host.

    Raises:
        OSError.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("this is no name of a host") from None
    return [str(info[4][0]) for info in found]


class CheckedTransport(httpx.AsyncBaseTransport):
    """Resolves and checks a name, and connects to the address that was checked: its certificate is
    still checked against the name."""

    def __init__(self, context: ssl.SSLContext, *, allow_private: bool) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=context, trust_env=False)
        self._allow_private = allow_private

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.TransportError.
        """
        host, port = request.url.host, request.url.port or 443
        try:
            address = choose(host, await resolve(host, port), allow_private=self._allow_private)
        except OSError:
            raise httpx.ConnectError(f"{host} can't be resolved") from None
        except ForbiddenAddress as error:
            raise httpx.ConnectError(str(error)) from None
        # The header Host is set by now, by the name.
        request.url = request.url.copy_with(host=address)
        request.extensions = {**request.extensions, "sni_hostname": host}
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()
