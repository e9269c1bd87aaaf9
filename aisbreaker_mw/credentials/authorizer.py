"""
Credentials that take more than a header and more than one try.

A `CredentialStrategy` puts a secret into a request. Where a token holds several secrets for the service, the request is
sent with one after the other while the service refuses them (`rotation`), as long as nothing of an answer has reached the
client and the body can be sent again.
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
    What a credential is made of. Its repr shows no secret.

    Attributes:
        secret: the token's secret for the service.
        style: how the service wants its credential.
        token: the presented token.
        jti: identifier of the token.
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
            request: without one.
            body: may be collected; it is then sent from memory.
            secret: not empty.

        Raises:
            UpstreamCredentialRejected: the secret is good for nothing.
            RequestError: the credential can't be made now.
        """

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        """
        Tell whether the service's answer says that it does not accept the credential.

        Args:
            secret: that it was made from.
            status: of the answer.
            headers: of the answer, names in lower case.
        """


class HeaderStrategy:
    """A credential that is a header, or a parameter of the query."""

    def __init__(self, style: CredentialStyle) -> None:
        self._style = style

    async def authorize(self, request: UpstreamRequest, body: RequestBody, secret: str) -> UpstreamRequest:
        target = with_credential(request.target, self._style, secret)
        return replace(request, target=target, headers=[*request.headers, *self._style.headers_for(secret)])

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        return status == 401


class Authorizer:
    """
    Puts credentials into requests.

    Args:
        transport: returns what carries a strategy's own requests at the moment.
        clock: returns seconds since the epoch.
        max_signed_bytes: of a body that has to be signed.
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
        Return the request with a credential, and with the other ways to send it where that one is refused.

        Args:
            request: the request without a credential.
            body: its body; a part of it is kept for a retry where there are several secrets.
            using: what the credential is made of.

        Raises:
            RequestError: no credential can be made of any of the secrets.
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
        """Return one credential in clear, for a request that is not sent from here."""
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
    """One request, and the secrets with which it can be sent (`proxy.Attempts`)."""

    def __init__(
        self, request: UpstreamRequest, body: RequestBody, strategy: CredentialStrategy, values: list[str], turn: Turn
    ) -> None:
        self._request = request
        self._body = body
        self._strategy = strategy
        self._values = values
        self._turn = turn
        self._current = ""

    def rejects(self, status: int, headers: RawHeaders) -> bool:
        rejected = self._strategy.rejects(self._current, status, headers)
        if rejected or status == 429:
            self._turn.rest(401 if rejected else status, headers)
        return rejected

    async def another(self) -> UpstreamRequest | None:
        while (index := self._turn.take()) is not None:
            self._current = self._values[index]
            try:
                request = await self._strategy.authorize(self._request, self._body, self._current)
            except UpstreamCredentialRejected:
                self._turn.rest(401, [])
            else:
                return replace(request, attempts=self)
        return None
