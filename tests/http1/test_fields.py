"""Raw header lists."""

import pytest

from aisbreaker_mw.http1.fields import CLIENT_ADDRESS, HOP_BY_HOP, forwardable, get, get_all, host_name

HEADERS = [(b"accept", b"a"), (b"x-one", b"1"), (b"accept", b"b")]


def test_values_are_found_by_name() -> None:
    assert get_all(HEADERS, b"accept") == [b"a", b"b"]
    assert get_all(HEADERS, b"x-none") == []
    assert get(HEADERS, b"accept") == b"a"
    assert get(HEADERS, b"x-none") is None


def names(headers: list[tuple[bytes, bytes]], dropped: frozenset[bytes] = HOP_BY_HOP) -> list[bytes]:
    return [name for name, _ in forwardable(headers, dropped)]


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ],
)
def test_hop_by_hop_headers_stay(name: bytes) -> None:
    assert names([(b"accept", b"a"), (name, b"x-value"), (b"x-one", b"1")]) == [b"accept", b"x-one"]


@pytest.mark.parametrize(
    ("connection", "left"),
    [
        ([b"close"], [b"accept", b"x-one", b"x-two"]),
        ([b"keep-alive, Upgrade"], [b"accept", b"x-one", b"x-two"]),
        ([b"X-One"], [b"accept", b"x-two"]),
        ([b"close, x-ONE ,x-two"], [b"accept"]),
        ([b"x-one", b"x-two"], [b"accept"]),
        ([b"close", b"\tx-one"], [b"accept", b"x-two"]),
        ([b""], [b"accept", b"x-one", b"x-two"]),
        ([b",,x-two,"], [b"accept", b"x-one"]),
        ([b"x-absent"], [b"accept", b"x-one", b"x-two"]),
        ([b"Content-Length, x-one"], [b"accept", b"x-two"]),
    ],
)
def test_what_connection_names_stays_as_well(connection: list[bytes], left: list[bytes]) -> None:
    headers = [(b"accept", b"a"), (b"x-one", b"1"), (b"x-two", b"2")]
    named = [(b"connection", value) for value in connection]
    assert names(headers + named) == left
    assert names(named + headers) == left


def test_order_repetitions_and_values_survive() -> None:
    headers = [(b"b", b"\xff 1"), (b"a", b""), (b"b", b"2")]
    assert forwardable([*headers, (b"te", b"trailers")], HOP_BY_HOP) == headers
    assert names([*headers, (b"x-real-ip", b"192.0.2.1")], HOP_BY_HOP | CLIENT_ADDRESS | {b"a"}) == [b"b", b"b"]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"api.example.com", "api.example.com"),
        (b"API.Example.COM", "api.example.com"),
        (b"api.example.com:443", "api.example.com"),
        (b"api.example.com:", "api.example.com"),
        (b"api.example.com.", "api.example.com"),
        (b"api.example.com.:8080", "api.example.com"),
        (b" localhost:3000 ", "localhost"),
        (b"127.0.0.1:3000", "127.0.0.1"),
        (b"[::1]", "::1"),
        (b"[2001:DB8::1]:3000", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"", ""),
        (b"\xff", "ÿ"),
    ],
)
def test_a_host_name_has_no_port(value: bytes, name: str) -> None:
    assert host_name(value) == name


def test_nobody_can_take_a_body_what_it_is_read_by() -> None:
    headers = [(b"content-length", b"5"), (b"content-type", b"a/b"), (b"content-encoding", b"gzip")]
    named = (b"connection", b"content-length, x-one, Content-Type, content-encoding")
    assert forwardable([*headers, (b"x-one", b"1"), named], HOP_BY_HOP) == headers
