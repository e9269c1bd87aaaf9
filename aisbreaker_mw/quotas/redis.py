"""The Redis storages: quotas shared by processes and machines, counted by a script on a Redis or Valkey server."""

import asyncio
import contextlib
import functools
import hashlib
import struct
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, TypeAlias, cast

from limits.aio.storage import RedisClusterStorage, RedisSentinelStorage, RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from .model import Bucket, Buckets, Decision, Window

KEY_PREFIX = "aisbreaker"
"""Prefix of every key, because the server may hold other data too."""

Command: TypeAlias = tuple[Sequence[str], Sequence[object]]
"""Keys and arguments of one run of a script."""

Reply: TypeAlias = bytes
"""The string that consume.lua returns."""


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


def _key(bucket: Bucket) -> str:
    return f"{KEY_PREFIX}:{{{bucket.slot}}}:{bucket.key}"


class RedisQuotaStorage(RedisStorage):
    """
    Counters in one Redis or Valkey server, 6.0 or later. They are exact for all its users, by the server's clock.

    A request is one run of one script. Requests that come while others are on their way are sent together in a batch. So there
    are few connections, and a thousand requests at once take a handful of round trips.

    Args:
        uri: URI as limits spells it, with or without `async+`: `redis://`, `rediss://`, `redis+unix://`, and the same with
            `valkey`.
        wrap_exceptions: as for every storage of limits.
        timeout: longest wait for a connection and for a reply, in seconds.
        clock: returns nanoseconds since the epoch, instead of the server's time, for tests.
        options: options of redis-py's client.
    """

    STORAGE_SCHEME = [f"aisbreaker+{scheme}" for scheme in ("redis", "rediss", "redis+unix")] + [
        f"aisbreaker+{scheme}" for scheme in ("valkey", "valkeys", "valkey+unix")
    ]

    CONNECTIONS = 4
    """Most batches on their way at once."""

    BATCH = 256
    """Most requests in one batch. A server runs as many in a few milliseconds."""

    def __init__(
        self,
        uri: str,
        wrap_exceptions: bool = False,
        *,
        timeout: float = 0.25,
        clock: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        self._timeout = timeout
        self._clock = clock
        self._waiting: list[tuple[Command, asyncio.Future[Reply]]] = []
        self._flushes: set[asyncio.Task[None]] = set()
        self._starting = False
        settings: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A retry could count a request twice.
            "retry": Retry(NoBackoff(), 0),
            # With RESP3, redis-py from version 8 on no longer replaces a pooled connection that the server has closed.
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
        flushes = list(self._flushes)
        for flush in flushes:
            flush.cancel()
        await asyncio.gather(*flushes, return_exceptions=True)
        await self._client.aclose()

    def _command(self, buckets: Sequence[Bucket], cost: int) -> Command:
        now = "" if self._clock is None else self._clock() // 1_000_000
        return [_key(bucket) for bucket in buckets], [now, cost, *[_pack(bucket.windows) for bucket in buckets]]

    async def _run(self, command: Command) -> Reply:
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, waiting))
        if not self._starting and len(self._flushes) < self.CONNECTIONS:
            # Sending is a task of its own, so that a cancelled request leaves the rest of its batch alone. The task starts at
            # the loop's next turn, so that all requests of this turn are in the batch.
            self._starting = True
            flush = asyncio.create_task(self._flush())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushed)
        return await waiting

    def _flushed(self, flush: asyncio.Task[None]) -> None:
        self._flushes.discard(flush)
        if flush.cancelled():
            # It may have been cancelled before its first step, which would have done this.
            self._starting = False

    async def _flush(self) -> None:
        """Send the waiting requests, batch by batch, until none waits."""
        self._starting = False
        while self._waiting:
            batch, self._waiting = self._waiting[: self.BATCH], self._waiting[self.BATCH :]
            batch = [(command, waiting) for command, waiting in batch if not waiting.done()]
            replies: list[Reply | Exception] = [ConnectionError("closed")] * len(batch)
            try:
                async with asyncio.timeout(self._timeout):
                    replies = await self._send([command for command, _ in batch])
            except Exception as error:
                replies = [error] * len(batch)
            finally:
                for (_, waiting), reply in zip(batch, replies, strict=True):
                    if waiting.done():
                        continue
                    if isinstance(reply, Exception):
                        waiting.set_exception(reply)
                    else:
                        waiting.set_result(reply)

    async def _send(self, commands: list[Command]) -> list[Reply | Exception]:
        if not commands:
            return []
        replies = await self._pipeline([_CONSUME.cached(command) for command in commands])
        lost = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if lost:
            # The server is new, was restarted, or has flushed its scripts. A command with this reply has counted nothing.
            again = await self._pipeline([_CONSUME.whole(commands[i]) for i in lost])
            for i, reply in zip(lost, again, strict=True):
                replies[i] = reply
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # The connections lead to a former primary. Close them, so that the next request finds the new one.
            await self._client.connection_pool.disconnect(inuse_connections=False)
        return replies

    async def _pipeline(self, commands: list[tuple[object, ...]]) -> list[Reply | Exception]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return cast(list[Reply | Exception], await pipeline.execute(raise_on_error=False))


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

    REQUESTS = 64
    """Most requests on their way at once, and most connections per node."""

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        self._room = asyncio.Semaphore(self.REQUESTS)
        self._repairs: set[asyncio.Task[None]] = set()

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
        counted: list[tuple[list[Bucket], int]] = []
        nearest: Decision | None = None
        async with self._room:
            try:
                for group in slots.values():
                    reply = await self._evaluate(_CONSUME, self._command(group, cost))
                    decision = _decision(group, reply)
                    if not decision.admitted:
                        await self._give_back(counted, cost)
                        return decision
                    counted.append((group, int(reply.rpartition(b" ")[2])))
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
        await asyncio.gather(*self._repairs, return_exceptions=True)
        # redis-py closes the nodes that it knows by name. Once it has learnt the slots anew, those of the slots are others.
        nodes = {id(node): node for nodes in self._client.nodes_manager.slots_cache.values() for node in nodes}
        await super().aclose()
        await asyncio.gather(*[node.disconnect() for node in nodes.values()], return_exceptions=True)

    async def _give_back(self, counted: list[tuple[list[Bucket], int]], cost: int) -> None:
        for group, at in counted:
            # A count that can't be given back stays: then too few requests pass, never too many.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._timeout):
                    await self._evaluate(_GIVE_BACK, ([_key(bucket) for bucket in group], [at, cost]))

    async def _evaluate(self, script: _Script, command: Command) -> Reply:
        # redis-py finds the slot of a key only when initialized. The first requests would go to any node.
        await self._client.initialize()
        await self._drop_closed(command)
        try:
            return cast(Reply, await self._client.execute_command(*script.cached(command)))
        except NoScriptError:
            return cast(Reply, await self._client.execute_command(*script.whole(command)))
        except ReadOnlyError:
            # The node is a former primary. Close, so that the next request learns the slots anew.
            await self._client.aclose()
            raise

    async def _drop_closed(self, command: Command) -> None:
        """Close the connection that is next for a command if the server has closed it: redis-py sends on it otherwise."""
        keys, _ = command
        idle = self._client.get_node_from_key(keys[0])._free
        if idle and (reader := idle[0]._reader) is not None and reader.at_eof():
            await idle[0].disconnect(nowait=True)


def _decision(buckets: Sequence[Bucket], reply: Reply) -> Decision:
    admitted, number, remaining, milliseconds, _ = [int(each) for each in reply.split()]
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
