"""The contract's flow, over real sockets: mint with its own request, use the token with every service that it names."""

import json
import os
import subprocess

import httpx
import pytest

from ..support import RecordingUpstream, bearer, mint, ok, proxy

# As the contract shows it, the shell's quoting around the key included.
MINT = r"""
curl "${HOSTPORT}/api/v1/oauth/token" \
  -v -X POST \
  -H "Content-Type: application/json" \
  -d '{
    "requestAuthAndQuotas": {
      "requestQuotas": {
        "perClientRequestLimits": {
          "requestsPerMinute": 60,
          "requestsPerHour": 600,
          "requestsPerDay": 600
        },
        "globalRequestLimits": {
          "requestsPerMinute": 120,
          "requestsPerHour": 1200,
          "requestsPerDay": 1200
        }
      },
      "serviceSecrets": [
        { "serviceId": "aisbreaker:network", "authSecret": "{{secret}}" },
        { "serviceId": "chat:openai.com", "authSecret": "'"${OPENAI_API_KEY}"'" },
        { "serviceId": "chat:dummy", "authSecret": "" },
        { "serviceId": "", "authSecret": "INVALID" }
      ]
    },
    "expirationTimeSpan": "365d"
  }'
"""
SECRET = "sk_contract_0123456789"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, timeout=30
    )


@pytest.fixture(scope="module")
def minted(base: str) -> dict[str, object]:
    shell = run(MINT, HOSTPORT=base, OPENAI_API_KEY=SECRET)
    assert shell.returncode == 0, shell.stderr
    assert "200 OK" in shell.stderr
    content: dict[str, object] = json.loads(shell.stdout)
    return content


@pytest.fixture
def token(minted: dict[str, object]) -> str:
    return str(minted["access_token"])


def test_the_request_pasted_as_it_stands_gives_a_token(minted: dict[str, object]) -> None:
    assert minted.keys() == {"access_token", "token_type", "expires_in", "key_id"}
    assert minted["token_type"] == "Bearer"
    assert minted["expires_in"] == 365 * 86_400
    token = str(minted["access_token"])
    assert token.startswith("aisbreaker_eyJ2ZXIi")
    assert len(token) < 1024
    assert SECRET not in token


def test_openai_receives_the_sealed_key_and_no_trace_of_the_token(base: str, token: str, upstream: RecordingUpstream) -> None:
    upstream.script = ok(b'{"id":"1"}', b"X-Request-Id: theirs")
    response = httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token))
    assert response.status_code == 200
    assert response.json() == {"id": "1"}
    assert response.headers["x-request-id"] == "theirs"
    request = upstream.last
    assert request.request_line == b"POST /v1/chat/completions HTTP/1.1"
    assert request.all(b"authorization") == [b"Bearer " + SECRET.encode()]
    assert request.all(b"host") == [upstream.url.removeprefix("http://").encode()]
    assert json.loads(request.body) == CHAT
    assert b"aisbreaker" not in request.raw


@pytest.mark.parametrize("carrier", ["x-api-key", "api-key", "x-goog-api-key", "AUTHORIZATION", "query"])
def test_every_carrier_is_understood_and_removed(base: str, token: str, upstream: RecordingUpstream, carrier: str) -> None:
    url = f"{base}/openai/chat/completions?a=%2F&b"
    headers = {}
    if carrier == "query":
        url += f"&key={token}&c=1"
    elif carrier == "AUTHORIZATION":
        headers = {"AUTHORIZATION": f"bEaReR {token}"}
    else:
        headers = {carrier: token}
    assert httpx.post(url, json=CHAT, headers=headers).status_code == 200
    rest = b"&c=1" if carrier == "query" else b""
    assert upstream.last.target == b"/v1/chat/completions?a=%2F&b" + rest
    assert upstream.last.all(b"authorization") == [b"Bearer " + SECRET.encode()]
    assert b"aisbreaker" not in upstream.last.raw


def test_the_catch_all_is_sent_where_no_other_secret_matches(base: str, token: str, upstream: RecordingUpstream) -> None:
    assert httpx.post(f"{base}/mistral/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200
    assert upstream.last.all(b"authorization") == [b"Bearer INVALID"]
    # chat:openai.com covers chats alone.
    assert httpx.get(f"{base}/openai/v1/files", headers=bearer(token)).status_code == 200
    assert upstream.last.all(b"authorization") == [b"Bearer INVALID"]


def test_dummy_answers_without_any_credential(base: str, token: str) -> None:
    response = httpx.post(f"{base}/dummy/v1/chat/completions", json=CHAT, headers=bearer(token))
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"]
    assert response.headers["ratelimit"].startswith('"token-client-minute";r=')
    assert response.headers["ratelimit-policy"] == '"token-client-minute";q=60;w=60'


def test_network_sends_the_token_itself_to_the_next_server() -> None:
    """Both share the master key and, without the port, the host name."""
    with RecordingUpstream() as upstream, proxy(upstream) as second, proxy(services={"network": {"base_url": second}}) as first:
        token = mint(first, ("aisbreaker:network", "{{secret}}"), ("chat:openai.com", SECRET))
        headers = {**bearer(token), "x-via": "two"}
        response = httpx.post(f"{first}/network/openai/v1/chat/completions", json=CHAT, headers=headers)
    assert response.status_code == 200, response.text
    assert upstream.last.all(b"authorization") == [b"Bearer " + SECRET.encode()]
    assert upstream.last.all(b"x-via") == [b"two"]
    assert b"aisbreaker" not in upstream.last.raw


def test_a_token_is_for_its_host_only() -> None:
    with proxy() as base:
        token = mint(base, ("", ""))
        port = base.rpartition(":")[2]
        assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).status_code == 200
        other = httpx.get(f"http://localhost:{port}/dummy/v1/models", headers=bearer(token))
    assert other.status_code == 401
    assert other.json()["error"]["code"] == "invalid_token"
    assert "expired" not in other.text
