"""Pages and the default token, in a real browser; and a service's page, which is no page of this origin."""

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aisbreaker_mw import AIsBreakerMiddleware

from ..support import Recorded, RecordingUpstream, mint, ok, proxy, serve, settings, towards, wait_until
from .chromium import BROWSER, browse

HERE = Path(__file__).parent
SECRET = "sk-of-the-default-token"
WAYS = {
    *("cors", "get", "no-cors", "no-cors-get", "preflight", "image", "script", "style", "frame", "form", "form-get", "beacon"),
    "socket",
}
"""The ways in which a page sends a request."""
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


class Site:
    """
    An app with a page, which keeps what the page finds.

    Args:
        page: the file of the page.
        told: what the page wants to know.
    """

    def __init__(self, page: str, told: dict[str, Any] | None = None) -> None:
        self._content = {"/": (HERE / page).read_bytes()}
        self.told = told or {}
        self.findings: dict[str, Any] = {}
        self.arrived = threading.Event()
        self.requests: list[tuple[str, bytes | None]] = []
        """Path and Cookie of each request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for state in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{state}.complete"})
            return
        self.requests.append((scope["path"], dict(scope["headers"]).get(b"cookie")))
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/findings":
            self.findings.update(json.loads(body))
            self.arrived.set()
        content = json.dumps(self.told).encode() if scope["path"] == "/site.json" else self._content.get(scope["path"])
        kind = b"application/json" if scope["path"].endswith("json") else b"text/html"
        head = [(b"content-type", kind), (b"content-length", b"%d" % len(content or b""))]
        await send({"type": "http.response.start", "status": 404 if content is None else 200, "headers": head})
        await send({"type": "http.response.body", "body": content or b""})


class Noting:
    """Notes the statuses of an app's responses to requests for a service, by the last part of their path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.statuses: dict[str, set[int]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"].endswith("http.response.start") and scope.get("method") != "OPTIONS":
                self.statuses.setdefault(scope["path"].rpartition("/")[2], set()).add(message["status"])
            await send(message)

        await self.app(scope, receive, note)


def default_token(upstream: RecordingUpstream) -> str:
    with proxy(upstream) as base:
        return mint(base, ("", SECRET))


class Visit:
    """A page's visit to a server with a default token: what it found, what the server replied, what the service got."""

    def __init__(self, page: str, home: Path) -> None:
        with ExitStack() as stack:
            upstream = stack.enter_context(RecordingUpstream())
            own = Site("attempts.html", {"page": page, "base": ""})
            other = own if page == "own" else Site("attempts.html", {"page": page})
            elsewhere = stack.enter_context(serve(other)).replace("127.0.0.1", "localhost")
            app = AIsBreakerMiddleware(
                own,
                settings=settings(
                    services=towards(upstream),
                    cors_origins=["*", elsewhere] if page == "listed" else ["*"],
                    DEFAULT_AISBREAKER_API_KEY=default_token(upstream),
                ),
            )
            noting = Noting(app)
            base = stack.enter_context(serve(noting))
            other.told["base"] = base
            stack.enter_context(browse(base if page == "own" else elsewhere, home))
            assert other.arrived.wait(60), "the page has told nothing"
            wait_until(lambda: "beacon" in noting.statuses, "the beacon")
            self.findings = other.findings
            self.statuses = {way: noting.statuses.get(way) for way in WAYS}
            self.got = {
                request.target.partition(b"?")[0].rpartition(b"/")[2].decode()
                for request in upstream.requests
                if request.all(b"authorization") == [b"Bearer " + SECRET.encode()]
            }
        assert self.findings.get("crash") is None


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return Visit("foreign", tmp_path_factory.mktemp("foreign"))


def test_a_page_of_another_origin_spends_nothing(foreign: Visit) -> None:
    """Every one of its requests came, and none of them reached the service."""
    assert foreign.findings["origin"].startswith("http://localhost:")
    assert foreign.statuses == {way: {401} for way in WAYS}
    assert foreign.got == set()


def test_a_page_of_another_origin_reads_nothing_but_the_refusal(foreign: Visit) -> None:
    for name in ("cors", "get", "preflight"):
        assert foreign.findings[name]["status"] == 401
        assert json.loads(foreign.findings[name]["text"])["error"]["code"] == "missing_credential"
    assert foreign.findings["opaque"] == {"status": 0, "type": "opaque", "text": ""}


def test_a_page_of_this_origin_may(tmp_path: Path) -> None:
    visit = Visit("own", tmp_path)
    assert visit.got >= WAYS - {"socket"}
    assert visit.findings["cors"] == {"status": 200, "type": "basic", "text": '{"ok":true}'}


def test_a_page_of_a_listed_origin_may_where_the_browser_names_its_origin(tmp_path: Path) -> None:
    visit = Visit("listed", tmp_path)
    assert visit.got >= {"cors", "get", "preflight", "no-cors", "form", "beacon"}
    assert visit.findings["cors"] == {"status": 200, "type": "cors", "text": '{"ok":true}'}
    # a GET by an element has no Origin, so it could be any page's
    assert {way for way in WAYS if visit.statuses[way] == {401}} == {
        *("no-cors-get", "image", "script", "style", "frame", "form-get")
    }


# A service's page


def service_page(request: Recorded, _: Any) -> bytes:
    """Answer with a page that tries what it can, as HTML, as an image, and without a type."""
    name = request.target.rpartition(b"/")[2].rpartition(b"?")[2]
    body = (HERE / "error.html").read_bytes().replace(b"@name@", name)
    cookies = (b"Set-Cookie: by-header=1; Path=/", b"Set-Cookie: hidden=1; Path=/; HttpOnly")
    if name == b"code.js":
        return ok(b"tell('code')").replace(b"application/json", b"text/javascript")
    if name == b"image.svg":
        svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('/ran/svg', {method: 'POST'})</script></svg>"
        return ok(svg, *cookies).replace(b"application/json", b"image/svg+xml")
    answer = ok(body, *cookies, status=b"404 Not Found")
    kind = b"" if name == b"untyped" else b"Content-Type: text/html\r\n"
    return answer.replace(b"Content-Type: application/json\r\n", kind)


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The wrapped app, after its page has shown the service's in frames, and has given way to it."""
    own = Site("opener.html")
    with RecordingUpstream(service_page) as upstream:
        values = {"services": towards(upstream), "DEFAULT_AISBREAKER_API_KEY": default_token(upstream)}
        home = tmp_path_factory.mktemp("opener")
        with serve(AIsBreakerMiddleware(own, settings=settings(**values))) as base, browse(base, home):
            assert own.arrived.wait(60), "the page has told nothing"
            wait_until(lambda: "/seen/alone" in [path for path, _ in own.requests], "the last page's image", 20)
    return own


def test_a_services_page_is_shown_without_its_scripts(opener: Site) -> None:
    paths = [path for path, _ in opener.requests]
    assert {"/seen/error.html", "/seen/alone", "/missing"} <= set(paths)
    assert not [path for path in paths if path.startswith("/ran")]


def test_a_services_page_is_of_another_origin(opener: Site) -> None:
    assert opener.findings.get("crash") is None
    assert {name: found for name, found in opener.findings.items() if name not in ("cookie", "stored")} == dict.fromkeys(
        ("error.html", "image.svg", "untyped"), "another origin"
    )
    assert opener.findings["stored"] is None


def test_a_services_page_leaves_no_cookie(opener: Site) -> None:
    assert opener.findings["cookie"] == ""
    assert {cookie for _, cookie in opener.requests} == {None}
