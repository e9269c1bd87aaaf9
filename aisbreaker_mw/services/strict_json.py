"""
JSON that means the same to every reader (I-JSON, RFC 7493).

Python's parser takes more than that: of duplicate keys it keeps the last, and NaN is a number to it.
"""

import json
import re
from typing import Any, NoReturn

__all__ = ["json_pairs", "strict_json"]

# A string that isn't closed runs to the end: looking for the next one inside it would take quadratic time.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def strict_json(data: bytes, *, max_depth: int) -> Any:
    """
    Parse strict JSON.

    Args:
        data: UTF-8 without a byte order mark.
        max_depth: most levels of arrays and objects.

    Returns:
        The value, as from `json.loads`. No object has lost a key, and every string can be encoded.

    Raises:
        ValueError: with a fixed text: no JSON, duplicate keys, NaN, an infinite or huge number, a lone surrogate, trailing
            data, or too deep.
    """
    text = _decode(data, max_depth)
    value = _parse(text, _STRICT)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("must not have lone surrogates") from None
    return value


def json_pairs(data: bytes | bytearray, *, max_depth: int) -> Any:
    """
    Parse JSON without losing duplicate keys.

    Args:
        data: UTF-8 without a byte order mark.
        max_depth: most levels of arrays and objects.

    Returns:
        The value. An object is a tuple of its (key, value) pairs in order, and nothing else is a tuple. A number is the
        length of its text.

    Raises:
        ValueError: with a fixed text: no JSON, NaN, infinity, trailing data, or too deep.
    """
    return _parse(_decode(data, max_depth), _PAIRS)


class _Refused(ValueError):
    """A refusal with a text of ours. The parser's own texts quote the data."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("must not have duplicate keys")
    return members


def _int(text: str) -> int:
    if len(text) > 32:
        raise _Refused("must not have numbers that are out of range")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused("must not have numbers that are out of range")
    return value


def _constant(_: str) -> NoReturn:
    raise _Refused("must not have NaN or Infinity")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_int, parse_float=_float, parse_constant=_constant)
# The grammar of a number is checked, and its value is not needed: `len` is cheaper than `int`.
_PAIRS = json.JSONDecoder(object_pairs_hook=tuple, parse_int=len, parse_float=len, parse_constant=_constant)


def _decode(data: bytes | bytearray, max_depth: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8") from None
    if data.count(b"[") + data.count(b"{") > max_depth:
        depth = 0
        for found in _STRING_OR_BRACKET.finditer(data):
            first = found[0][0]
            if first in b"[{":
                depth += 1
                if depth > max_depth:
                    raise ValueError("must not be nested that deep")
            elif first in b"]}":
                depth -= 1
    return text


def _parse(text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)  # raises on trailing data, and on a byte order mark
    except _Refused:
        raise
    except (ValueError, RecursionError):
        raise ValueError("must be valid JSON") from None
