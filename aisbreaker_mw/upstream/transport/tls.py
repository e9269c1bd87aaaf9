"""
TLS to upstreams.

The trusted certificates are the system's, as OpenSSL finds them (`SSL_CERT_FILE` and `SSL_CERT_DIR` are obeyed). So a company's
own CA is trusted once the machine trusts it. Where the system has no certificates at all, as in some containers, certifi's
bundle is used, which httpx brings. `truststore` is not used: on Linux it takes the same certificates from the same place, but
loads them again for every connection, which stops the event loop for 20 ms.
"""

import os
import ssl
from typing import Any

import certifi


def default_context() -> ssl.SSLContext:
    """Return a context that verifies an upstream's certificate and name."""
    paths = ssl.get_default_verify_paths()  # None for a file or directory that does not exist
    if os.name == "nt" or paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=certifi.where())


class ResumingContext(ssl.SSLContext):
    """
    A context for the connections to one origin. Each connection resumes the TLS session of an earlier one.

    asyncio and uvloop make the TLS object from a context themselves and have no parameter for resumption. So this context adds
    the last session there, and leaves all else to the other context.

    Args:
        context: the context that does the work, shared by many origins. Its ALPN protocols are set to `http/1.1`.
    """

    session: ssl.SSLSession | None

    def __new__(cls, context: ssl.SSLContext) -> "ResumingContext":
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, context: ssl.SSLContext) -> None:
        context.set_alpn_protocols(["http/1.1"])
        self._context = context
        self.session = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        kwargs.setdefault("session", self.session)
        return self._context.wrap_bio(*args, **kwargs)
