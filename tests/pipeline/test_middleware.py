"""The three ways of a request: through the middleware wrapped around an app, mounted under one, and alone."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from aisbreaker_mw import AIsBreakerMiddleware, TokenClaims, create_app
from aisbreaker_mw.asgi import OWN_EXTENSIONS, as_pairs, route_path
from aisbreaker_mw.tokens.sealer import TokenSealer

from ..support import RecordingUpstream, bearer, mint, proxy, raw_exchange, serve, settings, towards

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def show(request: Request) -> JSONResponse:
    claims = request.scope.get("aisbreaker")
    return JSONResponse(
        {
            "path": request.url.path,
            "authorization": request.headers.get("authorization"),
            "claims": repr(claims) if claims else None,
            "body": (await request.body()).decode(),
        }
    )


def sample() -> Starlette:
    return Starlette(
        routes=[Route("/api/v1/foo", show, methods=["GET", "POST"]), Route("/page", show), Route("/api/v1/x", show)]
    )


def test_wrapped_around_an_app() -> None:
    app = sample()
    with RecordingUpstream() as upstream:
        wrapped = AIsBreakerMiddleware(
            app, settings=settings(services=towards(upstream), inject={"/api/v1/foo": "chat:openai.com"})
        )
        with serve(wrapped) as base:
            token = mint(base, ("chat:openai.com", "sk-1"), quotas={"globalRequestLimits": {"requestsPerMinute": 4}})
            # 3. anything else is the app's alone
            plain = httpx.get(f"{base}/page", headers=bearer("sk-own"))
            assert plain.json() == {"path": "/page", "authorization": "Bearer sk-own", "claims": None, "body": ""}
            assert "ratelimit" not in plain.headers
            assert httpx.get(f"{base}/nothing").text == "Not Found"
            # 2. with a token: checked, counted, claims in the scope, the credential injected where mapped
            with_token = httpx.get(f"{base}/page", headers=bearer(token))
            assert with_token.json()["authorization"] is None
            assert "TokenClaims(jti=" in with_token.json()["claims"]
            assert "sk-1" not in with_token.json()["claims"]
            assert with_token.headers["ratelimit"] == '"token-minute";r=3;t=60'
            injected = httpx.post(f"{base}/api/v1/foo", content=b'{"xxx": {', headers=bearer(token))
            assert injected.json()["authorization"] == "Bearer sk-1"
            assert injected.json()["body"] == '{"xxx": {'
            assert httpx.get(f"{base}/page", headers=bearer(token + "x")).status_code == 401
            # 1. a path of ours
            assert httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200
            assert httpx.get(f"{base}/api/v1/ping").json() == {"message": "api-pong"}
            # the quota holds over all ways
            assert httpx.get(f"{base}/page", headers=bearer(token)).status_code == 200
            assert httpx.get(f"{base}/page", headers=bearer(token)).status_code == 429
            assert httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 429
            assert httpx.get(f"{base}/page", headers=bearer("sk-own")).status_code == 200


def test_injection_needs_a_secret_for_the_mapped_service() -> None:
    wrapped = AIsBreakerMiddleware(sample(), settings=settings(inject={"/api/v1/foo": "chat:openai.com"}))
    with serve(wrapped) as base:
        token = mint(base, ("chat:anthropic.com", "sk-1"), quotas={"globalRequestLimits": {"requestsPerMinute": 1}})
        refused = httpx.get(f"{base}/api/v1/foo", headers=bearer(token))
        assert refused.status_code == 403
        assert "chat:openai.com" in refused.json()["error"]["message"]
        assert httpx.get(f"{base}/page", headers=bearer(token)).status_code == 200  # the refusal cost nothing


async def test_way_three_passes_the_same_objects() -> None:
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.append(arguments)

    wrapped = AIsBreakerMiddleware(app, settings=settings())
    for scope in (
        {"type": "http", "method": "GET", "path": "/page", "raw_path": b"/page", "headers": [], "query_string": b""},
        {"type": "websocket", "path": "/page", "raw_path": b"/page", "headers": [], "query_string": b""},
        {"type": "another", "path": "/page"},
    ):
        receive, send = object(), object()
        await wrapped(scope, receive, send)  # type: ignore[arg-type]
        given = seen.pop()
        assert given[0] is scope
        assert given[1] is receive
        assert given[2] is send


HEADERS: dict[str, Callable[[list[tuple[bytes, bytes]]], Any]] = {
    "a-list-of-lists": lambda headers: [list(header) for header in headers],
    "a-tuple-of-tuples": tuple,
    "tuples-and-lists": lambda headers: [headers[0], *map(list, headers[1:])],
}


@pytest.mark.parametrize("kind", HEADERS.values(), ids=HEADERS)
async def test_headers_may_be_any_pairs(kind: Callable[[list[tuple[bytes, bytes]]], Any]) -> None:
    """ASGI: `scope["headers"]` is an iterable of pairs. Adapters of serverless platforms make lists of them."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask(method: str, path: str, *headers: tuple[bytes, bytes]) -> Any:
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        scope["headers"] = given = kind([(b"host", b"h"), (b"content-length", str(len(body)).encode()), *headers])
        await wrapped(scope, receive, send)
        assert scope["headers"] is given
        answers = [*sent]
        sent.clear()
        return scope, answers

    wrapped = AIsBreakerMiddleware(app, settings=settings(hosts=["h"], inject={"/foo": "chat:dummy"}))
    secrets = [{"serviceId": "chat:dummy", "authSecret": "sk-1"}]
    body = json.dumps({"requestAuthAndQuotas": {"serviceSecrets": secrets}}).encode()
    _, (start, end) = await ask("POST", "/api/v1/oauth/token", (b"content-type", b"application/json"))
    assert start["status"] == 200
    authorization = (b"authorization", b"Bearer " + json.loads(end["body"])["access_token"].encode())
    # 1.
    body = json.dumps(CHAT).encode()
    for origin in ((), ((b"origin", b"http://page"),)):
        _, (start, *_) = await ask("POST", "/dummy/v1/chat/completions", authorization, *origin)
        assert start["status"] == 200
    # 2.
    body = b""
    await ask("GET", "/foo", authorization)
    assert (b"authorization", b"Bearer sk-1") in seen.pop()["headers"]
    # 3.
    scope, _ = await ask("GET", "/foo")
    assert seen.pop() is scope


async def test_the_scope_is_never_changed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["aisbreaker"].secrets[0].service_id == "chat:openai.com"
        assert (b"authorization", b"Bearer sk-1") in scope["headers"]

    sealed = AIsBreakerMiddleware(app, settings=settings(hosts=["h"], inject={"/foo": "chat:openai.com"}))
    from pydantic import SecretStr
    from starlette.datastructures import Headers

    from aisbreaker_mw import RequestQuotas, ServiceSecret

    claims = TokenClaims("j" * 22, 0, 2**40, RequestQuotas(), (ServiceSecret("chat:openai.com", SecretStr("sk-1")),))
    token = TokenSealer(settings().keyring()).seal(claims, "h")
    headers = [(b"host", b"h"), (b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/foo", "raw_path": b"/foo", "headers": headers, "query_string": b""}
    before = {**scope, "headers": list(headers)}

    async def unused(*_: Any) -> Any:
        raise AssertionError

    await sealed(scope, unused, unused)
    assert scope == before
    assert Headers(scope=scope)["authorization"] == f"Bearer {token}"


def closing(ours: AIsBreakerMiddleware) -> Any:
    """A lifespan that closes a mounted app, which gets none of its own."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await ours.aclose()

    return lifespan


@pytest.mark.parametrize("kind", ["starlette", "fastapi"])
def test_mounted_under_a_prefix(kind: str) -> None:
    with RecordingUpstream() as upstream:
        ours = create_app(settings(services=towards(upstream)))
        if kind == "fastapi":
            app: Any = FastAPI(lifespan=closing(ours))
            app.mount("/ai", ours)
        else:
            app = Starlette(routes=[Route("/page", show), Mount("/ai", ours)], lifespan=closing(ours))
        with serve(app) as root:
            base = f"{root}/ai"
            token = mint(base, ("", "sk-1"))
            assert httpx.get(f"{base}/api/v1/ping").json() == {"message": "api-pong"}
            response = httpx.post(f"{base}/openai/v1/chat/completions?a=%2F", json=CHAT, headers=bearer(token))
            assert response.status_code == 200
            assert upstream.last.target == b"/v1/chat/completions?a=%2F"
            assert httpx.get(f"{base}/nothing").json()["error"]["code"] == "not_found"
            chat = httpx.post(f"{base}/dummy/chat/completions", json={**CHAT, "stream": True}, headers=bearer(token))
            assert chat.text.endswith("data: [DONE]\n\n")


def test_added_as_middleware_of_fastapi() -> None:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    app.add_middleware(AIsBreakerMiddleware, settings=settings())
    with serve(app) as base:
        token = mint(base, ("", ""))
        assert httpx.get(f"{base}/hello").json() == {"hello": "world"}
        assert httpx.post(f"{base}/dummy/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200


def test_under_a_root_path() -> None:
    with RecordingUpstream() as upstream, serve(create_app(settings(services=towards(upstream))), root_path="/ai") as base:
        token = mint(base, ("", "sk-1"))
        assert httpx.post(f"{base}/openai/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200
        assert upstream.last.target == b"/v1/chat/completions"


def test_an_app_that_streams_through_way_two_is_not_collected() -> None:
    async def numbers() -> Any:
        for number in range(3):
            yield f"{number}\n"

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(numbers())

    with serve(AIsBreakerMiddleware(Starlette(routes=[Route("/s", stream)]), settings=settings())) as base:
        token = mint(base, ("", ""))
        assert httpx.get(f"{base}/s", headers=bearer(token)).text == "0\n1\n2\n"


def test_websockets_with_a_token_are_checked_before_the_app_runs() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["aisbreaker"].jti})
        await send({"type": "websocket.close"})

    with TestClient(AIsBreakerMiddleware(app, settings=settings())) as client:
        token = mint_with(client)
        with client.websocket_connect("/ws", headers=bearer(token)) as socket:
            assert len(socket.receive_text()) == 22
        from starlette.testclient import WebSocketDenialResponse

        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/ws", headers=bearer(token + "x")):
            pass
        assert refused.value.status_code == 401


def mint_with(client: TestClient) -> str:
    wanted = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": "sk-1"}]}}
    return str(client.post("/api/v1/oauth/token", json=wanted).json()["access_token"])


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # sockets of dead loops
def test_a_fresh_event_loop_for_every_request() -> None:
    """A test client without a context runs each request in a loop of its own; connections don't outlive theirs."""
    with RecordingUpstream() as upstream:
        services = {"openai": {"base_url": upstream.url, "strangers": "allow"}}
        client = TestClient(create_app(settings(services=services)))
        token = None
        for _ in range(3):
            if token is None:
                wanted = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": "sk"}]}}
                token = client.post("/api/v1/oauth/token", json=wanted).json()["access_token"]
            assert client.post("/openai/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200
        del client
        gc.collect()


def test_lifespan_reaches_the_app_and_closes_ours() -> None:
    happened: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            happened.append("startup")
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            happened.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})

    closed: list[bool] = []

    class Transport(httpx.AsyncHTTPTransport):
        async def aclose(self) -> None:
            closed.append(True)
            await super().aclose()

    with RecordingUpstream() as upstream:
        services = {"openai": {"base_url": upstream.url, "strangers": "allow"}}
        wrapped = AIsBreakerMiddleware(app, settings(services=services), transport=Transport())
        with TestClient(wrapped) as client:
            token = mint_with(client)
            assert client.post("/openai/v1/chat/completions", json=CHAT, headers=bearer(token)).status_code == 200
            assert happened == ["startup"]
            assert not closed
    assert happened == ["startup", "shutdown"]
    assert closed == [True]


@pytest.mark.parametrize(
    ("raw", "path", "root", "expected"),
    [
        (b"/a/b", "/a/b", "", b"/a/b"),
        (b"/ai/a%2Fb", "/ai/a/b", "/ai", b"/a%2Fb"),
        (b"/%61i/a", "/ai/a", "/ai", b"/a"),
        (b"/ai", "/ai", "/ai", b"/"),
        (b"/ai", "/ai", "/ai/", b"/"),
        (b"/ai/a", "/ai/a", "/ai/", b"/a"),
        (b"/ai/", "/ai/", "/ai/", b"/"),
        (b"/x/y/z", "/x/y/z", "/x/y", b"/z"),
        (b"/openai/v1", "/openai/v1", "/ai", b"/openai/v1"),
        (b"/aix/v1", "/aix/v1", "/ai", b"/aix/v1"),
        (b"/ai%2Fopenai/v1", "/ai/openai/v1", "/ai", b"/ai%2Fopenai/v1"),
        (None, "/a b/ü", "", b"/a%20b/%C3%BC"),
        (b"/a?q=1", "/a", "", b"/a"),
    ],
)
def test_route_path(raw: bytes | None, path: str, root: str, expected: bytes) -> None:
    scope = {"path": path, "root_path": root}
    if raw is not None:
        scope["raw_path"] = raw  # type: ignore[assignment]
    assert route_path(scope) == expected


def test_alone_every_other_path_is_not_found() -> None:
    with proxy() as base:
        token = mint(base, ("", ""), quotas={"globalRequestLimits": {"requestsPerMinute": 1}})
        assert httpx.get(f"{base}/page", headers=bearer(token)).status_code == 404
        assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).status_code == 200  # the 404 cost nothing


@pytest.mark.parametrize("kind", ["complete", "failed"])
def test_a_shutdown_of_the_app_closes_ours_whether_or_not_it_succeeds(kind: str) -> None:
    closed: list[bool] = []

    class Transport(httpx.AsyncHTTPTransport):
        async def aclose(self) -> None:
            closed.append(True)
            await super().aclose()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"lifespan.shutdown.{kind}"})

    async def run() -> list[Any]:
        wrapped = AIsBreakerMiddleware(app, settings(), transport=Transport())
        assert wrapped._parts.proxy.transport is not None  # opens it
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await wrapped({"type": "lifespan"}, send, send)
        return sent

    assert asyncio.run(run()) == [{"type": f"lifespan.shutdown.{kind}"}]
    assert closed == [True]


def test_an_endpoint_takes_no_websocket() -> None:
    """It is refused as on any other path that is none of a service."""
    head = b"GET /api/v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with proxy() as base:
        answer = raw_exchange(base, head + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_default_header_gives_way_to_the_clients_own() -> None:
    with RecordingUpstream() as upstream, proxy(upstream, "anthropic") as base:
        token = mint(base, ("", "sk-1"))
        for sent, expected in (({}, b"2023-06-01"), ({"anthropic-version": "2024-01-01"}, b"2024-01-01")):
            assert httpx.post(f"{base}/anthropic/v1/messages", json=CHAT, headers={**bearer(token), **sent}).is_success
            assert upstream.last.all(b"anthropic-version") == [expected]


def test_headers_that_the_server_may_still_extend_are_copied() -> None:
    """uvicorn on httptools appends a chunked request's trailers to the list while the app runs."""
    plain, chunked = [(b"host", b"a")], [(b"transfer-encoding", b"chunked")]
    assert as_pairs({"headers": plain}) is plain
    copied = as_pairs({"headers": chunked})
    assert copied == chunked
    assert copied is not chunked
    assert as_pairs({"headers": chunked, "extensions": OWN_EXTENSIONS}) is chunked


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_other_servers_methods_are_refused_too(method: str) -> None:
    with RecordingUpstream() as upstream:
        services = {"openai": {"base_url": upstream.url, "strangers": "allow"}}
        client = TestClient(create_app(settings(services=services)))
        refused = client.request(method, "/openai/v1/models", headers=bearer("aisbreaker_any"))
        assert refused.status_code == 405
        assert not upstream.requests


def test_an_embedded_service_sees_the_decoded_path() -> None:
    with proxy() as base:
        assert httpx.get(f"{base}/dummy/v1/m%6Fdels", headers=bearer(mint(base, ("", "")))).status_code == 200


def test_an_error_speaks_the_routes_dialect_not_the_services() -> None:
    with proxy() as base:
        answers = [httpx.post(f"{base}/gemini/v1beta/{path}", json=CHAT) for path in ("openai/chat/completions", "models/m:x")]
        assert [sorted(answer.json()["error"]) for answer in answers] == [
            ["code", "message", "param", "type"],
            ["code", "message", "status"],
        ]
