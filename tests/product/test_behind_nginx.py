"""nginx in front on the same machine: who is counted, what reaches the service, and who is a stranger."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aisbreaker_mw.exceptions import InvalidToken
from aisbreaker_mw.tokens.sealer import TokenSealer

from ..support import RecordingUpstream, bearer, ok, proxy, settings
from .nginx import NGINX, nginx

NAME = "api.example.com"
CHAT = "/openai/v1/chat/completions"
PER_CLIENT = {"perClientRequestLimits": {"requestsPerDay": 2}}
BEHIND: dict[str, Any] = {"hosts": [NAME], "trusted_proxies": ["127.0.0.1"]}
SECRET = "sk-behind-nginx"
# nginx drops names with an underscore by itself. It does so no more where somebody has a use for them.
UNDERSCORES = "underscores_in_headers on;"
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx here")


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as recording:
        yield recording


def send(url: str, path: str, *, source: str = "127.0.0.2", host: str = NAME, **request: Any) -> httpx.Response:
    """Send a POST request from one of the addresses of loopback, which stand for clients elsewhere."""
    headers = {"host": host, **request.pop("headers", {})}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as client:
        return client.post(url + path, headers=headers, **request)


def mint_at(url: str, *, host: str = NAME, quotas: Any = None, **fields: Any) -> httpx.Response:
    wanted = {"requestQuotas": quotas or {}, "serviceSecrets": [{"serviceId": "", "authSecret": SECRET}]}
    return send(url, "/api/v1/oauth/token", host=host, json={"requestAuthAndQuotas": wanted, **fields})


def token_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def by_secret() -> dict[str, Any]:
    return {**BEHIND, "minting": {"mode": "secret", "secret": "s"}}


@pytest.mark.parametrize("trusted", [True, False])
def test_each_client_has_its_own_window_where_the_proxy_is_trusted(
    upstream: RecordingUpstream, tmp_path: Path, trusted: bool
) -> None:
    values = by_secret() if trusted else {**by_secret(), "trusted_proxies": []}
    with proxy(upstream, **values) as base, nginx(tmp_path, base) as front:
        headers = bearer(token_of(mint_at(front, quotas=PER_CLIENT, clientSecret="s")))
        first = [send(front, CHAT, headers=headers).status_code for _ in range(3)]
        other = [send(front, CHAT, headers=headers, source="127.0.0.3").status_code for _ in range(3)]
        assert first == [200, 200, 429]
        assert other == ([200, 200, 429] if trusted else [429, 429, 429])


@pytest.mark.parametrize("http", ["", UNDERSCORES], ids=["as documented", "with underscores"])
@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For",
        "X_Forwarded_For",
        "Forwarded",
        "X-Real-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Client-IP",
        "X-Original-URL",
        "X_Original_URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
    ],
)
def test_a_forged_header_changes_neither_who_is_counted_nor_what_the_service_gets(
    upstream: RecordingUpstream, tmp_path: Path, name: str, http: str
) -> None:
    with proxy(upstream, **by_secret()) as base, nginx(tmp_path, base, http=http) as front:
        token = token_of(mint_at(front, quotas=PER_CLIENT, clientSecret="s"))
        codes = []
        for number in range(3):
            forged = f"203.0.113.{number}" if "URL" not in name and "Method" not in name else f"/v1/files/{number}"
            headers = {**bearer(token), name: forged, "x-harmless": "yes"}
            codes.append(send(front, CHAT, headers=headers).status_code)
        assert codes == [200, 200, 429]
        for request in upstream.requests:
            assert request.request_line == b"POST /v1/chat/completions HTTP/1.1"
            assert request.all(b"x-harmless") == [b"yes"]
            assert b"203.0.113." not in request.head
            assert b"/v1/files" not in request.head
            assert b"127.0.0.2" not in request.head
            assert token.encode() not in request.raw


def test_a_strangers_token_reaches_no_private_service(upstream: RecordingUpstream, tmp_path: Path) -> None:
    """Though every connection comes over loopback. On this machine itself, the same token reaches it."""
    services = {"my-vllm": {"like": "openai", "vendor": "llm.internal", "base_url": upstream.url}}
    values = {**BEHIND, "hosts": [NAME, "localhost"]}
    with proxy(services=services, minting={"mode": "open"}, **values) as base, nginx(tmp_path, base) as front:
        token = token_of(mint_at(front))
        for forged in ({}, {"x-forwarded-for": "127.0.0.1"}, {"x-forwarded-host": "localhost"}):
            refused = send(front, "/my-vllm/v1/models", headers={**bearer(token), **forged})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "service_not_allowed")
        assert not upstream.requests
        assert send(base, "/my-vllm/v1/models", host="localhost", headers=bearer(token)).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "x.localhost", "other.example.com"])
def test_nobody_comes_through_under_another_name(upstream: RecordingUpstream, tmp_path: Path, host: str) -> None:
    """Neither to mint nor with a token: a Host of loopback would make a user of this machine out of a stranger."""
    services = {"my-vllm": {"like": "openai", "vendor": "llm.internal", "base_url": upstream.url}}
    seen: list[str] = []
    with proxy(services=services, minting={"mode": "open"}, **BEHIND) as base, nginx(tmp_path, base) as front:
        token = token_of(mint_at(front))
        for url in (front, base):
            assert mint_at(url, host=host).status_code == 421
            answer = send(url, "/my-vllm/v1/models", host=host, headers=bearer(token))
            assert answer.status_code == 421
            seen.append(answer.headers["content-type"])
        assert seen == ["text/html", "application/json"]  # nginx itself refuses, and so does the server without it
        assert not upstream.requests


def test_a_token_is_bound_to_the_public_name(upstream: RecordingUpstream, tmp_path: Path) -> None:
    sealer = TokenSealer(settings().keyring())
    with proxy(upstream, minting={"mode": "open"}, **BEHIND) as base, nginx(tmp_path, base) as front:
        token = token_of(mint_at(front))
        assert sealer.unseal(token, NAME).open
        for host in ("localhost", "127.0.0.1"):
            with pytest.raises(InvalidToken):
                sealer.unseal(token, host)


def test_without_configured_names_nobody_mints_under_a_public_one(upstream: RecordingUpstream, tmp_path: Path) -> None:
    with proxy(upstream, minting={"mode": "open"}, trusted_proxies=["127.0.0.1"]) as base, nginx(tmp_path, base) as front:
        refused = mint_at(front)
        assert refused.status_code == 421
        assert "Set `hosts`" in refused.json()["error"]["message"]


def test_a_service_gives_nginx_no_orders(upstream: RecordingUpstream, tmp_path: Path) -> None:
    inside = "location /inside { internal; return 200 'for nobody'; }"
    upstream.script = ok(b"of the service", b"X-Accel-Redirect: /inside", b"X-Sendfile: /etc/hostname")
    with proxy(upstream, **by_secret()) as base, nginx(tmp_path, base, more=inside) as front:
        token = token_of(mint_at(front, clientSecret="s"))
        assert send(front, CHAT, headers=bearer(token)).text == "of the service"
