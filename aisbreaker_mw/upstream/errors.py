"""Maps the errors of talking to a service to those that a client is told: one place for HTTP and WebSockets."""

import errno

import httpx

from ..exceptions import RequestError, ServerBusy, UpstreamBusy, UpstreamError, UpstreamTimeout

_NO_FILE = frozenset({errno.EMFILE, errno.ENFILE})


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
    # A transport raises its own error from the system's.
    if any(isinstance(error, OSError) and error.errno in _NO_FILE for error in (cause, cause.__cause__)):
        return ServerBusy()
    return UpstreamError()
