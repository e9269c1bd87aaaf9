"""Shortens the long strings of a large JSON document, so that it takes little time and memory to parse."""

import codecs
import re

from ..exceptions import PayloadTooLarge

__all__ = ["LONG_STRING", "MAX_OUTLINE_BYTES", "outline"]

LONG_STRING = 512
"""Longest string that is kept, in bytes, quotes included. Long strings (images, texts) are what makes JSON large."""
MAX_OUTLINE_BYTES = 8 << 20
"""Largest outline, in bytes."""

_STAND_IN = b'"' + b"-" * 300 + b'"'  # longer than any engine, so it is never read as one
_TOO_MUCH = "The token names models, and this body has too many parts to read its model from."
_CHUNK = 1 << 20

# One match of a regular expression keeps every other thread waiting, so each match ends after 4 MiB at most.
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})'
_INSIDE = re.compile(rb'(?:[^"\\\x00-\x1f]{1,65536}+|' + _ESCAPE + rb"){1,64}+")
_SHORT_STRINGS = re.compile(rb'(?:[^"]{0,4096}+"(?:[^"\\\x00-\x1f]{1,256}+|' + _ESCAPE + rb'){0,2}+"){1,256}+')
_COLON = re.compile(rb"[ \t\n\r]*+:")


def outline(data: bytes | bytearray) -> bytes:
    """
    Return JSON with the same structure, in which a short string stands for every long string that is no key.

    The strings left out have been checked. Everything else is the same as in `data`, and unchecked.

    Args:
        data: JSON in UTF-8.

    Raises:
        ValueError: with a fixed text: no UTF-8, or a malformed string (RFC 8259, 7).
        PayloadTooLarge: the outline would be larger than `MAX_OUTLINE_BYTES`.
    """
    _check_utf8(data)
    parts: list[bytes] = []
    size = taken = 0
    end = 0
    while True:
        if (short := _SHORT_STRINGS.match(data, end)) is not None:
            end = short.end()
        at = data.find(b'"', end)
        if at < 0:
            break
        end = at + 1
        while (inside := _INSIDE.match(data, end)) is not None:
            end = inside.end()
        if data[end : end + 1] != b'"':
            raise ValueError("must be valid JSON")
        end += 1
        if end - at > LONG_STRING and _COLON.match(data, end) is None:
            parts.append(bytes(data[taken:at]) + _STAND_IN)
            size += len(parts[-1])
            taken = end
        if size + end - taken > MAX_OUTLINE_BYTES:
            raise PayloadTooLarge(_TOO_MUCH)
    if size + len(data) - taken > MAX_OUTLINE_BYTES:
        raise PayloadTooLarge(_TOO_MUCH)
    return b"".join([*parts, data[taken:]])


def _check_utf8(data: bytes | bytearray) -> None:
    if data.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _CHUNK):
            decoder.decode(bytes(data[start : start + _CHUNK]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8") from None
