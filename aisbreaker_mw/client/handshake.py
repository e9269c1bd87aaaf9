"""The client's opening handshake of a WebSocket: the key among its subprotocols, and the page that it comes from."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..exceptions import InvalidRequest
from ..http1.fields import RawHeaders, get
from ..http1.grammar import TOKEN
from ..tokens.sealer import TOKEN_PREFIX

__all__ = ["Handshake", "from_allowed_page", "read_handshake"]

_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_TOKEN = re.compile(TOKEN)


class Handshake(NamedTuple):
    """
    A client's opening handshake (RFC 6455, 4.1).

    Attributes:
        headers: headers without those of the handshake itself. A key among the subprotocols is an `authorization` here.
        subprotocols: offered subprotocols in order, without keys.
        key_among_subprotocols: whether there was a key, as browsers send it.
    """

    headers: RawHeaders
    subprotocols: list[str]
    key_among_subprotocols: bool


def read_handshake(headers: RawHeaders) -> Handshake:
    """
    Read an opening handshake.

    A page can set no header on a WebSocket, so OpenAI's SDK sends the key as a subprotocol, `openai-insecure-api-key.<key>`. An
    `aisbreaker_` token is a key there with or without the prefix.

    Args:
        headers: headers of the handshake, names in lower case.

    Raises:
        InvalidRequest: a subprotocol is no RFC 9110 token (RFC 6455, 4.1, 10).
    """
    kept: RawHeaders = []
    subprotocols: list[str] = []
    keys: RawHeaders = []
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            for item in value.decode("latin-1").split(","):
                subprotocol = item.strip(" \t")
                if not _TOKEN.fullmatch(subprotocol):
                    raise InvalidRequest("The Sec-WebSocket-Protocol header is malformed.")
                key = subprotocol.removeprefix(_KEY_SUBPROTOCOL)
                if key != subprotocol or key.startswith(TOKEN_PREFIX):
                    keys.append((b"authorization", b"Bearer " + key.encode("ascii")))
                else:
                    subprotocols.append(subprotocol)
        elif not name.startswith(b"sec-websocket-") and name != b"content-length":
            kept.append((name, value))
    # The same key may be sent in several places. Different ones become several Authorization headers, which are refused.
    added = [key for key in dict.fromkeys(keys) if key not in kept]
    return Handshake(kept + added, subprotocols, bool(keys))


def from_allowed_page(headers: RawHeaders, origins: Sequence[str]) -> bool:
    """
    Return whether a handshake comes from no page, from a page of this host, or from an allowed origin.

    Browsers let every page open a WebSocket to any server, so the server has to check (RFC 6455, 10.2).

    Args:
        headers: headers of the handshake, names in lower case.
        origins: allowed origins; `*` allows all.
    """
    origin = get(headers, b"origin")
    if origin is None or "*" in origins or origin.decode("latin-1") in origins:
        return True
    return origin.partition(b"://")[2] == get(headers, b"host")
