"""Large JSON without the insides of its long strings: what is left takes little time and memory to parse."""

import codecs
import re

from ..exceptions import PayloadTooLarge

__all__ = ["LONG_STRING", "MAX_OUTLINE_BYTES", "outline"]

LONG_STRING = 512
"""Bytes, from which on the inside of a string is left out. A JSON document is large because of these: images, texts."""
MAX_OUTLINE_BYTES = 8 << 20
"""Of what may be left."""

STAND_IN = b'"' + b"-" * 300 + b'"'  # longer than any engine, so that it is taken for none
_TOO_MUCH = "The token names models, and this body has too many parts to read its model from."
_CHUNK = 1 << 20

# One call of a regular expression keeps every other thread waiting, so each has an end, after 4 MiB at most.
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})'
_INSIDE = re.compile(rb'(?:[^"\\\x00-\x1f]{1,65536}+|' + _ESCAPE + rb"){1,64}+")
_SHORT_STRINGS = re.compile(rb'(?:[^"]{0,4096}+"(?:[^"\\\x00-\x1f]{1,256}+|' + _ESCAPE + rb'){0,2}+"){1,256}+')
_COLON = re.compile(rb"[ \t\n\r]*+:")


def outline(data: bytes | bytearray) -> bytes:
    """
    Return JSON with the same structure, in which every long string that is no key has another inside.

    What is left out has been checked; what is left has not, but is the same as in `data`.

    Args:
        data: JSON in UTF-8.

    Raises:
        ValueError: with a fixed text: it is no UTF-8, or a string is none of JSON's (RFC 8259, 7).
        PayloadTooLarge: more than `MAX_OUTLINE_BYTES` would be left.
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
            parts.append(bytes(data[taken:at]) + STAND_IN)
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
