"""A response never quotes the credential, and never acts in this origin."""

import gzip
import time
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.upstream.redaction import MAX_SEARCHED_BYTES, redact_headers, redact_text

from ..support import RecordingUpstream, bearer, mint, ok, proxy

SECRET = "sk-proj-abcdefgh/12+34wxyz"
CHAT = "/openai/v1/chat/completions"
Ask = Callable[..., httpx.Response]


def error(body: bytes, *headers: bytes, status: bytes = b"403 Forbidden") -> bytes:
    return ok(body, *headers, status=status)


def ask_for(base: str, path: str = CHAT, secret: str = SECRET, **headers: str) -> httpx.Response:
    token = mint(base, ("", secret))
    return httpx.post(base + path, headers={**bearer(token), **headers}, follow_redirects=False)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"bad key {SECRET}!", "bad key ***!"),
        ("?key=sk-proj-abcdefgh%2F12%2B34wxyz&a=1", "?key=***&a=1"),
        ("?key=sk-proj-abcdefgh/12%2B34wxyz", "?key=***"),
        ('"sk-proj-abcdefgh\\/12+34wxyz"', '"***"'),
        ("Incorrect API key provided: sk-p***wxyz.", "Incorrect API key provided: ***."),
        ("Incorrect API key provided: sk***yz.", "Incorrect API key provided: ***."),
        ("key sk-proj-ab\u2026 is bad", "key *** is bad"),
        ("key \u2022\u2022\u2022wxyz is bad", "key *** is bad"),
        ("key XXXXwxyz is bad", "key *** is bad"),
        ("wait ... and see", "wait ... and see"),
        ("a** b*** s***k", "a** b*** s***k"),
        ("sk-other-***abcd", "sk-other-***abcd"),
        (f"{SECRET}{SECRET}", "******"),
    ],
)
def test_what_quotes_the_credential_is_replaced(text: str, clean: str) -> None:
    assert redact_text(text.encode(), SECRET).decode() == clean


def test_a_short_credential_is_part_of_ordinary_words() -> None:
    assert redact_text(b"INVALID argument", "INVALID") == b"INVALID argument"


@given(st.binary(max_size=60), st.text("abcXx*.", min_size=8, max_size=12))
def test_no_credential_is_left_in_any_bytes(text: bytes, credential: str) -> None:
    assert credential.encode() not in redact_text(text + credential.encode() + text, credential).replace(b"***", b"\0")


def test_headers_without_the_credential_are_the_same_object() -> None:
    headers = [(b"location", b"/x?key=other")]
    assert redact_headers(headers, SECRET) is headers


@pytest.mark.parametrize("status", [b"302 Found", b"307 Temporary Redirect", b"404 Not Found"])
def test_a_redirect_does_not_show_a_credential_of_the_query(upstream: RecordingUpstream, status: bytes) -> None:
    def redirect(request: Any, _: Any) -> bytes:
        return ok(b"", b"Location: https://elsewhere.example" + request.target, b"X-Echo: " + SECRET.encode(), status=status)

    upstream.script = redirect
    service = {"vendor": "v.example", "base_url": upstream.url, "credential": {"query": "key"}}
    with proxy(services={"voice": service}) as base:
        response = ask_for(base, "/voice/v1/x?a=1")
        assert b"sk-proj" in upstream.last.target
        assert response.headers["location"] == "https://elsewhere.example/v1/x?a=1&key=***"
        assert response.headers["x-echo"] == "***"


def chunked(body: bytes, *headers: bytes) -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 403 Forbidden", b"Transfer-Encoding: chunked", *headers])
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    return head + b"\r\n\r\n" + pieces + b"0\r\n\r\n"


QUOTING = b'{"error":{"message":"Bad key ' + SECRET.encode() + b'"}}'


@pytest.mark.parametrize("transport", ["native", "httpx"])
@pytest.mark.parametrize(
    "answer",
    [
        error(QUOTING),
        error(QUOTING, status=b"500 Internal Server Error"),
        error(gzip.compress(QUOTING), b"Content-Encoding: gzip"),
        error(zlib.compress(QUOTING), b"Content-Encoding: deflate", b'ETag: "x"'),
        chunked(QUOTING),
        chunked(gzip.compress(QUOTING), b"Content-Encoding: gzip"),
        b"HTTP/1.1 403 Forbidden\r\n\r\n" + QUOTING,
    ],
    ids=["plain", "another status", "gzip", "deflate", "chunks", "gzip in chunks", "until the end"],
)
def test_an_error_body_does_not_show_the_credential(upstream: RecordingUpstream, transport: str, answer: bytes) -> None:
    """The client gets the rest of the error, and a response that is whole."""

    def close(request: Any, connection: Any) -> None:
        connection.sendall(answer)
        raise RecordingUpstream.Hangup

    upstream.script = close
    with proxy(upstream, upstream={"transport": transport}) as base:
        response = ask_for(base)
        assert response.json() == {"error": {"message": "Bad key ***"}}
        assert int(response.headers["content-length"]) == len(response.content)
        assert not {"content-encoding", "etag"} & response.headers.keys()


@pytest.mark.parametrize(
    "body",
    [b'{"error":"something else"}', b"", b"x" * (MAX_SEARCHED_BYTES + 1), gzip.compress(b"y" * (MAX_SEARCHED_BYTES + 1))],
    ids=["small", "empty", "large", "large when decompressed"],
)
@pytest.mark.parametrize("in_chunks", [False, True], ids=["length", "chunks"])
def test_other_error_bodies_pass_byte_for_byte(upstream: RecordingUpstream, body: bytes, in_chunks: bool) -> None:
    coding = [b"Content-Encoding: gzip"] if body[:2] == b"\x1f\x8b" else []
    upstream.script = chunked(body, *coding) if in_chunks else error(body, *coding)
    with proxy(upstream) as base:
        token = mint(base, ("", SECRET))
        with httpx.stream("POST", base + CHAT, headers=bearer(token)) as response:
            assert response.status_code == 403
            assert b"".join(response.iter_raw()) == body
            assert ("content-encoding" in response.headers) == bool(coding)


def test_an_error_body_that_breaks_off_is_an_upstream_error(upstream: RecordingUpstream) -> None:
    def break_off(request: Any, connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf")
        raise RecordingUpstream.Hangup

    upstream.script = break_off
    with proxy(upstream) as base:
        assert ask_for(base).status_code == 502


@pytest.mark.parametrize(
    ("name", "path", "body", "rejected"),
    [
        ("gemini", "/gemini/v1beta/models", b'{"error":{"details":[{"reason":"API_KEY_INVALID"}]}}', True),
        ("gemini", "/gemini/v1beta/models", b'{"error":{"status":"INVALID_ARGUMENT"}}', False),
        ("xai", "/xai/v1/models", b'{"error":"Incorrect API key provided: sk***yz"}', True),
        ("openai", "/openai/v1/models", b'{"error":"Incorrect API key provided"}', False),
    ],
)
@pytest.mark.parametrize("secrets", [1, 2])
def test_a_refused_credential_is_recognised_by_the_vendors_own_words(
    upstream: RecordingUpstream, name: str, path: str, body: bytes, rejected: bool, secrets: int
) -> None:
    """Where there are several credentials, the next one is tried."""
    upstream.script = error(body, status=b"400 Bad Request")
    with proxy(upstream, name) as base:
        before = len(upstream.requests)
        values: Any = [SECRET, SECRET + "2"][:secrets]
        token = mint(base, ("", values))
        response = httpx.get(base + path, headers=bearer(token))
        assert response.status_code == (502 if rejected else 400)
        assert len(upstream.requests) - before == (secrets if rejected else 1)
        assert "sk***" not in response.text
        if rejected:
            assert response.headers["x-should-retry"] == "false"


def test_a_bad_table_of_rejections_is_refused() -> None:
    from aisbreaker_mw import ConfigurationError
    from aisbreaker_mw.services.catalog import ServiceCatalog

    for table in ("x", {"200": "x"}, {"400": 1}, {"400": ""}, {"400": "ä"}):
        with pytest.raises(ConfigurationError, match=r"services\.openai\.rejections takes a table of statuses and texts"):
            ServiceCatalog.load({"openai": {"rejections": table}})


def test_the_clients_own_credential_is_the_clients(upstream: RecordingUpstream) -> None:
    upstream.script = error(QUOTING)
    with proxy(upstream, foreign_credentials="forward") as base:
        response = httpx.post(base + CHAT, headers={"authorization": f"Bearer {SECRET}"})
        assert response.content == QUOTING


# Headers that would act in this origin


ACTING = {
    "Set-Cookie": "a=b",
    "Clear-Site-Data": '"*"',
    "Service-Worker-Allowed": "/",
    "Strict-Transport-Security": "max-age=1",
    "Refresh": "0;url=https://evil.example",
    "Alt-Svc": 'h3=":443"',
    "X-Accel-Redirect": "/internal/",
    "X-Sendfile": "/etc/passwd",
}


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found"])
def test_headers_that_act_in_this_origin_do_not_pass(upstream: RecordingUpstream, status: bytes) -> None:
    upstream.script = ok(b"{}", *(f"{name}: {value}".encode() for name, value in ACTING.items()), b"X-Other: 1", status=status)
    with proxy(upstream) as base:
        response = ask_for(base)
        assert not {name.lower() for name in ACTING} & response.headers.keys()
        assert response.headers["x-other"] == "1"


@pytest.mark.parametrize(
    ("media_type", "inert"),
    [
        ("text/html", True),
        ("Text/HTML; charset=utf-8", True),
        ("application/xhtml+xml", True),
        ("image/svg+xml", True),
        ("text/xml", True),
        (None, True),
        ("application/json", False),
        ("text/event-stream; charset=utf-8", False),
        ("audio/mpeg", False),
        ("text/plain", False),
    ],
)
def test_a_page_of_a_service_is_no_page_of_this_origin(
    upstream: RecordingUpstream, media_type: str | None, inert: bool
) -> None:
    line = f"Content-Type: {media_type}\r\n" if media_type else ""
    upstream.script = f"HTTP/1.1 200 OK\r\n{line}Content-Length: 2\r\n\r\nhi".encode()
    with proxy(upstream) as base:
        headers = ask_for(base).headers
        assert (headers.get("content-security-policy") == "sandbox") is inert
        assert (headers.get("x-content-type-options") == "nosniff") is inert


def test_a_credential_in_html_is_replaced_with_its_character_references() -> None:
    assert redact_text(b"key sk-abcdefgh&amp;, sk-abcdefgh&, sk-abcdefgh%26", "sk-abcdefgh&") == b"key ***, ***, ***"


@pytest.mark.parametrize("transport", ["native", "httpx"])
def test_an_error_that_comes_in_pieces_does_not_show_the_credential(transport: str) -> None:
    """Its first bytes have reached this server before the rest is sent."""

    def in_pieces(request: Any, connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(QUOTING))
        for at in range(0, len(QUOTING), 20):
            time.sleep(0.02)
            connection.sendall(QUOTING[at : at + 20])

    with RecordingUpstream(in_pieces) as upstream, proxy(upstream, upstream={"transport": transport}) as base:
        response = ask_for(base)
    assert response.status_code == 403
    assert response.content == QUOTING.replace(SECRET.encode(), b"***")


def test_escapes_of_json_for_html_and_of_urls_in_lower_case() -> None:
    secret = "sk-ab+cd/ef=="
    for quoted in (r"sk-ab+cd/ef\u003d\u003d", "sk-ab%2bcd%2fef%3d%3d", "sk-ab%2Bcd%2Fef%3D%3D"):
        assert redact_text(f"key {quoted}.".encode(), secret) == b"key ***."
