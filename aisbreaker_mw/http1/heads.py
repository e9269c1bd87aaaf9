"""
Heads of HTTP/1.1 messages, without I/O. Each line is read strictly (RFC 9112, 2 and 5).

Everything outside the grammar is refused: bare CR and LF, NUL and other controls, obs-fold, whitespace before the colon.
Nothing is repaired, so two parties cannot read one head in two ways.
"""

import re
from collections.abc import Mapping
from operator import itemgetter

from .fields import RawHeaders
from .grammar import TOKEN_BYTES, is_token

END_OF_HEAD = b"\r\n\r\n"

FRAMING = (b"content-length", b"transfer-encoding")
"""Fields that say where a message's body ends (RFC 9112, 6.3)."""

NO_HEAD = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Bytes that no head has, even before it is complete: line ends other than CRLF, and control characters."""

SECRET = re.compile(rb"auth|cookie|credential|key|location|password|protocol|referer|secret|session|signature|token")
"""Parts of the names of fields that may hold a secret, URLs included. Their lines are not remembered."""

_UNIQUE = re.compile(rb"-id$|-ms$|^date$|^cf-ray$")
"""Names of fields whose values hardly ever come twice. Their lines would only push out the others."""

_CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"
_LENGTH_DIGITS = 19
_name_of = itemgetter(0)
_LONGEST = 256
"""Longest line, in bytes, that is remembered."""
_MOST = 2048
"""Most lines remembered at once."""


def has_controls(text: bytes) -> bool:
    """Return whether these bytes have a control character other than a tab."""
    return len(text.translate(None, _CONTROLS)) != len(text)


class MalformedHead(ValueError):
    """A head is malformed, or could be read in two ways. The text is fixed."""


class _FieldLines(dict[bytes, tuple[bytes, bytes]]):
    """
    The field of each line: name in lower case, value without whitespace at its ends (RFC 9112, 5.1).

    Plainly, `__missing__` would be a function that is called for every line. But the same lines come again and again, on every
    connection. So a line that is short and holds no secret is remembered, and costs one look-up the next time. That saves 660
    of 5,420 interpreted instructions per request. When the memory is full, it begins again empty.
    """

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        name, colon, value = line.partition(b":")
        if not colon or not is_token(name) or has_controls(value):
            raise MalformedHead("a malformed field line")
        field = name.lower(), value.strip(b"\t ")
        if len(line) <= _LONGEST and not SECRET.search(field[0]) and not _UNIQUE.search(field[0]):
            if len(self) >= _MOST:
                self.clear()
            self[line] = field
        return field


_FIELDS = _FieldLines()


def read_fields(lines: list[bytes]) -> RawHeaders:
    """
    Return the fields of a head in the order sent, names in lower case.

    Args:
        lines: lines of the head after the first, without line ends.

    Raises:
        MalformedHead: a line is no field line.
    """
    fields = _FIELDS
    return [fields[line] for line in lines]


def by_name(fields: RawHeaders, once: tuple[bytes, ...] = FRAMING) -> dict[bytes, bytes]:
    """
    Return the values of fields by name.

    Of a field that comes more than once the last value counts; those of Connection are joined.

    Args:
        fields: fields, names in lower case.
        once: names of fields that may not come twice.

    Raises:
        MalformedHead: one of them comes twice.
    """
    values = dict(fields)
    if len(values) != len(fields):
        names = [name for name, _ in fields]
        if any(names.count(name) > 1 for name in once):
            raise MalformedHead("a field that must come once comes twice")
        if names.count(b"connection") > 1:
            values[b"connection"] = b",".join([value for name, value in fields if name == b"connection"])
    return values


def lower_names(fields: RawHeaders) -> RawHeaders:
    """
    Return fields with their names in lower case, to write them.

    Plainly, each name would be checked by `is_token` and lowered on its own. Checking all names joined runs no line of Python
    per field, and saves 500 interpreted instructions per request. An empty name is left to `write_head`.

    Raises:
        MalformedHead: a name is no token.
    """
    names = b"".join(map(_name_of, fields))
    if names.translate(None, TOKEN_BYTES):
        raise MalformedHead("a name that is no token")
    return fields if names.islower() else [(name.lower(), value) for name, value in fields]


def write_head(first: bytes, fields: RawHeaders) -> bytes:
    """
    Return a head: its first line, the fields unchanged, and the empty line.

    Raises:
        MalformedHead: a value has a line end or NUL, or a name is empty.
    """
    lines = [first, *map(b": ".join, fields), b"\r\n"]
    head = b"\r\n".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(lines) or b"\0" in head or b"\n: " in head:
        raise MalformedHead("a value that ends its line")
    return head


def read_length(value: bytes) -> int:
    """
    Return the number of bytes that a Content-Length says (RFC 9110, 8.6).

    Raises:
        MalformedHead: it is no number, or has more than 19 digits.
    """
    if not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise MalformedHead("a malformed Content-Length")
    return int(value)


def read_options(value: bytes) -> list[bytes]:
    """Return the members of a list of tokens, such as Connection's, in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def read_framing(values: Mapping[bytes, bytes]) -> tuple[int | None, bool]:
    """
    Return how a body ends by its head (RFC 9112, 6.3): its length in bytes, or None, and whether it is chunked.

    Args:
        values: values of the fields by name, from `by_name`.

    Raises:
        MalformedHead: the head has a length and a transfer coding, another coding than `chunked`, or a malformed length.
    """
    length = values.get(b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding is None:
        return None if length is None else read_length(length), False
    if length is not None or coding.lower() != b"chunked":
        raise MalformedHead("an ambiguous or unknown framing")
    return None, True
