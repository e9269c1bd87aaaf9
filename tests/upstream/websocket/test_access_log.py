"""The log lines of WebSockets."""

import logging
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from aisbreaker_mw import AIsBreakerMiddleware

from ...support import mint, serve, settings
from ...upstreams import until
from .support import KEY_SUBPROTOCOL, SECRET, closing, hold, opening, refused, service


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [dict(record.msg) for record in caplog.records if record.name == "aisbreaker_mw.access"]  # type: ignore[arg-type]


async def test_one_line_per_socket_and_no_secret_in_any(front: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(socket: ServerConnection) -> None:
        assert socket.request
        await socket.send("f\xfcr" if "ok" in socket.request.path else SECRET)
        if "ok" in socket.request.path:
            await socket.close(4000, "x")
        else:
            socket.transport.abort()

    for name in ("uvicorn.error", "websockets", "websockets.client", "websockets.server", "asyncio"):
        caplog.set_level(1, name)
    caplog.set_level(1)
    async with service(fail, logger=logging.Logger("quiet")):
        token = mint(front, ("realtime:openai.com", SECRET))
        for number, path in enumerate(("/openai/v1/realtime?ok=&", "/openai/v1/realtime?"), 2):
            async with opening(front, f"{path}key={token}") as client:
                await closing(client)
            await until(lambda n=number: len(lines(caplog)) == n)  # type: ignore[misc]
        await refused(front, subprotocols=[f"{KEY_SUBPROTOCOL}{token}x"])
        await until(lambda: len(lines(caplog)) == 4)
    assert SECRET not in caplog.text
    assert token[:40] not in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    _, done, lost, turned_away = lines(caplog)
    assert (done["status"], done["bytes"], done["complete"], done["error"]) == (101, 4, True, None)
    assert (done["method"], done["service_id"], done["client"]) == ("GET", "realtime:openai.com", "127.0.0.1")
    assert done["total_ms"] >= done["first_byte_ms"] > 0
    assert (lost["status"], lost["complete"], lost["error"]) == (101, False, "response_interrupted")
    assert lost["cause"] == "ConnectionClosedError"
    assert (turned_away["status"], turned_away["error"]) == (401, "invalid_token")


async def test_how_a_failure_is_logged(front: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    token = mint(front, ("", SECRET))
    await refused(front, token=token)
    async with service(hold) as upstream, opening(front, token=token) as client:
        client.transport.abort()
        await closing(upstream.last)
        await until(lambda: len(lines(caplog)) == 3)
    _, unreachable, gone = lines(caplog)
    assert (unreachable["status"], unreachable["error"]) == (502, "upstream_error")
    assert unreachable["cause"] == "ConnectionRefusedError"
    assert (gone["status"], gone["complete"], gone["error"]) == (101, False, "client_gone")


async def test_a_socket_of_the_wrapped_app_is_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["aisbreaker"].jti})
        await send({"type": "websocket.close"})

    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    with serve(AIsBreakerMiddleware(app, settings())) as front:
        token = mint(front, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerMinute": 1}})
        async with opening(front, "/ws", token) as client:
            assert len(await client.recv()) == 22
            assert client.response
            assert client.response.headers["ratelimit"] == '"token-minute";r=0;t=60'
        assert (await refused(front, "/ws", token)).status_code == 429
    assert [(line["status"], line["bytes"]) for line in lines(caplog)][1:] == [(101, 22), (429, lines(caplog)[2]["bytes"])]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param(b"\x81\x82\x00\x00\x00\x00\xc3\x28", "invalid_request", id="bad text"),
        pytest.param(b"\x88\x84\x00\x00\x00\x00\x03\xe8\xc3\x28", "invalid_request", id="bad reason"),
        pytest.param(b"\x83\x80\x00\x00\x00\x00", "invalid_request", id="bad opcode"),
        pytest.param(b"\x82\xff" + (1 << 30).to_bytes(8, "big") + bytes(4), "payload_too_large", id="too large"),
    ],
)
async def test_a_client_that_breaks_the_protocol(front: str, caplog: pytest.LogCaptureFixture, sent: bytes, error: str) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    token = mint(front, ("", SECRET))
    async with service(hold) as upstream, opening(front, token=token) as client:
        client.transport.write(sent)
        await closing(upstream.last)
        await until(lambda: len(lines(caplog)) == 2)
    line = lines(caplog)[-1]
    assert (line["complete"], line["error"]) == (False, error)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert "0xc3" not in caplog.text
