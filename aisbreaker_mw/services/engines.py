"""
Reading the engine (the model), and every other model that is named, out of a request's body or query.

The engine decides which secret of a token is sent. So a body that two readers could understand differently is refused: the
upstream must run the engine that was checked here. Only requests whose token names engines are read.
"""

import re
import zlib
from urllib.parse import parse_qsl

from ..exceptions import InvalidRequest, PayloadTooLarge
from .engine_field import check_engine, could_name_engine, only_engine
from .json_outline import outline
from .multipart import MAX_FIELDS, engine_members, parse_header
from .second_models import FieldKind, NamedModels, field_kind, find_models
from .strict_json import json_pairs

__all__ = ["LARGE_BODY_BYTES", "MAX_SCANNED_BYTES", "read_models", "read_query_models", "refuse_query_models"]

MAX_SCANNED_BYTES = 32 * 1024 * 1024
"""Default of the largest body that is read, in bytes, as it came and decompressed."""
LARGE_BODY_BYTES = 256 * 1024
"""Largest uncompressed body, in bytes, that is read on the event loop. Others are best read in a thread."""
_MAX_DEPTH = 256
_MAX_MEMBERS = 50_000
"""Most members and elements of a JSON body that are searched for further models. Messages, data and schemas don't count."""
_TOO_MANY = "The token names models, and this body has too many parts to read its models from."
_NOT_IN_BODY = ("path", "deployment")
"""Sources of an engine that the body doesn't name."""
_MEDIA = re.compile(r"(?:audio|image|video)/[^ ]+|application/octet-stream")
_LIKE_JSON = re.compile(rb"(?:\xef\xbb\xbf)?[\s\0]*[{\[]")  # some upstreams read JSON whatever the Content-Type says


def read_models(
    source: str, body: bytes | bytearray, content_type: str, content_encoding: str, *, limit: int = MAX_SCANNED_BYTES
) -> NamedModels:
    """
    Return the models that a request body names.

    The content type decides how the body is read, for the upstream as here. A body without one is read as `source` says.

    Args:
        source: `json:<key>` or `form:<key>`, from `RouteMatch.engine_source`. With `path`, the engine stands elsewhere, and
            the body's `model` is a further one. With `deployment`, the upstream ignores it.
        body: the whole body as it came.
        content_type: value of the header, "" without one.
        content_encoding: value of the header, "" without one; gzip and deflate can be read.
        limit: largest body, in bytes, as it came and decompressed.

    Raises:
        InvalidRequest: the body can be read in no way or in several. The message never repeats any of it.
        PayloadTooLarge: the body is over the limit.
    """
    default, _, field = source.partition(":")
    field = field or "model"
    if len(body) > limit:
        raise _too_large()
    body = _decompressed(body, content_encoding.strip().lower(), limit)
    if not body:
        return NamedModels("")
    media_type, parameters = parse_header(content_type)
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest("The request body's charset must be UTF-8.")
    if media_type == "application/x-www-form-urlencoded":
        named = _from_urlencoded(body, field)
    elif media_type == "multipart/form-data":
        named = _from_fields(engine_members(body, parameters.get("boundary", ""), field), field)
    elif media_type == "application/json" or media_type.endswith("+json") or (not media_type and default != "form"):
        named = _from_json(body, field)
    elif default in _NOT_IN_BODY and _MEDIA.fullmatch(media_type) and not _LIKE_JSON.match(body):
        return NamedModels("")  # an image or a recording
    else:
        raise InvalidRequest(
            "The request body must be JSON or a form, with the Content-Type that says so: its models must be read, because "
            "the token names models."
        )
    if default not in _NOT_IN_BODY or not named.engine:
        return named
    return NamedModels("", named.others | {named.engine} if default == "path" else named.others, named.unchecked)


def read_query_models(source: str, query: bytes) -> NamedModels:
    """
    Return the models that a query names.

    Args:
        source: `query:<key>`, from `RouteMatch.engine_source`.
        query: raw query, without the question mark.

    Raises:
        InvalidRequest: the query can be read in no way or in several.
    """
    return _from_urlencoded(query, source.partition(":")[2])


def refuse_query_models(query: bytes) -> None:
    """
    Refuse a query that names a model, for a request whose engine stands elsewhere.

    Args:
        query: raw query, without the question mark.

    Raises:
        InvalidRequest: it names one.
    """
    pairs = parse_qsl(query.replace(b";", b"&").decode("latin-1"), keep_blank_values=True)
    if any(could_name_engine(name, "model") for name, _ in pairs):
        raise InvalidRequest("The request names its model in a way that can't be checked.", param="model")


def _from_json(body: bytes | bytearray, field: str) -> NamedModels:
    try:
        value = json_pairs(body if len(body) <= LARGE_BODY_BYTES else outline(body), max_depth=_MAX_DEPTH)
    except ValueError as refusal:
        raise InvalidRequest(f"The request body {refusal}.") from None
    if not isinstance(value, tuple):
        raise InvalidRequest("The request body must be a JSON object.")
    try:
        others, unchecked = find_models(value, lambda key: could_name_engine(key, field), _MAX_MEMBERS)
    except OverflowError:
        raise PayloadTooLarge(_TOO_MANY) from None
    for other in others:
        check_engine(other, field)
    return NamedModels(only_engine(value, field), others, unchecked)


def _from_fields(members: list[tuple[str, str]], field: str) -> NamedModels:
    unchecked = any(field_kind(name, field) is FieldKind.OTHER for name, _ in members)
    return NamedModels(only_engine(members, field), unchecked=unchecked)


def _from_urlencoded(body: bytes | bytearray, field: str) -> NamedModels:
    try:
        if b";" in body:  # a separator for some readers; clients escape it
            raise ValueError
        members = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise InvalidRequest("The form can't be read.") from None
    return _from_fields(members, field)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge("The request body is too large to read its model, which the token's models make necessary.")


def _decompressed(body: bytes | bytearray, encoding: str, limit: int) -> bytes | bytearray:
    """Undo gzip, deflate (a zlib stream; some clients send a bare one) or no encoding (RFC 9110, 8.4.1)."""
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
        # One byte over the limit tells a body that is too large from one that just fits.
        plain = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequest("The request body is not what its Content-Encoding says.") from None
    if len(plain) > limit:
        raise _too_large()
    if not decoder.eof or decoder.unused_data:  # cut off, or followed by data that another reader may decompress
        raise InvalidRequest("The request body is not what its Content-Encoding says.")
    return plain
