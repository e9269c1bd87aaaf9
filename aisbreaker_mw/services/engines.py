"""
Reading a request's engine (its model), and every other model it names, out of the body; and strict JSON.

The engine decides which secret of a token is sent, so a body that two readers can understand in two ways is refused: what
the upstream would run must be what was checked here. All of this happens only to requests whose token names engines.
"""

import json
import logging
import re
import zlib
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from ..exceptions import InvalidRequest, PayloadTooLarge
from .json_outline import outline
from .second_models import FieldKind, NamedModels, field_kind, find_models, plain

__all__ = ["LARGE_BODY_BYTES", "LONGEST_ENGINE", "MAX_SCANNED_BYTES", "read_models", "read_query_models", "strict_json"]

LONGEST_ENGINE = 256
"""Characters of an engine, at most."""
MAX_SCANNED_BYTES = 32 * 1024 * 1024
"""Bytes of a body that is searched for its engine, before and after decompression, where the caller says nothing."""
LARGE_BODY_BYTES = 256 * 1024
"""From a body that is longer, or compressed, the engine is best read in a thread."""
_MAX_DEPTH = 256
_MAX_FIELDS = 1000
_MAX_MEMBERS = 50_000
"""Most members and elements of a JSON body that are searched for further models. Messages, data and schemas don't count."""

_SILENT = logging.Logger("multipart")  # the parser's own logger quotes the body
_SILENT.disabled = True

_ENGINE = re.compile(r"[!-~]*")
_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # RFC 9110, 5.6.2
_PARAMETER = re.compile(rf';[ \t]*(?:({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*"))?[ \t]*')  # RFC 9110, 5.6.6
_ELSEWHERE = ("path", "deployment")
"""Kinds of a body that doesn't name the engine."""
_MEDIA = re.compile(r"(?:audio|image|video)/[^ ]+|application/octet-stream")
_LIKE_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[\s\0]*[{\[]")  # some upstreams read JSON whatever the Content-Type says
_TOO_MANY = "The token names models, and this body has too many parts to read its models from."
# A string that isn't closed runs to the end: looking for the next one inside it would take quadratic time.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def read_models(
    kind: str, body: bytes | bytearray, content_type: str, content_encoding: str, *, limit: int = MAX_SCANNED_BYTES
) -> NamedModels:
    """
    Return the models that a request body names.

    The content type decides how the body is read, as it does for the upstream; `kind` names the field, and what a body
    without a content type is.

    Args:
        kind: `json:<key>` or `form:<key>`, from `RouteMatch.engine_source`. With `path`, the engine stands elsewhere, and
            the body's `model` is a further one; with `deployment`, the upstream ignores it.
        body: the whole body as it came.
        content_type: the header's value, "" without one.
        content_encoding: the header's value, "" without one; gzip and deflate can be read.
        limit: bytes of the body, at most, as it came and decompressed.

    Raises:
        InvalidRequest: the body can't be read, or not in one way only. The message never repeats any of it.
        PayloadTooLarge
    """
    default, _, field = kind.partition(":")
    field = field or "model"
    if len(body) > limit:
        raise _too_large()
    body = _decompressed(body, content_encoding.strip().lower(), limit)
    if not body:
        return NamedModels("")
    media_type, parameters = _parse_header(content_type)
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest("The request body's charset must be UTF-8.")
    if media_type == "application/x-www-form-urlencoded":
        named = _from_urlencoded(body, field)
    elif media_type == "multipart/form-data":
        named = _from_multipart(body, parameters.get("boundary", ""), field)
    elif media_type == "application/json" or media_type.endswith("+json") or (not media_type and default != "form"):
        named = _from_json(body, field, default)
    elif default in _ELSEWHERE and _MEDIA.fullmatch(media_type) and not _LIKE_JSON.match(body):
        return NamedModels("")  # an image, or a recording, which names no model
    else:
        raise InvalidRequest(
            "The request body must be JSON or a form, with the Content-Type that says so: its models must be read, because "
            "the token names models."
        )
    if default not in _ELSEWHERE or not named.engine:
        return named
    return NamedModels("", named.others | {named.engine} if default == "path" else named.others, named.unchecked)


def read_query_models(kind: str, query: bytes) -> NamedModels:
    """
    Return the models that a query names.

    Args:
        kind: `query:<key>`, from `RouteMatch.engine_source`.
        query: the raw query, without the question mark.

    Raises:
        InvalidRequest: several are named.
    """
    return _from_urlencoded(query, kind.partition(":")[2])


def strict_json(data: bytes, *, max_depth: int) -> Any:
    """
    Parse JSON that means the same to every reader (I-JSON, RFC 7493).

    Args:
        data: UTF-8 without a byte order mark.
        max_depth: levels of arrays and objects, at most.

    Returns:
        What `json.loads` returns; no object has lost a key, and every string can be encoded.

    Raises:
        ValueError: with a fixed text: no JSON, or duplicate keys, NaN, infinite or huge numbers, lone surrogates, trailing
            data, too deep.
    """
    text = _decode(data, max_depth)
    value = _loads(text, _STRICT)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("must not have lone surrogates") from None
    return value


class _Refused(ValueError):
    """A refusal with a text of ours; the parser's own quote the data or hold it."""


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
# Objects become tuples of their members in order, none lost; nothing else does. Numbers don't matter, only their grammar does.
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


def _loads(text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)  # raises on trailing data, and on a byte order mark
    except _Refused:
        raise
    except (ValueError, RecursionError):
        raise ValueError("must be valid JSON") from None


def _from_json(body: bytes | bytearray, field: str, default: str) -> NamedModels:
    try:
        value = _loads(_decode(body if len(body) <= LARGE_BODY_BYTES else outline(body), _MAX_DEPTH), _PAIRS)
    except ValueError as refusal:
        raise InvalidRequest(f"The request body {refusal}.") from None
    if not isinstance(value, tuple):
        raise InvalidRequest("The request body must be a JSON object.")
    try:
        others, unchecked = find_models(value, lambda key: _alike(key, field), _MAX_MEMBERS)
    except OverflowError:
        raise PayloadTooLarge(_TOO_MANY) from None
    for other in others:
        _check_engine(other, field)
    return NamedModels(_only(value, field), others, unchecked)


def _alike(name: str, field: str) -> bool:
    """
    Tell whether some upstream could take `name` for the field (see `plain`). Some take alternatives that nobody checked from
    the plural (OpenRouter's `models`).
    """
    return plain(name) in (plain(field), plain(field) + "s")


def _only(members: Iterable[tuple[str, Any]], field: str) -> str:
    """Return the one member that is the engine; one that is only like it is refused."""
    engine: object = None
    seen = False
    for name, value in members:
        if not _alike(name, field):
            continue
        if name != field:
            raise InvalidRequest("The request names its model in a way that can't be checked.", param=field)
        if seen:
            raise InvalidRequest("The request names its model twice.", param=field)
        seen, engine = True, value
    if engine is None:
        return ""
    return _check_engine(engine, field)


def _check_engine(engine: object, field: str) -> str:
    if not isinstance(engine, str) or len(engine) > LONGEST_ENGINE or not _ENGINE.fullmatch(engine):
        raise InvalidRequest(f"The model must be a string of at most {LONGEST_ENGINE} printable ASCII characters.", param=field)
    return engine


def _from_fields(members: list[tuple[str, str]], field: str) -> NamedModels:
    unchecked = any(field_kind(name, field) is FieldKind.OTHER for name, _ in members)
    return NamedModels(_only(members, field), unchecked=unchecked)


def _from_urlencoded(body: bytes | bytearray, field: str) -> NamedModels:
    try:
        if b";" in body:  # a separator for some readers; clients escape it
            raise ValueError
        members = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        raise InvalidRequest("The form can't be read.") from None
    return _from_fields(members, field)


def _from_multipart(body: bytes | bytearray, boundary: str, field: str) -> NamedModels:
    # RFC 2046, 5.1.1
    if not re.fullmatch(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", boundary):
        raise InvalidRequest("The form's boundary is missing or malformed.")
    form = _Form(field)
    delimiter = boundary.encode("ascii")
    try:
        form.read(body, delimiter)
    except FormParserError:
        raise InvalidRequest("The form can't be read.") from None
    # "The boundary delimiter MUST NOT appear inside any of the encapsulated parts": where it does (after a bare LF, before
    # the first or after the last part), another reader could see other parts.
    if not form.ended or body.count(b"--" + delimiter) != form.parts + 1:
        raise InvalidRequest("The form can't be read.")
    return _from_fields(form.members, field)


class _Form:
    """Collects the fields that matter from a multipart parser's events."""

    def __init__(self, field: str) -> None:
        self.members: list[tuple[str, str]] = []
        self.parts = 0
        self.ended = False
        self._field = field
        self._headers: list[tuple[bytes, bytes]] = []
        self._name = b""
        self._value = b""
        self._data: bytearray | None = None
        self._part = ""

    def read(self, body: bytes | bytearray, boundary: bytes) -> None:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )
        parser.logger = _SILENT
        parser.write(body)  # type: ignore[arg-type]  # it only looks into it; a bytearray does as well
        parser.finalize()

    def _part_begin(self) -> None:
        self.parts += 1
        if self.parts > _MAX_FIELDS:
            raise InvalidRequest("The form has too many fields.")
        self._headers.clear()
        self._data = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name = bytes(data[start:end]).lower()
        self._value = b""

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = bytes(data[start:end])

    def _header_end(self) -> None:
        self._headers.append((self._name, self._value))

    def _headers_finished(self) -> None:
        headers = {name: value.decode("latin-1") for name, value in self._headers}
        disposition, parameters = _parse_header(headers.get(b"content-disposition", ""))
        name = parameters.get("name", "")
        # RFC 7578, 4.2 and 4.6: no `name*`, and no field that changes the others' charset
        strange = len(headers) != len(self._headers) or "name*" in parameters or name == "_charset_"
        if disposition != "form-data" or not name or strange or "\\" in name or "%" in name:
            raise InvalidRequest("The form has a part that can't be read.")
        self._part = name
        if not _alike(name, self._field):
            if field_kind(name, self._field) is not FieldKind.DATA:
                self.members.append((name, ""))
            return
        media_type, of_type = _parse_header(headers.get(b"content-type", "text/plain"))
        if (
            "filename" in parameters
            or "filename*" in parameters
            or media_type != "text/plain"
            or of_type.get("charset", "utf-8").lower() not in ("utf-8", "us-ascii")
            or headers.get(b"content-transfer-encoding", "8bit").strip().lower() not in ("7bit", "8bit", "binary")
        ):
            raise InvalidRequest("The form names its model in a way that can't be checked.", param=self._field)
        self._data = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start : min(end, start + LONGEST_ENGINE + 1)]

    def _part_end(self) -> None:
        if self._data is not None:
            self.members.append((self._part, self._data.decode("latin-1")))

    def _end(self) -> None:
        self.ended = True


def _parse_header(value: str) -> tuple[str, dict[str, str]]:
    """
    Split a header such as Content-Type into its value and parameters, both names in lower case. What is quoted keeps its
    backslashes: a name that needs them is refused.

    Raises:
        InvalidRequest: it is not that, or has a parameter twice.
    """
    main, separator, rest = value.partition(";")
    parameters: dict[str, str] = {}
    at, rest = 0, separator + rest
    while at < len(rest):
        found = _PARAMETER.match(rest, at)
        if found is None or (found[1] or "").lower() in parameters:
            raise InvalidRequest("A Content-Type or Content-Disposition header is malformed.")
        if found[1]:
            text = found[2]
            parameters[found[1].lower()] = text[1:-1] if text[0] == '"' else text
        at = found.end()
    return main.strip(" \t").lower(), parameters


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge("The request body is too large to read its model, which the token's models make necessary.")


def _decompressed(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """RFC 9110, 8.4.1: gzip, deflate (a zlib stream; some send a bare one), and nothing at all."""
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        wbits = 16 + zlib.MAX_WBITS
    elif encoding == "deflate":
        zlib_header = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0  # RFC 1950, 2.2
        wbits = zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
    else:
        raise InvalidRequest(
            "The token names models, and the model can't be read from a body with this Content-Encoding: send it "
            "uncompressed, or with gzip or deflate."
        )
    decoder = zlib.decompressobj(wbits)
    try:
        # One byte more than allowed tells a body that is too large from one that just fits.
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequest("The request body is not what its Content-Encoding says.") from None
    if len(plain) > limit:
        raise _too_large()
    if not decoder.eof or decoder.unused_data:  # cut off, or followed by what another reader may decompress as well
        raise InvalidRequest("The request body is not what its Content-Encoding says.")
    return plain
