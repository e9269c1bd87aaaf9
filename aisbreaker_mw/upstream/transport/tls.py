"""
TLS to upstreams.

Trust is the system's, as OpenSSL finds it (`SSL_CERT_FILE` and `SSL_CERT_DIR` are obeyed), so a company's own CA counts once
the machine knows it. Where the system has no certificates at all, as in some containers, certifi's bundle is used, which httpx
brings. Not `truststore`: on Linux it takes the same certificates from the same place, but loads them anew for every connection
(20 ms each, in which the loop stands still).
"""

import os
import ssl
from typing import Any

import certifi


def default_context() -> ssl.SSLContext:
    """Return a context that verifies an upstream's certificate and name."""
    paths = ssl.get_default_verify_paths()  # those of the file and the directory are None where there is none
    if os.name == "nt" or paths.cafile or (paths.capath and os.listdir(paths.capath)):
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=certifi.where())


class ResumingContext(ssl.SSLContext):
    """
    A context for the connections to one origin, each of which resumes the TLS session of one before.

    asyncio and uvloop take a context and make the TLS session from it themselves, without a parameter for resumption; so this
    passes the last session on where they ask for a new one, and otherwise is the other context.

    Args:
        context: does the work; shared by many origins. Its ALPN protocols are set to `http/1.1`.
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
