"""Handshakes that are refused, by us or by the service."""

import asyncio
import logging
import re
import time
from typing import Any

import pytest

from aisbreaker_mw import create_app

from ...support import mint, settings
from ...upstreams import Peer, until
from .support import (
    FOREIGN,
    KEY_SUBPROTOCOL,
    LIVE,
    OPENED,
    PORT,
    REALTIME,
    SECRET,
    Client,
    RawService,
    Service,
    accepting,
    answers,
    closing,
    gateway,
    handshake,
    opening,
    refused,
    service,
)


async def test_refusals_are_answers_in_the_services_dialect(front: str, echoing: Service) -> None:
    token = mint(front, ("realtime:openai.com/gpt-realtime", SECRET), ("chat:google.com", SECRET))
    another = mint(front, ("", SECRET))

    missing = await refused(front)
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert missing.json()["error"]["code"] == "missing_credential"
    assert missing.headers["x-request-id"].startswith("req_")
    tampered = await refused(front, token=token + "x")
    assert (tampered.status_code, tampered.json()["error"]["code"]) == (401, "invalid_token")
    in_subprotocol = await refused(front, subprotocols=["realtime", f"{KEY_SUBPROTOCOL}{token}x"])
    assert (in_subprotocol.status_code, in_subprotocol.json()["error"]["code"]) == (401, "invalid_token")
    foreign = await refused(front, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN])
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (401, "invalid_token")
    two = await refused(front, token=token, subprotocols=[KEY_SUBPROTOCOL + another])
    assert (two.status_code, two.json()["error"]["code"]) == (400, "invalid_request")
    empty = await refused(front, subprotocols=["realtime", KEY_SUBPROTOCOL])
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "invalid_request")

    engine = await refused(front, "/openai/v1/realtime?model=gpt-dear", token)
    assert (engine.status_code, engine.json()["error"]["code"]) == (403, "service_not_allowed")
    assert "realtime:openai.com/gpt-dear" in engine.json()["error"]["message"]
    twice = await refused(front, f"{REALTIME}&model=gpt-dear", token)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "invalid_request")
    live = await refused(front, f"{LIVE}?key={token}")
    assert (live.status_code, live.json()["error"]["status"]) == (403, "PERMISSION_DENIED")

    assert (await refused(front, "/nothing", token)).status_code == 404
    assert (await refused(front, "/dummy/v1/realtime", another)).json()["error"]["code"] == "not_found"
    assert (await refused(front, "/openai/v1/../realtime", another)).status_code == 400
    assert echoing.connections == []


async def test_a_socket_is_counted_once_and_refused_over_the_quota(front: str, echoing: Service) -> None:
    token = mint(front, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerHour": 2}})
    async with opening(front, token=token) as client:
        assert client.response
        assert client.response.headers["ratelimit"].startswith('"token-hour";r=1')
        for _ in range(5):
            await client.send("hello")
            await client.recv()
    async with opening(front, token=token):
        pass
    over = await refused(front, token=token)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(over.headers["retry-after"]) > 60
    assert over.headers["x-should-retry"] == "false"
    assert len(echoing.connections) == 2


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        (["*"], "https://evil.example", None),
        (["https://page.example"], "https://page.example", None),
        (["https://page.example"], "https://evil.example", 403),
        ([], "null", 403),
    ],
)
async def test_a_page_of_another_origin(echoing: Service, origins: list[str], origin: str, status: int | None) -> None:
    with gateway(cors_origins=origins) as front:
        token = mint(front, ("", SECRET))
        if status is None:
            async with opening(front, token=token, origin=origin):
                pass
        else:
            assert (await refused(front, token=token, origin=origin)).status_code == status
        async with opening(front, token=token, origin=front):  # a page of our own
            pass
        await closing(echoing.last)


async def test_a_server_without_http_answers_gets_a_close() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": [(b"host", b"h")]}
    for path in ("/openai/v1/realtime", "/nothing"):
        await create_app(settings())({**scope, "path": path, "extensions": None}, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
        sent.clear()


async def test_a_client_that_was_gone_before_it_was_read() -> None:
    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise AssertionError

    scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": [(b"host", b"h")]}
    await create_app(settings())(scope, receive, send)


def answer(status: str, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode("latin-1")


async def test_the_services_refusal_is_relayed(front: str) -> None:
    body = '{"error":{"message":"No such model."}}'
    headers = ["Content-Type: application/json", "X-Request-Id: req_up", "X-RateLimit-Limit: 5", "Connection: x, close", "X: y"]
    headers += ["Access-Control-Allow-Origin: https://other", "RateLimit: up", "X-Latin: f\xfcr", "Sec-WebSocket-Version: 13"]
    async with answers(answer("403 Forbidden", *headers, body=body)):
        token = mint(front, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerMinute": 9}})
        response = await refused(front, token=token)
    assert response.status_code == 403
    assert response.text == body
    assert {**response.headers, "date": ""} == {
        "content-type": "application/json",
        "x-request-id": "req_up",
        "x-ratelimit-limit": "5",
        "x-latin": "f\xfcr",
        "content-length": str(len(body)),
        "ratelimit-policy": '"token-minute";q=9;w=60',
        "ratelimit": '"token-minute";r=8;t=60',
        "connection": "close",
        "date": "",
    }


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        pytest.param(answer("401 No", body=f"Bad key: {SECRET}"), 502, "upstream_credential_rejected", id="credential"),
        pytest.param(answer("302 Found", "Location: ws://127.0.0.1:1/"), 302, None, id="redirect"),
        pytest.param(answer("200 OK", body="a page"), 200, None, id="no WebSocket there"),
        pytest.param(answer("204 No Content"), 204, None, id="no content"),
        pytest.param(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 500, None, id="chunked"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", 502, "upstream_error", id="interim answer"),
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", 502, "upstream_error", id="garbage"),
        pytest.param(b"", 502, "upstream_error", id="closed"),
        pytest.param(b"HTTP/1.1 101 Yes\r\n" + OPENED.encode() + b"x\r\n\r\n", 502, "upstream_error", id="wrong accept"),
        pytest.param(answer("403 No", body="x" * 2_000_000), 502, "upstream_error", id="long"),
    ],
)
async def test_a_handshake_that_fails(front: str, raw: bytes, status: int, code: str | None) -> None:
    async with answers(raw) as upstream:
        response = await refused(front, token=mint(front, ("", SECRET)))
        assert response.status_code == status
        assert SECRET not in response.text
        if code is not None:
            assert response.json()["error"]["code"] == code
            assert not re.search(rf"127\.0\.0\.1|{PORT}|OpenSSH", response.text)
        assert upstream.connections == 1


@pytest.mark.parametrize("status", ["401 No", "429 Later"])
async def test_another_secret_is_tried(front: str, status: str) -> None:
    tried: list[bytes] = []

    async def script(peer: Peer) -> None:
        head = await peer.head()
        tried.extend(re.findall(rb"(?i)authorization: Bearer (\S+)", head))
        await peer.send(accepting(head) if tried[-1] == b"sk-good" else answer(status))
        await peer.closed()

    async with RawService(script):
        for secrets, expected in ((["sk-bad", "sk-good"], None), (["sk-bad", "sk-worse"], 502 if status[:3] == "401" else 429)):
            tried.clear()
            token = mint(front, ("", secrets))  # type: ignore[arg-type]
            if expected is None:
                async with opening(front, token=token):
                    pass
            else:
                assert (await refused(front, token=token)).status_code == expected
            assert tried == [secret.encode() for secret in secrets]


@pytest.mark.parametrize("header", ["Sec-WebSocket-Protocol: another", "Sec-WebSocket-Extensions: permessage-deflate"])
async def test_a_service_that_selects_what_was_not_offered(front: str, header: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head(), header))
        await peer.closed()

    async with RawService(script):
        assert (await refused(front, token=mint(front, ("", SECRET)), subprotocols=["realtime"])).status_code == 502


async def test_a_service_that_cannot_be_reached(front: str) -> None:
    response = await refused(front, token=mint(front, ("", SECRET)))
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")


async def test_a_service_that_does_not_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.closed()

    async with RawService(script) as upstream:
        with gateway(upstream={"header_timeout": 0.2}) as front:
            response = await refused(front, token=mint(front, ("", SECRET)))
            assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
        await until(lambda: upstream.finished == 1, "closing")


async def test_a_client_that_does_not_wait_for_the_service(front: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        client.transport.abort()
        await peer.closed()

    async with RawService(script) as upstream:
        token = mint(front, ("", SECRET))
        _, port = front.rsplit(":", 1)
        _, client = await asyncio.open_connection("127.0.0.1", int(port))
        client.write(handshake("Authorization: Bearer " + token))
        begun = time.monotonic()
        await until(lambda: upstream.finished == 1, "closing")
        assert time.monotonic() - begun < 1


async def test_a_foreign_credential_is_forwarded_where_that_is_set() -> None:
    async with answers(answer("401 No", body="your key")):
        with gateway(foreign_credentials="forward") as front:
            response = await refused(front, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN])
            assert (response.status_code, response.text) == (401, "your key")
    async with service() as there:
        with gateway(foreign_credentials="forward") as front:
            async with opening(front, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN]) as client:
                assert client.subprotocol == "realtime"
            assert ("authorization", f"Bearer {FOREIGN}") in there.headers
            assert ("sec-websocket-protocol", "realtime") in there.headers


@pytest.mark.parametrize("raw", [b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", None], ids=["refused", "accepted"])
async def test_a_client_that_is_gone_when_the_service_answers(caplog: pytest.LogCaptureFixture, raw: bytes | None) -> None:
    async def script(peer: Peer) -> None:
        head = await peer.head()
        await peer.send(raw or accepting(head))
        await peer.closed()

    async def fail(message: Any) -> None:
        raise OSError

    async with RawService(script) as upstream:
        await Client(fail).connect()
        await until(lambda: upstream.finished == 1, "closing")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
