"""A page of another origin in a real browser: fetch, its preflight, a stream, errors that the page can read, and WebSockets."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aisbreaker_mw import create_app

from ..sdks.vendors import PIECES, SECRETS, TEXT, Vendor, make_vendors
from ..support import bearer, mint, proxy, serve, settings, wait_until
from .chromium import BROWSER, browse
from .realtime import Realtime, realtime

PAGE = Path(__file__).with_name("page.html")
MINT = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": "x"}]}}
REALTIME_SECRET = "sk-SENTINEL-realtime"
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


class Preflights:
    """Notes the preflight requests that an app gets, and its answers to them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "OPTIONS":
                self.seen.append((scope["path"], message["status"]))
            await send(message)

        await self.app(scope, receive, note)


@contextmanager
def page_server(site: dict[str, Any]) -> Iterator[tuple[str, threading.Event, dict[str, Any]]]:
    """Serve the page and what it wants to know; gives its URL, and an event that is set when its findings are in."""
    findings: dict[str, Any] = {}
    arrived = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = {"/": PAGE.read_bytes(), "/site.json": json.dumps(site).encode()}.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("content-type", "application/json" if self.path.endswith("json") else "text/html")
            self.end_headers()
            self.wfile.write(content or b"")

        def do_POST(self) -> None:
            findings.update(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", arrived, findings
        server.shutdown()


@pytest.fixture(scope="module")
def vendors() -> Iterator[dict[str, Vendor]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(vendor) for name, vendor in make_vendors().items()}


@pytest.fixture(scope="module")
def realtime_service() -> Iterator[Realtime]:
    with realtime() as service:
        yield service


@pytest.fixture(scope="module")
def seen(
    vendors: dict[str, Vendor], realtime_service: Realtime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What the page found, and `preflights`."""
    services = {name: {"base_url": vendor.url} for name, vendor in vendors.items()}
    down = {"storage": "redis://127.0.0.1:1", "server": {"global_request_limits": {"requests_per_day": 10**6}}}
    app = Preflights(create_app(settings(services=services, upstream={"header_timeout": "300ms"})))
    with ExitStack() as stack:
        base = stack.enter_context(serve(app))
        secrets = [*((SECRETS[name], vendor.secret) for name, vendor in vendors.items()), ("*:dummy", "")]
        good = mint(base, *secrets, quotas={"globalRequestLimits": {"requestsPerDay": 1000}})
        tokens = {
            "good": good,
            "broken": good[:-8] + "AAAAAAAA",
            "other": mint(base, ("*:dummy", "")),
            "minute": mint(base, *secrets, quotas={"globalRequestLimits": {"requestsPerMinute": 1}}),
            "day": mint(base, *secrets, quotas={"globalRequestLimits": {"requestsPerDay": 1}}),
        }
        for name in ("minute", "day"):
            assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(tokens[name])).status_code == 200
        for_realtime = stack.enter_context(proxy(services={"openai": {"base_url": realtime_service.url}}))
        session = mint(for_realtime, ("realtime:openai.com/gpt-realtime", REALTIME_SECRET))
        site = {
            "base": base,
            "tokens": tokens,
            "upstreams": {name: vendor.url for name, vendor in vendors.items()},
            "withoutStorage": stack.enter_context(proxy(services=services, quotas=down)),
            "forOthers": stack.enter_context(proxy(services=services, cors_origins=["https://app.example"])),
            "realtime": {"base": for_realtime, "tokens": {"good": session, "broken": session[:-8] + "AAAAAAAA"}},
            "mint": json.dumps(MINT),
        }
        url, arrived, findings = stack.enter_context(page_server(site))
        with browse(url, tmp_path_factory.mktemp("browser")):
            assert arrived.wait(60), "the page has told nothing"
        yield {**findings, "preflights": app.seen}


def test_the_page_came_to_its_end(seen: dict[str, Any]) -> None:
    assert seen.get("crash") is None
    assert seen["origin"].startswith("http://localhost:")


def test_a_stream_is_read_as_it_comes(seen: dict[str, Any]) -> None:
    assert seen["stream"]["status"] == 200
    assert seen["stream"]["pieces"] == PIECES
    assert seen["stream"]["done"]


def test_requests_are_preceded_by_a_preflight(seen: dict[str, Any]) -> None:
    assert ("/openai/v1/chat/completions", 200) in seen["preflights"]
    assert ("/anthropic/v1/messages", 200) in seen["preflights"]
    assert ("/gemini/v1beta/models/gemini-2.5-flash:generateContent", 200) in seen["preflights"]


def test_an_answer_and_its_headers_are_readable(seen: dict[str, Any]) -> None:
    answer = seen["chat"]
    assert answer["content"]["choices"][0]["message"]["content"] == TEXT
    assert answer["headers"]["x-request-id"] == "req_openai"
    assert answer["headers"]["ratelimit"].startswith('"token-day";r=')
    assert answer["headers"]["ratelimit-policy"] == '"token-day";q=1000;w=86400'
    assert answer["headers"]["openai-processing-ms"] == "17"
    assert answer["headers"]["x-ratelimit-remaining-requests"] == "4999"
    assert seen["vendors_error"]["status"] == 404
    assert seen["vendors_error"]["content"]["error"]["code"] == "model_not_found"


def test_every_carrier_of_the_token_is_allowed(seen: dict[str, Any]) -> None:
    assert seen["anthropic"]["content"]["content"][0]["text"] == TEXT
    assert seen["anthropic"]["headers"]["request-id"] == "req_anthropic"
    for answer in (seen["gemini"], seen["gemini_query"]):
        assert answer["content"]["candidates"][0]["content"]["parts"][0]["text"] == TEXT


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("no_credential", 401, "missing_credential"),
        ("invalid", 401, "invalid_token"),
        ("not_allowed", 403, "service_not_allowed"),
        ("minute", 429, "rate_limit_exceeded"),
        ("day", 429, "rate_limit_exceeded"),
        ("garbage", 502, "upstream_error"),
        ("rejected", 502, "upstream_credential_rejected"),
        ("silent", 504, "upstream_timeout"),
        ("storage_down", 503, "quota_storage_unavailable"),
    ],
)
def test_an_error_is_readable(seen: dict[str, Any], name: str, status: int, code: str) -> None:
    answer = seen[name]
    assert (answer["status"], answer["content"]["error"]["code"]) == (status, code)
    assert answer["headers"]["x-request-id"].startswith("req_")


def test_the_headers_of_errors_are_exposed(seen: dict[str, Any]) -> None:
    minute, day = seen["minute"]["headers"], seen["day"]["headers"]
    assert 0 < int(minute["retry-after"]) <= 60
    assert int(minute["retry-after-ms"]) <= 60_000
    assert minute["x-should-retry"] is None
    assert minute["ratelimit"].startswith('"token-minute";r=0;t=')
    assert int(day["retry-after"]) > 3600
    assert day["x-should-retry"] == "false"
    assert seen["rejected"]["headers"]["x-should-retry"] == "false"
    assert int(seen["storage_down"]["headers"]["retry-after"]) >= 1


def test_origins_that_are_not_allowed_see_nothing(seen: dict[str, Any]) -> None:
    assert seen["other_origins_only"] == {"failed": "TypeError"}


def test_minting_is_for_the_same_origin_only(seen: dict[str, Any]) -> None:
    assert seen["minting"] == {"failed": "TypeError"}
    assert seen["minting_unasked"] == {"failed": "TypeError"}


def test_a_websocket(seen: dict[str, Any], realtime_service: Realtime) -> None:
    opened, message, closed = seen["realtime"]
    assert opened == ["open", "realtime", ""]
    assert message == ["message", "Grüße"]
    assert closed == ["close", 4000, "enough", True]
    wait_until(lambda: realtime_service.closings, "closing")
    assert realtime_service.closings == [(4000, "enough")]
    assert realtime_service.messages == ['{"type":"response.create"}']


def test_a_websocket_with_an_invalid_token_never_opens(seen: dict[str, Any], realtime_service: Realtime) -> None:
    assert seen["realtime_invalid"] == [["error"], ["close", 1006, "", False]]
    assert realtime_service.paths == ["/v1/realtime?model=gpt-realtime"]  # that of the valid token


def test_the_websocket_service_saw_no_trace_of_us(seen: dict[str, Any], realtime_service: Realtime) -> None:
    assert seen["realtime"]
    realtime_service.check_sealed(REALTIME_SECRET)
    (headers,) = realtime_service.headers
    assert [value for name, value in headers if name == "sec-websocket-protocol"] == ["realtime"]
    assert "origin" not in dict(headers)


def test_upstreams_saw_no_trace_of_us(seen: dict[str, Any], vendors: dict[str, Vendor]) -> None:
    assert vendors["openai"].requests
    for vendor in vendors.values():
        vendor.check_sealed()
