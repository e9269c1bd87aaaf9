"""
Google Cloud credentials for Vertex AI.

A secret is an access token (`ya29...`), which is sent as it is, or an account. An account is written as
`googlecloud-account-json-base64_` and the base64 of a service account's or a user's JSON file. It is exchanged at Google's
token endpoint for access tokens that live for an hour:

    service account   RFC 7523, 2.1: a JWT signed with its key     https://developers.google.com/identity/protocols/oauth2/service-account
    user              RFC 6749, 6: the refresh token               https://developers.google.com/identity/protocols/oauth2/web-server
"""

import asyncio
import base64
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx

from ..client.body import RequestBody
from ..exceptions import CredentialUnsupported, UpstreamCredentialRejected, UpstreamError
from ..http1.fields import RawHeaders
from ..memo import Memo
from ..upstream.errors import upstream_failure
from ..upstream.request import UpstreamRequest

__all__ = ["ACCOUNT_PREFIX", "GoogleCloudStrategy"]

ACCOUNT_PREFIX = "googlecloud-account-json-base64_"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"

_logger = logging.getLogger("aisbreaker_mw")

_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME = 3600
"""Lifetime of an assertion in seconds, the longest that Google takes. Also that of an access token that states none."""
_EARLY = 225.0
"""Seconds before its end at which an access token is renewed, as in google-auth."""
_LONGEST = 12 * 3600.0
"""Longest believed lifetime of an access token, in seconds."""
_TIMEOUT = 10.0
"""Seconds for each step of an exchange."""
_MAX_RESPONSE_BYTES = 64 * 1024
_ACCESS_TOKEN = re.compile(r"[!-~]{1,8192}")  # fits into a header
_PROJECT = re.compile(r"[A-Za-z0-9:._-]{1,256}")


class _Access(NamedTuple):
    headers: RawHeaders
    renew_at: float


class GoogleCloudStrategy:
    """
    Sends Bearer access tokens of Google accounts.

    Access tokens are remembered until shortly before they expire. Requests that wait for the same one share one exchange.

    Args:
        transport: returns the current transport.
        token_url: the only token endpoint that is ever asked. An account that names another is rejected, because anybody can
            mint a token with such an account.
        clock: returns seconds since the epoch.
        max_entries: most access tokens remembered.
    """

    def __init__(
        self,
        transport: Callable[[], httpx.AsyncBaseTransport],
        *,
        token_url: str,
        clock: Callable[[], float],
        max_entries: int = 1000,
    ) -> None:
        self._transport = transport
        self._token_url = token_url
        self._clock = clock
        self._accesses: Memo[bytes, _Access] = Memo(max_entries)
        self._exchanges: dict[bytes, asyncio.Task[_Access]] = {}

    async def authorize(self, request: UpstreamRequest, body: RequestBody, secret: str) -> UpstreamRequest:
        """Return the request with the credential in place; see `CredentialStrategy`."""
        headers = (await self._access(secret)).headers if secret.startswith(ACCOUNT_PREFIX) else _bearer(secret)
        credential = headers[0][1].decode("ascii").removeprefix("Bearer ")
        return replace(request, headers=[*request.headers, *headers], credential=credential)

    def rejects(self, secret: str, status: int, headers: RawHeaders) -> bool:
        """Return whether the response rejects the credential; see `CredentialStrategy`."""
        if status == 401:
            self._accesses.forget(_key(secret))
        return status == 401

    async def _access(self, secret: str) -> _Access:
        key = _key(secret)
        access = self._accesses[key]
        if access is not None and self._clock() < access.renew_at:
            return access
        exchange = self._exchanges.get(key)
        loop = asyncio.get_running_loop()
        if exchange is None or exchange.get_loop() is not loop:
            # The exchange is a task, so that it goes on for others when the request that began it is cancelled.
            exchange = self._exchanges[key] = loop.create_task(self._exchange(key, secret))
            exchange.add_done_callback(partial(self._exchanged, key))
        return await asyncio.shield(exchange)

    def _exchanged(self, key: bytes, exchange: "asyncio.Task[_Access]") -> None:
        if self._exchanges.get(key) is exchange:
            del self._exchanges[key]
        if not exchange.cancelled():
            exchange.exception()  # marks the error as seen, in case nobody waits any more

    async def _exchange(self, key: bytes, secret: str) -> _Access:
        account = _read_account(secret, self._token_url)
        now = self._clock()
        if account["type"] == "service_account":
            form = await asyncio.to_thread(_assertion_grant, account, self._token_url, int(now))
        else:
            form = {"grant_type": "refresh_token", **{name: account[name] for name in _USER_FIELDS}}
        status, body = await self._post(urlencode(form).encode("ascii"))
        if status in (400, 401, 403):
            raise UpstreamCredentialRejected
        if status != 200:
            raise UpstreamError
        token, expires_in = _read_token_response(body)
        headers = _bearer(token)
        project = account.get("quota_project_id")
        if isinstance(project, str) and _PROJECT.fullmatch(project):
            headers.append((b"x-goog-user-project", project.encode("ascii")))
        access = _Access(headers, now + expires_in - min(_EARLY, expires_in / 2))
        self._accesses.remember(key, access)
        return access

    async def _post(self, form: bytes) -> tuple[int, bytes]:
        timeout = {"connect": _TIMEOUT, "read": _TIMEOUT, "write": _TIMEOUT, "pool": _TIMEOUT}
        request = httpx.Request(
            "POST",
            self._token_url,
            headers={"content-type": "application/x-www-form-urlencoded", "accept": "application/json"},
            content=form,
            extensions={"timeout": timeout},
        )
        try:
            async with asyncio.timeout(3 * _TIMEOUT):
                response = await self._transport().handle_async_request(request)
                stream = response.stream
                assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - httpx.AsyncBaseTransport promises it
                body = b""
                try:
                    async for piece in stream:
                        body += piece
                        if len(body) > _MAX_RESPONSE_BYTES:
                            raise UpstreamError
                finally:
                    await stream.aclose()
        except (httpx.TransportError, OSError) as error:  # asyncio's TimeoutError is an OSError
            raise upstream_failure(error) from error
        return response.status_code, body


_USER_FIELDS = ("client_id", "client_secret", "refresh_token")
_REQUIRED = {"service_account": ("client_email", "private_key"), "authorized_user": _USER_FIELDS}


def _key(secret: str) -> bytes:
    return sha256(secret.encode("utf-8")).digest()


def _bearer(token: str) -> RawHeaders:
    return [(b"authorization", b"Bearer " + token.encode("ascii"))]


def _read_account(secret: str, token_url: str) -> dict[str, Any]:
    """
    Return the account in a secret.

    Raises:
        UpstreamCredentialRejected: it is no account that Google could accept, or it names another token endpoint.
    """
    text = secret[len(ACCOUNT_PREFIX) :].rstrip("=")
    try:
        account = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
    except (ValueError, RecursionError):
        raise UpstreamCredentialRejected from None
    if not isinstance(account, dict) or not isinstance(account.get("type"), str):
        raise UpstreamCredentialRejected
    required = _REQUIRED.get(account["type"])
    if required is None or not all(isinstance(account.get(name), str) for name in required):
        raise UpstreamCredentialRejected
    if account.get("token_uri", token_url) != token_url:
        _logger.warning("a Google account in a token names a token_uri that is not this server's token_url; it was not asked")
        raise UpstreamCredentialRejected
    return account


def _assertion_grant(account: dict[str, Any], token_url: str, now: int) -> dict[str, str]:
    """
    Return the form that requests a service account's access token (RFC 7523, 2.1 and 3). Signing it takes milliseconds.

    Raises:
        CredentialUnsupported: google-auth is not installed.
        UpstreamCredentialRejected: the account's private key is invalid.
    """
    try:
        from google.auth import crypt, jwt
    except ImportError:
        _logger.error("a Google service account can't be used: install aisbreaker-mw[vertex]")
        raise CredentialUnsupported from None
    try:
        signer = crypt.RSASigner.from_service_account_info(account)
        claims = {
            "iss": account["client_email"],
            "scope": SCOPE,
            "aud": token_url,
            "iat": now,
            "exp": now + _LIFETIME,
        }
        assertion = jwt.encode(signer, claims)
    except Exception:  # the libraries raise many kinds, and their texts may quote the key
        raise UpstreamCredentialRejected from None
    return {"grant_type": _JWT_BEARER, "assertion": assertion.decode("ascii")}


def _read_token_response(body: bytes) -> tuple[str, float]:
    """
    Return the access token in a token response, and its lifetime in seconds (RFC 6749, 5.1).

    Raises:
        UpstreamError: it is no token response.
    """
    try:
        fields = json.loads(body)
        token, expires_in = fields["access_token"], float(fields.get("expires_in", _LIFETIME))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UpstreamError from None
    if not isinstance(token, str) or not _ACCESS_TOKEN.fullmatch(token) or not 0 < expires_in < float("inf"):
        raise UpstreamError
    return token, min(expires_in, _LONGEST)
