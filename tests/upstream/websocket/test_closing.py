"""How a WebSocket ends, whoever ends it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from ...support import WAIT, mint
from ...upstreams import Peer, until
from .support import SECRET, Client, RawService, accepting, closing, gateway, hold, opening, refused, service

CLOSES = [(1000, ""), (1000, "bye"), (1001, "moving"), (1011, "bug"), (3000, "invalid_request_error.x"), (4999, "\xfc" * 61)]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_the_client_closes(front: str, code: int, reason: str) -> None:
    async with service(hold) as upstream, opening(front, token=mint(front, ("", SECRET))) as client:
        await client.close(code, reason)
        assert await closing(upstream.last) == (code, reason)


async def test_the_client_closes_without_a_code(front: str) -> None:
    async with service(hold) as upstream, opening(front, token=mint(front, ("", SECRET))) as client:
        await client.close(None)  # type: ignore[arg-type]
        assert await closing(upstream.last) == (1005, "")


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_the_service_closes(front: str, code: int, reason: str) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.send("last words")
        await socket.close(code, reason)

    async with service(close), opening(front, token=mint(front, ("", SECRET))) as client:
        assert await client.recv() == "last words"
        assert await closing(client) == (code, reason)


async def test_the_service_closes_without_a_code(front: str) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.close(None)  # type: ignore[arg-type]

    async with service(close), opening(front, token=mint(front, ("", SECRET))) as client:
        assert await closing(client) == (1000, "")


async def test_last_words_reach_a_client_that_still_talks(front: str) -> None:
    """That the service takes no more is no reason not to deliver what it has said."""

    async def close(socket: ServerConnection) -> None:
        await socket.recv()
        for n in range(50):
            await socket.send(f"{n}" + "x" * 100_000)
        await asyncio.gather(socket.close(3000, "done"), hold(socket), return_exceptions=True)

    async with service(close, close_timeout=WAIT), opening(front, token=mint(front, ("", SECRET))) as client:

        async def talk() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await client.send("and another thing")
                    await asyncio.sleep(0)

        talking = asyncio.create_task(talk())
        received = [await client.recv() for _ in range(50)]
        assert [str(message).rstrip("x") for message in received] == [f"{n}" for n in range(50)]
        assert await closing(client) == (3000, "done")
        await talking


async def test_what_was_said_is_delivered_although_the_service_takes_no_more() -> None:
    taken: list[Any] = []
    slow = asyncio.Event()

    async def take(message: Any) -> None:
        taken.append(message)
        if message.get("text") == "1":
            await slow.wait()

    async def close(socket: ServerConnection) -> None:
        for number in (1, 2, 3):
            await socket.send(f"{number}")
        await socket.close(3000, "done")
        client.incoming.put_nowait({"type": "websocket.receive", "text": "too late"})
        asyncio.get_running_loop().call_later(0.05, slow.set)

    client = Client(take)
    async with service(close):
        async with asyncio.timeout(WAIT):
            await client.connect()
    assert [message.get("text") for message in taken[1:-1]] == ["1", "2", "3"]
    assert taken[-1] == {"type": "websocket.close", "code": 3000, "reason": "done"}


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_a_server_that_takes_no_more(caplog: pytest.LogCaptureFixture, error: type[Exception]) -> None:
    """The one says that the client has gone (ASGI 2.4); the other is uvicorn's, where it has closed the socket itself."""

    async def take(message: Any) -> None:
        if message["type"] == "websocket.send":
            gone = {"type": "websocket.disconnect", "code": 4001, "reason": "bye"}
            asyncio.get_running_loop().call_later(0.05, client.incoming.put_nowait, gone)
            raise error

    async def talk(socket: ServerConnection) -> None:
        await socket.send("hello")
        await hold(socket)

    client = Client(take)
    async with service(talk) as upstream:
        await client.connect()
        assert await closing(upstream.last) == (4001, "bye")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_service_that_closes_and_does_not_hang_up(front: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head()) + b"\x88\x02\x0f\xa0")
        await peer.closed()
        await until(client_told.is_set)  # our end was cut, and this one is still open

    client_told = asyncio.Event()
    async with RawService(script):
        async with opening(front, token=mint(front, ("", SECRET))) as client:
            begun = time.monotonic()
            assert await closing(client) == (4000, "")
            assert time.monotonic() - begun < 3
        client_told.set()


FAILURES: dict[str, Callable[[ServerConnection], None]] = {
    "cut": lambda socket: socket.transport.abort(),
    "closed": lambda socket: socket.transport.close(),
    "no frame": lambda socket: socket.transport.write(b"\xff\xff SENTINEL"),
    "no UTF-8": lambda socket: socket.transport.write(b"\x81\x01\xff"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_breaks_off(front: str, failure: str) -> None:
    async def fail(socket: ServerConnection) -> None:
        FAILURES[failure](socket)
        await socket.wait_closed()

    async with service(fail), opening(front, token=mint(front, ("", SECRET))) as client:
        assert await closing(client) == (1014, "The AI service broke off.")


async def test_a_client_that_breaks_off(front: str) -> None:
    async with service(hold) as upstream, opening(front, token=mint(front, ("", SECRET))) as client:
        client.transport.abort()
        begun = time.monotonic()
        assert await closing(upstream.last) == (1005, "")
        assert time.monotonic() - begun < 1


async def test_a_client_that_breaks_off_while_it_is_sent_to(front: str) -> None:
    async def talk(socket: ServerConnection) -> None:
        while True:
            await socket.send("x" * 1000)

    async with service(talk) as upstream, opening(front, token=mint(front, ("", SECRET))) as client:
        await client.recv()
        client.transport.abort()
        begun = time.monotonic()
        await closing(upstream.last)
        assert time.monotonic() - begun < 1


async def test_a_service_that_does_not_answer_the_close_is_cut_off(front: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head()))
        begun = time.monotonic()
        received.append(await peer.closed())
        took.append(time.monotonic() - begun)

    received: list[bytes] = []
    took: list[float] = []
    async with RawService(script):
        async with opening(front, token=mint(front, ("", SECRET))) as client:
            await client.close()
        await until(lambda: took, "the cut")
    assert received[0][:1] == b"\x88"
    assert took[0] < 3


async def test_a_long_message_from_the_client() -> None:
    async with service(hold, max_size=None) as upstream:
        with gateway(serving={"ws_max_size": 1000}) as front:
            token = mint(front, ("", SECRET))
            async with opening(front, token=token) as client:
                await client.send("x" * 1000)
                await client.send("x" * 1001)
                assert (await closing(client))[0] == 1009
                assert (await closing(upstream.last))[0] == 1009


async def test_a_long_message_where_the_server_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(hold, max_size=None) as upstream:
        with gateway(serving={"ws_max_size": 1 << 30}) as front:
            async with opening(front, token=mint(front, ("", SECRET))) as client:
                await client.send(b"x" * ((16 << 20) + 1))
                assert (await closing(client))[0] == 1009
                assert (await closing(upstream.last))[0] == 1001


async def test_a_long_message_from_the_service(front: str) -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(b"x" * (16 << 20))
        await socket.send(b"x" * ((16 << 20) + 1))
        await socket.wait_closed()

    async with service(talk) as upstream, opening(front, token=mint(front, ("", SECRET)), max_size=None) as client:
        assert len(await client.recv()) == 16 << 20
        assert (await closing(client))[0] == 1009
        assert (await closing(upstream.last))[0] == 1009


async def test_a_token_that_expires() -> None:
    now = [1000.0]
    async with service() as upstream:
        with gateway(clock=lambda: now[0]) as front:
            token = mint(front, ("", SECRET), expirationTimeSpan="1h")
            async with opening(front, token=token) as client:
                await client.send("hello")
                await client.recv()  # both directions are open, so its time runs
                now[0] = 1000 + 3600 - 0.1
                async with opening(front, token=token) as late:
                    assert await closing(late) == (1008, "The API key has expired.")
                    assert await closing(upstream.last) == (1001, "")
                assert client.close_code is None
            now[0] += 0.1
            assert (await refused(front, token=token)).status_code == 401
