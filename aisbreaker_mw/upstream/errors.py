"""Maps the errors of talking to a service to those that a client is told: one place for HTTP and WebSockets."""

import httpx

from ..exceptions import RequestError, UpstreamBusy, UpstreamError, UpstreamTimeout


def upstream_failure(cause: Exception) -> RequestError:
    """
    Return the error that a client is told.

    Args:
        cause: error of httpx, asyncio, websockets or the operating system.
    """
    if isinstance(cause, httpx.PoolTimeout):
        return UpstreamBusy()
    if isinstance(cause, httpx.TimeoutException | TimeoutError):
        return UpstreamTimeout()
    return UpstreamError()
