"""WebSocket handshakes, without I/O."""

import pytest

from aisbreaker_mw.client.handshake import from_allowed_page, read_handshake
from aisbreaker_mw.exceptions import InvalidRequest


def test_a_handshake_is_taken_apart() -> None:
    headers = [
        (b"host", b"h"),
        (b"sec-websocket-key", b"k"),
        (b"sec-websocket-protocol", b"realtime,\topenai-insecure-api-key.sk-1 "),
        (b"x", b"y"),
        (b"sec-websocket-protocol", b"aisbreaker_ey"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    ]
    assert read_handshake(headers) == (
        [(b"host", b"h"), (b"x", b"y"), (b"authorization", b"Bearer sk-1"), (b"authorization", b"Bearer aisbreaker_ey")],
        ["realtime"],
        True,
    )
    assert read_handshake([(b"sec-websocket-protocol", b"realtime")]) == ([], ["realtime"], False)
    assert len(headers) == 6


@pytest.mark.parametrize("value", [b"", b"a,,b", b"a b", b"a;b", b"f\xfcr", b"a,", b"\x00"])
def test_a_subprotocol_is_a_token(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_handshake([(b"sec-websocket-protocol", value)])


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, [], True),
        (b"https://a", ["https://a"], True),
        (b"https://a", ["*"], True),
        (b"https://a", ["https://ab"], False),
        (b"http://h:80", [], True),
        (b"http://h", [], False),
        (b"null", [], False),
        (b"", [], False),
    ],
)
def test_pages(origin: bytes | None, origins: list[str], allowed: bool) -> None:
    headers = [(b"host", b"h:80"), *([(b"origin", origin)] if origin is not None else [])]
    assert from_allowed_page(headers, origins) is allowed


def test_a_handshake_has_no_body_whatever_its_length_says() -> None:
    assert read_handshake([(b"host", b"h"), (b"content-length", b"0")]).headers == [(b"host", b"h")]
