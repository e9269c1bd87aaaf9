"""The Redis storages: quotas shared by processes and machines, counted by a script on a Redis or Valkey server."""

import asyncio
import contextlib
import functools
import hashlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, TypeAlias, cast

from limits.aio.storage import RedisClusterStorage, RedisSentinelStorage, RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from .line import Line, Reply, connect, is_closed
from .model import Bucket, Buckets, Decision, Window
from .places import Places

KEY_PREFIX = "aisbreaker"
"""Prefix of every key, because the server may hold other data too."""

Command: TypeAlias = tuple[Sequence[str], Sequence[object]]
"""Keys and arguments of one run of a script."""


class _Script:
    def __init__(self, name: str) -> None:
        self.source = resources.files(__package__).joinpath(name).read_text()
        # Redis names scripts by their SHA-1. It is not used for security.
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def cached(self, command: Command) -> tuple[object, ...]:
        keys, arguments = command
        return "EVALSHA", self.sha, len(keys), *keys, *arguments

    def whole(self, command: Command) -> tuple[object, ...]:
        keys, arguments = command
        return "EVAL", self.source, len(keys), *keys, *arguments


_CONSUME = _Script("consume.lua")
_GIVE_BACK = _Script("give_back.lua")


@functools.lru_cache(maxsize=4096)
def _pack(windows: tuple[Window, ...]) -> bytes:
    """Return windows as a MessagePack array of 64-bit integers."""
    numbers = [number for window in windows for number in window]
    return struct.pack(">BH", 0xDC, len(numbers)) + b"".join(struct.pack(">BQ", 0xCF, number) for number in numbers)


class RedisQuotaStorage(RedisStorage):
    """
    Counters in one Redis or Valkey server, 6.0 or later. They are exact for all its users, by the server's clock.

    A request is one run of one script, and takes one round trip: requests are sent on one connection, without waiting for the
    replies to earlier ones. Requests that come in the same turn of the loop are written together.

    The connection is made, authenticated and given the script in a task of its own, with a time of its own. So it is completed
    even if the request that began it no longer waits.

    Args:
        uri: URI as limits spells it, with or without `async+`: `redis://`, `rediss://`, `redis+unix://`, and the same with
            `valkey`.
        wrap_exceptions: as for every storage of limits.
        timeout: longest wait of a request, in seconds. `QuotaLimiter` ends the wait; a connection without a reply is given up
            after four times as long.
        connect_timeout: longest time until a new connection is ready for requests, in seconds.
        max_clients: most records per policy; see `Places`.
        places_key: key of the hash that assigns records to places, at most 64 bytes; the same for all users of the server.
        clock: returns nanoseconds since the epoch, instead of the server's time, for tests.
        options: options of redis-py's client.
    """

    STORAGE_SCHEME = [f"aisbreaker+{scheme}" for scheme in ("redis", "rediss", "redis+unix")] + [
        f"aisbreaker+{scheme}" for scheme in ("valkey", "valkeys", "valkey+unix")
    ]

    SPREAD = 1
    """Number of slots over which the tokens are spread."""

    BATCH = 256
    """Most requests written in one go. A server runs as many in a few milliseconds."""

    def __init__(
        self,
        uri: str,
        wrap_exceptions: bool = False,
        *,
        timeout: float = 0.25,
        connect_timeout: float = 5.0,
        max_clients: int = 1_000_000,
        places_key: bytes = b"",
        clock: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._places = Places(KEY_PREFIX, max_clients, self.SPREAD, places_key)
        self._clock = clock
        self._waiting: deque[tuple[tuple[object, ...], asyncio.Future[Reply]]] = deque()
        self._line: Line | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._sender: asyncio.Task[None] | None = None
        settings: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": connect_timeout,
            # A retry could count a request twice.
            "retry": Retry(NoBackoff(), 0),
            # With RESP3, redis-py from version 8 on no longer notices that the server has closed a pooled connection.
            "protocol": 2,
            **options,
        }
        super().__init__(
            _as_redis(uri), wrap_exceptions, implementation="redispy", key_prefix=KEY_PREFIX, **self._options(settings)
        )

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        return settings

    @property
    def _client(self) -> Any:
        return cast(Any, self.bridge).storage

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage.consume`."""
        buckets = [bucket for bucket in buckets if bucket.windows]
        return _decision(buckets, await self._run(self._command(buckets, cost))) if buckets else None

    async def aclose(self) -> None:
        """Close the connections."""
        tasks = [task for task in (self._sender, self._connecting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(ConnectionError("closed"))
        if self._line is not None:
            await self._line.aclose()
            self._line = None
        await self._client.aclose()

    def _command(self, buckets: Sequence[Bucket], cost: int) -> Command:
        now = "" if self._clock is None else self._clock() // 1_000_000
        keys: list[str] = []
        arguments: list[object] = [now, cost, self._places.records]
        for bucket in buckets:
            place = self._places.find(bucket)
            keys.append(place.key)
            arguments += place.fields
            arguments.append(_pack(bucket.windows))
        return keys, arguments

    async def _run(self, command: Command) -> Reply:
        try:
            return await self._ask(_CONSUME.cached(command))
        except NoScriptError:
            # The server was restarted, or has flushed its scripts. A command with this reply has counted nothing.
            return await self._ask(_CONSUME.whole(command))

    async def _ask(self, command: tuple[object, ...]) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, reply))
        if self._sender is None:
            # Sending is a task of its own, so that a cancelled request leaves the rest of its batch alone. The task starts at
            # the loop's next turn, so that all requests of this turn are in the batch.
            self._sender = asyncio.create_task(self._send())
        return await reply

    async def _send(self) -> None:
        """Send the waiting requests until none waits."""
        try:
            while self._waiting:
                line = await self._ready_line()
                batch = [self._waiting.popleft() for _ in range(min(self.BATCH, len(self._waiting)))]
                await line.send([each for each in batch if not each[1].done()])
        except Exception as error:
            self._fail(error)
        finally:
            self._sender = None

    def _fail(self, error: Exception) -> None:
        """Raise an error in all requests that are not sent yet."""
        while self._waiting:
            _, reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)

    async def _ready_line(self) -> Line:
        """Return the line. Makes it if there is none, or if it is broken."""
        if self._line is not None:
            if self._line.usable:
                return self._line
            line, self._line = self._line, None
            await line.aclose()
        if self._connecting is None:
            pool = self._client.connection_pool
            self._connecting = asyncio.create_task(self._connect(pool.make_connection()))
        try:
            self._line = Line(await asyncio.shield(self._connecting))
        finally:
            if self._connecting.done():
                self._connecting = None
        return self._line

    async def _connect(self, connection: Any) -> Any:
        return await connect(connection, self._connect_timeout, self._timeout, _CONSUME.source)


class RedisSentinelQuotaStorage(RedisQuotaStorage, RedisSentinelStorage):
    """
    Counters in the primary that Sentinels name. Otherwise it is a `RedisQuotaStorage`.

    Args:
        uri: URI such as `redis+sentinel://host:port,host:port/service`, or `valkey+sentinel://`.
    """

    STORAGE_SCHEME = ["aisbreaker+redis+sentinel", "aisbreaker+valkey+sentinel"]  # noqa: RUF012

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "sentinel_kwargs": settings}

    async def aclose(self) -> None:
        """Close the connections."""
        await super().aclose()
        bridge = cast(Any, self.bridge)
        for client in (bridge.storage_replica, *bridge.sentinel.sentinels):
            await client.aclose()


class RedisClusterQuotaStorage(RedisQuotaStorage, RedisClusterStorage):
    """
    Counters in a Cluster. A request takes one round trip per slot: two for the windows of a token and of the server.

    The slots are asked one after the other. If a later one refuses or fails, the counts of the earlier ones are given back.
    Until then, for about a millisecond, other requests may be refused because of them.

    Args:
        uri: URI such as `redis+cluster://host:port,host:port`, or `valkey+cluster://`.
    """

    STORAGE_SCHEME = ["aisbreaker+redis+cluster", "aisbreaker+valkey+cluster"]  # noqa: RUF012

    SPREAD = 16

    REQUESTS = 64
    """Most requests on their way at once, and most connections per node."""

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self._room = asyncio.Semaphore(self.REQUESTS)
        self._repairs: set[asyncio.Task[None]] = set()
        self._learning: asyncio.Task[Any] | None = None
        self._dialing: set[asyncio.Task[None]] = set()

    def _options(self, settings: dict[str, Any]) -> dict[str, Any]:
        # redis-py learns a moved slot from the reply that says so. Learning all slots anew would close connections that other
        # requests are using.
        return {"reinitialize_steps": 0, **settings, "max_connections": self.REQUESTS}

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request; see `QuotaStorage.consume`."""
        slots: dict[str, list[Bucket]] = {}
        for bucket in buckets:
            if bucket.windows:
                slots.setdefault(bucket.slot, []).append(bucket)
        counted: list[tuple[list[Bucket], Reply]] = []
        nearest: Decision | None = None
        async with self._room:
            try:
                for group in slots.values():
                    reply = await self._evaluate(_CONSUME, self._command(group, cost))
                    decision = _decision(group, reply)
                    if not decision.admitted:
                        await self._give_back(counted, cost)
                        return decision
                    counted.append((group, reply))
                    if nearest is None or (decision.remaining, -decision.window) < (nearest.remaining, -nearest.window):
                        nearest = decision
            except BaseException:
                # The caller no longer waits, so the repair is a task of its own. It may take as long as a request.
                repair = asyncio.create_task(self._give_back(counted, cost))
                self._repairs.add(repair)
                repair.add_done_callback(self._repairs.discard)
                raise
        return nearest

    async def aclose(self) -> None:
        """Close the connections."""
        for task in (*self._dialing, *([self._learning] if self._learning else [])):
            task.cancel()
        await asyncio.gather(*self._repairs, *self._dialing, return_exceptions=True)
        # redis-py closes the nodes that it knows by name. Once it has learnt the slots anew, those of the slots are others.
        nodes = {id(node): node for nodes in self._client.nodes_manager.slots_cache.values() for node in nodes}
        await super().aclose()
        await asyncio.gather(*[node.disconnect() for node in nodes.values()], return_exceptions=True)

    async def _give_back(self, counted: list[tuple[list[Bucket], Reply]], cost: int) -> None:
        for group, reply in counted:
            keys, arguments = self._command(group, cost)
            at, fields = reply.split()[4:]
            chosen = [arguments[3 + 4 * i + int(field) - 1] for i, field in enumerate(fields.decode())]
            # A count that can't be given back stays: then too few requests pass, never too many.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._timeout):
                    await self._evaluate(_GIVE_BACK, (keys, [at, cost, *chosen]))

    async def _evaluate(self, script: _Script, command: Command) -> Reply:
        await self._prepare(command)
        try:
            return cast(Reply, await self._client.execute_command(*script.cached(command)))
        except NoScriptError:
            return cast(Reply, await self._client.execute_command(*script.whole(command)))
        except ReadOnlyError:
            # The node is a former primary. Close, so that the next request learns the slots anew.
            await self._client.aclose()
            raise

    async def _prepare(self, command: Command) -> None:
        """Wait until the slots are known, and a connection to the command's node is ready. Both go on without this request."""
        # redis-py finds the slot of a key only when initialized. The first requests would go to any node.
        if self._client._initialize:
            if self._learning is None or self._learning.done():
                self._learning = asyncio.create_task(self._learn())
            await asyncio.shield(self._learning)
        keys, _ = command
        node = self._client.get_node_from_key(keys[0])
        if not node._free or is_closed(node._free[0]):
            dialing = asyncio.create_task(self._dial(node))
            self._dialing.add(dialing)
            dialing.add_done_callback(self._dialed)
            await asyncio.shield(dialing)

    def _dialed(self, dialing: asyncio.Task[None]) -> None:
        self._dialing.discard(dialing)
        if not dialing.cancelled():
            dialing.exception()  # the request that waits for it raises it; if none waits, `connect` has logged it

    async def _learn(self) -> None:
        async with asyncio.timeout(self._connect_timeout):
            await self._client.initialize()

    async def _dial(self, node: Any) -> None:
        """Make a connection to a node, which is the next one that redis-py takes."""
        connection = node.acquire_connection()
        try:
            if is_closed(connection):
                await connection.disconnect(nowait=True)
                await self._connect(connection)
        finally:
            node._free.appendleft(connection)


def _decision(buckets: Sequence[Bucket], reply: Reply) -> Decision:
    admitted, number, remaining, milliseconds, *_ = [int(each) for each in reply.split()]
    for bucket in buckets:
        if number <= len(bucket.windows):
            amount, length = bucket.windows[number - 1]
            return Decision(bool(admitted), bucket.policy, amount, length // 1000, remaining, milliseconds / 1000)
        number -= len(bucket.windows)
    raise ResponseError("the script named a window that does not exist")


def _as_redis(uri: str) -> str:
    """Return a URI with redis for valkey, so that limits uses redis-py for both."""
    scheme, colon, rest = uri.removeprefix("aisbreaker+").removeprefix("async+").partition(":")
    return scheme.replace("valkeys", "rediss").replace("valkey", "redis") + colon + rest
