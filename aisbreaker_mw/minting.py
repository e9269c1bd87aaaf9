"""Minting without a server: tokens made by a program or by the command line, with the settings' master key."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .endpoints.token_request import TokenRequest, parse_token_request
from .exceptions import ConfigurationError, InvalidRequest
from .settings import Settings, parse_host_name
from .tokens.claims import RequestQuotas
from .tokens.sealer import TokenSealer, TokenTooLong

__all__ = ["Minted", "Minter", "mint"]


@dataclass(frozen=True, slots=True)
class Minted:
    """
    A fresh token. Its repr does not show it.

    Attributes:
        token: the `aisbreaker_` token.
        key_id: its identifier, by which the log names it.
        expires_at: time of expiry, seconds since the epoch.
    """

    token: str = field(repr=False)
    key_id: str
    expires_at: int


class Minter:
    """
    Mints tokens with the master key of some settings. The key is read once, so thousands of tokens take seconds.

    Args:
        settings: the server's configuration; `minting.default_lifetime` and `minting.max_lifetime` hold here too.
        host: name that the server is called by, lower case, without port; the first of `hosts` when not given.
        clock: returns seconds since the epoch.

    Raises:
        ConfigurationError: there is no master key, or no host, or `host` is no host name.
    """

    def __init__(self, settings: Settings, host: str | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._policy = settings.minting
        self._sealer = TokenSealer(settings.keyring(), clock=clock)
        self._clock = clock
        if host is None:
            if not settings.hosts:
                raise ConfigurationError("hosts: none is configured; name the host that the token's users call the server by")
            host = settings.hosts[0]
        try:
            self._host = parse_host_name(host)
        except ValueError as error:
            raise ConfigurationError(f"host {error}") from None

    def mint(self, request: TokenRequest) -> Minted:
        """
        Mint the token that a token request describes.

        Raises:
            InvalidRequest: the lifetime is too long, or the token would be.
        """
        policy = self._policy
        claims = request.claims(
            now=int(self._clock()), default_lifetime=policy.default_lifetime, max_lifetime=policy.max_lifetime
        )
        try:
            return Minted(self._sealer.seal(claims, self._host), claims.jti, claims.exp)
        except TokenTooLong as error:
            raise InvalidRequest(f"The request is too large to be sealed: {error}.") from None


def mint(
    settings: Settings,
    *,
    secrets: Mapping[str, str | Sequence[str]],
    quotas: RequestQuotas | None = None,
    lifetime: str | None = None,
    host: str | None = None,
    label: str = "",
) -> Minted:
    """
    Mint a token in this process, without a request to a server.

    Args:
        settings: the configuration of the server that the token is for: its master key seals the token.
        secrets: credentials by serviceId pattern, tried in order; several credentials of one pattern take turns.
        quotas: requests per window; none by default.
        lifetime: a span such as `15m`; `minting.default_lifetime` when not given.
        host: name that the server is called by, lower case, without port; the first of `hosts` when not given.
        label: name of the key for the operator's log, at most 100 printable characters.

    Raises:
        ConfigurationError: the settings have no master key or host.
        InvalidRequest: a value is refused, as the token endpoint would refuse it. The message names the field of the endpoint.
    """
    entries = [{"serviceId": service_id, "authSecret": _plain(secret)} for service_id, secret in secrets.items()]
    body: dict[str, Any] = {"requestAuthAndQuotas": {"serviceSecrets": entries}, "label": label}
    if quotas is not None:
        body["requestAuthAndQuotas"]["requestQuotas"] = quotas.model_dump(by_alias=True, exclude_none=True)
    if lifetime is not None:
        body["expirationTimeSpan"] = lifetime
    return Minter(settings, host).mint(parse_token_request(json.dumps(body).encode()))


def _plain(secret: str | Sequence[str]) -> str | list[str]:
    return secret if isinstance(secret, str) else list(secret)
