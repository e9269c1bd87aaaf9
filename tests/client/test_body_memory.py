"""Request bodies that are held have one memory: for their engine, a signature or a retry."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.client.body_memory import BodyMemory
from aisbreaker_mw.exceptions import TooMuchBuffered, UnsupportedMediaType

from ..support import WAIT, RecordingUpstream, bearer, connect, mint, proxy, wait_until

CHAT = "/openai/v1/chat/completions"
MEMORY = 1 << 20


def head(base: str, token: str, length: int, client: str) -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1",
        f"Host: {base[7:]}",
        f"Authorization: Bearer {token}",
        f"X-Forwarded-For: {client}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def unfinished(base: str, token: str, size: int, client: str = "192.0.2.1") -> Iterator[None]:
    """A request whose body does not end, of which `size` bytes have been sent."""
    with connect(base) as connection:
        connection.sendall(head(base, token, 10 * MEMORY, client) + b'{"x":"' + b"y" * (size - 6))
        yield


def test_bodies_held_for_their_engine_stay_under_the_limit(upstream: RecordingUpstream) -> None:
    """What is over it is told to try again, and there is room again when the others have gone."""
    with proxy(upstream, upstream={"max_buffered_bytes": MEMORY}) as base:
        token = mint(base, ("chat:openai.com/gpt-4o-mini", "sk-1"))
        body = b'{"model":"gpt-4o-mini","x":"' + b"z" * (MEMORY // 2) + b'"}'

        def ask() -> httpx.Response:
            headers = {**bearer(token), "content-type": "application/json"}
            return httpx.post(base + CHAT, content=body, headers=headers)

        assert ask().status_code == 200
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(unfinished(base, token, MEMORY // 4))
            refused: list[httpx.Response] = []

            def is_refused() -> bool:
                refused.append(ask())
                return refused[-1].status_code != 200

            wait_until(is_refused)
            assert refused[-1].status_code == 503
            assert refused[-1].json()["error"]["code"] == "too_much_buffered"
            assert refused[-1].headers["retry-after"] == "1"
            # A body that needs not be held passes.
            other = mint(base, ("chat:openai.com", "sk-1"))
            headers = {**bearer(other), "content-type": "application/json"}
            assert httpx.post(base + CHAT, content=body, headers=headers).status_code == 200
        wait_until(lambda: ask().status_code == 200)


def received(*pieces: bytes) -> Any:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    return receive


SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "http_version": "1.1"}


def framed(memory: BodyMemory, *pieces: bytes) -> RequestBody:
    body = RequestBody(received(*pieces), 1 << 20, memory)
    body.frame(SCOPE, {b"transfer-encoding": b"chunked"})
    return body


@pytest.mark.anyio
async def test_what_a_body_holds_is_given_back_with_it() -> None:
    memory = BodyMemory(100)
    body = framed(memory, b"x" * 60)
    assert await body.collect(1000, UnsupportedMediaType) == b"x" * 60
    assert memory.left == 40
    other = framed(memory, b"y" * 30, b"y" * 30)
    with pytest.raises(TooMuchBuffered):
        await other.collect(1000, UnsupportedMediaType)
    del body, other
    assert memory.left == 100


@pytest.mark.anyio
async def test_a_body_that_can_not_be_kept_for_a_retry_is_still_sent() -> None:
    memory = BodyMemory(10)
    for size, kept in ((10, True), (11, False)):
        body = framed(memory, b"x" * size)
        body.keep(1000)
        assert b"".join([piece async for piece in body]) == b"x" * size
        assert body.rewind() is kept
        del body
        assert memory.left == 10


@pytest.mark.parametrize("one", ["client", "token"])
def test_one_client_or_token_leaves_memory_to_others(upstream: RecordingUpstream, one: str) -> None:
    limits = {"max_buffered_bytes": MEMORY}
    with proxy(upstream, upstream=limits, trusted_proxies=["127.0.0.1"]) as base, contextlib.ExitStack() as held:
        tokens = [mint(base, ("chat:openai.com/gpt-4o-mini", "sk-1")) for _ in range(2)]
        body = b'{"model":"gpt-4o-mini","x":"' + b"z" * (MEMORY // 8) + b'"}'

        def ask(token: str, client: str) -> int:
            headers = {**bearer(token), "content-type": "application/json", "x-forwarded-for": client}
            return httpx.post(base + CHAT, content=body, headers=headers).status_code

        for number in range(10):
            theirs = mint(base, ("chat:openai.com/gpt-4o-mini", "sk-1")) if one == "client" else tokens[0]
            client = "192.0.2.1" if one == "client" else f"192.0.2.{number}"
            held.enter_context(unfinished(base, theirs, MEMORY // 10, client))
        wait_until(lambda: ask(tokens[0], "192.0.2.1") == 503)
        assert ask(tokens[1], "192.0.2.99") == 200


def test_bodies_that_are_read_ahead_leave_memory_to_those_that_must_be_held() -> None:
    """A service that reads nothing lets any number of bodies be read ahead."""
    with socket.create_server(("127.0.0.1", 0)) as service, contextlib.ExitStack() as held:
        services = {
            "openai": {"base_url": f"http://127.0.0.1:{service.getsockname()[1]}"},
            "other": {"like": "openai", "vendor": "other", "base_url": held.enter_context(RecordingUpstream()).url},
        }
        limits = {"max_buffered_bytes": 16 * MEMORY}
        base = held.enter_context(proxy(services=services, upstream=limits, trusted_proxies=["127.0.0.1"]))
        uploads: list[socket.socket] = []
        for number in range(2):
            token = mint(base, ("", "sk-1"))
            connection = held.enter_context(connect(base, seconds=0.6))
            uploads.append(connection)
            connection.sendall(head(base, token, 1 << 30, f"192.0.2.{number}"))
            with contextlib.suppress(TimeoutError):
                while True:
                    connection.send(bytes(1 << 16))
        token = mint(base, ("chat:other/gpt-4o-mini", "sk-1"))
        body = b'{"model":"gpt-4o-mini","x":"' + b"z" * (4 * MEMORY) + b'"}'
        headers = {**bearer(token), "content-type": "application/json", "x-forwarded-for": "192.0.2.99"}
        response = httpx.post(base + CHAT.replace("openai", "other"), content=body, headers=headers)
        assert response.status_code == 200, response.text
        service.close()  # which ends the uploads
        for connection in uploads:
            connection.settimeout(WAIT)
            assert connection.recv(12) == b"HTTP/1.1 502"
