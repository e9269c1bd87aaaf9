"""Google Vertex AI: accounts become access tokens, once, at the one endpoint that is configured."""

import asyncio
import base64
import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from aisbreaker_mw import AIsBreakerMiddleware
from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.credentials.google_cloud import ACCOUNT_PREFIX, GoogleCloudStrategy
from aisbreaker_mw.upstream.request import UpstreamRequest

from ..support import WAIT, Recorded, RecordingUpstream, bearer, mint, ok, serve, settings, wait_until
from ..upstreams import until

NOW = 1_700_000_000.0
PATH = "/vertex/v1/projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
USER = {
    "type": "authorized_user",
    "client_id": "id.apps.googleusercontent.com",
    "client_secret": "user-secret-SENTINEL",
    "refresh_token": "1//refresh-SENTINEL",
    "quota_project_id": "billed-project",
}


def encoded(account: Any) -> str:
    return ACCOUNT_PREFIX + base64.b64encode(json.dumps(account).encode()).decode()


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


class Google:
    """Vertex AI and the token endpoint, as one recording server each, and the proxy before them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.issued = 0
        self.answer: bytes | None = None
        self.tokens = RecordingUpstream(self.issue)
        self.vertex = RecordingUpstream()
        self.token_url = f"{self.tokens.url}/token"
        self.base = ""

    def issue(self, request: Recorded, connection: socket.socket) -> bytes:
        self.issued += 1
        if self.answer is not None:
            return self.answer
        body = {"access_token": f"ya29.token-{self.issued}", "expires_in": 3599, "token_type": "Bearer"}
        return ok(json.dumps(body).encode())

    def service_account(self, **fields: Any) -> dict[str, Any]:
        return {
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "key-1",
            "private_key": PEM,
            "client_email": "me@p.iam.gserviceaccount.com",
            "token_uri": self.token_url,
            **fields,
        }

    def ask(self, secret: str) -> httpx.Response:
        return self.ask_with(mint(self.base, ("chat:cloud.google.com", secret)))

    def ask_with(self, token: str) -> httpx.Response:
        return httpx.post(self.base + PATH, json={"contents": []}, headers=bearer(token), timeout=WAIT)

    def sent(self) -> list[str]:
        return [request.all(b"authorization")[0].decode() for request in self.vertex.requests]


@pytest.fixture(params=["native", "httpx"])
def google(request: pytest.FixtureRequest) -> Iterator[Google]:
    google = Google()
    credential = {"strategy": "google-cloud", "token_url": google.token_url}
    services = {"vertex": {"base_url": google.vertex.url, "credential": credential}}
    configured = settings(services=services, upstream={"transport": request.param})
    with google.tokens, google.vertex, serve(AIsBreakerMiddleware(None, configured, clock=google.clock)) as base:
        google.base = base
        yield google


def part(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_plain_access_token_is_sent_as_it_is(google: Google) -> None:
    assert google.ask("ya29.plain").status_code == 200
    assert google.sent() == ["Bearer ya29.plain"]
    assert google.issued == 0
    assert google.vertex.last.target == PATH.removeprefix("/vertex").encode()


def test_a_service_account_asserts_itself_as_rfc_7523_says(google: Google) -> None:
    assert google.ask(encoded(google.service_account())).status_code == 200
    assert google.sent() == ["Bearer ya29.token-1"]
    request = google.tokens.last
    assert request.request_line == b"POST /token HTTP/1.1"
    assert request.all(b"content-type") == [b"application/x-www-form-urlencoded"]
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    head, claims, signature = form["assertion"].split(".")
    assert json.loads(part(head)) == {"typ": "JWT", "alg": "RS256", "kid": "key-1"}
    assert json.loads(part(claims)) == {
        "iss": "me@p.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": google.token_url,
        "iat": NOW,
        "exp": NOW + 3600,
    }
    KEY.public_key().verify(part(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())


def test_a_user_has_a_refresh_token(google: Google) -> None:
    assert google.ask(encoded(USER)).status_code == 200
    assert google.sent() == ["Bearer ya29.token-1"]
    assert google.vertex.last.all(b"x-goog-user-project") == [b"billed-project"]
    assert {name: values[0] for name, values in parse_qs(google.tokens.last.body.decode()).items()} == {
        "grant_type": "refresh_token",
        "client_id": USER["client_id"],
        "client_secret": USER["client_secret"],
        "refresh_token": USER["refresh_token"],
    }


def test_an_access_token_is_used_until_shortly_before_it_expires(google: Google) -> None:
    token = mint(google.base, ("", encoded(USER)))
    other = mint(google.base, ("", encoded(USER)))
    for each in (token, other, token):
        google.ask_with(each)
    assert google.issued == 1
    google.clock.now += 3599 - 226
    google.ask_with(token)
    assert google.issued == 1
    google.clock.now += 2
    google.ask_with(token)
    assert google.issued == 2
    assert google.sent()[-1] == "Bearer ya29.token-2"


def test_accounts_have_tokens_of_their_own(google: Google) -> None:
    for name in ("a", "b", "a"):
        google.ask(encoded({**USER, "client_id": name}))
    assert google.issued == 2


def test_one_exchange_is_made_however_many_requests_wait(google: Google) -> None:
    token = mint(google.base, ("", encoded(google.service_account())))
    gate = threading.Event()

    def slow(request: Recorded, connection: socket.socket) -> bytes:
        assert gate.wait(WAIT)
        return google.issue(request, connection)

    google.tokens.script = slow
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(google.ask_with, token) for _ in range(8)]
        wait_until(lambda: google.tokens.requests)
        # Those that begin while it is under way wait for it as well; nothing reaches the service before.
        assert not google.vertex.requests
        gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 8
    assert google.issued == 1
    assert set(google.sent()) == {"Bearer ya29.token-1"}


def test_a_rejected_access_token_is_not_used_again(google: Google) -> None:
    token = mint(google.base, ("", encoded(USER)))
    google.vertex.script = ok(b'{"error":{"message":"ya29.token-1"}}', status=b"401 Unauthorized")
    response = google.ask_with(token)
    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert "ya29" not in response.text
    google.vertex.script = ok()
    assert google.ask_with(token).status_code == 200
    assert google.sent() == ["Bearer ya29.token-1", "Bearer ya29.token-2"]


# What goes wrong


@pytest.mark.parametrize("status", [b"400 Bad Request", b"401 Unauthorized", b"403 Forbidden"])
def test_a_rejected_account(google: Google, status: bytes) -> None:
    google.answer = ok(b'{"error":"invalid_grant","error_description":"SENTINEL"}', status=status)
    response = google.ask(encoded(USER))
    assert response.status_code == 502
    assert response.json()["error"]["message"] == "The AI service rejected the credential that is sealed in the token."
    assert not google.vertex.requests


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"{}", status=b"500 Oops"),
        ok(b"{}", status=b"429 Too Many Requests"),
        ok(b"{}", status=b"302 Found"),
        ok(b"no json"),
        ok(b"[]"),
        ok(b'{"access_token":7}'),
        ok(b'{"access_token":"x\\r\\nevil: 1","expires_in":1}'),
        ok(b'{"access_token":"x","expires_in":"never"}'),
        ok(b'{"access_token":"x","expires_in":-1}'),
        ok(b'{"access_token":"' + b"x" * 70_000 + b'"}'),
        b"no HTTP\r\n\r\n",
    ],
    ids=lambda answer: repr(answer[-30:]),
)
def test_a_token_endpoint_that_fails(google: Google, answer: bytes) -> None:
    google.answer = answer
    response = google.ask(encoded(USER))
    assert (response.status_code, response.json()["error"]["status"]) == (502, "UNAVAILABLE")
    assert not google.vertex.requests
    google.answer = None
    assert google.ask(encoded(USER)).status_code == 200


def test_a_token_endpoint_that_is_not_there(google: Google) -> None:
    with google.tokens:
        pass
    assert google.ask(encoded(USER)).status_code == 502
    assert not google.vertex.requests


def test_a_token_endpoint_that_is_silent(google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aisbreaker_mw.credentials.google_cloud._TIMEOUT", 0.1)
    gate = threading.Event()

    def silent(request: Recorded, connection: socket.socket) -> None:
        gate.wait(WAIT)

    google.tokens.script = silent
    assert google.ask(encoded(USER)).status_code == 504
    gate.set()


@pytest.mark.parametrize("kind", ["service account", "user"])
def test_no_other_token_endpoint_is_ever_asked(google: Google, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with RecordingUpstream() as hostile:
        account = google.service_account() if kind == "service account" else USER
        assert google.ask(encoded({**account, "token_uri": f"{hostile.url}/token"})).status_code == 502
        assert not hostile.requests
        assert hostile.url not in caplog.text
    assert google.issued == 0
    assert not google.vertex.requests


@pytest.mark.parametrize(
    "secret",
    [
        ACCOUNT_PREFIX,
        ACCOUNT_PREFIX + "!!!",
        ACCOUNT_PREFIX + base64.b64encode(b"no json").decode(),
        ACCOUNT_PREFIX + base64.b64encode(b"[" * 3000).decode(),
        encoded([]),
        encoded({"type": ["service_account"]}),
        encoded({"type": "service_account"}),
        encoded({"type": "external_account", "token_url": "http://127.0.0.1:1/"}),
        encoded({**USER, "refresh_token": 7}),
        encoded({"type": "service_account", "client_email": "e", "private_key": "no key"}),
        encoded({"type": "service_account", "client_email": "e", "private_key": PEM[:200]}),
    ],
    ids=lambda secret: secret[len(ACCOUNT_PREFIX) :][:30] or "nothing",
)
def test_what_is_no_account(google: Google, secret: str) -> None:
    assert google.ask(secret).status_code == 502
    assert not google.tokens.requests
    assert not google.vertex.requests


def test_several_accounts_take_turns_and_a_bad_one_is_passed_over(google: Google) -> None:
    secrets = [encoded({"type": "none"}), encoded(USER), "ya29.plain"]
    wanted = {"serviceSecrets": [{"serviceId": "", "authSecret": secrets}]}
    response = httpx.post(f"{google.base}/api/v1/oauth/token", json={"requestAuthAndQuotas": wanted})
    token = response.json()["access_token"]
    for _ in range(3):
        assert google.ask_with(token).status_code == 200
    assert google.sent() == ["Bearer ya29.token-1", "Bearer ya29.plain", "Bearer ya29.token-1"]


def test_a_missing_library_is_told_to_the_operator_alone(
    google: Google, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "google.auth", None)
    response = google.ask(encoded(google.service_account()))
    assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
    assert "vertex" not in response.text
    assert "install aisbreaker-mw[vertex]" in caplog.text


def test_no_log_has_a_secret(google: Google, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        google.ask(encoded(USER))
        google.ask(encoded(google.service_account()))
        google.answer = ok(b"{}", status=b"400 Bad Request")
        google.ask(encoded({**USER, "client_id": "x"}))
    for secret in ("SENTINEL", "ya29", "PRIVATE KEY", encoded(USER)[40:80]):
        assert secret not in caplog.text


async def authorize(strategy: GoogleCloudStrategy, secret: str) -> UpstreamRequest:
    """Have a request without a body authorized."""
    request = UpstreamRequest("GET", ("https", "x", 443), b"/", [])
    return await strategy.authorize(request, RequestBody(None, 0), secret)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("cancelled", [0, 1], ids=["the one that began it", "one that waits along"])
async def test_a_cancelled_request_does_not_end_the_exchange_that_others_wait_for(cancelled: int) -> None:
    asked: list[httpx.Request] = []
    gate = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        await gate.wait()
        return httpx.Response(200, json={"access_token": "t", "expires_in": 3600})

    transport = httpx.MockTransport(answer)
    strategy = GoogleCloudStrategy(lambda: transport, token_url="https://x.example/token", clock=Clock())
    waiting = [asyncio.create_task(authorize(strategy, encoded(USER))) for _ in range(3)]
    await until(lambda: asked, "the exchange")
    waiting.pop(cancelled).cancel()
    for _ in range(5):  # steps in which the cancellation would reach the exchange
        await asyncio.sleep(0)
    gate.set()
    authorized = await asyncio.gather(*waiting)
    assert [dict(request.headers)[b"authorization"] for request in authorized] == [b"Bearer t"] * 2
    assert len(asked) == 1


@pytest.mark.anyio
async def test_the_cache_is_bounded_and_has_no_account_for_a_key() -> None:
    def transport() -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(lambda _: httpx.Response(200, json={"access_token": "t", "expires_in": 3600}))

    strategy = GoogleCloudStrategy(transport, token_url="https://x.example/token", clock=Clock(), max_entries=3)
    for number in range(10):
        await authorize(strategy, encoded({**USER, "client_id": str(number)}))
    assert 1 <= len(strategy._accesses) <= 3
    assert all(isinstance(key, bytes) and len(key) == 32 for key in strategy._accesses)
    assert not strategy._exchanges


# Clients

GENERATED = json.dumps({"candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}}]}).encode()


def test_googles_sdk(google: Google) -> None:
    from google import genai
    from google.oauth2.credentials import Credentials

    google.vertex.script = ok(GENERATED)
    token = mint(google.base, ("chat:cloud.google.com/gemini-2.5-flash", encoded(USER)))
    client = genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=Credentials(token),
        http_options=genai.types.HttpOptions(base_url=f"{google.base}/vertex"),
    )
    try:
        assert client.models.generate_content(model="gemini-2.5-flash", contents="Hi").text == "Hello"
    finally:
        client.close()
    path = b"projects/p/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
    assert google.vertex.last.target == b"/v1beta1/" + path
    assert google.sent() == ["Bearer ya29.token-1"]


def test_anthropics_sdk(google: Google) -> None:
    import anthropic

    google.vertex.script = ok(
        b'{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"Hello"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}'
    )
    token = mint(google.base, ("chat:cloud.google.com/claude-sonnet-4", encoded(USER)))
    with anthropic.AnthropicVertex(
        base_url=f"{google.base}/vertex/v1", access_token=token, project_id="p", region="us-east5", max_retries=0
    ) as client:
        message = client.messages.create(model="claude-sonnet-4", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
    assert message.content[0].type == "text"
    path = b"/v1/projects/p/locations/us-east5/publishers/anthropic/models/claude-sonnet-4:rawPredict"
    assert google.vertex.last.target == path
    assert google.sent() == ["Bearer ya29.token-1"]


# Routes


@pytest.mark.parametrize(
    ("path", "service_id"),
    [
        (
            "/v1/projects/p/locations/global/publishers/google/models/gemini-2.5-pro:streamGenerateContent",
            "chat/gemini-2.5-pro",
        ),
        ("/v1beta1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:countTokens", "chat/gemini-2.5-pro"),
        (
            "/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4@20250514:rawPredict",
            "chat/claude-sonnet-4@20250514",
        ),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4:streamRawPredict", "chat/claude-sonnet-4"),
        ("/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict", "inference/text-embedding-005"),
        ("/v1/projects/p/locations/l/publishers/google/models/veo-3:predictLongRunning", "video/veo-3"),
        ("/v1/projects/p/locations/l/endpoints/1234:generateContent", "chat/1234"),
        ("/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "chat"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", "chat"),
        ("/v1/projects/p/locations/l/batchPredictionJobs", "batches"),
        ("/v1/projects/p/serviceAccounts", "other"),
    ],
)
def test_routes(path: str, service_id: str) -> None:
    from aisbreaker_mw.services.catalog import ServiceCatalog

    service = ServiceCatalog.load().get("vertex")
    assert service is not None
    task, _, engine = service_id.partition("/")
    found = service.resolve("POST", path.encode())[0]
    assert (found.task, found.engine) == (task, engine)
    assert found.errors == "google"


def test_a_secret_that_sends_nothing_sends_nothing() -> None:
    with RecordingUpstream() as upstream:
        vertex = {"base_url": upstream.url, "keyless": "allow", "credential": {"strategy": "google-cloud"}}
        with serve(AIsBreakerMiddleware(None, settings(services={"vertex": vertex}))) as base:
            token = mint(base, ("", ""))
            assert httpx.post(base + PATH, json={"contents": []}, headers=bearer(token)).status_code == 200
        assert not upstream.last.all(b"authorization")


def test_a_token_that_lives_shortly_is_used_for_half_of_its_life(google: Google) -> None:
    google.answer = ok(b'{"access_token":"ya29.short","expires_in":100}')
    token = mint(google.base, ("", encoded(USER)))
    for passed, issued in ((0, 1), (49, 1), (2, 2)):
        google.clock.now += passed
        assert google.ask_with(token).status_code == 200
        assert google.issued == issued


def test_a_token_response_that_is_too_large_is_not_read(google: Google) -> None:
    google.answer = ok(b'{"access_token":"ya29.large","padding":"' + b"x" * 70_000 + b'"}')
    assert google.ask(encoded(USER)).status_code == 502
    assert not google.vertex.requests


def test_an_account_that_google_refuses_is_not_tried_at_every_request(google: Google) -> None:
    google.answer = ok(b'{"error":"invalid_grant"}', status=b"400 Bad Request")
    wanted = {"serviceSecrets": [{"serviceId": "", "authSecret": [encoded(USER), "ya29.plain"]}]}
    response = httpx.post(f"{google.base}/api/v1/oauth/token", json={"requestAuthAndQuotas": wanted})
    for _ in range(3):
        assert google.ask_with(response.json()["access_token"]).status_code == 200
    assert google.sent() == ["Bearer ya29.plain"] * 3
    assert google.issued == 1


def test_an_exchange_of_another_event_loop_is_not_waited_for() -> None:
    asked: list[httpx.Request] = []

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request)
            if len(asked) == 1:
                await asyncio.Event().wait()
            return httpx.Response(200, content=b'{"access_token":"ya29.second"}')

    strategy = GoogleCloudStrategy(Transport, token_url="https://tokens.example/token", clock=Clock())
    request = UpstreamRequest("GET", ("https", "vertex.example", 443), b"/", [])

    async def authorize() -> UpstreamRequest:
        return await strategy.authorize(request, RequestBody(never, 0), encoded(USER))

    async def begin() -> None:
        tasks.append(asyncio.create_task(authorize()))
        await until(lambda: asked)

    async def never() -> Any:
        raise AssertionError("no body is read")

    tasks: list[asyncio.Task[UpstreamRequest]] = []
    with asyncio.Runner() as first:
        first.run(begin())
        with asyncio.Runner() as second:
            assert second.run(authorize()).headers[0] == (b"authorization", b"Bearer ya29.second")


@pytest.mark.parametrize("project", ["two words", "a\r\nx-injected: 1", "", "p" * 257, 7])
def test_a_project_that_is_none_is_not_billed(google: Google, project: Any) -> None:
    assert google.ask(encoded({**USER, "quota_project_id": project})).status_code == 200
    assert not google.vertex.last.all(b"x-goog-user-project")
