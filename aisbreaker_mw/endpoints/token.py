"""`POST /api/v1/oauth/token`: seals the secrets and quotas of a token request into a token."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import SecretStr

from ..client.body import RequestBody
from ..client.responses import Response, json_response
from ..exceptions import InvalidClient, InvalidRequest, MintingRefused, PayloadTooLarge, UnsupportedMediaType
from ..http1.fields import RawHeaders, get
from ..tokens.sealer import TokenSealer, TokenTooLong
from .token_request import TokenRequest, parse_token_request

__all__ = ["MAX_TOKEN_REQUEST_BYTES", "MintingPolicy", "TokenEndpoint"]

MAX_TOKEN_REQUEST_BYTES = 64 * 1024
"""Largest body of a token request, in bytes."""


@dataclass(frozen=True, slots=True)
class MintingPolicy:
    """
    Who may mint tokens, and for how long they live.

    Args:
        mode: `open`, `secret` (the request's clientSecret must equal `secret`) or `off`.
        secret: secret of mode `secret`.
        default_lifetime: lifetime where a request names none, in seconds.
        max_lifetime: longest lifetime, in seconds.
    """

    mode: str
    secret: SecretStr | None
    default_lifetime: int
    max_lifetime: int


class TokenEndpoint:
    """
    Mints tokens. It keeps nothing of them.

    Args:
        sealer: seals the claims.
        policy: who may mint tokens, and for how long they live.
        clock: returns seconds since the epoch.
    """

    def __init__(self, sealer: TokenSealer, policy: MintingPolicy, *, clock: Callable[[], float]) -> None:
        self._sealer = sealer
        self._policy = policy
        self._clock = clock

    async def __call__(self, headers: RawHeaders, body: RequestBody, host: str) -> Response:
        """
        Return the response to a token request.

        Args:
            headers: headers of the request, names in lower case.
            body: body of the request.
            host: host name that the token will be bound to.

        Raises:
            RequestError: the request is refused.
        """
        if self._policy.mode == "off":
            raise MintingRefused
        _check_media_type(headers)
        request = parse_token_request(bytes(await body.collect(MAX_TOKEN_REQUEST_BYTES, PayloadTooLarge)))
        self._check_client(request)
        now = int(self._clock())
        policy = self._policy
        claims = request.claims(now=now, default_lifetime=policy.default_lifetime, max_lifetime=policy.max_lifetime)
        claims = replace(claims, open=policy.mode == "open")
        try:
            token = self._sealer.seal(claims, host)
        except TokenTooLong as error:
            raise InvalidRequest(f"The request is too large to be sealed: {error}.") from None
        content = {"access_token": token, "token_type": "Bearer", "expires_in": claims.exp - now, "key_id": claims.jti}
        # RFC 6749, 5.1
        return json_response(200, content, [(b"cache-control", b"no-store"), (b"pragma", b"no-cache")])

    def _check_client(self, request: TokenRequest) -> None:
        if self._policy.mode != "secret":
            return
        expected = self._policy.secret.get_secret_value() if self._policy.secret else ""
        presented = request.client_secret.get_secret_value() if request.client_secret else ""
        pair = [text.encode("utf-8", "surrogatepass") for text in (expected, presented)]
        if not expected or not hmac.compare_digest(*pair):
            raise InvalidClient


def _check_media_type(headers: RawHeaders) -> None:
    media_type, _, parameters = (get(headers, b"content-type") or b"").partition(b";")
    if media_type.strip().lower() != b"application/json":
        raise UnsupportedMediaType
    charset = parameters.strip().lower().replace(b'"', b"").replace(b" ", b"")
    if charset not in (b"", b"charset=utf-8", b"charset=utf8"):
        raise UnsupportedMediaType
    if get(headers, b"content-encoding") is not None:
        raise UnsupportedMediaType("The request body must not be compressed.")
