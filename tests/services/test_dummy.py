"""The embedded AI service, as OpenAI's SDK sees it, and at its edges."""

import asyncio
import base64
import json
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message

from aisbreaker_mw.services.dummy import MAX_CHAT_BYTES, MODELS, DummyService

from ..support import serve

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, who are you?"}]
REPLY = 'Hello! I am the dummy service of AIsBreaker, and I heard you say: "Hello, who are you?"'


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serve(DummyService()) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


# Through the SDK


def test_a_chat_completion_echoes_the_last_user_message_and_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", "gpt-4o", 1)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 9
    assert answer.usage.completion_tokens == len(REPLY.split())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_same_request_has_the_same_answer(client: openai.OpenAI) -> None:
    first, second, other = (
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}]) for text in "aab"
    )
    assert first.model_dump() == second.model_dump()
    assert first.id != other.id


@pytest.mark.parametrize("counted", [True, False])
def test_a_streamed_chat_adds_up_to_the_whole_answer(client: openai.OpenAI, counted: bool) -> None:
    stream = client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options={"include_usage": counted})
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert "".join(texts) == REPLY
    assert len(texts) == len(REPLY.split())
    assert chunks[0].choices[0].delta.role == "assistant"
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert ends == [None] * (len(ends) - 1) + ["stop"]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == counted
    if counted:
        assert chunks[-1].choices == []
        whole = client.chat.completions.create(model="m", messages=HELLO)
        assert usages[0] == whole.usage


def test_several_choices_and_a_limit_of_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, n=3, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello! I"}
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    stream = client.chat.completions.create(model="m", messages=HELLO, n=2, max_completion_tokens=2, stream=True)
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello! I", "Hello! I"]


def test_a_message_in_parts(client: openai.OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]
    answer = client.chat.completions.create(model="m", messages=messages)
    assert 'you say: "What is this?"' in (answer.choices[0].message.content or "")


def test_a_long_message_is_not_echoed_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "word " * 100_000}])
    assert len(answer.choices[0].message.content or "") < 3000


def test_text_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt=["one", "two"])
    assert ['"one"' in answer.choices[0].text, '"two"' in answer.choices[1].text] == [True, True]
    pieces = list(client.completions.create(model="m", prompt="one", stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_models(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed == list(MODELS)
    assert client.models.retrieve("dummy").id == "dummy"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize("dimensions", [None, 1, 8, 4096])
def test_embeddings_are_unit_vectors_and_the_same_in_both_encodings(
    client: openai.OpenAI, base_url: str, dimensions: int | None
) -> None:
    extra: Any = {} if dimensions is None else {"dimensions": dimensions}
    answer = client.embeddings.create(model="m", input=["a", "b", "a"], encoding_format="float", **extra)
    vectors = [each.embedding for each in answer.data]
    assert [len(vector) for vector in vectors] == [dimensions or 256] * 3
    assert vectors[0] == vectors[2]
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in vectors)
    assert dimensions == 1 or vectors[0] != vectors[1]
    assert answer.usage.total_tokens == 3
    body = {"model": "m", "input": "a", "encoding_format": "base64", **extra}
    text = httpx.post(f"{base_url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert list(struct.unpack(f"<{dimensions or 256}f", base64.b64decode(text))) == pytest.approx(vectors[0])
    default = client.embeddings.create(model="m", input="a", **extra)  # the SDK asks for base64 and decodes it
    assert default.data[0].embedding == pytest.approx(vectors[0])


def test_token_numbers_are_embedded_as_well(client: openai.OpenAI) -> None:
    assert client.embeddings.create(model="m", input=[1, 2, 3]).usage.prompt_tokens == 3
    assert len(client.embeddings.create(model="m", input=[[1, 2], [3]]).data) == 2


def png_size(data: bytes) -> tuple[int, int]:
    """Check every chunk of a PNG, and return its width and height."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds, pixels, size = 8, [], b"", (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        kinds.append(kind)
        pixels += content if kind == b"IDAT" else b""
        size = struct.unpack(">II", content[:8]) if kind == b"IHDR" else size
        at += 12 + length
    assert kinds == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert len(zlib.decompress(pixels)) == size[1] * (1 + size[0] // 8)
    return size


def test_images_are_pngs(client: openai.OpenAI) -> None:
    drawn = client.images.generate(model="m", prompt="a cat", n=2)
    assert drawn.data is not None
    images = [base64.b64decode(image.b64_json or "") for image in drawn.data]
    assert [png_size(image) for image in images] == [(8, 8), (8, 8)]
    assert images[0] != images[1]
    assert drawn.usage is not None
    assert drawn.usage.input_tokens == 2
    linked = client.images.generate(model="m", prompt="a cat", response_format="url").data
    assert linked is not None
    assert linked[0].url == "data:image/png;base64," + base64.b64encode(images[0]).decode()


# Errors

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"", None),
        (CHAT, b"{", None),
        (CHAT, b"[]", None),
        (CHAT, b"\xff", None),
        (CHAT, b"[" * 100_000, None),
        (CHAT, {"messages": HELLO}, "model"),
        (CHAT, {"messages": HELLO, "model": 7}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"model": "m", "messages": []}, "messages"),
        (CHAT, {"model": "m", "messages": "x"}, "messages"),
        (CHAT, {"model": "m", "messages": ["x"]}, "messages"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": 7}]}, "messages"),
        (CHAT, {"model": "m", "messages": HELLO, "n": 0}, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "n": True}, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "n": 1000}, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "max_tokens": "1"}, "max_tokens"),
        ("/v1/completions", {"model": "m", "prompt": []}, "prompt"),
        ("/v1/completions", {"model": "m", "prompt": [1]}, "prompt"),
        ("/v1/embeddings", {"model": "m"}, "input"),
        ("/v1/embeddings", {"model": "m", "input": []}, "input"),
        ("/v1/embeddings", {"model": "m", "input": [[]]}, "input"),
        ("/v1/embeddings", {"model": "m", "input": [["x"]]}, "input"),
        ("/v1/embeddings", {"model": "m", "input": [{}]}, "input"),
        ("/v1/embeddings", {"model": "m", "input": ["x"] * 5000}, "input"),
        ("/v1/embeddings", {"model": "m", "input": "x", "dimensions": 5000}, "dimensions"),
        ("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": []}, "encoding_format"),
        ("/v1/images/generations", {"model": "m"}, "prompt"),
        ("/v1/images/generations", {"model": "m", "prompt": "x", "n": 11}, "n"),
        ("/v1/images/generations", {"model": "m", "prompt": "x", "response_format": "gif"}, "response_format"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_request_is_400_in_openais_shape(base_url: str, path: str, body: Any, param: str | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(base_url + path, content=content)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("DELETE", "/v1/embeddings", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("DELETE", "/v1/models/dummy", 405, "GET"),
        ("GET", "/v1/files", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("POST", "/chat/completions", 404, None),
        ("GET", "/", 404, None),
    ],
)
def test_other_methods_and_paths(base_url: str, method: str, path: str, status: int, allow: str | None) -> None:
    response = httpx.request(method, base_url + path)
    assert response.status_code == status
    assert response.headers.get("allow") == allow
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_413(base_url: str) -> None:
    assert httpx.post(base_url + CHAT, content=b" " * (MAX_CHAT_BYTES + 1)).status_code == 413


def test_the_sdk_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="m", messages=[])
    assert error.value.param == "messages"


# Streaming


class Connection:
    """An ASGI server's side of one request; what is sent is kept, and `receive` waits when there is nothing more."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def pieces(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


SCOPE = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
STREAMED = {"model": "m", "messages": HELLO, "stream": True}


async def test_each_event_is_one_message_and_the_delay_is_waited_between_two() -> None:
    connection = Connection(STREAMED)
    waits: list[tuple[float, int]] = []

    async def sleep(seconds: float) -> None:
        waits.append((seconds, len(connection.pieces)))

    await DummyService(0.25, sleep)(SCOPE, connection.receive, connection.send)
    events, end = connection.pieces[:-1], connection.sent[-1]
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 for event in events)
    assert events[-1] == b"data: [DONE]\n\n"
    assert waits == [(0.25, number) for number in range(1, len(events))]
    assert not end.get("more_body", False)
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")


async def test_it_stops_when_the_client_goes_away_between_two_pieces() -> None:
    connection = Connection(STREAMED)

    async def sleep(seconds: float) -> None:
        if len(connection.pieces) == 3:
            connection.gone.set()
            await asyncio.Event().wait()  # for ever, unless it is cancelled

    await asyncio.wait_for(DummyService(1, sleep)(SCOPE, connection.receive, connection.send), 5)
    assert len(connection.pieces) == 3


@pytest.mark.parametrize("delay", [0.0, 0.001])
@pytest.mark.parametrize("error", [OSError, LookupError])
async def test_it_stops_when_a_piece_can_no_longer_be_sent(error: type[Exception], delay: float) -> None:
    connection = Connection(STREAMED)

    async def send(message: Message) -> None:
        await connection.send(message)
        if len(connection.pieces) == 2:
            raise error

    answering = DummyService(delay)(SCOPE, connection.receive, send)
    if error is OSError:  # ASGI 2.4: the client is gone
        await answering
    else:
        with pytest.raises(error):  # as it is, in no group
            await answering
    assert len(connection.pieces) == 2


async def test_nothing_is_answered_to_a_client_that_goes_away_while_sending() -> None:
    sent: list[Message] = []
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await DummyService()(SCOPE, receive, send)
    assert sent == []


def test_a_piece_arrives_before_the_next_one_is_made() -> None:
    arrived = threading.Event()
    made_early: list[bool] = []

    async def sleep(seconds: float) -> None:
        made_early.append(not await asyncio.to_thread(arrived.wait, 5))
        arrived.clear()

    with (
        serve(DummyService(1, sleep)) as url,
        httpx.stream("POST", url + CHAT, json={**STREAMED, "max_tokens": 3}) as response,
    ):
        events = 0
        for line in response.iter_lines():
            if line.startswith("data: "):
                events += 1
                arrived.set()
    assert events == 6
    assert made_early == [False] * 5
