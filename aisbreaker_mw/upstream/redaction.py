"""
Keeps a credential out of what its own service says about it.

Services quote keys: whole in a redirect to a URL with the key in its query, or in an error that names the bad key, and in part
where they mask it (`sk-12***90AB`). So every header of a response that is no success is searched for the credential, and every
small error body. What is found is replaced by `***`.
"""

import re
import zlib
from collections.abc import AsyncIterator
from html import escape
from urllib.parse import quote, quote_plus

from ..http1.fields import RawHeaders, get
from .request import UpstreamRequest
from .senders import Received, ResponseBody

__all__ = ["MAX_SEARCHED_BYTES", "OF_THE_BODY", "examine", "redact_body", "redact_headers", "redact_text"]

MAX_SEARCHED_BYTES = 64 * 1024
"""Largest error body, in bytes, that is searched. Plain text of a compressed body counts too."""
MIN_CREDENTIAL = 8
"""Characters of a credential that is searched for. A shorter one is part of ordinary words."""
MIN_PART = 4
"""Characters of a credential, beside a mask, that give it away."""

_MASKED = b"***"
_MASK = re.compile(rb"\*{2,}|\.{3,}|(?:\xe2\x80\xa6)+|(?:\xe2\x80\xa2)+|[xX]{4,}")
_ESCAPE = re.compile(r"%[0-9A-F]{2}")
"""Escape of a URL. Some servers (.NET) write it in lower case."""
_HTML_SAFE_JSON = {ord(char): f"\\u{ord(char):04x}" for char in "<>&='"}
"""Characters that JSON writers escape for HTML (Gson; Go's encoding/json, of these `<`, `>`, `&`)."""
OF_THE_BODY = frozenset({b"content-encoding", b"content-length", b"content-md5", b"digest", b"content-digest", b"etag"})
"""Headers that describe the bytes of a body. They go where the body is replaced."""


def redact_text(text: bytes, credential: str) -> bytes:
    """
    Return a text with `***` where it quotes a credential, or masks it but shows at least four of its characters.

    Args:
        text: a header's value or a body.
        credential: ASCII; one of fewer than 8 characters is not searched for.
    """
    if len(credential) < MIN_CREDENTIAL:
        return text
    for form in _forms(credential):
        text = text.replace(form, _MASKED)
    return _redact_masked(text, credential.encode("ascii"))


def _forms(credential: str) -> list[bytes]:
    """Return a credential as it stands in plain text, URLs, JSON and HTML, the longest form first."""
    forms = {
        credential,
        credential.translate(_HTML_SAFE_JSON),
        quote(credential, safe=""),
        quote(credential),
        quote_plus(credential),
        credential.replace("/", "\\/"),
        credential.replace("\\", "\\\\").replace('"', '\\"'),
        escape(credential),
    }
    forms |= {
        _ESCAPE.sub(lambda escape: escape[0].lower(), quoted) for quoted in (quote(credential, safe=""), quote_plus(credential))
    }
    return [form.encode("ascii") for form in sorted(forms, key=len, reverse=True)]


def _redact_masked(text: bytes, credential: bytes) -> bytes:
    pieces: list[bytes] = []
    taken = 0
    for mask in _MASK.finditer(text):
        start, end = mask.span()
        before, after = _overlap(text[taken:start], credential), _overlap(credential, text[end : end + len(credential)])
        if before + after >= MIN_PART:
            pieces += [text[taken : start - before], _MASKED]
            taken = end + after
    return b"".join([*pieces, text[taken:]]) if pieces else text


def _overlap(first: bytes, second: bytes) -> int:
    """Return how many bytes at the end of one text are the beginning of another."""
    return next((n for n in range(min(len(first), len(second)), 0, -1) if first.endswith(second[:n])), 0)


def redact_headers(headers: RawHeaders, credential: str) -> RawHeaders:
    """Return headers without a credential in their values; the same object where there is none."""
    values = b"\n".join([value for _, value in headers])
    if redact_text(values, credential) == values:
        return headers
    return [(name, redact_text(value, credential)) for name, value in headers]


class _Replayed:
    """A body of which the beginning has been received already."""

    def __init__(self, pieces: list[bytes], rest: ResponseBody | None, body: ResponseBody) -> None:
        self._pieces = pieces
        self._rest = None if rest is None else aiter(rest)
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._rest is None:
            raise StopAsyncIteration
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._body.aclose()


async def _collect(received: Received) -> tuple[bytes | None, Received]:
    """
    Receive the body of a response if it is small.

    Returns:
        The body as it came, or None where it is larger than `MAX_SEARCHED_BYTES`; and the response, whose body can still be
        iterated.

    Raises:
        httpx.TransportError: the body broke off.
    """
    if received.length is not None and received.length > MAX_SEARCHED_BYTES:
        return None, received
    pieces: list[bytes] = []
    size = 0
    body = aiter(received.body)
    async for piece in body:
        pieces.append(piece)
        size += len(piece)
        if size > MAX_SEARCHED_BYTES:
            return None, received._replace(body=_Replayed(pieces, received.body, received.body))
    data = b"".join(pieces)
    return data, received._replace(body=_Replayed([data] if data else [], None, received.body))


def _plain_text(data: bytes, headers: RawHeaders) -> bytes | None:
    """
    Return a body without its content coding.

    Args:
        data: the whole body as it came.
        headers: headers of the response, names in lower case.

    Returns:
        The plain body; None where the coding can't be read (neither gzip nor deflate), or the body is too large or broken.
    """
    coding = (get(headers, b"content-encoding") or b"").strip().lower()
    if coding in (b"", b"identity"):
        return data
    if coding not in (b"gzip", b"x-gzip", b"deflate"):
        return None
    zlib_header = len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0  # RFC 1950, 2.2
    wbits = 16 + zlib.MAX_WBITS if coding != b"deflate" else zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
    decoder = zlib.decompressobj(wbits)
    try:
        plain = decoder.decompress(data, MAX_SEARCHED_BYTES + 1)
    except zlib.error:
        return None
    return None if len(plain) > MAX_SEARCHED_BYTES or not decoder.eof else plain


def redact_body(data: bytes, status: int, headers: RawHeaders, request: UpstreamRequest) -> tuple[bytes | None, bool]:
    """
    Return a plain error body without the credential, and whether it refuses the credential.

    Args:
        data: the whole body as it came.
        status: status of the response.
        headers: headers of the response, names in lower case.
        request: what was sent.

    Returns:
        The new body, without a content coding, or None where there is nothing to take out; and whether it is a refusal.
    """
    plain = _plain_text(data, headers)
    if plain is None:
        return None, False
    phrase = (request.rejections or {}).get(status)
    clean = redact_text(plain, request.credential)
    return None if clean == plain else clean, phrase is not None and phrase in plain


async def examine(received: Received, request: UpstreamRequest) -> tuple[Received, bool]:
    """
    Return a response that does not quote the credential, and whether it refuses it.

    Args:
        received: a response that is no success.
        request: what was sent.

    Raises:
        httpx.TransportError: the body broke off.
    """
    received = received._replace(headers=redact_headers(received.headers, request.credential))
    if received.status < 400:
        return received, False
    data, received = await _collect(received)
    if data is None:
        return received, False
    clean, refused = redact_body(data, received.status, received.headers, request)
    if clean is None:
        return received, refused
    kept = [header for header in received.headers if header[0] not in OF_THE_BODY]
    kept.append((b"content-length", b"%d" % len(clean)))
    return received._replace(headers=kept, length=len(clean), body=_Replayed([clean], None, received.body)), refused
