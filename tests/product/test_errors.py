"""Each row of the table of errors, from outside, in the dialect of the route's SDK."""

import socket
from typing import Any

import httpx
import pytest

from ..ports import free_port
from ..support import AIsBreakerMiddleware, RecordingUpstream, bearer, mint, ok, proxy, serve, settings, wait_until

CHAT = {"model": "m", "messages": []}


@pytest.fixture(scope="module")
def token(base: str) -> str:
    return mint(base, ("chat:openai.com", "sk-1"), ("chat:anthropic.com", "sk-2"), ("*:generativelanguage.googleapis.com", "g"))


def code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def test_no_credential(base: str) -> None:
    response = httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == "missing_credential"
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer"},
        {"authorization": "Bearer a b"},
        {"authorization": "aisbreaker_x.y z"},
        {"authorization": "Bearer aisbreaker_a.b", "x-api-key": "aisbreaker_c.d"},
    ],
    ids=["bearer-of-nothing", "two-values", "two-values-no-scheme", "two-tokens"],
)
def test_malformed_credentials(base: str, headers: dict[str, str]) -> None:
    response = httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=headers)
    assert (response.status_code, code(response)) == (400, "invalid_request")
    assert "aisbreaker_" not in response.text


@pytest.mark.parametrize("credential", ["aisbreaker_x", "aisbreaker_eyJ2ZXIi.AAAA", "sk-foreign"])
def test_credentials_that_do_not_open(base: str, credential: str) -> None:
    response = httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(credential))
    assert (response.status_code, code(response)) == (401, "invalid_token")
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert credential not in response.text
    assert credential not in str(response.headers)


def test_an_expired_token() -> None:
    now = [1_700_000_000.0]
    with serve(AIsBreakerMiddleware(None, settings(), clock=lambda: now[0])) as base:
        token = mint(base, ("", ""), expirationTimeSpan="1h")
        now[0] += 3599
        assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).status_code == 200
        now[0] += 1
        response = httpx.post(f"{base}/dummy/v1/chat/completions", json=CHAT, headers=bearer(token))
    assert (response.status_code, code(response)) == (401, "invalid_token")
    assert "expired" in response.json()["error"]["message"]


def test_a_service_that_the_token_has_no_secret_for(base: str, token: str) -> None:
    response = httpx.post(f"{base}/openai/v1/embeddings", json=CHAT, headers=bearer(token))
    assert (response.status_code, code(response)) == (403, "service_not_allowed")
    assert "embeddings:openai.com" in response.json()["error"]["message"]
    assert "ratelimit" not in response.headers


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/v1/foo", "/api/v1/oauth/nothing", "/network/v1/x"])
def test_unknown_paths(base: str, token: str, path: str) -> None:
    response = httpx.get(base + path, headers=bearer(token))
    assert (response.status_code, code(response)) == (404, "not_found")


def test_rate_limit() -> None:
    with proxy() as base:
        quotas = {"perClientRequestLimits": {"requestsPerMinute": 2, "requestsPerDay": 100}}
        token = mint(base, ("", ""), quotas=quotas)
        url = f"{base}/dummy/v1/models"
        remaining = [httpx.get(url, headers=bearer(token)).headers["ratelimit"].split(";")[1] for _ in range(2)]
        refused = httpx.get(url, headers=bearer(token))
        day = mint(base, ("", ""), quotas={"globalRequestLimits": {"requestsPerDay": 1}})
        httpx.get(url, headers=bearer(day))
        refused_for_long = httpx.get(url, headers=bearer(day))
    assert remaining == ["r=1", "r=0"]
    assert (refused.status_code, code(refused)) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert int(refused.headers["retry-after"]) == -(-int(refused.headers["retry-after-ms"]) // 1000)
    assert refused.headers["ratelimit-policy"] == '"token-client-minute";q=2;w=60'
    assert "x-should-retry" not in refused.headers
    assert refused_for_long.headers["x-should-retry"] == "false"
    assert int(refused_for_long.headers["retry-after"]) > 60


def test_quota_storage_down() -> None:
    quotas = {"storage": f"redis://127.0.0.1:{free_port()}", "server": {"global_request_limits": {"requests_per_day": 10**6}}}
    with proxy(quotas=quotas, minting={"requests_per_minute": 1}) as base:
        minting = httpx.post(f"{base}/api/v1/oauth/token", content=b"{}", headers={"content-type": "application/json"})
        health = httpx.get(f"{base}/api/v1/health")
    assert (minting.status_code, code(minting)) == (503, "quota_storage_unavailable")
    assert int(minting.headers["retry-after"]) >= 1
    assert health.status_code == 200
    assert health.json()["quota_storage"] != "ok"


def upstream_answer(script: Any, **values: Any) -> httpx.Response:
    with RecordingUpstream(script) as upstream, proxy(upstream, **values) as base:
        token = mint(base, ("chat:openai.com", "sk-secret-1"))
        return httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token))


def hang_up(request: Any, connection: socket.socket) -> None:
    raise RecordingUpstream.Hangup


@pytest.mark.parametrize(
    "script",
    [hang_up, b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"],
    ids=["closes", "garbage", "length"],
)
def test_upstream_errors(script: Any) -> None:
    response = upstream_answer(script)
    assert (response.status_code, code(response)) == (502, "upstream_error")
    assert "127.0.0.1" not in response.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "https://127.0.0.1:{port}", "http://no-such-host.invalid"])
def test_upstream_unreachable(url: str) -> None:
    with proxy(services={"openai": {"base_url": url.format(port=free_port())}}) as base:
        token = mint(base, ("", "sk"))
        response = httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token), timeout=30)
    assert (response.status_code, code(response)) == (502, "upstream_error")
    assert "invalid" not in response.text.replace("invalid_", "").replace("no valid", "")


def test_upstream_rejects_the_credential() -> None:
    body = b'{"error":{"message":"Incorrect API key provided: sk-se***-1"}}'
    response = upstream_answer(ok(body, b"WWW-Authenticate: Bearer realm=upstream", status=b"401 Unauthorized"))
    assert (response.status_code, code(response)) == (502, "upstream_credential_rejected")
    assert response.headers["x-should-retry"] == "false"
    assert "sk-se" not in response.text
    assert "www-authenticate" not in response.headers


def test_upstream_slower_than_a_timeout() -> None:
    def never(request: Any, connection: socket.socket) -> None:
        request.closed.wait(10)
        connection.recv(1)

    response = upstream_answer(never, upstream={"header_timeout": "100ms"})
    assert (response.status_code, code(response)) == (504, "upstream_timeout")


def test_no_free_connection_within_the_pool_timeout() -> None:
    def stall(request: Any, connection: socket.socket) -> None:
        connection.recv(1)

    limits = {"max_connections": 1, "pool_timeout": "100ms"}
    with RecordingUpstream(stall) as upstream, proxy(upstream, upstream=limits) as base:
        token = mint(base, ("", "sk"))
        url = f"{base}/openai/v1/chat/completions"
        with httpx.Client() as waiting:
            from threading import Thread

            def wait() -> None:
                with pytest.raises(httpx.ReadTimeout):
                    waiting.post(url, json=CHAT, headers=bearer(token), timeout=1.5)

            first = Thread(target=wait)
            first.start()

            wait_until(lambda: upstream.requests)
            response = httpx.post(url, json=CHAT, headers=bearer(token))
            first.join()
    assert (response.status_code, code(response)) == (503, "upstream_busy")
    assert response.headers["retry-after"] == "1"


def test_anthropic_dialect(base: str, token: str) -> None:
    response = httpx.post(f"{base}/anthropic/v1/messages/batches", json=CHAT, headers={"x-api-key": token})
    content = response.json()
    assert response.status_code == 403
    assert content == {
        "type": "error",
        "error": {"type": "permission_error", "message": content["error"]["message"]},
        "request_id": response.headers["request-id"],
    }


def test_google_dialect(base: str) -> None:
    response = httpx.post(f"{base}/gemini/v1beta/models/gemini-pro:generateContent?key=AIza-foreign", json={})
    content = response.json()
    assert response.status_code == 401
    assert content == {"error": {"code": 401, "message": content["error"]["message"], "status": "UNAUTHENTICATED"}}
    assert "AIza" not in response.text


def test_another_host_than_the_configured_ones_is_misdirected() -> None:
    with proxy(hosts=["api.example.com"]) as base:
        response = httpx.get(f"{base}/api/v1/ping")
        named = httpx.get(f"{base}/api/v1/ping", headers={"host": "API.example.com:3000"})
    assert (response.status_code, code(response)) == (421, "misdirected_request")
    assert named.json() == {"message": "api-pong"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/api/v1/oauth/token", "POST"), ("PUT", "/api/v1/oauth/token", "POST"), ("POST", "/api/v1/ping", "GET, HEAD")],
)
def test_method_not_allowed(base: str, method: str, path: str, allowed: str) -> None:
    response = httpx.request(method, base + path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/../files", "/v1/%2e%2E/files", "/v1/a%5cb", "/v1/..;/files", "/v1/%00", "//evil/x"])
def test_paths_that_an_upstream_could_take_for_another(base: str, token: str, upstream: RecordingUpstream, path: str) -> None:
    from ..support import raw_exchange

    before = len(upstream.requests)
    request = f"GET /openai{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    answer = raw_exchange(base, request.encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert len(upstream.requests) == before
