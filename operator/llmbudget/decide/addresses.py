"""Where a provider, Vault or a notice's channel may be: public addresses, or private ones where
that was agreed.

Link-local addresses, the cloud's metadata service among them, are never a provider.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WRAPPED: Final = tuple(
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")
)
"""Where the last 32 bits are an IPv4 address: NAT64, IPv4-translated, IPv4-compatible."""
_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b:1::/48",  # translation for local use
        "2001::/32",  # Teredo: leads to whatever the tunnel's other end is
        # Metadata services.
        *("fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32"),
    )
)
_PRIVATE: Final = (ipaddress.ip_network("fec0::/10"), ipaddress.ip_network("192.0.0.0/24"))
"""Not global, whatever this Python's tables say."""
_OWN: Final = (ipaddress.ip_address("::"), ipaddress.ip_address("::1"))


class ForbiddenAddress(Exception):
    """A name leads to an address that a key must not be sent to."""


def choose(host: str, addresses: Sequence[str], *, allow_private: bool) -> str:
    """Choose the address to connect to, of all that a name resolves to.

    One forbidden address forbids the name: a resolver that mixes them is not to be trusted.

    Raises:
        ForbiddenAddress.
    """
    for text in addresses:
        address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
        never = any(address in network for network in _NEVER)
        if never or address.is_link_local or address.is_multicast:
            raise ForbiddenAddress(f"{host} is at {text}, where nothing is ever sent")
        private = not address.is_global or any(address in network for network in _PRIVATE)
        if private and not allow_private:
            raise ForbiddenAddress(
                f"{host} is at the private address {text}: that needs allowPrivate"
            )
    if not addresses:
        raise ForbiddenAddress(f"{host} has no address")
    return addresses[0]


def _embedded(address: _Address) -> _Address:
    """Unwrap an IPv4 address that is written as an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address not in _OWN and any(address in network for network in _WRAPPED):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
