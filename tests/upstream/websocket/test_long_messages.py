"""Between taking a long message and sending it, others have their turn."""

import asyncio
from typing import Any, cast

import pytest
from starlette.types import Message
from websockets.asyncio.client import ClientConnection

from aisbreaker_mw.client.exchange import Exchange
from aisbreaker_mw.upstream.request import Timeouts
from aisbreaker_mw.upstream.websocket import WebSocketProxy

SHORT, LONG = bytes(1000), bytes(2 << 20)


class Ends:
    """Both sides of a conversation of one message. Another callback waits for its turn when the message is taken."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order: list[str] = []

    def take(self) -> bytes:
        asyncio.get_running_loop().call_soon(self.order.append, "another")
        return self.data

    async def receive(self) -> Message:
        return {"type": "websocket.disconnect", "code": 1000, "reason": ""}

    async def recv(self) -> bytes:
        return self.take()

    async def send(self, _message: Any) -> None:
        self.order.append("sent")
        if isinstance(_message, dict):
            raise OSError  # the client takes no more


@pytest.mark.parametrize(("data", "order"), [(SHORT, ["sent", "another"]), (LONG, ["another", "sent"])], ids=["short", "long"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_turns_of_a_message(direction: str, data: bytes, order: list[str]) -> None:
    ends = Ends(data)
    proxy = WebSocketProxy(cast(Timeouts, None), cast(Any, None))
    if direction == "up":
        first: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        first.set_result({"type": "websocket.receive", "bytes": ends.take()})
        await proxy._carry_up(first, ends.receive, cast(ClientConnection, ends))
    else:
        await proxy._carry_down(cast(ClientConnection, ends), cast(Exchange, ends))
    await asyncio.sleep(0)
    assert ends.order == order
