"""No name leads a key to a machine that is not a provider's, however its address is written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbudget.decide.addresses import ForbiddenAddress, choose

PUBLIC = "8.8.8.8"
NOT_GLOBAL = "IANA's registry says it is not globally reachable, but this Python's ipaddress does"

NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "fd00:ec2::254",
    "FD00:0EC2:0:0:0:0:0:254",
    "fe80::1",
    "fe80::1%eth0",
    "fe80::a9fe:a9fe",
    "febf:ffff::1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:100.100.100.200",
    "2002:a9fe:a9fe::1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:2:3:4:a9fe:a9fe",
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "ff0e::1",
    "::ffff:224.0.0.1",
]

PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "100.64.0.1",
    "100.127.255.254",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::1%lo",
    "fc00::1",
    "fd12:3456:789a::1",
    "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db8::1",
    "100::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:0.0.0.0",
    "::ffff:100.64.0.1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2002:c0a8:1::1",
    "2002:6440:1::1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::100.64.0.1",
]

GLOBAL = [
    PUBLIC,
    "100.63.255.255",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "169.253.255.255",
    "2606:4700::6810:85e5",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("address", NEVER)
def test_metadata_services_links_and_groups_are_never_a_provider(
    address: str, allow_private: bool
) -> None:
    with pytest.raises(ForbiddenAddress) as refused:
        choose("api.example", [address], allow_private=allow_private)
    assert "api.example" in str(refused.value)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_only_where_that_was_agreed(address: str) -> None:
    with pytest.raises(ForbiddenAddress, match="allowPrivate"):
        choose("api.example", [address], allow_private=False)
    assert choose("api.example", [address], allow_private=True) == address


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize("address", GLOBAL)
def test_public_addresses_are_taken(address: str, allow_private: bool) -> None:
    assert choose("api.example", [address], allow_private=allow_private) == address


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", ["10.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"])
def test_one_private_address_among_many_forbids_the_name(bad: str, place: int) -> None:
    addresses = [PUBLIC, "2606:4700::1111"]
    addresses.insert(place, bad)
    with pytest.raises(ForbiddenAddress):
        choose("api.example", addresses, allow_private=False)


@pytest.mark.parametrize("place", [0, 1])
def test_a_metadata_service_among_private_addresses_forbids_the_name(place: int) -> None:
    addresses = ["10.0.0.1"]
    addresses.insert(place, "169.254.169.254")
    with pytest.raises(ForbiddenAddress):
        choose("localai.svc", addresses, allow_private=True)


@pytest.mark.parametrize("allow_private", [False, True])
def test_no_address_is_no_provider(allow_private: bool) -> None:
    with pytest.raises(ForbiddenAddress, match="no address"):
        choose("api.example", [], allow_private=allow_private)


def test_the_resolvers_order_is_kept() -> None:
    addresses = ["2606:4700::1111", PUBLIC]
    assert choose("api.example", addresses, allow_private=False) == addresses[0]


def inside(*networks: str) -> st.SearchStrategy[ipaddress.IPv4Address]:
    return st.one_of(
        st.ip_addresses(network=each).map(lambda found: ipaddress.IPv4Address(str(found)))
        for each in networks
    )


def written_as_ipv6(address: ipaddress.IPv4Address) -> list[str]:
    number = int(address)
    forms = [(0xFFFF << 32) | number, (0x2002 << 112) | (number << 80) | 1]
    forms.append((0x64FF9B << 96) | number)
    return [str(ipaddress.IPv6Address(form)) for form in forms]


@given(inside("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10"))
def test_every_private_address_in_every_form(address: ipaddress.IPv4Address) -> None:
    for form in [str(address), *written_as_ipv6(address)]:
        with pytest.raises(ForbiddenAddress):
            choose("api.example", [form], allow_private=False)


@given(inside("169.254.0.0/16", "224.0.0.0/4"))
def test_every_link_local_address_in_every_form(address: ipaddress.IPv4Address) -> None:
    for form in [str(address), *written_as_ipv6(address)]:
        with pytest.raises(ForbiddenAddress):
            choose("api.example", [form], allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("::127.0.0.1", id="IPv4-compatible"),
        pytest.param("::10.0.0.1", id="IPv4-compatible, private"),
        pytest.param("::ffff:0:127.0.0.1", id="IPv4-translated"),
        pytest.param("64:ff9b:1:a9fe:a9:fe00:808:808", id="NAT64 of a local /48, public suffix"),
        pytest.param("64:ff9b:1::8.8.8.8", id="NAT64 of a local prefix is local"),
    ],
)
def test_further_forms_of_private_addresses(address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        choose("api.example", [address], allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("::169.254.169.254", id="IPv4-compatible"),
        pytest.param("::ffff:0:169.254.169.254", id="IPv4-translated"),
        pytest.param("64:ff9b:1:a9fe:a9:fe00::", id="NAT64 of a local /48"),
        pytest.param("2001:0:808:808::5601:5601", id="Teredo"),
        pytest.param("fd20:ce::254", id="Google Cloud's metadata service"),
        pytest.param("168.63.129.16", id="Azure's WireServer"),
        pytest.param("64:ff9b:1::192.168.0.1", id="NAT64 of a local prefix"),
    ],
)
def test_further_forms_of_metadata_services(address: str) -> None:
    with pytest.raises(ForbiddenAddress):
        choose("localai.svc", [address], allow_private=True)


def test_protocol_assignments_are_private() -> None:
    with pytest.raises(ForbiddenAddress):
        choose("api.example", ["192.0.0.192"], allow_private=False)


def test_site_local_addresses_are_private() -> None:
    with pytest.raises(ForbiddenAddress):
        choose("api.example", ["fec0::1"], allow_private=False)
