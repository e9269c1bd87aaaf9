"""asgi-proxy-lib as its README shows it, once for each upstream."""

import os
from typing import Any

from asgi_proxy import asgi_proxy

to_json = asgi_proxy(os.environ["JSON_UPSTREAM"].rstrip("/"))
to_sse = asgi_proxy(os.environ["SSE_UPSTREAM"].rstrip("/"))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Send streams to one upstream, and everything else to the other."""
    if scope["path"].startswith("/sse/"):
        await to_sse(scope, receive, send)
    else:
        await to_json(scope, receive, send)
