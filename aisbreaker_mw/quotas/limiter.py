"""The limiter: counts requests in one storage, and applies the policy for a storage that does not reply."""

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

_MEMORY_URI = f"{MemoryQuotaStorage.STORAGE_SCHEME[0]}://"

OnStorageError: TypeAlias = Literal["deny", "local", "allow"]
Health: TypeAlias = Literal["ok", "unavailable", "local", "allow"]

_CONSEQUENCES = {
    "deny": "requests are refused",
    "local": "this process counts by itself",
    "allow": "requests pass uncounted",
}

_LIBRARIES = {"redis": "redis", "valkey": "redis", "memcached": "memcachio", "mongodb": "motor"}
"""Python packages of the clients, by the first part of the URI's scheme."""


class QuotaLimiter:
    """
    Counts requests in their quotas.

    Nothing is connected before the first request. While the storage is down, one request at a time tries it, and the policy
    decides about the others at once. So a storage that comes back is used again without further steps.

    Args:
        storage_uri: `memory://`, or any asyncio storage of the limits library, such as `redis://` or `valkey://`.
        on_storage_error: policy while the storage does not reply. `deny` refuses requests, `local` counts them in this
        process's
            memory, `allow` lets them pass uncounted.
        timeout: longest wait of a request for the storage, in seconds.
        connect_timeout: longest time until a new connection to the storage is ready, in seconds.
        max_clients: most keys, per policy, that are counted separately. Beyond, new keys share windows.
        places_key: key of the hash that assigns records to places on a shared storage (`places.py`).
        clock: returns nanoseconds, for tests. By default the memory uses the monotonic clock, and a server its own.

    Raises:
        ConfigurationError: the URI is invalid, its scheme is unknown, or a library is missing. The message holds no part of the
            URI but its scheme.
    """

    def __init__(
        self,
        storage_uri: str = "memory://",
        *,
        on_storage_error: OnStorageError = "deny",
        timeout: float = 0.25,
        connect_timeout: float = 5.0,
        max_clients: int = 1_000_000,
        places_key: bytes = b"",
        clock: Callable[[], int] | None = None,
    ) -> None:
        if on_storage_error not in _CONSEQUENCES:
            raise ConfigurationError("quotas.on_storage_error takes deny, local or allow")
        self._policy = on_storage_error
        self._timeout = timeout
        self._memory = _open_memory(max_clients, clock or time.monotonic_ns)
        """The storage itself, or its stand-in under the policy `local`."""
        self._shared = _open_shared(
            storage_uri,
            {
                "timeout": timeout,
                "connect_timeout": connect_timeout,
                "max_clients": max_clients,
                "places_key": places_key,
                "clock": clock,
            },
        )
        self._secrets = _secrets(storage_uri)
        self._down = False
        self._probing = False

    @property
    def health(self) -> Health:
        """`ok`, or the policy at work while the storage is down: `unavailable` (requests are refused), `local`, `allow`."""
        if not self._down:
            return "ok"
        return "unavailable" if self._policy == "deny" else self._policy

    async def consume(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """
        Count one request in all windows of all buckets, or in none.

        Args:
            buckets: buckets that the request is counted in, no key twice.
            cost: requests that it takes from every window, at least 1.

        Returns:
            The decision. None if there are no windows, or if the policy `allow` let the request pass uncounted.

        Raises:
            QuotaStorageUnavailable: the storage did not reply in time, and the policy is `deny`. The request may be counted
                nevertheless, if only the reply was lost.
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
        except TimeoutError as error:
            # The limit of this request ends with no text; that of connecting says what took how long.
            self._note(error if str(error) else TimeoutError(f"not ready or no reply within {self._timeout:g} s"))
            return self._without_storage(buckets, cost)
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
        """Whether the storage is this process's memory, so that `consume_now` can be used."""
        return self._shared is None

    def consume_now(self, buckets: Buckets, cost: int = 1) -> Decision | None:
        """Count one request without waiting, where the storage is `local`; otherwise as `consume`."""
        return self._memory.consume_now(buckets, cost)

    async def aclose(self) -> None:
        """Close the connections. A later request opens new ones."""
        if self._shared is not None:
            await self._shared.aclose()

    def _without_storage(self, buckets: Buckets, cost: int) -> Decision | None:
        if self._policy == "local":
            return self._memory.consume_now(buckets, cost)
        if self._policy == "deny" and any(bucket.windows for bucket in buckets):
            raise QuotaStorageUnavailable
        return None

    def _note(self, error: Exception | None) -> None:
        """Log that the storage went down or came back, once for each change."""
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


def _open_memory(max_clients: int, clock: Callable[[], int]) -> MemoryQuotaStorage:
    """Open the memory storage through limits' registry, as any other storage."""
    options: dict[str, Any] = {"max_clients": max_clients, "clock": clock}
    return cast(MemoryQuotaStorage, storage_from_string(_MEMORY_URI, **options))


def _open_shared(uri: str, options: dict[str, Any]) -> QuotaStorage | None:
    """Open the storage that a URI names, with options of `RedisQuotaStorage`. Returns None for the memory."""
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
    try:
        if library == "redis":
            from . import redis  # noqa: F401 - the import registers the schemes; it needs an extra

            return cast(QuotaStorage, storage_from_string(f"aisbreaker+{uri}", **options))
        return StrategyQuotaStorage(cast(Any, storage_from_string(f"async+{uri}")))
    except Exception:
        # The cause and its message are left out: libraries quote the whole URI.
        raise ConfigurationError(
            f"quotas.storage is no usable storage URI; its scheme is {scheme}, "
            "and it takes memory://, redis://host:port, valkey://host:port, redis+unix:///path, "
            "redis+sentinel://host:port/service, redis+cluster://host:port, memcached://host:port or mongodb://host:port"
        ) from None


def _secrets(uri: str) -> list[str]:
    """Return the password of a URI, as written and decoded."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return []
    return [password, unquote(password)] if password else []
