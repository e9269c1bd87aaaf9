"""Request bodies that are held have one memory: for their engine, a signature or a retry."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from aisbreaker_mw.client.body import BodyMemory, RequestBody
from aisbreaker_mw.exceptions import TooMuchBuffered, UnsupportedMediaType

from ..support import RecordingUpstream, bearer, connect, mint, proxy, wait_until

CHAT = "/openai/v1/chat/completions"
MEMORY = 1 << 20


@contextlib.contextmanager
def unfinished(base: str, token: str, size: int) -> Iterator[None]:
    """A request whose body does not end, of which `size` bytes have been sent."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {base[7:]}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    with connect(base) as connection:
        connection.sendall(f"{head}Content-Length: {10 * MEMORY}\r\n\r\n".encode() + b'{"x":"' + b"y" * (size - 6))
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
