"""fastapi-proxy-lib as its README shows it, once for each upstream."""

import os
from typing import Any

from fastapi_proxy_lib.fastapi.app import reverse_http_app

to_json = reverse_http_app(base_url=os.environ["JSON_UPSTREAM"])
to_sse = reverse_http_app(base_url=os.environ["SSE_UPSTREAM"])


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Send streams to one upstream, and everything else to the other."""
    if scope["type"] == "http" and scope["path"].startswith("/sse/"):
        await to_sse(scope, receive, send)
    else:
        await to_json(scope, receive, send)
