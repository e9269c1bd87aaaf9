"""The server's own endpoints: token, ping, version, health."""

import hmac
from collections.abc import Callable
from importlib.metadata import version

from pydantic import SecretStr

from ..client.body import RequestBody
from ..client.responses import Answer, json_answer
from ..exceptions import (
    InvalidClient,
    InvalidRequest,
    MethodNotAllowed,
    MintingRefused,
    PayloadTooLarge,
    RawHeaders,
    UnsupportedMediaType,
)
from ..http1.fields import get
from ..tokens.sealer import TokenSealer, TokenTooLong
from .token_request import TokenRequest, parse_token_request

TOKEN_PATH = b"/api/v1/oauth/token"
MAX_TOKEN_REQUEST_BYTES = 64 * 1024


class TokenEndpoint:
    """
    `POST /api/v1/oauth/token`: seals what the request names into a token, and keeps nothing.

    Args:
        sealer: seals the claims.
        mode: `open`, `secret` (the request's clientSecret must be `secret`) or `off`.
        secret: for mode `secret`.
        default_lifetime: seconds, where a request names none.
        max_lifetime: seconds.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        sealer: TokenSealer,
        *,
        mode: str,
        secret: SecretStr | None,
        default_lifetime: int,
        max_lifetime: int,
        clock: Callable[[], float],
    ) -> None:
        self._sealer = sealer
        self._mode = mode
        self._secret = secret
        self._default_lifetime = default_lifetime
        self._max_lifetime = max_lifetime
        self._clock = clock

    async def __call__(self, headers: RawHeaders, body: RequestBody, host: str) -> Answer:
        """
        Return the answer to a token request.

        Args:
            headers: of the request, names in lower case.
            body: its body.
            host: the name that the token will be bound to.

        Raises:
            RequestError: the request is refused.
        """
        if self._mode == "off":
            raise MintingRefused
        _check_media_type(headers)
        request = parse_token_request(bytes(await body.collect(MAX_TOKEN_REQUEST_BYTES, PayloadTooLarge)))
        self._check_client(request)
        now = int(self._clock())
        claims = request.claims(now=now, default_lifetime=self._default_lifetime, max_lifetime=self._max_lifetime)
        try:
            token = self._sealer.seal(claims, host)
        except TokenTooLong as error:
            raise InvalidRequest(f"The request is too large to be sealed: {error}.") from None
        content = {"access_token": token, "token_type": "Bearer", "expires_in": claims.exp - now}
        # RFC 6749, 5.1
        return json_answer(200, content, [(b"cache-control", b"no-store"), (b"pragma", b"no-cache")])

    def _check_client(self, request: TokenRequest) -> None:
        if self._mode != "secret":
            return
        expected = self._secret.get_secret_value() if self._secret else ""
        given = request.client_secret.get_secret_value() if request.client_secret else ""
        pair = [text.encode("utf-8", "surrogatepass") for text in (expected, given)]
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


def ping() -> Answer:
    """Return the answer of `GET /api/v1/ping`."""
    return json_answer(200, {"message": "api-pong"}, [(b"cache-control", b"no-store")])


def show_version() -> Answer:
    """Return the answer of `GET /api/v1/version`."""
    return json_answer(200, {"name": "aisbreaker-mw", "version": version("aisbreaker-mw")})


def health(quota_storage: str) -> Answer:
    """
    Return the answer of `GET /api/v1/health`: 200 while the process can serve.

    Args:
        quota_storage: state of the quota storage (`QuotaLimiter.health`), for the operator.
    """
    content = {"status": "ok", "quota_storage": quota_storage}
    return json_answer(200, content, [(b"cache-control", b"no-store")])


def require_method(method: str, *allowed: str) -> None:
    """
    Raises:
        MethodNotAllowed: `method` is none of `allowed`.
    """
    if method not in allowed:
        raise MethodNotAllowed(*allowed)
