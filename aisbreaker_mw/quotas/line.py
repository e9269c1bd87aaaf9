"""A connection to a Redis server: made ready once, and then used by all requests at the same time."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeAlias

from redis.exceptions import ReadOnlyError, ResponseError

logger = logging.getLogger("aisbreaker_mw.quotas")

Reply: TypeAlias = bytes
"""The string that a script returns."""


PATIENCE = 4
"""Times the longest wait of a request until a connection without a reply is given up. A late reply fails its request alone."""


async def connect(connection: Any, connect_timeout: float, timeout: float, script: str) -> Any:
    """
    Return a connection once it is ready for requests: connected, authenticated, and the server has the script.

    Args:
        connection: a connection of redis-py that is not connected.
        connect_timeout: longest time for all of that, in seconds.
        timeout: longest wait of a request, in seconds.
        script: source of the script.

    Raises:
        TimeoutError: it took longer. The message names how long each step took.
    """
    steps: list[str] = []
    start = began = time.monotonic()

    def note(step: str) -> None:
        nonlocal began
        now = time.monotonic()
        steps.append(f"{step} {(now - began) * 1000:.0f} ms")
        began = now

    async def log_in(connection: Any) -> None:
        note("connect")
        await connection.on_connect()

    connection.socket_timeout = connect_timeout
    connection.redis_connect_func = log_in
    ready = False
    try:
        async with asyncio.timeout(connect_timeout):
            await connection.connect()
            note("log in")
            await connection.send_command("SCRIPT", "LOAD", script, check_health=False)
            await connection.read_response()
            note("load the script")
        ready = True
    except TimeoutError:
        note("no reply for")
        reason = f"not connected within {connect_timeout:g} s: {', '.join(steps)}"
        # The request that began it may have its reply already, so nobody else may say this.
        logger.warning("quota storage %s", reason)
        raise TimeoutError(reason) from None
    finally:
        if not ready:
            await connection.disconnect(nowait=True)
    connection.socket_timeout = PATIENCE * timeout
    slow = time.monotonic() - start > timeout
    logger.log(logging.INFO if slow else logging.DEBUG, "quota storage connected: %s", ", ".join(steps))
    return connection


def is_closed(connection: Any) -> bool:
    """Return whether a connection of redis-py was closed, by this side or by the server."""
    reader = connection._reader
    return reader is None or bool(reader.at_eof())


class Line:
    """
    Sends commands on a connection without waiting for the replies to earlier ones.

    After an error of the connection the line is broken: every command without a reply gets the error, and no command is sent
    again.

    Args:
        connection: a connection of redis-py that is ready (`connect`).
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._expected: deque[asyncio.Future[Reply]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._broken = False

    @property
    def usable(self) -> bool:
        """Whether commands can be sent."""
        return not self._broken and not is_closed(self._connection)

    async def send(self, commands: Iterable[tuple[tuple[object, ...], asyncio.Future[Reply]]]) -> None:
        """
        Send commands. Each gets its reply, or an error, in its future.

        The next call must wait until this one has returned: the replies come in the order of the commands.
        """
        packed = []
        for command, reply in commands:
            packed.append(command)
            self._expected.append(reply)
        if not packed:
            return
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(packed), check_health=False)
        except Exception as error:
            self._break(error)

    async def aclose(self) -> None:
        """Close the connection. Commands without a reply get an error."""
        self._break(ConnectionError("closed"))
        reader = self._reader
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await self._connection.disconnect(nowait=True)

    async def _read(self) -> None:
        """Read replies until none is expected."""
        try:
            while self._expected:
                try:
                    reply: Reply | ResponseError = await self._connection.read_response()
                except ResponseError as error:
                    reply = error
                if not self._expected:
                    break  # the line was broken meanwhile
                waiting = self._expected.popleft()
                if isinstance(reply, ReadOnlyError):
                    # The connection leads to a former primary. A new one finds the new primary.
                    self._broken = True
                if waiting.done():
                    continue
                if isinstance(reply, ResponseError):
                    waiting.set_exception(reply)
                else:
                    waiting.set_result(reply)
        except Exception as error:
            self._break(error)
        finally:
            self._reader = None

    def _break(self, error: Exception) -> None:
        self._broken = True
        while self._expected:
            waiting = self._expected.popleft()
            if not waiting.done():
                waiting.set_exception(error)
