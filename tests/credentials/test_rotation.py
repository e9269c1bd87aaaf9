"""Several secrets for one service: used in turn, resting when refused, and never told to anybody."""

import json
import logging
import socket
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from aisbreaker_mw import AIsBreakerMiddleware
from aisbreaker_mw.credentials.authorizer import REPLAYED_BODY_BYTES
from aisbreaker_mw.credentials.rotation import LONGEST_PAUSE, PAUSE_AFTER_401, PAUSE_AFTER_429, Rotation, retry_after
from aisbreaker_mw.endpoints.token_request import MAX_SECRETS_IN_TURN, parse_token_request
from aisbreaker_mw.exceptions import InvalidRequest
from aisbreaker_mw.tokens.claims import RequestQuotas, ServiceSecret, TokenClaims

from ..support import Recorded, RecordingUpstream, bearer, ok, proxy, serve, settings, towards

CHAT = "/openai/v1/chat/completions"
NOW = 1_700_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def request_with(secret: Any, service_id: str = "") -> dict[str, Any]:
    return {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": service_id, "authSecret": secret}]}}


def mint(server: str, secret: Any, service_id: str = "") -> str:
    response = httpx.post(f"{server}/api/v1/oauth/token", json=request_with(secret, service_id))
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


class Keys:
    """An upstream that answers each key as it is told to, and remembers which were sent."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.upstream = RecordingUpstream(self.answer)

    def answer(self, request: Recorded, connection: socket.socket) -> bytes:
        key = request.all(b"authorization")[0].removeprefix(b"Bearer ").decode()
        self.sent.append(key)
        answer = self.answers.get(key) or ok()
        if answer.endswith(CUT_OFF):
            connection.sendall(answer)
            raise RecordingUpstream.Hangup
        return answer

    def refuse(self, key: str, status: bytes, *headers: bytes) -> None:
        self.answers[key] = ok(b'{"error":"' + key.encode() + b'"}', *headers, status=status)

    def take(self) -> list[str]:
        sent, self.sent = self.sent, []
        return sent


CUT_OFF = b"half an ans"
LIMITED, REJECTED = b"429 Too Many Requests", b"401 Unauthorized"


@pytest.fixture
def keys() -> Iterator[Keys]:
    keys = Keys()
    with keys.upstream:
        yield keys


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["native", "httpx"])
def server(request: pytest.FixtureRequest, keys: Keys, clock: Clock) -> Iterator[str]:
    configured = settings(services=towards(keys.upstream), upstream={"transport": request.param})
    with serve(AIsBreakerMiddleware(None, configured, clock=clock)) as url:
        yield url


def ask(server: str, token: str, **options: Any) -> httpx.Response:
    return httpx.post(server + CHAT, headers=bearer(token), **(options or {"json": {"model": "m"}}))


# In turn


def test_secrets_are_used_in_turn(server: str, keys: Keys) -> None:
    token = mint(server, ["a", "b", "c"])
    assert [ask(server, token).status_code for _ in range(5)] == [200] * 5
    assert keys.take() == ["a", "b", "c", "a", "b"]


def test_each_token_has_its_own_turn(server: str, keys: Keys) -> None:
    for token in (mint(server, ["a", "b"]), mint(server, ["a", "b"])):
        ask(server, token)
    assert keys.take() == ["a", "a"]


def test_a_list_of_one_is_that_one(server: str, keys: Keys) -> None:
    keys.refuse("a", LIMITED)
    token = mint(server, ["a"])
    assert ask(server, token).status_code == 429
    assert keys.take() == ["a"]


@pytest.mark.parametrize("status", [LIMITED, REJECTED], ids=["429", "401"])
def test_a_refused_secret_rests_and_the_request_moves_on(server: str, keys: Keys, status: bytes) -> None:
    keys.refuse("a", status, b"Retry-After: 7")
    token = mint(server, ["a", "b"])
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    response = ask(server, token, json=body)
    assert (response.status_code, response.json()) == (200, {"ok": True})
    assert keys.take() == ["a", "b"]
    assert keys.upstream.requests[0].body == keys.upstream.requests[1].body != b""
    names = [[name for name, _ in request.headers] for request in keys.upstream.requests]
    assert names[0] == names[1], "both carry the same headers"
    assert [ask(server, token).status_code for _ in range(2)] == [200, 200]
    assert keys.take() == ["b", "b"]


def test_a_secret_rests_for_its_retry_after(server: str, keys: Keys, clock: Clock) -> None:
    keys.refuse("a", LIMITED, b"Retry-After: 7")
    token = mint(server, ["a", "b"])
    ask(server, token)
    keys.answers.clear()
    keys.take()
    clock.now += 6.9
    ask(server, token)
    assert keys.take() == ["b"]
    clock.now += 0.1
    ask(server, token)
    assert keys.take() == ["a"]


def test_a_chunked_body_is_sent_again_as_it_was(server: str, keys: Keys) -> None:
    keys.refuse("a", LIMITED)
    token = mint(server, ["a", "b"])

    def pieces() -> Iterator[bytes]:
        yield b"first "
        yield b"second"

    assert ask(server, token, content=pieces()).status_code == 200
    assert [request.body for request in keys.upstream.requests] == [b"first second"] * 2
    assert all(request.all(b"transfer-encoding") == [b"chunked"] for request in keys.upstream.requests)


def test_a_request_without_a_body_moves_on(server: str, keys: Keys) -> None:
    keys.refuse("a", LIMITED)
    token = mint(server, ["a", "b"])
    assert httpx.get(f"{server}/openai/v1/models", headers=bearer(token)).status_code == 200
    assert keys.take() == ["a", "b"]


def test_a_body_that_was_read_for_its_engine_is_sent_again(server: str, keys: Keys) -> None:
    keys.refuse("a", LIMITED)
    token = mint(server, ["a", "b"], "chat:openai.com/m")
    assert ask(server, token).status_code == 200
    assert [request.body for request in keys.upstream.requests] == [b'{"model":"m"}'] * 2


@pytest.mark.parametrize(("size", "sent"), [(REPLAYED_BODY_BYTES, ["a", "b"]), (REPLAYED_BODY_BYTES + 1, ["a"])])
def test_a_body_that_is_too_long_to_be_kept_has_one_try_and_the_secret_rests(
    server: str, keys: Keys, size: int, sent: list[str]
) -> None:
    keys.refuse("a", LIMITED)
    token = mint(server, ["a", "b"])
    ask(server, token, content=b"x" * size)
    assert keys.take() == sent
    assert {len(request.body) for request in keys.upstream.requests} == {size}
    ask(server, token)
    assert keys.take() == ["b"]


# When none is left


def test_the_last_429_is_relayed_as_it_is(server: str, keys: Keys) -> None:
    for key in ("a", "b"):
        keys.refuse(key, LIMITED, b"Retry-After: 3", b"X-Key: " + key.encode())
    response = ask(server, mint(server, ["a", "b"]))
    assert (response.status_code, response.headers["retry-after"], response.headers["x-key"]) == (429, "3", "b")
    assert response.json() == {"error": "b"}
    assert keys.take() == ["a", "b"]


def test_the_last_401_is_ours_to_tell(server: str, keys: Keys) -> None:
    for key in ("a-key", "b-key"):
        keys.refuse(key, REJECTED)
    response = ask(server, mint(server, ["a-key", "b-key"]))
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_credential_rejected")
    assert "-key" not in response.text
    assert keys.take() == ["a-key", "b-key"]


def test_when_all_rest_the_one_that_is_back_first_is_tried(server: str, keys: Keys, clock: Clock) -> None:
    keys.refuse("a", LIMITED, b"Retry-After: 20")
    keys.refuse("b", LIMITED, b"Retry-After: 5")
    keys.refuse("c", REJECTED)
    token = mint(server, ["a", "b", "c"])
    assert ask(server, token).status_code == 502
    assert keys.take() == ["a", "b", "c"]
    assert ask(server, token).status_code == 429
    assert keys.take() == ["b"]
    clock.now += 6
    keys.answers.clear()
    assert ask(server, token).status_code == 200
    assert keys.take() == ["b"]


def test_other_errors_are_the_requests_own(server: str, keys: Keys) -> None:
    for status in (b"400 Bad Request", b"403 Forbidden", b"500 Oops", b"503 Busy"):
        keys.refuse("a", status)
        assert ask(server, mint(server, ["a", "b"])).status_code == int(status[:3])
        assert keys.take() == ["a"]


def test_an_answer_that_has_begun_stays(server: str, keys: Keys) -> None:
    keys.answers["a"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + CUT_OFF
    token = mint(server, ["a", "b"])
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server, token)
    assert keys.take() == ["a"]


# Where the credential is no header, and where it is the wrapped app's


def test_a_credential_in_the_query_is_replaced(keys: Keys) -> None:
    def answer(request: Recorded, connection: socket.socket) -> bytes:
        return ok(status=LIMITED) if b"key=a" in request.target else ok()

    with RecordingUpstream(answer) as upstream:
        mine = {"like": "openai", "vendor": "mine.example", "base_url": upstream.url, "credential": {"query": "key"}}
        with proxy(services={"mine": mine}) as server:
            token = mint(server, ["a", "b"])
            assert httpx.post(f"{server}/mine/v1/chat/completions?x=1&key={token}", json={}).status_code == 200
        assert [request.target for request in upstream.requests] == [
            b"/v1/chat/completions?x=1&key=a",
            b"/v1/chat/completions?x=1&key=b",
        ]


def test_the_embedded_service_takes_a_list() -> None:
    with proxy() as server:
        token = mint(server, ["a", "b"], "chat:dummy")
        for _ in range(2):
            assert httpx.post(
                f"{server}/dummy/v1/chat/completions",
                json={"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
                headers=bearer(token),
            ).is_success


def test_a_wrapped_app_gets_them_in_turn() -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"])[b"authorization"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serve(AIsBreakerMiddleware(app, settings(inject={"/mine": "chat:openai.com"})), lifespan="off") as server:
        token = mint(server, ["a", "b"])
        for _ in range(3):
            assert httpx.get(f"{server}/mine", headers=bearer(token)).status_code == 204
    assert seen == [b"Bearer a", b"Bearer b", b"Bearer a"]


# What may be minted


@pytest.mark.parametrize(
    ("secret", "path", "message"),
    [
        ([], "", "must not be empty"),
        (["k"] * (MAX_SECRETS_IN_TURN + 1), "", "must have at most 16 entries"),
        (["k", ""], "[1]", "must be a credential: in a list neither an empty string nor {{secret}} is one"),
        (["{{secret}}"], "[0]", "must be a credential: in a list neither an empty string nor {{secret}} is one"),
        (["k", 7], "[1]", "must be a string"),
        (["k", None], "[1]", "must be a string"),
        (["k", ["sk-SENTINEL"]], "[1]", "must be a string"),
        (["k", " sk-SENTINEL"], "[1]", "must be printable ASCII without spaces at either end"),
        ({"a": "sk-SENTINEL"}, "", "must be a string"),
    ],
)
def test_what_is_no_list_of_secrets(secret: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_token_request(json.dumps(request_with(secret)).encode())
    assert refusal.value.param == f"requestAuthAndQuotas.serviceSecrets[0].authSecret{path}"
    assert refusal.value.message == f"{refusal.value.param}: {message}."


def test_as_many_as_sixteen(server: str) -> None:
    assert mint(server, [f"key-{number}" for number in range(MAX_SECRETS_IN_TURN)])


def test_no_repr_and_no_log_shows_one(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    secret = ServiceSecret("", SecretStr("sk-SENTINEL"), (SecretStr("sk-SENTINEL"), SecretStr("sk-SENTINEL")))
    claims = TokenClaims("j", 0, 1, RequestQuotas(), (secret,))
    assert "SENTINEL" not in repr(secret) + repr(claims) + str(claims)
    keys.refuse("sk-SENTINEL-1", REJECTED)
    keys.refuse("sk-SENTINEL-2", LIMITED)
    with caplog.at_level(logging.DEBUG), proxy(keys.upstream) as server:
        ask(server, mint(server, ["sk-SENTINEL-1", "sk-SENTINEL-2"]))
    assert keys.take() == ["sk-SENTINEL-1", "sk-SENTINEL-2"]
    assert "SENTINEL" not in caplog.text


# The state


def test_the_state_is_bounded_and_holds_no_secret() -> None:
    rotation = Rotation(Clock(), max_entries=10)
    for number in range(100):
        assert rotation.begin(f"jti-{number}", "", 2).take() == 0
    assert rotation.begin("jti-99", "", 2).take() == 1
    assert rotation.begin("jti-0", "", 2).take() == 0
    assert 1 <= len(rotation._states) <= 10


def test_the_state_that_was_used_least_recently_goes_first() -> None:
    rotation = Rotation(Clock(), max_entries=2)
    assert rotation.begin("old", "", 2).take() == 0
    assert rotation.begin("forgotten", "", 2).take() == 0
    rotation.begin("old", "", 2)  # used again, so that the other one is the least recent
    assert rotation.begin("new", "", 2).take() == 0
    assert rotation.begin("old", "", 2).take() == 1
    assert rotation.begin("forgotten", "", 2).take() == 0


def test_one_secret_leaves_no_state() -> None:
    rotation = Rotation(Clock())
    turn = rotation.begin("jti", "", 1)
    assert (turn.take(), turn.take()) == (0, None)
    turn.pause(429, [])
    assert rotation.begin("jti", "", 1).take() == 0
    assert not rotation._states


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, [], PAUSE_AFTER_429),
        (401, [], PAUSE_AFTER_401),
        (429, [(b"retry-after", b"3")], 3),
        (429, [(b"retry-after", b"3"), (b"retry-after-ms", b"250")], 0.25),
        (429, [(b"retry-after", b"99999999")], LONGEST_PAUSE),
        (429, [(b"retry-after", b"soon")], PAUSE_AFTER_429),
        (401, [(b"retry-after", b"1")], 1),
    ],
)
def test_how_long_a_secret_rests(status: int, headers: list[tuple[bytes, bytes]], seconds: float) -> None:
    clock = Clock()
    rotation = Rotation(clock)
    turn = rotation.begin("jti", "", 2)
    assert turn.take() == 0
    turn.pause(status, headers)
    clock.now += seconds - 0.01
    assert [rotation.begin("jti", "", 2).take() for _ in range(2)] == [1, 1]
    clock.now += 0.02
    assert rotation.begin("jti", "", 2).take() == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after", formatdate(NOW + 90, usegmt=True).encode())], 90),
        ([(b"retry-after", formatdate(NOW - 90, usegmt=True).encode())], 0),
        ([(b"retry-after", b"Wed, 21 Oct 99999 07:28:00 GMT")], None),
        ([(b"retry-after", b"\xff")], None),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"1e9")], None),
        ([(b"retry-after", b".")], None),
        ([(b"retry-after-ms", b"x"), (b"retry-after", b"2")], 2),
        ([], None),
    ],
)
def test_retry_after(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_each_pattern_of_a_token_has_its_own_turns() -> None:
    rotation = Rotation(Clock())
    assert [rotation.begin("a", "chat:openai.com", 3).take() for _ in range(3)] == [0, 1, 2]
    assert [rotation.begin("a", "chat:anthropic.com", 2).take() for _ in range(3)] == [0, 1, 0]
    assert [rotation.begin("b", "chat:openai.com", 3).take() for _ in range(2)] == [0, 1]


def test_a_secret_that_a_429_calls_invalid_rests_as_one_that_a_401_refuses(keys: Keys, clock: Clock) -> None:
    services = {"openai": {"base_url": keys.upstream.url, "rejections": {"429": "no such key"}}}
    keys.answers["bad"] = ok(b'{"error":"no such key"}', status=LIMITED)
    with serve(AIsBreakerMiddleware(None, settings(services=services), clock=clock)) as server:
        token = mint(server, ["bad", "good"])
        for seconds in (0, PAUSE_AFTER_429 + 1, PAUSE_AFTER_401):
            clock.now += seconds
            assert ask(server, token).status_code == 200
    assert keys.take() == ["bad", "good", "good", "bad", "good"]
