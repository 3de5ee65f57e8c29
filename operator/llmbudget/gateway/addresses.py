"""Where a provider may be: public addresses, or private ones where that was agreed.

Link-local addresses, the cloud's metadata service among them, are never a provider.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
)
_METADATA: Final = (ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200"))


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
        if address.is_link_local or address.is_multicast or address in _METADATA:
            raise ForbiddenAddress(f"{host} is at {text}, which is never a provider")
        if not allow_private and not address.is_global:
            raise ForbiddenAddress(
                f"{host} is at the private address {text}: the provider needs allowPrivate"
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
        if any(address in network for network in _NAT64):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
