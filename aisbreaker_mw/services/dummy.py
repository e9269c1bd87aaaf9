"""
The embedded AI service: OpenAI's API with made-up responses, to try everything without an account.

The same request always gets the same response, ids and timestamps included. Any model is accepted.
"""

import base64
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import orjson
from starlette.types import Receive, Scope, Send

from ..client.responses import error_response, json_response
from ..exceptions import InvalidRequest, MethodNotAllowed, NotFound, PayloadTooLarge, RequestError

__all__ = ["MAX_CHAT_BYTES", "DummyService"]

MAX_CHAT_BYTES = 8 * 1024 * 1024
"""Largest request body, in bytes."""
CREATED = 1_735_689_600
"""Creation time of everything, in seconds since the epoch: 2025-01-01."""
MODELS = ("dummy", "dummy-embedding", "dummy-image")
"""Models that are listed. Any other works as well."""
_LONGEST_ECHO = 2000
_MAX_FLOATS = 1 << 20

_Handler = Callable[[dict[str, Any], str], dict[str, Any] | Iterator[bytes]]


class DummyService:
    """
    An ASGI app that serves `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/images/generations` and
    `/v1/models` as OpenAI does (https://platform.openai.com/docs/api-reference).

    Args:
        delay: seconds before each streamed piece but the first.
        sleep: waits for a number of seconds.
    """

    def __init__(self, delay: float = 0.0, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        self._delay = delay
        self._sleep = sleep
        self._handlers: dict[str, _Handler] = {
            "/v1/chat/completions": _chat,
            "/v1/completions": _complete,
            "/v1/embeddings": _embed,
            "/v1/images/generations": _draw,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. `scope["path"]` begins with `/v1`."""
        request_id = "req_dummy"
        try:
            handler = self._handlers.get(scope["path"])
            if handler is None:
                response = json_response(200, _models(scope["method"], scope["path"]))
            else:
                if scope["method"] != "POST":
                    raise MethodNotAllowed("POST")
                body = await _collect(receive)
                if body is None:
                    return
                identity = hashlib.sha256(body).hexdigest()[:24]
                request_id = f"req_{identity}"
                content = handler(_parse(body), identity)
                if isinstance(content, Iterator):
                    await self._stream(content, request_id, receive, send)
                    return
                response = json_response(200, content, [(b"x-request-id", request_id.encode("ascii"))])
        except RequestError as error:
            response = error_response(error, "openai", request_id)
        status, headers, payload = response
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    async def _stream(self, pieces: Iterator[bytes], request_id: str, receive: Receive, send: Send) -> None:
        """Send each piece as one event, until the client goes away."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-request-id", request_id.encode("ascii")),
        ]

        async def wait_for_disconnect(going: anyio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            going.cancel()

        failure: Exception | None = None  # raised behind the task group, which would wrap it
        async with anyio.create_task_group() as tasks:
            if self._delay:  # without a delay there is no time to disconnect
                tasks.start_soon(wait_for_disconnect, tasks.cancel_scope)
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for number, piece in enumerate(pieces):
                    if self._delay and number:
                        await self._sleep(self._delay)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except OSError:
                pass  # ASGI 2.4: the client is gone
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def _collect(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client went away before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_CHAT_BYTES:
            raise PayloadTooLarge
        if not message.get("more_body", False):
            return bytes(body)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The request body must be valid JSON.") from None
    if not isinstance(request, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise InvalidRequest("The model must be a string.", param="model")
    return request


def _number(request: dict[str, Any], name: str, default: int, highest: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise InvalidRequest(f"It must be an integer from 1 to {highest}.", param=name)
    return value


def _one_of(request: dict[str, Any], name: str, *choices: str) -> str:
    value = request.get(name)
    if value is None:
        return choices[0]
    if value not in choices:
        raise InvalidRequest(f"It must be one of {', '.join(choices)}.", param=name)
    return str(value)


def _tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "aisbreaker"}


def _models(method: str, path: str) -> dict[str, Any]:
    name = path.removeprefix("/v1/models/")
    if path != "/v1/models" and name not in MODELS:
        raise NotFound
    if method != "GET":
        raise MethodNotAllowed("GET")
    return {"object": "list", "data": [_model(name) for name in MODELS]} if path == "/v1/models" else _model(name)


def _text(content: object) -> str:
    """Return the text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if content is None:  # a message of tool calls only
        return ""
    raise InvalidRequest("The content of a message must be a string or a list of parts.", param="messages")


def _reply(said: str) -> str:
    said = " ".join(said.split())
    if len(said) > _LONGEST_ECHO:
        said = said[:_LONGEST_ECHO] + "…"
    if not said:
        return "Hello! I am the dummy service of AIsBreaker, and I am listening."
    return f'Hello! I am the dummy service of AIsBreaker, and I heard you say: "{said}"'


def _cut(reply: str, most: int) -> tuple[list[str], str]:
    """Return at most `most` words of a reply, each a piece, and the reason of its end."""
    pieces = re.findall(r"\s*\S+", reply)
    return pieces[:most], "stop" if len(pieces) <= most else "length"


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat(request: dict[str, Any], identity: str) -> dict[str, Any] | Iterator[bytes]:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise InvalidRequest("The messages must be a list of objects, with one at least.", param="messages")
    texts = [_text(message.get("content")) for message in messages]
    said = next((text for text, each in zip(texts[::-1], messages[::-1], strict=True) if each.get("role") == "user"), "")
    most = min(_number(request, name, 1 << 20, 1 << 20) for name in ("max_tokens", "max_completion_tokens"))
    pieces, reason = _cut(_reply(said), most)
    choices = range(_number(request, "n", 1, 16))
    usage = _usage(sum(map(_tokens, texts)), len(pieces) * len(choices))
    head = {"id": f"chatcmpl-{identity}", "created": CREATED, "model": request["model"]}
    if request.get("stream") is not True:
        message = {"role": "assistant", "content": "".join(pieces), "refusal": None}
        return head | {
            "object": "chat.completion",
            "choices": [{"index": i, "message": message, "logprobs": None, "finish_reason": reason} for i in choices],
            "usage": usage,
        }
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    deltas.append(({}, reason))
    chunks = ({"index": i, "delta": delta, "logprobs": None, "finish_reason": end} for delta, end in deltas for i in choices)
    return _events(request, head | {"object": "chat.completion.chunk"}, chunks, usage)


def _complete(request: dict[str, Any], identity: str) -> dict[str, Any] | Iterator[bytes]:
    prompts = request.get("prompt")
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, list) or not 0 < len(prompts) <= 16 or not all(isinstance(each, str) for each in prompts):
        raise InvalidRequest("The prompt must be a string, or a list of 1 to 16 strings.", param="prompt")
    most = _number(request, "max_tokens", 1 << 20, 1 << 20)
    replies = [_cut(_reply(prompt), most) for prompt in prompts]
    usage = _usage(sum(map(_tokens, prompts)), sum(len(pieces) for pieces, _ in replies))
    head = {"id": f"cmpl-{identity}", "object": "text_completion", "created": CREATED, "model": request["model"]}
    if request.get("stream") is not True:
        choices = [
            {"index": i, "text": "".join(pieces), "logprobs": None, "finish_reason": reason}
            for i, (pieces, reason) in enumerate(replies)
        ]
        return head | {"choices": choices, "usage": usage}
    chunks = (
        {"index": i, "text": piece, "logprobs": None, "finish_reason": reason if last == at else None}
        for i, (pieces, reason) in enumerate(replies)
        for last in (len(pieces) - 1,)
        for at, piece in enumerate(pieces)
    )
    return _events(request, head, chunks, usage)


def _events(
    request: dict[str, Any], head: dict[str, Any], choices: Iterator[dict[str, Any]], usage: dict[str, Any]
) -> Iterator[bytes]:
    """Yield a server-sent event per choice, then the usage where it was asked for, then the end."""
    options = request.get("stream_options")
    counted = isinstance(options, dict) and options.get("include_usage") is True
    tail: dict[str, Any] = {"usage": None} if counted else {}
    for choice in choices:
        yield b"data: " + orjson.dumps(head | {"choices": [choice]} | tail) + b"\n\n"
    if counted:
        yield b"data: " + orjson.dumps(head | {"choices": [], "usage": usage}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _embed(request: dict[str, Any], _: str) -> dict[str, Any]:
    inputs = request.get("input")
    if isinstance(inputs, str) or _numbers(inputs):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs or not all(isinstance(i, str) or _numbers(i) for i in inputs):
        raise InvalidRequest("The input must be a text, a list of token numbers, or a list of these.", param="input")
    dimensions = _number(request, "dimensions", 256, 4096)
    if len(inputs) * dimensions > _MAX_FLOATS:
        raise InvalidRequest("The input is too long for so many dimensions.", param="input")
    as_text = _one_of(request, "encoding_format", "float", "base64") == "base64"
    data = []
    for index, each in enumerate(inputs):
        packed = _vector(orjson.dumps(each), dimensions)
        embedding = base64.b64encode(packed).decode("ascii") if as_text else struct.unpack(f"<{dimensions}f", packed)
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = sum(_tokens(each) if isinstance(each, str) else len(each) for each in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request["model"], "usage": usage}


def _numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


def _vector(text: bytes, dimensions: int) -> bytes:
    """Return a vector of length 1 as little-endian 32-bit floats."""
    numbers = struct.unpack(f"<{dimensions}i", hashlib.shake_128(text).digest(4 * dimensions))
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def _draw(request: dict[str, Any], _: str) -> dict[str, Any]:
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequest("The prompt must be a string.", param="prompt")
    as_url = _one_of(request, "response_format", "b64_json", "url") == "url"
    data = []
    for index in range(_number(request, "n", 1, 10)):
        image = base64.b64encode(_png(hashlib.sha256(f"{index} {prompt}".encode()).digest())).decode("ascii")
        data.append({"url": f"data:image/png;base64,{image}"} if as_url else {"b64_json": image})
    tokens = _tokens(prompt)
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
        "output_tokens": len(data),
        "total_tokens": tokens + len(data),
    }
    return {"created": CREATED, "data": data, "usage": usage}


def _png(seed: bytes) -> bytes:
    """Return a PNG of 8 x 8 pixels in two colours (https://www.w3.org/TR/png/, 5)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 1, 3, 0, 0, 0)  # 1 bit per pixel, an index into the palette
    rows = b"".join(b"\0" + seed[at : at + 1] for at in range(8))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", seed[8:14])
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
