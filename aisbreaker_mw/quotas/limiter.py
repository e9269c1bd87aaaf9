"""The limiter: one storage, and what happens while it does not answer."""

import asyncio
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import unquote, urlsplit

from limits.storage import storage_from_string

from ..exceptions import ConfigurationError, QuotaStorageUnavailable
from .fallback import StrategyQuotaStorage
from .memory import MemoryQuotaStorage
from .model import Buckets, Decision, QuotaStorage

logger = logging.getLogger("aisbreaker_mw.quotas")

OnStorageError: TypeAlias = Literal["deny", "local", "allow"]
Health: TypeAlias = Literal["ok", "unavailable", "local", "allow"]

_CONSEQUENCES = {
    "deny": "requests are refused",
    "local": "this process counts by itself",
    "allow": "requests pass uncounted",
}

_LIBRARIES = {"redis": "redis", "valkey": "redis", "memcached": "memcachio", "mongodb": "motor"}
"""The Python package that the servers of a scheme are spoken to with."""


class QuotaLimiter:
    """
    Counts requests in their quotas.

    Nothing is connected before the first request, and a storage that comes back after an outage is used again without
    further ado: while it is down one request at a time tries it, and the others are answered at once.

    Args:
        storage_uri: `memory://`, or a storage URI of the limits library: `redis://`, `valkey://` and their variants, and what
            else it has for asyncio.
        on_storage_error: what becomes of a request while the storage does not answer: `deny` refuses it, `local` counts it in
            this process's memory, `allow` lets it pass uncounted.
        timeout: seconds that a request waits for the storage at most.
        max_clients: keys per policy that the memory counts separately; beyond, new ones share a window.
        clock: nanoseconds; for tests. The memory's default is the monotonic clock, a server has its own.

    Raises:
        ConfigurationError: the URI is none, nothing takes its scheme, or a library is missing. The message holds no part of
            the URI but its scheme.
    """

    def __init__(
        self,
        storage_uri: str = "memory://",
        *,
        on_storage_error: OnStorageError = "deny",
        timeout: float = 0.25,
        max_clients: int = 1_000_000,
        clock: Callable[[], int] | None = None,
    ) -> None:
        if on_storage_error not in _CONSEQUENCES:
            raise ConfigurationError("quotas.on_storage_error takes deny, local or allow")
        self._policy = on_storage_error
        self._timeout = timeout
        self._memory = MemoryQuotaStorage(max_clients=max_clients, clock=clock or time.monotonic_ns)
        """The storage itself, or what stands in for it under the policy `local`."""
        self._shared = _open_shared(storage_uri, timeout, clock)
        self._secrets = _secrets(storage_uri)
        self._down = False
        self._probing = False

    @property
    def health(self) -> Health:
        """`ok`, or how requests are answered without the storage: `unavailable` (refused), `local`, `allow`."""
        if not self._down:
            return "ok"
        return "unavailable" if self._policy == "deny" else self._policy

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """
        Count one request in all windows of all buckets, or in none.

        Args:
            buckets: everything that the request is counted in, no key twice.
            cost: what the request takes out of every window, at least 1.

        Returns:
            The decision; None where there are no windows, or where the policy `allow` let the request pass uncounted.

        Raises:
            QuotaStorageUnavailable: the storage did not answer in time, and the policy is `deny`. The request may have been
                counted nevertheless, where only the answer was lost.
        """
        shared = self._shared
        if shared is None:
            return self.consume_now(buckets, cost)
        if self._probing:
            return self._without_storage(buckets, cost)
        probe = self._probing = self._down
        try:
            async with asyncio.timeout(self._timeout):
                decision = await shared.consume(buckets, cost)
        except Exception as error:
            self._note(error)
            return self._without_storage(buckets, cost)
        finally:
            if probe:
                self._probing = False
        if decision is not None:
            self._note(None)
        return decision

    @property
    def local(self) -> bool:
        """Whether the storage is this process's memory, so that nothing has to be waited for."""
        return self._shared is None

    def consume_now(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Do what `consume` does, where the storage is `local`."""
        return self._memory.consume_now(buckets, cost)

    async def aclose(self) -> None:
        """Close the connections. A request that comes later opens new ones."""
        if self._shared is not None:
            await self._shared.aclose()

    def _without_storage(self, buckets: Buckets, cost: int) -> Decision | None:
        if self._policy == "local":
            return self._memory.consume_now(buckets, cost)
        if self._policy == "deny" and any(bucket.windows for bucket in buckets):
            raise QuotaStorageUnavailable
        return None

    def _note(self, error: Exception | None) -> None:
        """Log a change of state, once."""
        if self._down is (error is not None):
            return
        self._down = error is not None
        if error is None:
            logger.info("quota storage restored")
            return
        reason = " ".join(str(error).split())
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        logger.warning("quota storage unavailable, %s: %s: %s", _CONSEQUENCES[self._policy], type(error).__name__, reason)


def _open_shared(uri: str, timeout: float, clock: Callable[[], int] | None) -> QuotaStorage | None:
    """Open the storage that a URI names, None for the memory."""
    uri = uri.removeprefix("async+")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        raise ConfigurationError("quotas.storage takes a URI such as memory:// or redis://127.0.0.1:6379")
    if scheme == "memory":
        return None
    if scheme == "embedded":
        raise ConfigurationError("quotas.storage embedded:// is started by `aisbreaker serve` only")

    server = scheme.partition("+")[0]
    library = _LIBRARIES.get(server, _LIBRARIES.get(server.removesuffix("s")))
    if library is not None and importlib.util.find_spec(library) is None:
        raise ConfigurationError(f"quotas.storage {scheme}:// needs the Python package {library}")
    options: dict[str, Any] = {"clock": clock, "timeout": timeout}
    try:
        if library == "redis":
            from . import redis  # noqa: F401 - an extra; the import registers the schemes

            return cast(QuotaStorage, storage_from_string(f"aisbreaker+{uri}", **options))
        return StrategyQuotaStorage(cast(Any, storage_from_string(f"async+{uri}")))
    except Exception:
        # Neither the cause nor its message: libraries quote the whole URI.
        raise ConfigurationError(
            f"quotas.storage is no usable storage URI; its scheme is {scheme}, "
            "and it takes memory://, redis://host:port, valkey://host:port, redis+unix:///path, "
            "redis+sentinel://host:port/service, redis+cluster://host:port, memcached://host:port or mongodb://host:port"
        ) from None


def _secrets(uri: str) -> list[str]:
    """Give the password of a URI as it is written and as it is meant."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return []
    return [password, unquote(password)] if password else []
