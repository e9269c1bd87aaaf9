"""Base64url without padding, in its one canonical spelling (RFC 4648, 3.5 and 5)."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


def b64url_encode(data: bytes) -> str:
    """Return `data` as base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """
    Return the bytes of canonical base64url.

    Only the canonical spelling is taken, so no two texts stand for the same bytes.

    Raises:
        ValueError: the text has padding, white space, a foreign character, an impossible length, or bits set behind the last
            byte (RFC 4648, 3.5). The message is fixed.
    """
    if not _ALPHABET.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url without padding")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url_encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
