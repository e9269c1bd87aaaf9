"""Master keys."""

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.tokens.base64url import b64url_encode
from aisbreaker_mw.tokens.keyring import Keyring, generate_key, key_id, parse_key, stretch_keyphrase

A, B = bytes(range(32)), bytes(range(32, 64))
HEADER = b"eyJ2ZXIi"


def test_a_generated_key_is_parsed_and_never_the_same() -> None:
    keys = {generate_key() for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        assert len(key) == 43
        assert b64url_encode(parse_key(key, name="AISBREAKER_KEY")) == key


def test_a_key_may_be_padded() -> None:
    assert parse_key(b64url_encode(A) + "=", name="AISBREAKER_KEY") == A


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SENTINEL",
        b64url_encode(A[:31]),
        b64url_encode(A + b"x"),
        b64url_encode(A)[:-1] + "9",
        "SENTINEL" * 6,
        "é" * 43,
        "\udcff" * 43,
    ],
    ids=["empty", "short", "31 bytes", "33 bytes", "spare bits", "48 characters", "non-ASCII", "undecodable"],
)
def test_a_malformed_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_key(text, name="AISBREAKER_KEY")
    assert str(caught.value) == "AISBREAKER_KEY: takes a key made by `aisbreaker keygen` (32 bytes, base64url)"


def test_a_short_keyphrase_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        stretch_keyphrase("SENTINEL SENTINEL 1", name="AUTH_ENCRYPTION_KEYPHRASE")
    assert str(caught.value) == "AUTH_ENCRYPTION_KEYPHRASE: takes at least 20 characters"


def test_a_keyphrase_of_undecodable_bytes_is_a_key_as_well() -> None:
    # What is not UTF-8 in the environment arrives as lone surrogates (PEP 383).
    assert len(stretch_keyphrase("\udcff" * 20, name="AUTH_ENCRYPTION_KEYPHRASE")) == 32


def test_a_kid_names_one_key() -> None:
    ring = Keyring(A, [B])
    assert ring.kid == key_id(A) != key_id(B)
    assert len(ring.kid) == 8
    assert key_id(A) in ring
    assert key_id(B) in ring
    assert key_id(bytes(32)) not in ring


def test_a_box_key_is_of_one_key_header_and_host() -> None:
    ring = Keyring(A, [B])
    kid, other = key_id(A), key_id(B)
    keys = {
        ring.box_key(kid, HEADER, "a.example"),
        ring.box_key(other, HEADER, "a.example"),
        ring.box_key(kid, HEADER + b"A", "a.example"),
        ring.box_key(kid, HEADER, "b.example"),
        ring.box_key(kid, HEADER, ""),
        ring.box_key(kid, HEADER + b"a.example", ""),
    }
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}
    assert Keyring(A).box_key(kid, HEADER, "a.example") in keys, "every replica derives the same"
    with pytest.raises(KeyError):
        ring.box_key("unknown1", HEADER, "a.example")


@pytest.mark.parametrize(("key", "retired"), [(b"", []), (A[:31], []), (A + b"x", []), (A, [b"short"])])
def test_a_key_of_another_length_is_refused(key: bytes, retired: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"^a master key is 32 bytes$"):
        Keyring(key, retired)


def test_the_repr_shows_no_key() -> None:
    assert repr(Keyring(A, [B])) == f"Keyring(kid='{key_id(A)}', retired=1)"
