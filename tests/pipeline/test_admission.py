"""What was decided about a request is remembered, and nothing is remembered that can change or be mistaken."""

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest

from aisbreaker_mw import AIsBreakerMiddleware
from aisbreaker_mw.admission import _MAX_KEY_BYTES, Admission

from ..support import RecordingUpstream, bearer, connect, mint, raw_exchange, serve, settings, towards

CHAT = "/openai/v1/chat/completions"


class Clock:
    """The time, which tests set."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Running:
    """A proxy whose clock and memory tests can look at."""

    def __init__(self, base: str, app: AIsBreakerMiddleware, upstream: RecordingUpstream, clock: Clock) -> None:
        self.base = base
        self.upstream = upstream
        self.clock = clock
        self._app = app

    @property
    def remembered(self) -> list[Admission]:
        return list(self._app._parts.relay.admissions._decisions.values())

    def ask(self, path: str, headers: dict[str, str]) -> httpx.Response:
        return httpx.post(self.base + path, headers=headers)


@pytest.fixture
def running() -> Iterator[Running]:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(RecordingUpstream())
        services = towards(upstream, "openai", "anthropic")
        app = AIsBreakerMiddleware(None, settings(services=services), clock=clock)
        yield Running(stack.enter_context(serve(app)), app, upstream, clock)


def test_the_same_request_is_decided_once(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"))
    for _ in range(3):
        assert running.ask(CHAT, bearer(token)).status_code == 200
        assert running.upstream.last.all(b"authorization") == [b"Bearer sk-1"]
    (known,) = running.remembered
    assert known.service_id == "chat:openai.com"


def test_nothing_secret_is_shown(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"))
    running.ask(CHAT, bearer(token))
    (known,) = running.remembered
    assert repr(known) == "Admission(service_id='chat:openai.com')"


def test_expiry_is_looked_at_every_time(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"), expirationTimeSpan="1h")
    assert running.ask(CHAT, bearer(token)).status_code == 200
    assert running.remembered
    running.clock.now += 3601
    refused = running.ask(CHAT, bearer(token))
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "The API key has expired.")


def test_quotas_are_counted_every_time(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"), quotas={"globalRequestLimits": {"requestsPerMinute": 3}})
    assert [running.ask(CHAT, bearer(token)).status_code for _ in range(5)] == [200, 200, 200, 429, 429]


def test_one_decision_is_not_taken_for_another(running: Running) -> None:
    one = mint(running.base, ("chat:openai.com", "sk-1"), ("chat:anthropic.com", "sk-a"))
    two = mint(running.base, ("chat:openai.com", "sk-2"))
    for _ in range(2):
        for token, key in ((one, b"sk-1"), (two, b"sk-2")):
            assert running.ask(CHAT, bearer(token)).status_code == 200
            assert running.upstream.last.all(b"authorization") == [b"Bearer " + key]
            for name in ("x-api-key", "api-key", "x-goog-api-key"):
                assert running.ask(CHAT, {name: token}).status_code == 200
                assert running.upstream.last.all(b"authorization") == [b"Bearer " + key]
                assert not running.upstream.last.all(name.encode())
            assert running.ask(f"{CHAT}?key={token}", {}).status_code == 200
            assert token.encode() not in running.upstream.last.raw
        # what the token is not for, however well it is known
        assert running.ask("/openai/v1/files", bearer(one)).status_code == 403
        assert running.ask("/anthropic/v1/messages", bearer(two)).status_code == 403
        assert running.ask(CHAT, {**bearer(one), "host": "another.example"}).status_code == 401
        assert running.ask(CHAT, {**bearer(one), "x-api-key": two}).status_code == 400
        assert running.ask(CHAT, {}).status_code == 401
        assert httpx.get(running.base + CHAT, headers=bearer(one)).status_code == 403  # to list stored ones is another task
        assert running.ask("/anthropic/v1/messages", {"x-api-key": one}).status_code == 200
        assert running.upstream.last.all(b"x-api-key") == [b"sk-a"]


@pytest.mark.parametrize("name", [b"Authorization", b"Host"])
def test_a_header_that_comes_twice_is_never_remembered(running: Running, name: bytes) -> None:
    one = mint(running.base, ("chat:openai.com", "sk-1"))
    two = mint(running.base, ("chat:openai.com", "sk-2"))
    assert running.ask(CHAT, bearer(one)).status_code == 200
    before = len(running.remembered)
    values = {b"Authorization": f"Bearer {two}".encode(), b"Host": b"another.example"}
    host = running.base.removeprefix("http://").encode()
    lines = [
        b"POST " + CHAT.encode() + b" HTTP/1.1",
        b"Content-Length: 0",
        b"Host: " + host,
        b"Authorization: Bearer " + one.encode(),
    ]
    for extra in ([name + b": " + values[name]], [b"X: 1", b"X: 2", name + b": " + values[name]]):
        answer = raw_exchange(running.base, b"\r\n".join([*lines, *extra, b"Connection: close", b"", b""]))
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert len(running.remembered) == before


def test_what_a_body_decides_is_not_remembered(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com/gpt-4o", "sk-1"), ("chat:openai.com/o3", "sk-2"))
    for model, status, key in (("gpt-4o", 200, b"sk-1"), ("o3", 200, b"sk-2"), ("gpt-5", 403, b""), ("gpt-4o", 200, b"sk-1")):
        answer = httpx.post(running.base + CHAT, json={"model": model}, headers=bearer(token))
        assert answer.status_code == status
        if key:
            assert running.upstream.last.all(b"authorization") == [b"Bearer " + key]
    assert not running.remembered


def test_long_heads_and_refusals_are_not_remembered(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"))
    long = "a" * _MAX_KEY_BYTES
    assert running.ask(f"{CHAT}?x={long}", bearer(token)).status_code == 200
    assert running.ask(f"{CHAT}?key={long}", bearer(token)).status_code == 200
    assert running.ask(CHAT, {**bearer(token), "x-api-key": long}).status_code == 200
    assert running.ask("/openai/v1/files", bearer(token)).status_code == 403
    assert running.ask(CHAT, bearer(token + "x")).status_code == 401
    assert not running.remembered


def test_what_is_remembered_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running._app._parts.relay.admissions._decisions, "_half", 2 * 16 * 1024)
    token = mint(running.base, ("chat:openai.com", "sk-1"))
    for number in range(20):
        assert running.ask(f"{CHAT}?n={number}", bearer(token)).status_code == 200
        assert 1 <= len(running.remembered) <= 5


def test_decisions_of_expired_tokens_are_forgotten(running: Running) -> None:
    token = mint(running.base, ("chat:openai.com", "sk-1"), expirationTimeSpan="1h")
    assert running.ask(CHAT, bearer(token)).status_code == 200
    running.clock.now += 3601
    assert running.ask(CHAT, bearer(mint(running.base, ("chat:openai.com", "sk-2")))).status_code == 200
    assert [known.revealed for known in running.remembered] == ["sk-2"]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Sec-WebSocket-Protocol: realtime, %s", b"Cookie: a", b"Cookie: b", b"Cookie: c"], id="as many headers"),
        pytest.param([b"Sec-WebSocket-Protocol: realtime, %s, %s, %s"], id="the key three times"),
        pytest.param([b"Sec-WebSocket-Protocol: realtime, %s"], id="plain"),
    ],
)
def test_a_websockets_token_is_nobody_elses(running: Running, lines: list[bytes]) -> None:
    """Its token comes in a subprotocol, which no other request's decision may rest on."""
    path = "/openai/v1/realtime?model=m"
    host = running.base.removeprefix("http://").encode()

    def shake_hands(token: str) -> bytes:
        offered = b"openai-insecure-api-key." + token.encode()
        given = [line.replace(b"%s", offered) for line in lines]
        head = [b"GET " + path.encode() + b" HTTP/1.1", b"Host: " + host, b"Connection: Upgrade", b"Upgrade: websocket"]
        head += [b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *given, b"", b""]
        with connect(running.base) as client:
            client.sendall(b"\r\n".join(head))
            return client.recv(12)

    one = mint(running.base, ("*:openai.com", "sk-1"))
    two = mint(running.base, ("*:openai.com", "sk-2"))
    shake_hands(one)
    assert running.upstream.last.all(b"authorization") == [b"Bearer sk-1"]
    assert httpx.get(running.base + path).status_code == 401
    assert shake_hands("aisbreaker_bogus") == b"HTTP/1.1 401"
    shake_hands(two)
    assert running.upstream.last.all(b"authorization") == [b"Bearer sk-2"]
