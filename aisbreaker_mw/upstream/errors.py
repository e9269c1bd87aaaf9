"""The errors that a client is told where its service could not be reached: one place for all that talks to services."""

import httpx

from ..exceptions import RequestError, UpstreamBusy, UpstreamError, UpstreamTimeout


def upstream_failure(cause: Exception) -> RequestError:
    """
    Return the error that a client is told.

    Args:
        cause: httpx's, asyncio's or the operating system's error, while a service was spoken to.
    """
    if isinstance(cause, httpx.PoolTimeout):
        return UpstreamBusy()
    if isinstance(cause, httpx.TimeoutException | TimeoutError):
        return UpstreamTimeout()
    return UpstreamError()
