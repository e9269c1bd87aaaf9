"""Base64url in its one canonical spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.tokens.base64url import b64url_decode, b64url_encode


@given(st.binary())
def test_any_bytes_survive(data: bytes) -> None:
    text = b64url_encode(data)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert b64url_decode(text) == data


@given(st.text(alphabet="AQgw-_8=+/ \n9é", max_size=12))
def test_what_is_decoded_has_no_other_spelling(text: str) -> None:
    try:
        data = b64url_decode(text)
    except ValueError:
        return
    assert b64url_encode(data) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"foob", "Zm9vYg"), (b"\xff\xef\xbe", "_---"[:1] + "---")],
    ids=["empty", "one byte", "two bytes", "three bytes", "four bytes", "url alphabet"],
)
def test_rfc_4648_examples(data: bytes, text: str) -> None:
    assert b64url_encode(data) == text
    assert b64url_decode(text) == data


@pytest.mark.parametrize(
    "text",
    [
        "Zg==",
        "Zg=",
        "Zm8=",
        "=",
        "_+--",
        "/---",
        "Zm 9v",
        " Zm9v",
        "Zm9v ",
        "Zm9v\n",
        "Zm9v\r\n",
        "A",
        "Zm9vY",
        "Zh",
        "Zm9",
        "Zm9vYé",
    ],
    ids=[
        "padding",
        "half the padding",
        "padding of one",
        "padding alone",
        "plus",
        "slash",
        "space within",
        "space before",
        "space after",
        "newline",
        "CRLF",
        "one character",
        "one character too many",
        "spare bits after one byte",
        "spare bits after two bytes",
        "non-ASCII",
    ],
)
def test_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not (canonical base64url|base64url without padding)$"):
        b64url_decode(text)
