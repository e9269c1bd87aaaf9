"""Which way a request takes: its path below the mount point."""

from urllib.parse import quote, unquote

from starlette.types import Scope


def is_endpoint(path: bytes) -> bool:
    """Tell whether a path is one of our own endpoints'."""
    return path.startswith(b"/api/v1/oauth/") or path in (b"/api/v1/ping", b"/api/v1/version", b"/api/v1/health")


def route_path(scope: Scope) -> bytes:
    """
    Return the raw path of a request below the mount point of this app, without the query.

    The raw path is what travels on byte for byte. Where a server gives none it is made from the decoded one.
    """
    raw: bytes | None = scope.get("raw_path")
    raw = raw.partition(b"?")[0] if raw else quote(scope["path"], safe="/:@!$&'()*+,;=~").encode("ascii")
    root = scope.get("root_path", "").rstrip("/")
    if not root:
        return raw
    end = 0
    for _ in range(root.count("/")):
        end = raw.find(b"/", end + 1)
        if end < 0:
            end = len(raw)
            break
    # ASGI: root_path is a prefix of path; but some servers leave it out of it.
    return raw[end:] or b"/" if unquote(raw[:end].decode("latin-1")) == root else raw
