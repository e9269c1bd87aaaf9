"""The grammar that methods, field names, parameters and subprotocols share."""

import re
import string

_TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters

TOKEN_BYTES = _TOKEN_CHARACTERS.encode("ascii")
"""Every byte that a token may have (RFC 9110, 5.6.2)."""

TOKEN = f"[{re.escape(_TOKEN_CHARACTERS)}]+"
"""Regular expression of a token (RFC 9110, 5.6.2)."""


def is_token(text: bytes) -> bool:
    """Return whether these bytes are a token (RFC 9110, 5.6.2), as methods and field names are."""
    return bool(text) and not text.translate(None, TOKEN_BYTES)
