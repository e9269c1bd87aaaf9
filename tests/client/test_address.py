"""Who the client is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.client.address import ClientIdentifier, group


def scope(peer: str | None, *forwarded: str | bytes) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode() if isinstance(value, str) else value) for value in forwarded]
    return {"client": None if peer is None else (peer, 50000), "headers": [(b"host", b"x"), *headers, (b"accept", b"*/*")]}


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:0207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:0001:0002::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("unix", "unix"),
        ("testclient", "unknown"),
        ("", "unknown"),
        ("192.0.2.300", "unknown"),
        ("192.0.2.7/32", "unknown"),
    ],
)
def test_a_client_is_an_address_or_the_network_of_a_subscriber(host: str, client: str) -> None:
    assert group(host) == client
    assert ClientIdentifier().identify(scope(host)) == client


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_of_a_64_count_as_one(address: Any, other_half: int) -> None:
    if address.ipv4_mapped is None:
        same = type(address)(int(address) >> 64 << 64 | other_half)
        if same.ipv4_mapped is None:
            assert group(str(address)) == group(str(same)) == f"{type(address)(int(address) >> 64 << 64)}/64"


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_a_client(address: Any) -> None:
    assert group(str(address)) == group(f"::ffff:{address}") == str(address)


def test_a_connection_without_an_address_is_local() -> None:
    assert ClientIdentifier().identify({"headers": []}) == "unix"
    assert ClientIdentifier().identify(scope(None)) == "unix"


PROXIES = ["10.0.0.0/8", "2001:db8:ffff::/48"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        pytest.param("10.0.0.1", [], "10.0.0.1", id="trusted peer, no header"),
        pytest.param("10.0.0.1", ["192.0.2.1"], "192.0.2.1", id="one hop"),
        pytest.param("10.0.0.1", ["198.51.100.9, 192.0.2.1"], "192.0.2.1", id="rightmost untrusted, the rest is hearsay"),
        pytest.param("10.0.0.1", ["198.51.100.9, 192.0.2.1, 10.9.9.9, 10.8.8.8"], "192.0.2.1", id="chain of proxies"),
        pytest.param("10.0.0.1", ["10.9.9.9, 10.8.8.8"], "10.9.9.9", id="all trusted: the farthest"),
        pytest.param("10.0.0.1", ["198.51.100.9", "192.0.2.1"], "192.0.2.1", id="two headers, in order"),
        pytest.param("10.0.0.1", ["192.0.2.1", "10.9.9.9"], "192.0.2.1", id="two headers, one chain"),
        pytest.param("10.0.0.1", ["192.0.2.1, 10.9.9.9", ""], "10.0.0.1", id="empty header last"),
        pytest.param("10.0.0.1", [""], "10.0.0.1", id="empty header"),
        pytest.param("10.0.0.1", ["unknown"], "10.0.0.1", id="garbage: the proxy that wrote it"),
        pytest.param("10.0.0.1", ["192.0.2.1, garbage"], "10.0.0.1", id="garbage hides what is left of it"),
        pytest.param("10.0.0.1", ["192.0.2.1, garbage, 10.9.9.9"], "10.9.9.9", id="garbage in the chain"),
        pytest.param("10.0.0.1", ["garbage, 192.0.2.1"], "192.0.2.1", id="garbage left of the client"),
        pytest.param("10.0.0.1", ["unix"], "10.0.0.1", id="a hop is never local"),
        pytest.param("10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1", id="IPv4 with port"),
        pytest.param("10.0.0.1", ["[2001:db8:1:2::3]:4711"], "2001:db8:1:2::/64", id="IPv6 with port"),
        pytest.param("10.0.0.1", ["[2001:db8:1:2::3]"], "2001:db8:1:2::/64", id="IPv6 in brackets"),
        pytest.param("10.0.0.1", ['"[2001:db8:1:2::3]:4711"'], "2001:db8:1:2::/64", id="IPv6 in quotes"),
        pytest.param("10.0.0.1", ["2001:db8:1:2::3"], "2001:db8:1:2::/64", id="IPv6 bare"),
        pytest.param("10.0.0.1", ["fe80::3%eth0"], "fe80::/64", id="IPv6 with zone"),
        pytest.param("10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1", id="mapped IPv4"),
        pytest.param("10.0.0.1", ["192.0.2.1, ::ffff:10.9.9.9"], "192.0.2.1", id="mapped proxy in the chain"),
        pytest.param("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1", id="mapped peer"),
        pytest.param("2001:db8:ffff::5", ["192.0.2.1"], "192.0.2.1", id="IPv6 peer"),
        pytest.param("10.0.0.1", ["\t192.0.2.1 \t"], "192.0.2.1", id="white space"),
        pytest.param("10.0.0.1", [b"192.0.2.1, \xff\xfe"], "10.0.0.1", id="bytes that are no text"),
        pytest.param("10.0.0.1", ["[192.0.2.1"], "192.0.2.1", id="bracket left open"),
        pytest.param("11.0.0.1", ["192.0.2.1"], "11.0.0.1", id="untrusted peer is not believed"),
        pytest.param("11.0.0.1", ["10.0.0.1"], "11.0.0.1", id="untrusted peer that names a proxy"),
        pytest.param("2001:db8:fffe::5", ["192.0.2.1"], "2001:db8:fffe::/64", id="untrusted IPv6 peer"),
        pytest.param(None, ["192.0.2.1"], "unix", id="local peer is not trusted by itself"),
        pytest.param("testclient", ["192.0.2.1"], "unknown", id="peer without an address is not believed"),
    ],
)
def test_forwarded_hops_are_believed_from_trusted_proxies_only(peer: str | None, forwarded: list[Any], client: str) -> None:
    assert ClientIdentifier(PROXIES).identify(scope(peer, *forwarded)) == client


@pytest.mark.parametrize("peer", ["192.0.2.9", "10.0.0.1", "::1", None])
def test_nobody_is_believed_by_default(peer: str | None) -> None:
    assert ClientIdentifier().identify(scope(peer, "198.51.100.1")) == ClientIdentifier().identify(scope(peer))


def test_a_local_proxy_is_trusted_by_its_name() -> None:
    local = ClientIdentifier(["unix"])
    assert local.identify(scope(None, "198.51.100.9, 192.0.2.1")) == "192.0.2.1"
    assert local.identify(scope(None)) == "unix"
    assert local.identify(scope("192.0.2.9", "192.0.2.1")) == "192.0.2.9"


def test_a_proxy_may_be_a_single_address() -> None:
    one = ClientIdentifier(["10.0.0.5", "::1"])
    assert ClientIdentifier(["::ffff:10.0.0.5"]).identify(scope("10.0.0.5", "192.0.2.1")) == "192.0.2.1"
    assert ClientIdentifier(["::ffff:10.0.0.0/104"]).identify(scope("::ffff:10.0.0.5", "192.0.2.1")) == "192.0.2.1"
    assert ClientIdentifier(["::/0"]).identify(scope("10.0.0.5", "192.0.2.1")) == "10.0.0.5"
    assert one.identify(scope("10.0.0.5", "192.0.2.1")) == "192.0.2.1"
    assert one.identify(scope("10.0.0.6", "192.0.2.1")) == "10.0.0.6"
    assert one.identify(scope("::1", "192.0.2.1")) == "192.0.2.1"


@given(
    st.lists(st.text(alphabet='0123456789abcdef.:[]%",unix ', max_size=30).map(str.encode) | st.binary(max_size=20), max_size=3)
)
def test_no_header_reads_as_anything_but_a_client(forwarded: list[bytes]) -> None:
    client = ClientIdentifier(PROXIES).identify(scope("10.0.0.1", *forwarded))
    assert group(client.removesuffix("/64")) == client
    assert client not in ("unknown", "unix")


@pytest.mark.parametrize("name", ["", "10.0.0.0/33", "SENTINEL", "10.0.0", "10.0.0.1:80", "*", "unix:/run/x", "fe80::/129"])
def test_a_malformed_network_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^takes networks like 10\.0\.0\.0/8, addresses, or unix$"):
        ClientIdentifier(["10.0.0.0/8", name])
