"""The server's own endpoints, without a server."""

import json
from importlib.metadata import version
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import Message, Receive

from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.endpoints.endpoints import health, ping, require_method, show_version
from aisbreaker_mw.endpoints.token import MAX_TOKEN_REQUEST_BYTES, MintingPolicy, TokenEndpoint
from aisbreaker_mw.exceptions import (
    ClientDisconnected,
    InvalidClient,
    InvalidRequest,
    MethodNotAllowed,
    MintingRefused,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)
from aisbreaker_mw.tokens.keyring import Keyring
from aisbreaker_mw.tokens.sealer import TokenSealer

NOW = 1_700_000_000.9
HOST = "api.example.com"
SEALER = TokenSealer(Keyring(bytes(32)), clock=lambda: NOW)
JSON = [(b"content-type", b"application/json")]
REQUEST: dict[str, Any] = {
    "requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "chat:openai.com", "authSecret": "sk-1"}]},
}


def endpoint(mode: str = "open", secret: str | None = None) -> TokenEndpoint:
    return TokenEndpoint(
        SEALER,
        MintingPolicy(mode, None if secret is None else SecretStr(secret), default_lifetime=7200, max_lifetime=86_400),
        clock=lambda: NOW,
    )


def received(*pieces: bytes, disconnect: bool = False) -> Receive:
    """Return an ASGI receive that gives a body in pieces."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if disconnect:
        messages.append({"type": "http.disconnect"})
    elif messages:
        messages[-1]["more_body"] = False
    messages.reverse()

    async def receive() -> Message:
        return messages.pop()

    return receive


async def ask(
    body: dict[str, Any] | bytes, to: TokenEndpoint | None = None, headers: list[tuple[bytes, bytes]] = JSON
) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = RequestBody(received(data), MAX_TOKEN_REQUEST_BYTES)
    status, raw, content = await (to or endpoint())(headers, request, HOST)
    return status, dict(raw), json.loads(content)


async def test_a_token_is_made_for_the_host() -> None:
    status, headers, content = await ask({**REQUEST, "expirationTimeSpan": "1h"})
    assert status == 200
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"cache-control"] == b"no-store"
    assert content.keys() == {"access_token", "token_type", "expires_in", "key_id"}
    assert (content["token_type"], content["expires_in"]) == ("Bearer", 3600)
    claims = SEALER.unseal(content["access_token"], HOST)
    assert (claims.iat, claims.exp) == (int(NOW), int(NOW) + 3600)
    assert claims.secrets[0].auth_secret.get_secret_value() == "sk-1"


async def test_the_default_and_the_greatest_lifetime() -> None:
    assert (await ask(REQUEST))[2]["expires_in"] == 7200
    assert (await ask({**REQUEST, "expirationTimeSpan": "1d"}))[2]["expires_in"] == 86_400
    with pytest.raises(InvalidRequest, match=r"^expirationTimeSpan: must be at most 1d\.$"):
        await ask({**REQUEST, "expirationTimeSpan": "86401s"})


async def test_a_body_may_come_in_pieces() -> None:
    data = json.dumps(REQUEST).encode()
    body = RequestBody(received(data[:10], b"", data[10:20], data[20:]), MAX_TOKEN_REQUEST_BYTES)
    assert (await endpoint()(JSON, body, HOST))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"application/json")],
        [(b"content-type", b"Application/JSON; charset=utf-8")],
        [(b"content-type", b'application/json ; charset="UTF-8"')],
        [(b"accept", b"*/*"), (b"content-type", b"application/json;charset=utf8")],
    ],
)
async def test_json_is_accepted(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await ask(REQUEST, headers=headers))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"")],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"multipart/form-data; boundary=application/json")],
        [(b"content-type", b"application/jsonx")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [*JSON, (b"content-encoding", b"gzip")],
    ],
    ids=["none", "empty", "text", "form", "multipart", "longer", "other charset", "compressed"],
)
async def test_anything_else_is_refused_unread(headers: list[tuple[bytes, bytes]]) -> None:
    # A page of another origin can send the first ones without asking (a "simple" request of CORS).
    async def never() -> Message:
        raise AssertionError("the body was read")

    with pytest.raises(UnsupportedMediaType):
        await endpoint()(headers, RequestBody(never, MAX_TOKEN_REQUEST_BYTES), HOST)


async def test_64_kilobytes_are_the_most() -> None:
    assert MAX_TOKEN_REQUEST_BYTES == 65_536
    data = json.dumps(REQUEST).encode()
    assert (await ask(data.ljust(65_536)))[0] == 200
    with pytest.raises(PayloadTooLarge):
        await ask(data.ljust(65_537))
    pieces = [b" " * 1000] * 66
    with pytest.raises(PayloadTooLarge):
        await endpoint()(JSON, RequestBody(received(*pieces), MAX_TOKEN_REQUEST_BYTES), HOST)


async def test_what_does_not_fit_into_a_token_is_refused() -> None:
    big = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": "SENTINEL" * 1000}]}}
    with pytest.raises(InvalidRequest) as caught:
        await ask(big)
    assert str(caught.value) == "The request is too large to be sealed: the token would have more than 8000 characters."


async def test_a_client_that_goes_away_gets_no_token() -> None:
    body = RequestBody(received(b"{", disconnect=True), MAX_TOKEN_REQUEST_BYTES)
    with pytest.raises(ClientDisconnected):
        await endpoint()(JSON, body, HOST)


async def test_a_malformed_request_names_its_field() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await ask({"requestAuthAndQuotas": {}})
    assert caught.value.param == "requestAuthAndQuotas.serviceSecrets"


# Who may


@pytest.mark.parametrize("given", ["right", "wrong", "", None, "right ", "Right", "\ud800"], ids=ascii)
@pytest.mark.parametrize("expected", ["right", "", None, "\udcff"], ids=ascii)
async def test_in_mode_secret_the_client_secret_must_be_the_configured_one(expected: str | None, given: str | None) -> None:
    request = REQUEST if given is None else {**REQUEST, "clientId": "me", "clientSecret": given}
    if given == expected == "right":
        assert (await ask(request, endpoint("secret", expected)))[0] == 200
    elif given == "\ud800":
        with pytest.raises(InvalidRequest):
            await ask(request, endpoint("secret", expected))
    else:
        with pytest.raises(InvalidClient) as caught:
            await ask(request, endpoint("secret", expected))
        assert "right" not in caught.value.message


async def test_in_mode_open_a_client_secret_is_of_no_account() -> None:
    assert (await ask({**REQUEST, "clientSecret": "anything"}, endpoint("open", "right")))[0] == 200


async def test_in_mode_off_nothing_is_made_or_read() -> None:
    for headers in (JSON, []):
        with pytest.raises(MintingRefused):
            await ask(b"{", endpoint("off"), headers)


# The others


def test_ping() -> None:
    status, headers, body = ping()
    assert (status, json.loads(body)) == (200, {"message": "api-pong"})
    assert (b"cache-control", b"no-store") in headers


def test_the_version() -> None:
    status, _, body = show_version()
    assert (status, json.loads(body)) == (200, {"name": "aisbreaker-mw", "version": version("aisbreaker-mw")})


@pytest.mark.parametrize("storage", ["ok", "unavailable", "local"])
def test_health_is_good_while_the_process_serves(storage: str) -> None:
    status, headers, body = health(storage)
    assert (status, json.loads(body)) == (200, {"status": "ok", "quota_storage": storage})
    assert (b"cache-control", b"no-store") in headers


def test_methods() -> None:
    require_method({"method": "GET"}, "GET", "HEAD")
    for method in ("POST", "get", "", "OPTIONS"):
        with pytest.raises(MethodNotAllowed) as caught:
            require_method({"method": method}, "GET", "HEAD")
        assert isinstance(caught.value, RequestError)
        assert caught.value.headers == [(b"allow", b"GET, HEAD")]
