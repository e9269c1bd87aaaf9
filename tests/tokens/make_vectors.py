"""
Writes `tests/tokens/vectors/tokens.json`: tokens made with fixed keys and nonces, and tokens that must not open.

    python -m tests.tokens.make_vectors

The file changes only when the format of tokens does, and then `ver` in their headers has to change as well.
"""

import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from nacl.secret import SecretBox
from pydantic import SecretStr

from aisbreaker_mw.tokens.claims import RequestLimits, RequestQuotas, ServiceSecret, TokenClaims
from aisbreaker_mw.tokens.keyring import Keyring, key_id, stretch_keyphrase
from aisbreaker_mw.tokens.sealer import VERSION, TokenSealer

PATH = Path(__file__).parent / "vectors" / "tokens.json"

README = [
    "Test vectors of the token format aisbreaker.org/box/v1, for checking another implementation.",
    "keys: master keys by name, 32 bytes as unpadded base64url, each with its kid = base64url(BLAKE2b-48(key=master key, "
    "person='aisbreaker-kid')). keyphrases: phrases and the keys that they are stretched to, by Argon2id (UTF-8, salt "
    "'aisbreaker-salt1', 3 passes, 64 MiB, 1 lane, 32 bytes).",
    "valid: a server whose key is keys[key], called by `host`, opens `token` at any `now` (seconds since the epoch) before "
    "claims.exp, and finds `claims`. The other fields are the steps on the way: base64url(header) is the token's first part; "
    "box_key = BLAKE2b-256(key=master key, person='aisbreaker-token', first part + 0x00 + host); the second part is "
    "base64url(nonce + SecretBox(plaintext)). Sealing with that nonce gives exactly this token, if the JSON is compact and its "
    "members are in this order.",
    "claims: quotas are requests per minute, hour and day, per client and for all clients together, null for no limit; "
    "secrets are pairs of serviceId and authSecret, in the order in which they are tried; an authSecret is a string, or a list "
    "of two or more, which are used in turn.",
    "invalid: a server that has keys.current as its key and keys.retired as a retired one, called by `host`, at `now`, must "
    "not accept `token`, because of `reason`. Of all of these it may say that they are expired only where `expired` is true; "
    "about the others it says one and the same.",
]

IAT = 1_700_000_000
HOST = "api.example.com"
KEYS = {name: sha256(f"aisbreaker test vector key: {name}".encode()).digest() for name in ("current", "retired", "unknown")}
PHRASES = ["correct-horse-battery-staple", "zwölf Boxkämpfer jagen Viktor"]

CONTRACT = {
    "jti": "AAECAwQFBgcICQoLDA0ODw",
    "iat": IAT,
    "exp": IAT + 365 * 86_400,
    "quotas": [[60, 600, 600], [120, 1200, 1200]],
    "secrets": [
        ["aisbreaker:network", "{{secret}}"],
        ["chat:openai.com", "sk-test-0123456789abcdefghijklmnopqrstuvwxyz+"],
        ["chat:dummy", ""],
        ["", "INVALID"],
    ],
}
EMPTY = {"jti": "_____________________w", "iat": 0, "exp": 1, "quotas": [[None] * 3] * 2, "secrets": []}
ODD = {
    "jti": "AAAAAAAAAAAAAAAAAAAAAA",
    "iat": IAT,
    "exp": IAT + 1,
    "quotas": [[1, None, 2**31], [None, 2**31, None]],
    "secrets": [["*:openai.com", 'quote " backslash \\ slash / tilde ~'], ["chat:openai.com/gpt-4o*", "{{secret}}!"]],
}

SEVERAL = {
    **CONTRACT,
    "secrets": [
        ["chat:openai.com", ["sk-test-first", "sk-test-second", "sk-test-second"]],
        ["chat:anthropic.com", "sk-ant-test"],
        ["", [f"key-{number}" for number in range(16)]],
    ],
}

VALID: list[tuple[str, str, str, dict[str, Any]]] = [
    # name, key, host, claims
    ("the contract's example", "current", HOST, CONTRACT),
    ("sealed with a retired key", "retired", HOST, CONTRACT),
    ("no secrets, no limits", "current", HOST, EMPTY),
    ("limits at their ends, characters that JSON escapes", "current", HOST, ODD),
    ("several secrets for one service", "current", HOST, SEVERAL),
    ("host is an IPv4 address", "current", "127.0.0.1", EMPTY),
    ("host is an IPv6 address", "current", "2001:db8::1", EMPTY),
    ("host is empty (HTTP/1.0)", "current", "", EMPTY),
]


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def nonce(name: str) -> bytes:
    return sha256(f"aisbreaker test vector nonce: {name}".encode()).digest()[:24]


def claims_of(fields: dict[str, Any]) -> TokenClaims:
    """Return the claims that a vector writes as JSON."""
    per_client, together = (RequestLimits.of(windows) for windows in fields["quotas"])
    return TokenClaims(
        jti=fields["jti"],
        iat=fields["iat"],
        exp=fields["exp"],
        quotas=RequestQuotas(per_client_request_limits=per_client, global_request_limits=together),
        secrets=tuple(secret_of(*pair) for pair in fields["secrets"]),
    )


def secret_of(service_id: str, secret: str | list[str]) -> ServiceSecret:
    """Return the secret that a vector writes as a string or a list of them."""
    first, *others = [secret] if isinstance(secret, str) else secret
    return ServiceSecret(service_id, SecretStr(first), tuple(map(SecretStr, others)))


def seal_under(header: bytes, name: str, *, key: str = "current", claims: dict[str, Any] = CONTRACT) -> str:
    """Seal under any header, as the holder of a key could."""
    segment = b64(header)
    box = SecretBox(Keyring(KEYS[key]).box_key(key_id(KEYS[key]), segment.encode(), HOST))
    return f"aisbreaker_{segment}.{b64(box.encrypt(orjson.dumps(claims), nonce(name)))}"


def header_of(**fields: Any) -> bytes:
    return orjson.dumps({"ver": VERSION, "kid": key_id(KEYS["current"]), **fields})


def valid() -> list[dict[str, Any]]:
    vectors = []
    for name, key, host, claims in VALID:
        ring = Keyring(KEYS[key])
        header = header_of(kid=ring.kid)
        vectors.append(
            {
                "name": name,
                "key": key,
                "host": host,
                "header": header.decode(),
                "box_key": b64(ring.box_key(ring.kid, b64(header).encode(), host)),
                "nonce": b64(nonce(name)),
                "plaintext": orjson.dumps(claims).decode(),
                "claims": claims,
                "token": TokenSealer(ring).seal(claims_of(claims), host, nonce=nonce(name)),
            }
        )
    return vectors


def invalid(token: str) -> list[dict[str, Any]]:
    """Return what can be wrong with `token`, which is valid."""
    head, sealed = token.removeprefix("aisbreaker_").split(".")
    assert len(sealed) % 4 in (2, 3), "the sealed part must have bits to spare"
    assert "-" in sealed
    assert "_" in sealed
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare_bit = alphabet[alphabet.index(sealed[-1]) ^ 1]
    middle = len(sealed) // 2
    flipped = alphabet[alphabet.index(sealed[middle]) ^ 1]
    swapped = b'{"kid":"' + key_id(KEYS["current"]).encode() + b'","ver":"' + VERSION.encode() + b'"}'
    long = {**CONTRACT, "secrets": [["chat:openai.com", "x" * 6000]]}
    unsealed = b64(orjson.dumps(CONTRACT))
    tokens = {
        "padded": f"{token}{'=' * (-len(sealed) % 4)}",
        "padded header": token.replace(".", "=.", 1),
        "standard alphabet: + for -": f"aisbreaker_{head}.{sealed.replace('-', '+')}",
        "standard alphabet: / for _": f"aisbreaker_{head}.{sealed.replace('_', '/')}",
        "space before": f" {token}",
        "newline after": f"{token}\n",
        "space within": f"aisbreaker_{head}.{sealed[:middle]} {sealed[middle:]}",
        "newline within the header": f"aisbreaker_{head[:8]}\n{head[8:]}.{sealed}",
        "spare bit behind the last byte is set": f"aisbreaker_{head}.{sealed[:-1]}{spare_bit}",
        "a bit is flipped": f"aisbreaker_{head}.{sealed[:middle]}{flipped}{sealed[middle + 1 :]}",
        "a character is cut off": token[:-1],
        "a group of characters is cut off": f"aisbreaker_{head}.{sealed[: len(sealed) // 4 * 4 - 4]}",
        "cut off within the nonce": f"aisbreaker_{head}.{sealed[:16]}",
        "nonce without a box": f"aisbreaker_{head}.{sealed[:32]}",
        "a character more": f"{token}AA",
        "no dot": f"aisbreaker_{head}{sealed}",
        "two dots": f"{token}.",
        "three parts": f"aisbreaker_{head}.{sealed}.{sealed}",
        "empty header": f"aisbreaker_.{sealed}",
        "empty box": f"aisbreaker_{head}.",
        "both parts empty": "aisbreaker_.",
        "prefix alone": "aisbreaker_",
        "empty": "",
        "no prefix": f"{head}.{sealed}",
        "prefix in capitals": f"AISBREAKER_{head}.{sealed}",
        "not sealed at all": f"aisbreaker_{head}.{unsealed}",
        "header is another version, sealed under it": seal_under(header_of(ver="aisbreaker.org/box/v2"), "version"),
        "header has one member more, sealed under it": seal_under(header_of(alg="none"), "member"),
        "header has no kid, sealed under it": seal_under(orjson.dumps({"ver": VERSION}), "no kid"),
        "header has a kid that is no string, sealed under it": seal_under(header_of(kid=1), "kid type"),
        "header has a kid that is a list, sealed under it": seal_under(header_of(kid=[]), "kid list"),
        "header is a list, sealed under it": seal_under(orjson.dumps(["ver", "kid"]), "list"),
        "header is no JSON, sealed under it": seal_under(b"ver,kid", "no json"),
        "kid is unknown": seal_under(header_of(kid=key_id(KEYS["unknown"])), "unknown", key="unknown"),
        "kid of another of the server's keys": seal_under(header_of(kid=key_id(KEYS["retired"])), "kid"),
        "header's members in another order": f"aisbreaker_{b64(swapped)}.{sealed}",
        "header with a space in it": f"aisbreaker_{b64(header_of().replace(b':', b': ', 1))}.{sealed}",
        "over 8000 characters, sealed": seal_under(header_of(), "long", claims=long),
    }
    vectors = [{"reason": reason, "token": bad, "host": HOST, "now": IAT, "expired": False} for reason, bad in tokens.items()]
    hosts = {"other": "api.example.org", "port": f"{HOST}:443", "capitals": HOST.upper(), "parent": "example.com", "empty": ""}
    vectors += [
        {"reason": f"another host: {kind}", "token": token, "host": host, "now": IAT, "expired": False}
        for kind, host in hosts.items()
    ]
    exp = CONTRACT["exp"]
    vectors += [
        {"reason": "expires this very second", "token": token, "host": HOST, "now": exp, "expired": True},
        {"reason": "expired", "token": token, "host": HOST, "now": exp + 1, "expired": True},
        {"reason": "expired, and for another host", "token": token, "host": hosts["other"], "now": exp, "expired": False},
        {"reason": "expired, and cut off", "token": token[:-2], "host": HOST, "now": exp, "expired": False},
    ]
    return vectors


def render() -> str:
    """Return the text of the file."""
    made = valid()
    content = {
        "README": README,
        "keys": {name: {"key": b64(key), "kid": key_id(key)} for name, key in KEYS.items()},
        "keyphrases": [{"phrase": phrase, "key": b64(stretch_keyphrase(phrase, name="phrase"))} for phrase in PHRASES],
        "valid": made,
        "invalid": invalid(made[0]["token"]),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")
