"""A sealed secret is nowhere but in what the upstream received: a hundred requests and failures, with logging at DEBUG."""

import contextlib
import io
import json
import logging
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import httpx
import pytest

from aisbreaker_mw import create_app
from aisbreaker_mw.client.address import ClientIdentifier
from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.client.exchange import Exchange
from aisbreaker_mw.credentials.carriers import PresentedCredential
from aisbreaker_mw.exceptions import ConfigurationError, InvalidRequest, RequestError
from aisbreaker_mw.http1.heads import MalformedHead
from aisbreaker_mw.quotas import QuotaLimiter
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.serving.request_head import Limits, RequestHead
from aisbreaker_mw.telemetry.logs import JSONFormatter, TextFormatter
from aisbreaker_mw.upstream import proxy as upstream_proxy
from aisbreaker_mw.upstream.request import UpstreamRequest
from aisbreaker_mw.upstream.transport.request import OutgoingRequest
from aisbreaker_mw.upstream.transport.response import ResponseReader

from ..support import RecordingUpstream, bearer, connect, mint, ok, serve, settings, towards, wait_until

SENTINEL = "sk-SENTINEL-5e4d3c2b1a"
QUERY = "QUERYSENTINEL"
SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}
CHAT = {"model": "m", "messages": []}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any logger of the process says, at its most talkative."""
    stream = io.StringIO()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(stream)]
    handlers[0].setFormatter(TextFormatter())
    handlers[1].setFormatter(JSONFormatter())
    names = [None, *logging.root.manager.loggerDict]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(1)
    for handler in handlers:
        logging.root.addHandler(handler)
    yield stream
    for handler in handlers:
        logging.root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def script(request: Any, connection: socket.socket) -> object:
    """Misbehave as the query asks for, and quote the credential wherever an upstream could."""
    quoted = SENTINEL.encode()
    behaviour = request.target.partition(b"do=")[2].partition(b"&")[0]
    match behaviour:
        case b"reject":
            body = b'{"error":"Incorrect API key provided: ' + quoted + b'"}'
            return ok(body, b"WWW-Authenticate: Bearer realm=" + quoted, status=b"401 " + quoted)
        case b"garbage":
            return quoted + b"\r\n\r\n"
        case b"bad-header":
            return b"HTTP/1.1 200 OK\r\n" + quoted + b"\r\n\r\n"
        case b"bad-length":
            return b"HTTP/1.1 200 OK\r\nContent-Length: " + quoted + b"\r\n\r\n"
        case b"bad-chunk":
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + quoted + b"\r\n"
        case b"hang-up":
            raise RecordingUpstream.Hangup
        case b"break":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
            raise RecordingUpstream.Hangup
        case b"slow":
            connection.settimeout(5)
            connection.recv(1)
    return ok()


def test_the_secret_is_nowhere_but_upstream(log: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    with RecordingUpstream(script) as upstream:
        configured = settings(
            services=towards(upstream, "openai", "anthropic", "gemini"),
            upstream={"header_timeout": "100ms"},
            log_level="DEBUG",
        )
        seen.append(repr(configured) + str(configured) + repr(create_app(configured).__dict__))
        with serve(create_app(configured), log_level="trace") as base:
            token = mint(base, ("chat:*", SENTINEL), ("other:openai.com", SENTINEL))
            limited = mint(base, ("", SENTINEL), quotas={"globalRequestLimits": {"requestsPerDay": 1}})
            expired = mint(base, ("", SENTINEL), expirationTimeSpan="1s")
            routes = ["openai/v1/chat/completions", "anthropic/v1/messages", "gemini/v1beta/models/m:generateContent"]
            paths = [
                *routes,
                "openai/v1/models",
                "openai/v1/files",
                "openai/v1/x/../y",
                "openai/v1/odd",
                "network/x",
                "nothing",
            ]
            behaviours = ["", "reject", "garbage", "bad-header", "bad-length", "bad-chunk", "hang-up", "break", "slow"]
            count = 0
            for path in paths:
                for behaviour in behaviours:
                    for headers in (bearer(token), {"x-api-key": token}) if path == routes[0] else (bearer(token),):
                        count += 1
                        url = f"{base}/{path}?do={behaviour}&q={QUERY}"
                        with contextlib.suppress(httpx.RemoteProtocolError):
                            response = httpx.post(url, json={**CHAT, "prompt": QUERY}, headers=headers)
                            seen.append(f"{response.status_code} {response.headers} {response.text}")
            for credential in (limited, limited, expired, token[:-1], f"{token}A", f"{SENTINEL}", "x"):
                count += 1
                response = httpx.post(f"{base}/{routes[0]}?key={credential}&q={QUERY}", json=CHAT)
                seen.append(f"{response.status_code} {response.headers} {response.text}")
            for body in (
                b'{"requestAuthAndQuotas":{"serviceSecrets":[{"serviceId":"chat:x","authSecret":"%b\\n"}]}}'
                % SENTINEL.encode(),
                b'{"requestAuthAndQuotas":{"serviceSecrets":[{"serviceId":"%b","authSecret":""}]}}' % SENTINEL.encode(),
                b'{"requestAuthAndQuotas":{"serviceSecrets":[{"%b":1}]}}' % SENTINEL.encode(),
                b'{"clientSecret":"%b"' % SENTINEL.encode(),
                json.dumps({"expirationTimeSpan": SENTINEL, "requestAuthAndQuotas": {"serviceSecrets": []}}).encode(),
            ):
                count += 1
                answer = httpx.post(f"{base}/api/v1/oauth/token", content=body, headers={"content-type": "application/json"})
                assert answer.status_code == 400
                seen.append(answer.text)
            with connect(base) as client:  # leaves in the middle
                client.sendall(f"POST /{routes[0]}?do=slow&q={QUERY} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
                client.sendall(f"Authorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n".encode())
            wait_until(lambda: log.getvalue().count("aisbreaker_mw.access") >= 2 * (count - 9), "the log lines")
        received = upstream.everything.decode("latin-1")
    assert count >= 100
    assert f"Bearer {SENTINEL}" in received
    assert "aisbreaker_" not in received
    captured = capfd.readouterr()
    told = "\n".join([*seen, log.getvalue(), captured.out, captured.err])
    assert "request_id=req_" in told
    assert SENTINEL not in told
    for secret in (token, limited, expired):
        assert secret.rpartition(".")[2][:24] not in told
    assert QUERY not in log.getvalue() + captured.err


# What a library or a step before says of hostile input quotes it. The error that is made of it hides that.


def read_answer(data: bytes) -> None:
    ResponseReader(True).receive(data)


def frame_body() -> None:
    RequestBody(None, 9).frame(SCOPE, {b"content-length": SENTINEL.encode()})  # type: ignore[arg-type]


def resolve(path: bytes) -> None:
    service = ServiceCatalog.load({}).get("openai")
    assert service is not None
    service.resolve("GET", path)


def fail(cause: Exception) -> None:
    """Do what the proxy does about an upstream's error."""
    try:
        raise cause
    except Exception as error:
        upstream_proxy._fail(Exchange(SCOPE, None), error)  # type: ignore[arg-type]


HIDDEN: dict[str, tuple[Callable[[], object], type[Exception], type[Exception]]] = {
    "a-header-that-is-sent": (
        lambda: OutgoingRequest("GET", b"/", [(b"a", SENTINEL.encode() + b"\r\nb: c")], b""),
        httpx.LocalProtocolError,
        MalformedHead,
    ),
    "a-request": (
        lambda: RequestHead(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % SENTINEL.encode(), Limits()),
        InvalidRequest,
        MalformedHead,
    ),
    "an-answer": (
        lambda: read_answer(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % SENTINEL.encode()),
        httpx.RemoteProtocolError,
        MalformedHead,
    ),
    "framing": (
        lambda: read_answer(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % SENTINEL.encode()),
        httpx.RemoteProtocolError,
        MalformedHead,
    ),
    "chunks": (
        lambda: read_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n" % SENTINEL.encode()),
        httpx.RemoteProtocolError,
        httptools.HttpParserError,
    ),
    "a-body": (frame_body, InvalidRequest, MalformedHead),
    "a-path": (lambda: resolve(b"/v1/%b%%ff" % SENTINEL.encode()), InvalidRequest, UnicodeDecodeError),
    "a-network": (lambda: ClientIdentifier([SENTINEL]), ValueError, ValueError),
    "a-storage": (lambda: QuotaLimiter(f"redis+none://{SENTINEL}"), ConfigurationError, Exception),
    "an-upstream-error": (lambda: fail(httpx.ReadError(SENTINEL)), RequestError, httpx.ReadError),
}


@pytest.mark.parametrize(("act", "expected", "context"), HIDDEN.values(), ids=HIDDEN)
def test_what_an_error_hides_stays_hidden(
    act: Callable[[], object], expected: type[Exception], context: type[Exception]
) -> None:
    with pytest.raises(expected) as caught:
        act()
    error = caught.value
    assert error.__suppress_context__
    assert error.__cause__ is None
    assert isinstance(error.__context__, context)
    assert SENTINEL not in "".join(traceback.format_exception(error))


def test_no_repr_shows_a_credential() -> None:
    held = [(b"authorization", b"Bearer " + SENTINEL.encode())]
    request = UpstreamRequest("GET", ("http", "a", 80), b"/?key=" + SENTINEL.encode(), held)
    for shown in (request, PresentedCredential(SENTINEL, False), OutgoingRequest("GET", b"/", held, SENTINEL.encode())):
        assert SENTINEL not in f"{shown!r} {shown}"
