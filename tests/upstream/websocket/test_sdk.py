"""OpenAI's SDK and its realtime API."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import InvalidStatus

from ...support import mint
from .support import SECRET, service


async def converse(socket: ServerConnection) -> None:
    """Answer as the realtime API does (https://platform.openai.com/docs/api-reference/realtime)."""
    await socket.send(json.dumps({"type": "session.created", "event_id": "event_1", "session": {"type": "realtime"}}))
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "response.create":
            for number, word in enumerate(["Hello", " there"]):
                delta = {"type": "response.output_text.delta", "event_id": f"event_{number + 2}", "delta": word}
                place = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "content_index": 0}
                await socket.send(json.dumps({**delta, **place}))
            done = {"type": "response.done", "event_id": "event_9", "response": {"id": "resp_1", "status": "completed"}}
            await socket.send(json.dumps(done))


async def test_the_sdk(front: str) -> None:
    async with service(converse) as upstream:
        token = mint(front, ("realtime:openai.com/gpt-realtime", SECRET))
        async with AsyncOpenAI(base_url=f"{front}/openai/v1", api_key=token) as client:
            async with client.realtime.connect(model="gpt-realtime") as connection:
                await connection.response.create()
                words = []
                async for event in connection:
                    if event.type == "response.output_text.delta":
                        words.append(event.delta)
                    elif event.type == "response.done":
                        break
                assert words == ["Hello", " there"]
            assert upstream.path == "/v1/realtime?model=gpt-realtime"
            assert ("authorization", f"Bearer {SECRET}") in upstream.headers
            assert any(name == "user-agent" for name, _ in upstream.headers)
            with pytest.raises(InvalidStatus, match="403"):
                await client.realtime.connect(model="gpt-dear").enter()
        async with AsyncOpenAI(base_url=f"{front}/openai", api_key=f"{token}x") as client:
            with pytest.raises(InvalidStatus, match="401"):
                await client.realtime.connect(model="gpt-realtime").enter()


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK's business
async def test_the_sdk_without_asyncio(front: str) -> None:
    def talk(front: str, token: str) -> list[str]:
        client = OpenAI(base_url=f"{front}/openai/v1", api_key=token)
        with client, client.realtime.connect(model="gpt-realtime") as connection:
            connection.response.create()
            events: list[str] = []
            for event in connection:
                events.append(event.type)
                if event.type == "response.done":
                    return events
        raise AssertionError

    async with service(converse):
        events = await asyncio.to_thread(talk, front, mint(front, ("", SECRET)))
    assert events == ["session.created", *["response.output_text.delta"] * 2, "response.done"]
