"""
The authorizer: puts credentials that are more than a header into requests, and retries with the next secret.

A `CredentialStrategy` puts one secret into a request. A token may hold several secrets for a service. While the service
rejects them, the request is retried with the next one (`rotation`). That ends when a part of a response has reached the client,
or when the body can't be sent again.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import httpx

from ..client.body import RequestBody
from ..exceptions import UpstreamCredentialRejected
from ..http1.fields import RawHeaders
from ..services.service import CredentialStyle
from ..tokens.claims import ServiceSecret
from ..upstream.request import UpstreamRequest
from .aws import SignatureStrategy
from .carriers import reveal, with_credential
from .google_cloud import GoogleCloudStrategy
from .rotation import Rotation, Turn

__all__ = ["REPLAYED_BODY_BYTES", "Authorizer", "CredentialStrategy", "SecretInUse"]

REPLAYED_BODY_BYTES = 1 << 20
"""Largest body, in bytes, kept for a retry."""


class SecretInUse(NamedTuple):
    """
    A secret on its way into a request. Its repr shows no secret.

    Attributes:
        secret: the token's secret for the service.
        style: the service's credential style.
        token: the presented token.
        jti: the token's identifier.
    """

    secret: ServiceSecret
    style: CredentialStyle
    token: str
    jti: str

    def __repr__(self) -> str:
        return f"SecretInUse(style={self.style!r}, jti={self.jti!r})"


class CredentialStrategy(Protocol):
    """One way to put a secret into a request."""

    async def authorize(self, request: UpstreamRequest, body: RequestBody, secret: str) -> UpstreamRequest:
        """
        Return the request with the credential in place.

        Args:
            request: the request without a credential.
            body: its body. A strategy may collect it; it is then sent from memory.
            secret: the secret; not empty.

        Raises:
            UpstreamCredentialRejected: the secret can't be used at all.
            RequestError: no credential can be made at the moment.
        """

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        """
        Return whether the service's response rejects the credential.

        Args:
            secret: secret that the credential was made from.
            status: status of the response.
            headers: headers of the response, names in lower case.
        """


class HeaderStrategy:
    """Sends the secret as a header, or as a query parameter."""

    def __init__(self, style: CredentialStyle) -> None:
        self._style = style

    async def authorize(self, request: UpstreamRequest, body: RequestBody, secret: str) -> UpstreamRequest:
        """Return the request with the credential in place; see `CredentialStrategy`."""
        target = with_credential(request.target, self._style, secret)
        headers = [*request.headers, *self._style.headers_for(secret)]
        return replace(request, target=target, headers=headers, credential=secret)

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        """Return whether the response rejects the credential; see `CredentialStrategy`."""
        return status == 401


class Authorizer:
    """
    Puts credentials into requests.

    Args:
        transport: returns the current transport, for requests of the strategies' own.
        clock: returns seconds since the epoch.
        max_signed_bytes: largest body, in bytes, that is signed.
    """

    def __init__(
        self, transport: Callable[[], httpx.AsyncBaseTransport], *, clock: Callable[[], float], max_signed_bytes: int
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._max_signed_bytes = max_signed_bytes
        self._strategies: dict[CredentialStyle, CredentialStrategy] = {}
        self._rotation = Rotation(clock)

    async def authorize(self, request: UpstreamRequest, body: RequestBody, using: SecretInUse) -> UpstreamRequest:
        """
        Return the request with a credential, and with its further attempts for the case that the service rejects it.

        Args:
            request: the request without a credential.
            body: its body; kept for a retry where there are several secrets.
            using: secret, and the style of the credential.

        Raises:
            RequestError: no credential can be made from any of the secrets.
        """
        secret = using.secret
        values = secret.values() if secret.others else [reveal(secret, using.token)]
        if values == [""]:
            return request
        if len(values) > 1:
            body.keep(REPLAYED_BODY_BYTES)
        turn = self._rotation.begin(using.jti, secret.service_id, len(values))
        attempts = _Attempts(request, body, self._strategy(using.style), values, turn)
        first = await attempts.another()
        if first is None:
            raise UpstreamCredentialRejected
        return first

    def secret_in_turn(self, secret: ServiceSecret, *, token: str, jti: str) -> str:
        """Return the next secret in clear, for a request that this package does not send itself."""
        if not secret.others:
            return reveal(secret, token)
        values = secret.values()
        return values[self._rotation.begin(jti, secret.service_id, len(values)).take() or 0]

    def _strategy(self, style: CredentialStyle) -> CredentialStrategy:
        strategy = self._strategies.get(style)
        if strategy is None:
            strategy = self._strategies[style] = self._make_strategy(style)
        return strategy

    def _make_strategy(self, style: CredentialStyle) -> CredentialStrategy:
        options = dict(style.options)
        match style.strategy:
            case "google-cloud":
                return GoogleCloudStrategy(self._transport, token_url=options["token_url"], clock=self._clock)
            case "aws-sigv4":
                return SignatureStrategy(
                    region=options["region"],
                    service=options["service"],
                    clock=self._clock,
                    max_body_bytes=self._max_signed_bytes,
                )
            case _:
                return HeaderStrategy(style)


class _Attempts:
    """The attempts to send one request, each with another secret (`upstream.request.Attempts`)."""

    def __init__(
        self, request: UpstreamRequest, body: RequestBody, strategy: CredentialStrategy, values: list[str], turn: Turn
    ) -> None:
        self._request = request
        self._body = body
        self._strategy = strategy
        self._values = values
        self._turn = turn
        self._current = ""

    def rejects(self, status: int, headers: RawHeaders, *, told: bool) -> bool:
        rejected = self._strategy.rejects(self._current, status, headers) or told
        if rejected or status == 429:
            self._turn.pause(401 if rejected else status, headers)
        return rejected

    async def another(self) -> UpstreamRequest | None:
        while (index := self._turn.take()) is not None:
            self._current = self._values[index]
            try:
                request = await self._strategy.authorize(self._request, self._body, self._current)
            except UpstreamCredentialRejected:
                self._turn.pause(401, [])
            else:
                return replace(request, attempts=self)
        return None
