"""
The sealer: seals claims into tokens, and opens tokens.

A token is `aisbreaker_` + base64url(header) + `.` + base64url(nonce ‖ SecretBox(claims)). The header is the JSON object
`{"ver":"aisbreaker.org/box/v1","kid":"..."}`. The box is libsodium's XSalsa20-Poly1305 under a key that is derived from the
master key, the header and the host (`Keyring.box_key`). The claims are a JSON object:

    {"jti": "...", "iat": 1700000000, "exp": 1700007200,
     "quotas": [[minute, hour, day], [minute, hour, day]],    per client, and global; null for no limit
     "secrets": [["serviceId", "authSecret"], ["serviceId", ["authSecret", "authSecret"]], ...],
     "open": true,                                            only in a token that anybody could mint
     "label": "..."}                                          only where the key has one
"""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from secrets import token_bytes
from sys import getsizeof
from typing import Any

import orjson
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from pydantic import SecretStr

from ..exceptions import InvalidToken
from ..memo import WeighedMemo
from .base64url import b64url_decode, b64url_encode
from .claims import RequestLimits, RequestQuotas, ServiceSecret, TokenClaims
from .keyring import Keyring

TOKEN_PREFIX = "aisbreaker_"  # noqa: S105 - no secret: every token begins with it
VERSION = "aisbreaker.org/box/v1"
MAX_TOKEN_CHARACTERS = 8000
"""Longest token. Many servers and proxies refuse header lines over 8 KiB."""
MAX_HEADER_CHARACTERS = 128
MAX_OPENED_BYTES = 64 * 1024 * 1024
"""Most bytes of opened tokens that a process remembers: some 20,000 usual tokens, or 500 with hundreds of secrets."""
EXPIRED = "The API key has expired."

UNKNOWN_KEY = "unknown_key"
"""Reason of an InvalidToken: the token names a master key that this server does not have."""
NOT_OPENED = "not_opened"
"""Reason of an InvalidToken: the token is malformed, was changed, or is for another host."""
EXPIRED_REASON = "expired"
"""Reason of an InvalidToken: the token has expired."""

_KID = re.compile("[A-Za-z0-9_-]{8}", re.ASCII)  # as `keyring.key_id` makes them: safe to log


class TokenTooLong(ValueError):
    """Raised for claims whose token would be longer than `MAX_TOKEN_CHARACTERS`."""


def new_jti() -> str:
    """Return a fresh token identifier: 16 random bytes as 22 characters of base64url."""
    return b64url_encode(token_bytes(16))


class TokenSealer:
    """
    Seals claims into tokens and opens tokens into claims.

    Args:
        keyring: the server's master keys.
        max_opened_bytes: most bytes that remembered tokens take, opened.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self, keyring: Keyring, *, max_opened_bytes: int = MAX_OPENED_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._keyring = keyring
        self._clock = clock
        self._opened: WeighedMemo[tuple[str, str], TokenClaims] = WeighedMemo(
            max_opened_bytes, lambda key, claims: getsizeof(key[0]) + weigh(claims), lambda claims: claims.exp, clock
        )

    def seal(self, claims: TokenClaims, host: str, *, nonce: bytes | None = None) -> str:
        """
        Return a token that holds `claims` and opens on `host` only.

        Args:
            claims: claims to seal; their `kid` is ignored.
            host: host to bind the token to, lower case, without port.
            nonce: 24 bytes, random by default. Only test vectors give one.

        Raises:
            TokenTooLong: the token would have more than 8,000 characters.
        """
        kid = self._keyring.kid
        header = b64url_encode(orjson.dumps({"ver": VERSION, "kid": kid}))
        box = SecretBox(self._keyring.box_key(kid, header.encode("ascii"), host))
        token = f"{TOKEN_PREFIX}{header}.{b64url_encode(bytes(box.encrypt(_dump(claims), nonce)))}"
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenTooLong(f"the token would have more than {MAX_TOKEN_CHARACTERS} characters")
        return token

    def unseal(self, token: str, host: str) -> TokenClaims:
        """
        Return the claims of a token that opens on `host` and has not expired.

        Raises:
            InvalidToken: the token does not open, or it has expired. The message mentions expiry only for a token that opened.
        """
        key = (token, host)
        claims = self._opened[key]
        if claims is None:
            claims = self.open(token, host)
            self._opened.remember(key, claims)
        try:
            self.check_expiry(claims)
        except InvalidToken:
            self._opened.forget(key)
            raise
        return claims

    def check_expiry(self, claims: TokenClaims) -> None:
        """
        Raise an error for claims that have expired.

        Raises:
            InvalidToken: they have expired.
        """
        if self._clock() >= claims.exp:
            raise InvalidToken(EXPIRED, reason=EXPIRED_REASON, kid=claims.kid)

    def open(self, token: str, host: str) -> TokenClaims:
        """
        Return the claims of a token that opens on `host`, expired or not.

        Raises:
            InvalidToken: the token does not open. The message is the same for every reason. `reason` and `kid` tell the
                operator.
        """
        if len(token) > MAX_TOKEN_CHARACTERS or not token.startswith(TOKEN_PREFIX):
            raise InvalidToken(reason=NOT_OPENED)
        header, dot, sealed = token[len(TOKEN_PREFIX) :].partition(".")
        if not dot or len(header) > MAX_HEADER_CHARACTERS:
            raise InvalidToken(reason=NOT_OPENED)
        kid = None
        try:
            kid = self._read_kid(b64url_decode(header))
            box = SecretBox(self._keyring.box_key(kid, header.encode("ascii"), host))
            claims = box.decrypt(b64url_decode(sealed))
        except KeyError:
            raise InvalidToken(reason=UNKNOWN_KEY, kid=kid) from None
        except (ValueError, CryptoError):
            raise InvalidToken(reason=NOT_OPENED, kid=kid) from None
        return replace(_load(claims), kid=kid)

    @staticmethod
    def _read_kid(header: bytes) -> str:
        fields = orjson.loads(header)
        if not isinstance(fields, dict) or fields.keys() != {"ver", "kid"} or fields["ver"] != VERSION:
            raise ValueError("unknown token header")
        kid = fields["kid"]
        if not isinstance(kid, str) or not _KID.fullmatch(kid):
            raise ValueError("unknown token header")
        return kid


def weigh(claims: TokenClaims) -> int:
    """Return about how many bytes of memory claims take."""
    size = 2000
    for secret in claims.secrets:
        size += 64 + getsizeof(secret.service_id)
        for value in secret.values():
            size += 100 + getsizeof(value)
    return size


def _dump(claims: TokenClaims) -> bytes:
    quotas = claims.quotas
    fields: dict[str, Any] = {
        "jti": claims.jti,
        "iat": claims.iat,
        "exp": claims.exp,
        "quotas": [quotas.per_client_request_limits.windows(), quotas.global_request_limits.windows()],
        "secrets": [
            (secret.service_id, secret.values() if secret.others else secret.auth_secret.get_secret_value())
            for secret in claims.secrets
        ],
    }
    if claims.open:
        fields["open"] = True
    if claims.label:
        fields["label"] = claims.label
    return orjson.dumps(fields)


def _load(data: bytes) -> TokenClaims:
    # The MAC proves that a holder of the master key wrote this, so its shape is not checked: InvalidToken would hide a bug.
    fields = orjson.loads(data)
    per_client, together = fields["quotas"]
    return TokenClaims(
        jti=fields["jti"],
        iat=fields["iat"],
        exp=fields["exp"],
        quotas=RequestQuotas(
            per_client_request_limits=RequestLimits.of(per_client), global_request_limits=RequestLimits.of(together)
        ),
        secrets=tuple(_load_secret(*secret) for secret in fields["secrets"]),
        open=fields.get("open", False),
        label=fields.get("label", ""),
    )


def _load_secret(service_id: str, secret: str | list[str]) -> ServiceSecret:
    if isinstance(secret, str):
        return ServiceSecret(service_id, SecretStr(secret))
    first, *others = (SecretStr(each) for each in secret)
    return ServiceSecret(service_id, first, tuple(others))
