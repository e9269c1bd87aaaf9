"""The client's request body: its framing, and its bound where no length tells it."""

import pytest
from starlette.types import Message

from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.exceptions import PayloadTooLarge


def body(*pieces: bytes, limit: int = 10) -> RequestBody:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> Message:
        return messages.pop(0)

    return RequestBody(receive, limit)


@pytest.mark.parametrize(
    ("version", "method", "present"),
    [("1.1", "POST", False), ("2", "POST", True), ("2", "GET", False), ("2", "HEAD", False), ("3", "OPTIONS", False)],
)
def test_a_body_without_framing_is_there_since_http_2_only(version: str, method: str, present: bool) -> None:
    request = body()
    request.frame({"http_version": version, "method": method}, {})
    assert request.present is present


async def test_a_body_without_a_length_ends_at_the_limit() -> None:
    request = body(b"12345", b"67890", b"!")
    assert [len((await request.receive())["body"]) for _ in range(2)] == [5, 5]
    with pytest.raises(PayloadTooLarge):
        await request.receive()


async def test_a_kept_body_can_be_sent_again_and_again() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"12345", "more_body": True}]
    messages.append({"type": "http.request", "body": b"678"})

    async def receive() -> Message:
        return messages.pop(0)

    request = RequestBody(receive, 10)
    request.keep(10)
    for _ in range(3):
        assert b"".join([piece async for piece in request]) == b"12345678"
        assert request.rewind()


async def kept(*pieces: bytes, more: bool) -> RequestBody:
    """A body that is kept for a retry, after `pieces` of it were passed on."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = more

    async def receive() -> Message:
        return messages.pop(0)

    request = RequestBody(receive, 100)
    request.keep(100)
    for piece in pieces:
        assert await anext(request) == piece
    return request


async def test_a_body_that_was_kept_is_passed_on_again_as_often_as_it_takes() -> None:
    request = await kept(b"one", b"two", more=False)
    for _ in range(3):
        assert request.rewind()
        assert b"".join([piece async for piece in request]) == b"onetwo"


async def test_a_body_whose_rest_is_still_to_come_is_not_passed_on_again() -> None:
    request = await kept(b"one", more=True)
    assert not request.rewind()


async def test_a_body_that_a_transport_still_reads_is_not_passed_on_again() -> None:
    request = await kept(b"one", more=False)
    request.reading = True
    assert not request.rewind()
