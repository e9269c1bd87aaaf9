"""One request and what became of it."""

import asyncio
import json
import logging
import re
from typing import Any
from unittest import mock

import pytest
from pydantic import SecretStr
from starlette.types import Message
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from aisbreaker_mw.client.exchange import Exchange
from aisbreaker_mw.client.responses import json_response
from aisbreaker_mw.exceptions import InvalidToken, RequestError, UpstreamError
from aisbreaker_mw.serving.cycle import ResponseCycle
from aisbreaker_mw.tokens.claims import RequestQuotas, ServiceSecret, TokenClaims

CLAIMS = TokenClaims(
    "0123456789abcdefghijkl", 0, 1, RequestQuotas(), (ServiceSecret("chat:openai.com", SecretStr("sk-SENTINEL")),), "kid45678"
)


def exchange(method: str = "POST", **options: Any) -> tuple[Exchange, list[Message]]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/openai/SENTINEL", "query_string": b"key=sk-SENTINEL", "headers": []}
    return Exchange(scope, send, **options), sent


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    return lambda: [record.msg for record in caplog.records if record.name == "aisbreaker_mw.access"]


async def test_an_answer_is_sent_as_it_is() -> None:
    one, sent = exchange()
    await one.respond(json_response(200, {"a": 1}))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"7")]
    assert sent == [
        {"type": "http.response.start", "status": 200, "headers": headers},
        {"type": "http.response.body", "body": b'{"a":1}', "more_body": False},
    ]
    assert (one.status, one.sent_bytes, one.complete) == (200, 7, True)


async def test_head_has_the_headers_alone() -> None:
    one, sent = exchange("HEAD")
    await one.respond(json_response(200, {"a": 1}))
    assert (b"content-length", b"7") in sent[0]["headers"]
    assert sent[1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_headers_are_added_in_a_copy() -> None:
    one, sent = exchange()
    one.headers = [(b"ratelimit", b"x")]
    start = {"type": "http.response.start", "status": 200, "headers": ((b"a", b"1"),)}
    await one.send(start)
    assert sent == [{"type": "http.response.start", "status": 200, "headers": [(b"a", b"1"), (b"ratelimit", b"x")]}]
    assert start["headers"] == ((b"a", b"1"),)
    await one.send({"type": "http.response.start", "status": 200})
    assert sent[1]["headers"] == [(b"ratelimit", b"x")]


async def test_pieces_are_counted_and_the_last_completes() -> None:
    one, _ = exchange()
    await one.send({"type": "http.response.start", "status": 200, "headers": []})
    await one.send({"type": "http.response.body", "body": b"12345", "more_body": True})
    assert (one.sent_bytes, one.complete) == (5, False)
    await one.send({"type": "http.response.body"})
    assert (one.sent_bytes, one.complete) == (5, True)


@pytest.mark.parametrize(
    ("dialect", "name"), [("openai", b"x-request-id"), ("google", b"x-request-id"), ("anthropic", b"request-id")]
)
async def test_an_error_is_told_in_the_dialect(dialect: Any, name: bytes) -> None:
    one, sent = exchange(dialect=dialect)
    one.headers = [(b"ratelimit", b"x")]
    await one.refuse(InvalidToken())
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 401
    assert headers[name].decode() == one.request_id
    assert headers[b"ratelimit"] == b"x"
    assert headers[b"www-authenticate"].startswith(b"Bearer error=")
    assert json.loads(sent[1]["body"])["error"]["message"] == InvalidToken.message
    assert one.error == "invalid_token"


def test_request_ids_are_unique() -> None:
    ids = {exchange()[0].request_id for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", each) for each in ids)


async def test_a_line_tells_what_became_of_it(lines: Any) -> None:
    one, _ = exchange()
    one.client, one.claims, one.service_id = "192.0.2.1", CLAIMS, "chat:openai.com/gpt-4o"
    await one.send({"type": "http.response.start", "status": 200, "headers": []})
    await one.send({"type": "http.response.body", "body": b"12345", "more_body": False})
    one.log()
    (fields,) = lines()
    assert 0 <= fields.pop("first_byte_ms") <= fields.pop("total_ms")
    assert fields == {
        "request_id": one.request_id,
        "method": "POST",
        "client": "192.0.2.1",
        "kid": "kid45678",
        "key_id": CLAIMS.jti,
        "label": None,
        "service_id": "chat:openai.com/gpt-4o",
        "status": 200,
        "bytes": 5,
        "complete": True,
        "error": None,
        "cause": None,
    }
    assert "SENTINEL" not in str(fields)


async def test_a_refusal_is_told_with_its_code(lines: Any) -> None:
    one, _ = exchange()
    one.cause = "ConnectError"
    await one.refuse(UpstreamError())
    one.log()
    (fields,) = lines()
    assert (fields["status"], fields["error"], fields["cause"]) == (502, "upstream_error", "ConnectError")
    assert (fields["kid"], fields["key_id"], fields["client"]) == (None, None, None)
    assert " kid=" not in str(fields)


async def test_who_went_away_before_an_answer_is_told_as_499(lines: Any) -> None:
    one, sent = exchange()
    one.log()
    (fields,) = lines()
    assert (fields["status"], fields["complete"], fields["first_byte_ms"], fields["bytes"]) == (499, False, None, 0)
    assert sent == []


async def test_nothing_is_told_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "aisbreaker_mw.access")
    one, _ = exchange()
    one.log()
    assert caplog.records == []


class Server:
    """What a cycle asks of its connection, and nothing more."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = mock.Mock(spec=asyncio.Transport)
        self.transport.is_closing.return_value = False
        self.flow = FlowControl(self.transport)
        self.logger = self.access_logger = logging.getLogger("test")
        self.access_log = False
        self.server_state = ServerState()

    def on_response_complete(self) -> None: ...

    def resume_body(self) -> None: ...

    def give_up(self, cycle: ResponseCycle, error: RequestError) -> None: ...

    @property
    def written(self) -> bytes:
        """The answer's body as it went out, in chunks."""
        calls = self.transport.method_calls
        data = b"".join(
            b"".join(call.args[0]) if call[0] == "writelines" else call.args[0] for call in calls if "write" in call[0]
        )
        return bytes(data.partition(b"\r\n\r\n")[2])


def served() -> tuple[Exchange, ResponseCycle, Server]:
    server = Server()
    scope: Any = {"type": "http", "method": "GET", "http_version": "1.1", "headers": []}
    cycle = ResponseCycle(server, scope, keep_alive=True, expects_continue=False)
    return Exchange(scope, cycle.send), cycle, server


async def test_a_piece_is_written_at_once_where_nothing_hinders_it() -> None:
    one, _, server = served()
    write = one.synchronous_writer()
    assert write is not None
    assert not write(b"too early")
    await one.begin(200, [])
    assert write(b"first")
    await one.write(b"second", more_body=True)
    server.flow.pause_writing()
    assert not write(b"too much")
    server.flow.resume_writing()
    assert write(b"third")
    assert (one.sent_bytes, one.complete) == (16, False)
    await one.write(b"", more_body=False)
    assert not write(b"too late")
    assert (one.sent_bytes, one.complete) == (16, True)
    assert server.written == b"5\r\nfirst\r\n6\r\nsecond\r\n5\r\nthird\r\n0\r\n\r\n"


async def test_nothing_is_written_at_once_to_a_client_that_left() -> None:
    one, cycle, _ = served()
    write = one.synchronous_writer()
    assert write is not None
    await one.begin(200, [])
    cycle.disconnect()
    assert not write(b"x")
    assert one.sent_bytes == 0


class Proxied:
    """A wrapper as instrumentation makes them: it looks like what it wraps, down to the class."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._wrapped.__class__

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == other)

    async def __call__(self, message: Message) -> None:
        await self._wrapped(message)


async def test_nothing_passes_by_what_is_between_the_server_and_here() -> None:
    one, cycle, _ = served()

    async def send(message: Message) -> None:
        await cycle.send(message)

    assert one.synchronous_writer() is not None
    assert Exchange(cycle.scope, send).synchronous_writer() is None
    assert Exchange(cycle.scope, Proxied(cycle.send)).synchronous_writer() is None
    assert exchange()[0].synchronous_writer() is None
