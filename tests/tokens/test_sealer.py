"""
Sealing and opening tokens.

`vectors/tokens.json` pins the format for other implementations; `make_vectors.py` writes it. Here it is checked twice: against
the package, and against a derivation from libsodium and hashlib alone.
"""

import gc
import json
import re
import sys
import tracemalloc
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import nacl.pwhash
import nacl.secret
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from aisbreaker_mw.exceptions import InvalidToken
from aisbreaker_mw.tokens.claims import MAX_LIMIT, RequestLimits, RequestQuotas, ServiceSecret, TokenClaims
from aisbreaker_mw.tokens.keyring import Keyring, key_id, parse_key, stretch_keyphrase
from aisbreaker_mw.tokens.sealer import EXPIRED, MAX_TOKEN_CHARACTERS, TokenSealer, TokenTooLong, new_jti, weigh

from . import make_vectors

VECTORS = json.loads(make_vectors.PATH.read_text("utf-8"))
HOST = "api.example.com"
NOW = 1_700_000_000
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))

LIMITS = st.lists(st.none() | st.integers(1, MAX_LIMIT), min_size=3, max_size=3).map(RequestLimits.of)
CLAIMS = st.builds(
    TokenClaims,
    jti=st.text(max_size=30),
    iat=st.integers(0, 2**40),
    exp=st.integers(2**40, 2**62),
    quotas=st.builds(RequestQuotas, per_client_request_limits=LIMITS, global_request_limits=LIMITS),
    secrets=st.lists(st.builds(ServiceSecret, st.text(max_size=40), st.text(max_size=40).map(SecretStr)), max_size=8).map(
        tuple
    ),
)


def claims(*secrets: tuple[str, str], exp: int = NOW + 60, jti: str = "jti") -> TokenClaims:
    return TokenClaims(
        jti, NOW, exp, RequestQuotas(), tuple(ServiceSecret(service_id, SecretStr(secret)) for service_id, secret in secrets)
    )


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sealer(key: bytes = KEY, *retired: bytes, **options: Any) -> TokenSealer:
    return TokenSealer(Keyring(key, retired), **{"clock": Clock(), **options})


def refusal(of: TokenSealer, token: str, host: str = HOST) -> str:
    with pytest.raises(InvalidToken) as caught:
        of.unseal(token, host)
    assert (caught.value.status, caught.value.code, caught.value.param) == (401, "invalid_token", None)
    assert caught.value.__cause__ is None
    return str(caught.value)


# Vectors


def by(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda vector: str(vector[name])


def unb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def vector_sealer(*names: str, now: float) -> TokenSealer:
    current, *retired = (parse_key(VECTORS["keys"][name]["key"], name=name) for name in names)
    return TokenSealer(Keyring(current, retired), clock=Clock(now))


def test_the_vectors_are_what_their_script_writes() -> None:
    assert make_vectors.PATH.read_text("utf-8") == make_vectors.render()


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=by("name"))
def test_a_valid_vector_follows_from_libsodium_and_blake2b_alone(vector: dict[str, Any]) -> None:
    master = unb64(VECTORS["keys"][vector["key"]]["key"])
    kid = b64(blake2b(key=master, person=b"aisbreaker-kid", digest_size=6).digest())
    assert kid == VECTORS["keys"][vector["key"]]["kid"]
    assert len(kid) == 8

    header = '{"ver":"aisbreaker.org/box/v1","kid":"%s"}' % kid  # noqa: UP031 - braces
    segment = b64(header.encode())
    box_key = blake2b(
        segment.encode() + b"\0" + vector["host"].encode(), key=master, person=b"aisbreaker-token", digest_size=32
    ).digest()
    plaintext = json.dumps(vector["claims"], separators=(",", ":"), ensure_ascii=False)
    box = nacl.secret.SecretBox(box_key)
    sealed = box.encrypt(plaintext.encode(), unb64(vector["nonce"]))

    assert (vector["header"], vector["plaintext"]) == (header, plaintext)
    assert unb64(vector["box_key"]) == box_key
    assert len(unb64(vector["nonce"])) == 24
    assert vector["token"] == f"aisbreaker_{segment}.{b64(sealed)}"
    assert box.decrypt(unb64(vector["token"].partition(".")[2])) == plaintext.encode()


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=by("name"))
def test_a_valid_vector_opens_with_its_claims(vector: dict[str, Any]) -> None:
    expected = make_vectors.claims_of(vector["claims"])
    kid = VECTORS["keys"][vector["key"]]["kid"]
    opened = vector_sealer("unknown", "current", "retired", now=vector["claims"]["exp"] - 1).unseal(
        vector["token"], vector["host"]
    )
    assert opened == replace(expected, kid=kid)
    resealed = vector_sealer(vector["key"], now=0).seal(expected, vector["host"], nonce=unb64(vector["nonce"]))
    assert resealed == vector["token"]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=by("reason"))
def test_an_invalid_vector_is_refused(vector: dict[str, Any]) -> None:
    message = refusal(vector_sealer("current", "retired", now=vector["now"]), vector["token"], vector["host"])
    assert message == (EXPIRED if vector["expired"] else InvalidToken.message)


@pytest.mark.parametrize("vector", VECTORS["keyphrases"], ids=by("phrase"))
def test_a_keyphrase_vector_is_argon2id(vector: dict[str, Any]) -> None:
    phrase = vector["phrase"].encode()
    key = nacl.pwhash.argon2id.kdf(32, phrase, b"aisbreaker-salt1", opslimit=3, memlimit=64 * 1024 * 1024)
    assert unb64(vector["key"]) == key == stretch_keyphrase(vector["phrase"], name="phrase")


# What opens


@given(CLAIMS, st.text(max_size=20))
def test_any_claims_survive_the_round_trip(wanted: TokenClaims, host: str) -> None:
    box = sealer()
    token = box.seal(wanted, host)
    assert box.unseal(token, host) == replace(wanted, kid=key_id(KEY))
    assert re.fullmatch(r"aisbreaker_eyJ2ZXIi[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", token), "no legal WebSocket subprotocol"


def test_a_token_tells_nothing_of_what_it_holds() -> None:
    token = sealer().seal(claims(("chat:openai.com", "sk-SENTINEL")), HOST)
    readable = b"".join(unb64(part) for part in token.removeprefix("aisbreaker_").split("."))
    assert b"SENTINEL" not in readable
    assert b"openai" not in readable
    assert HOST.encode() not in readable


def test_no_two_tokens_are_alike() -> None:
    box, same = sealer(), claims()
    assert len({box.seal(same, HOST) for _ in range(20)}) == 20
    assert len({new_jti() for _ in range(20)}) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", new_jti()) for _ in range(20))


def test_a_retired_key_opens_and_does_not_seal() -> None:
    former, rotated, forgotten = sealer(KEY), sealer(OTHER_KEY, KEY), sealer(OTHER_KEY)
    token = former.seal(claims(), HOST)
    assert rotated.unseal(token, HOST).kid == key_id(KEY)
    assert rotated.unseal(rotated.seal(claims(), HOST), HOST).kid == key_id(OTHER_KEY)
    assert refusal(forgotten, token) == InvalidToken.message


def test_the_contracts_example_takes_less_than_a_kilobyte() -> None:
    example_token = VECTORS["valid"][0]["token"]
    assert VECTORS["valid"][0]["claims"] == make_vectors.CONTRACT
    assert len(example_token) < 1024


def test_a_token_has_at_most_8000_characters() -> None:
    box = sealer()

    def length(size: int) -> int:
        try:
            return len(box.seal(claims(("", "x" * size)), HOST))
        except TokenTooLong:
            return MAX_TOKEN_CHARACTERS + 1

    longest = max(size for size in range(5700, 5900) if length(size) <= MAX_TOKEN_CHARACTERS)
    assert length(longest) == MAX_TOKEN_CHARACTERS
    with pytest.raises(TokenTooLong, match=r"^the token would have more than 8000 characters$"):
        box.seal(claims(("", "x" * (longest + 1))), HOST)
    token = box.seal(claims(("", "x" * longest)), HOST)
    assert box.unseal(token, HOST).secrets[0].auth_secret.get_secret_value() == "x" * longest


# What does not open, all with one message


TOKEN = sealer().seal(claims(("chat:openai.com", "sk-secret")), HOST)


def test_no_flipped_bit_opens() -> None:
    box = sealer()
    header, sealed = TOKEN.removeprefix("aisbreaker_").split(".")
    messages = set()
    for part, other, make in (
        (header, sealed, "aisbreaker_{0}.{1}".format),
        (sealed, header, "aisbreaker_{1}.{0}".format),
    ):
        data = unb64(part)
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            messages.add(refusal(box, make(b64(flipped), other)))
    assert messages == {InvalidToken.message}
    box.unseal(TOKEN, HOST)


def test_no_changed_character_opens() -> None:
    box = sealer()
    messages = set()
    for at, character in enumerate(TOKEN):
        for changed in {"A", "B", "-", "_", ".", "=", "+", "/", " ", "\n", "\0", "é", "\udc80", "€"} - {character}:
            messages.add(refusal(box, TOKEN[:at] + changed + TOKEN[at + 1 :]))
    assert messages == {InvalidToken.message}


def test_no_truncation_and_no_addition_opens() -> None:
    box = sealer()
    shorter = [TOKEN[:end] for end in range(len(TOKEN))] + [TOKEN[start:] for start in range(1, len(TOKEN))]
    holes = [TOKEN[:at] + TOKEN[at + 1 :] for at in range(len(TOKEN))]
    longer = [TOKEN[:at] + "A" + TOKEN[at:] for at in range(len(TOKEN) + 1)]
    changed = [token for token in shorter + holes + longer if token != TOKEN]
    assert {refusal(box, token) for token in changed} == {InvalidToken.message}


@given(st.text() | st.text().map("aisbreaker_{}".format) | st.text().map(f"{TOKEN}.{{}}".format))
@example("aisbreaker_" + "A" * 8000)
@example("aisbreaker_" + b64(b"[" * 90) + ".AAAA")
@example("aisbreaker_" + b64(b"\xff\xfe\xfd") + ".AAAA")
def test_no_text_opens(text: str) -> None:
    assert refusal(sealer(), text) == InvalidToken.message


@given(st.text())
@example(HOST + "\0")
@example("API.EXAMPLE.COM")
@example("")
def test_no_other_host_opens(host: str) -> None:
    if host != HOST:
        assert refusal(sealer(), TOKEN, host) == InvalidToken.message


@given(st.binary(min_size=32, max_size=32))
def test_no_other_key_opens(key: bytes) -> None:
    if key != KEY:
        assert refusal(sealer(key), TOKEN) == InvalidToken.message


def test_an_unknown_kid_or_version_takes_no_decryption(monkeypatch: pytest.MonkeyPatch) -> None:
    def decrypt(*_: object) -> bytes:
        raise AssertionError("decrypted")

    monkeypatch.setattr("aisbreaker_mw.tokens.sealer.SecretBox.decrypt", decrypt)
    with pytest.raises(AssertionError, match="decrypted"):
        sealer().unseal(TOKEN, HOST)
    assert refusal(sealer(OTHER_KEY), TOKEN) == InvalidToken.message
    other_version = b64(unb64(TOKEN.removeprefix("aisbreaker_").split(".")[0]).replace(b"/v1", b"/v2"))
    assert refusal(sealer(), f"aisbreaker_{other_version}.{TOKEN.split('.')[1]}") == InvalidToken.message


# Expiry, and the cache of opened tokens


@pytest.mark.parametrize(
    ("now", "opens"),
    [(NOW, True), (NOW + 59, True), (NOW + 59.999, True), (NOW + 60, False), (NOW + 60.001, False), (NOW + 10**9, False)],
)
def test_exp_itself_is_too_late(now: float, opens: bool) -> None:
    box = sealer(clock=Clock(now))
    token = box.seal(claims(exp=NOW + 60), HOST)
    if opens:
        assert box.unseal(token, HOST).exp == NOW + 60
    else:
        assert refusal(box, token) == EXPIRED
    assert box.open(token, HOST).exp == NOW + 60, "open() does not look at the time"


def test_expired_is_said_only_of_a_token_that_opened() -> None:
    box = sealer(clock=Clock(NOW + 60))
    token = box.seal(claims(exp=NOW + 60), HOST)
    assert "expired" in refusal(box, token)
    assert "expired" not in refusal(box, token, "other.example.com")
    assert "expired" not in refusal(box, token[:-1])
    assert "expired" not in refusal(sealer(OTHER_KEY, clock=Clock(NOW + 60)), token)


class Counting(TokenSealer):
    """Counts the decryptions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Keyring(KEY), **{"clock": Clock(), **options})
        self.opened: list[str] = []

    def open(self, token: str, host: str) -> TokenClaims:
        self.opened.append(token)
        return super().open(token, host)


def test_a_token_is_decrypted_once() -> None:
    box = Counting()
    token = box.seal(claims(), HOST)
    assert box.unseal(token, HOST) is box.unseal(token, HOST)
    assert box.opened == [token]


def test_expiry_is_checked_on_every_use() -> None:
    clock = Clock()
    box = Counting(clock=clock)
    token = box.seal(claims(exp=NOW + 60), HOST)
    box.unseal(token, HOST)
    clock.now = NOW + 60
    assert refusal(box, token) == EXPIRED
    clock.now = NOW + 59
    box.unseal(token, HOST)
    assert box.opened == [token, token], "an expired token leaves the cache"


def test_the_cache_knows_hosts_apart() -> None:
    box = Counting()
    token = box.seal(claims(), HOST)
    box.unseal(token, HOST)
    assert refusal(box, token, "other.example.com") == InvalidToken.message
    assert box.opened == [token, token]


def test_the_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    one = weigh(claims(jti="a")) + sys.getsizeof(sealer().seal(claims(jti="a"), HOST))
    box = Counting(max_opened_bytes=4 * one)
    a, b, c, d = (box.seal(claims(jti=jti), HOST) for jti in "abcd")
    for token in (a, b, c, a, d):  # d drops b
        box.unseal(token, HOST)
    assert box.opened == [a, b, c, d]
    for token in (a, c, d):
        box.unseal(token, HOST)
    assert box.opened == [a, b, c, d]
    assert box.unseal(b, HOST).jti == "b"
    assert box.opened == [a, b, c, d, b]


FAT = {
    "many services": [(str(number), "") for number in range(440)],
    "long credentials": [("chat:openai.com", "x" * 1000)] * 4,
    "thin": [("chat:openai.com", "sk-" + "x" * 40)],
}


@pytest.mark.parametrize("secrets", FAT.values(), ids=FAT.keys())
def test_opened_tokens_stay_within_their_memory(secrets: list[tuple[str, str]]) -> None:
    """Measured, for tokens of any shape, and with more of them than fit."""
    budget = 2_000_000
    box = sealer(max_opened_bytes=budget)
    tokens = [box.seal(claims(*secrets, jti=str(number)), HOST) for number in range(1200 if len(secrets) == 1 else 400)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for token in tokens:
            box.unseal("".join(list(token)), HOST)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert budget / 4 < taken < budget * 1.1


def test_tokens_that_nobody_presents_again_leave_when_they_expire() -> None:
    clock = Clock()
    box = sealer(clock=clock)
    for number in range(10):
        box.unseal(box.seal(claims(exp=NOW + 60, jti=str(number)), HOST), HOST)
    clock.now = NOW + 61
    lasting = box.seal(claims(exp=NOW + 1000), HOST)
    box.unseal(lasting, HOST)
    assert [token for token, _ in box._opened] == [lasting]
    assert not box._opened._older


def test_what_does_not_open_takes_no_room_in_the_cache() -> None:
    box = Counting(max_opened_bytes=10_000)
    token = box.seal(claims(), HOST)
    box.unseal(token, HOST)
    for number in range(100):
        refusal(box, f"{TOKEN[:-8]}{number:08}")
    box.opened.clear()
    box.unseal(token, HOST)
    assert box.opened == []


def test_no_repr_shows_a_secret() -> None:
    box = sealer()
    opened = box.unseal(box.seal(claims(("chat:openai.com", "sk-SENTINEL")), HOST), HOST)
    for text in (repr(opened), str(opened), f"{opened}", repr(opened.secrets), str(opened.secrets[0]), repr(box)):
        assert "SENTINEL" not in text
    assert opened.secrets[0].auth_secret.get_secret_value() == "sk-SENTINEL"
