"""
Heads of HTTP/1.1 messages, without I/O: split into lines, each of them read strictly (RFC 9112, 2 and 5).

What the grammar does not know is refused: bare CR and LF, NUL and other controls, obs-fold, whitespace before the colon.
Nothing is repaired, so no two parties can read a head in two ways.

Field lines come again and again, from request to request and connection to connection. So each one that is short and holds no
secret is remembered with what it says, and the next time costs one look into a dictionary.
"""

import re
from collections.abc import Mapping
from operator import itemgetter

from .fields import RawHeaders

END_OF_HEAD = b"\r\n\r\n"

FRAMING = (b"content-length", b"transfer-encoding")
"""Fields that say where a message's body ends (RFC 9112, 6.3)."""

NO_HEAD = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no head holds anywhere, however much of it has arrived: line ends other than CRLF, and control characters."""

SECRET = re.compile(rb"auth|cookie|credential|key|location|password|protocol|referer|secret|session|signature|token")
"""What is in the names of fields that may hold a secret, the URLs among them. Their lines are not remembered."""

_UNIQUE = re.compile(rb"-id$|-ms$|^date$|^cf-ray$")
"""Names of fields that hardly ever say the same twice: to remember their lines would only push out the others."""

_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CONTROLS = bytes(range(9)) + bytes(range(10, 32)) + b"\x7f"
_LENGTH_DIGITS = 19
_name_of = itemgetter(0)
_LONGEST = 256
"""Bytes of a line that is remembered."""
_MOST = 2048
"""Lines that are remembered at once."""


def is_token(name: bytes) -> bool:
    """Say whether these bytes are a token (RFC 9110, 5.6.2), as methods and field names are."""
    return bool(name) and not name.translate(None, _TOKEN_BYTES)


def has_controls(text: bytes) -> bool:
    """Say whether there is a control character in these bytes, other than a tab."""
    return len(text.translate(None, _CONTROLS)) != len(text)


class MalformedHead(ValueError):
    """This is no head, or could be read in two ways; with a fixed text."""


class _FieldLines(dict[bytes, tuple[bytes, bytes]]):
    """What each field line says: its name in lower case, and its value without whitespace at its ends (RFC 9112, 5.1)."""

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
    Return the fields of a head: names in lower case, in the order sent.

    Args:
        lines: without the first of the head, and without line ends.

    Raises:
        MalformedHead: one of them is no field line.
    """
    fields = _FIELDS
    return [fields[line] for line in lines]


def by_name(fields: RawHeaders, once: tuple[bytes, ...] = FRAMING) -> dict[bytes, bytes]:
    """
    Return the values of fields by name; of those that come more than once the last, but all that Connection fields say.

    Args:
        fields: names in lower case.
        once: names of those that may not come twice.

    Raises:
        MalformedHead: one of them does.
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
    Return fields that are to be written, names in lower case.

    Raises:
        MalformedHead: a name is no token.
    """
    names = b"".join(map(_name_of, fields))  # all at once: no line of Python runs per field
    if names.translate(None, _TOKEN_BYTES):
        raise MalformedHead("a name that is no token")
    return fields if names.islower() else [(name.lower(), value) for name, value in fields]


def write_head(first: bytes, fields: RawHeaders) -> bytes:
    """
    Return a head: its first line, the fields as they are, and the empty line.

    Raises:
        MalformedHead: a value would end its line, or a name is empty.
    """
    lines = [first, *map(b": ".join, fields), b"\r\n"]
    head = b"\r\n".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(lines) or b"\0" in head or b"\n: " in head:
        raise MalformedHead("a value that ends its line")
    return head


def read_length(value: bytes) -> int:
    """
    Return the number of bytes that a Content-Length tells (RFC 9110, 8.6).

    Raises:
        MalformedHead: it tells none.
    """
    if not value.isdigit() or len(value) > _LENGTH_DIGITS:
        raise MalformedHead("a malformed Content-Length")
    return int(value)


def read_options(value: bytes) -> list[bytes]:
    """Return the members of a list of tokens, such as Connection's, in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def read_framing(values: Mapping[bytes, bytes]) -> tuple[int | None, bool]:
    """
    Return what a head says of the body's end (RFC 9112, 6.3): its bytes, or None, and whether it is chunked.

    Args:
        values: of the fields by name (`by_name`).

    Raises:
        MalformedHead: it says both, or another transfer coding, or no number.
    """
    length = values.get(b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding is None:
        return None if length is None else read_length(length), False
    if length is not None or coding.lower() != b"chunked":
        raise MalformedHead("an ambiguous or unknown framing")
    return None, True
