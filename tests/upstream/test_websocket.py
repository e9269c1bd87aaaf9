"""WebSockets over real sockets: a client of the `websockets` library, our server, and a service made with the same library."""

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import httpx
import pytest
import trustme
import websockets
from openai import AsyncOpenAI, OpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from aisbreaker_mw import AIsBreakerMiddleware, create_app
from aisbreaker_mw.client.handshake import from_allowed_page, read_handshake
from aisbreaker_mw.exceptions import InvalidRequest
from aisbreaker_mw.serving.websocket_protocol import WebSocketProtocol

from ..ports import free_port
from ..support import KEY, WAIT, bearer, mint, raw_exchange, serve, settings
from ..support import connect as connect_raw
from ..upstreams import Peer, Upstream, until

SECRET = "sk-SENTINEL-secret"
REALTIME = "/openai/v1/realtime?model=gpt-realtime"
LIVE = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
KEY_SUBPROTOCOL = "openai-insecure-api-key."
FOREIGN = "sk-somebodys-own"

Handler = Callable[[ServerConnection], Awaitable[None]]


# --- A service, a server of ours, a client ----------------------------------------------------------------------------------


class Service:
    """A WebSocket server on the test's loop; keeps every connection."""

    def __init__(self) -> None:
        self.connections: list[ServerConnection] = []

    @property
    def last(self) -> ServerConnection:
        return self.connections[-1]

    @property
    def path(self) -> str:
        assert self.last.request
        return self.last.request.path

    @property
    def headers(self) -> list[tuple[str, str]]:
        assert self.last.request
        return [(name.lower(), value) for name, value in self.last.request.headers.raw_items()]

    @property
    def head(self) -> str:
        return f"{self.path}\n{self.headers}"


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


async def hold(socket: ServerConnection) -> None:
    """Read until the end, and say nothing."""
    async for _ in socket:
        pass


PORT = free_port()
"""Where the services of these tests are, one after the other, so that one server of ours does for many."""
URL = f"http://127.0.0.1:{PORT}"


@contextlib.asynccontextmanager
async def service(handler: Handler = echo, **options: Any) -> AsyncIterator[Service]:
    made = Service()
    options = {"close_timeout": 0.2, **options}

    async def handle(socket: ServerConnection) -> None:
        made.connections.append(socket)
        with contextlib.suppress(ConnectionClosed):
            await handler(socket)

    async with serve_websockets(handle, "127.0.0.1", PORT, **options):
        yield made


class RawService(Upstream):
    """A service whose every byte is a test's."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", PORT)
        return self


def answers(raw: bytes) -> RawService:
    """A service that answers every handshake with these bytes, and closes."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(raw)

    return RawService(script)


@contextlib.contextmanager
def gateway(url: str = URL, *, serving: Any = None, clock: Any = None, **values: Any) -> Iterator[str]:
    """Run a server of ours, with the services at `url`."""
    services = {name: {"base_url": url} for name in ("openai", "gemini")}
    options = {} if clock is None else {"clock": clock}
    app = AIsBreakerMiddleware(None, settings(services=services, **values), **options)
    with serve(app, **(serving or {})) as base:
        yield base


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with gateway() as made:
        yield made


class Opening(connect):
    """As the clients of browsers and of AI SDKs: no redirect is followed."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def opening(base: str, path: str = REALTIME, token: str | None = None, **options: Any) -> Opening:
    """Open a WebSocket, as a client that obeys no proxy and offers no compression."""
    headers = {**(bearer(token) if token else {}), **options.pop("headers", {})}
    options = {"compression": None, "proxy": None, "additional_headers": headers, **options}
    return Opening(base.replace("http", "ws", 1) + path, **options)


async def refused(base: str, path: str = REALTIME, token: str | None = None, **options: Any) -> httpx.Response:
    """Return the answer that refuses a handshake."""
    with pytest.raises(InvalidStatus) as refusal:
        await opening(base, path, token, **options)
    response = refusal.value.response
    received = response.headers.raw_items()
    headers = [(name.encode("ascii"), value.encode("latin-1", "surrogateescape")) for name, value in received]
    return httpx.Response(response.status_code, headers=headers, content=bytes(response.body))


async def closing(socket: ClientConnection | ServerConnection) -> tuple[int, str]:
    """Return how the peer closes."""
    async with asyncio.timeout(WAIT):
        await socket.wait_closed()
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


@pytest.fixture
async def echoing() -> AsyncIterator[Service]:
    async with service(select_subprotocol=lambda _, offered: "realtime" if "realtime" in offered else None) as made:
        yield made


# --- The token ----------------------------------------------------------------------------------------------------------------


CARRIERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "authorization": lambda token: {"headers": bearer(token)},
    "api-key": lambda token: {"headers": {"api-key": token}},
    "x-goog-api-key": lambda token: {"headers": {"x-goog-api-key": token}},
    "query": lambda token: {"path": f"{REALTIME}&key={token}"},
    "subprotocol": lambda token: {"subprotocols": ["realtime", KEY_SUBPROTOCOL + token]},
    "subprotocol first": lambda token: {"subprotocols": [KEY_SUBPROTOCOL + token, "realtime"]},
    "bare subprotocol": lambda token: {"subprotocols": [token, "realtime"]},
    "two places": lambda token: {"headers": bearer(token), "subprotocols": ["realtime", KEY_SUBPROTOCOL + token]},
}


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_token_is_found_and_replaced(base: str, echoing: Service, carrier: str) -> None:
    token = mint(base, ("realtime:openai.com", SECRET))
    async with opening(base, **CARRIERS[carrier](token)) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert echoing.path == "/v1/realtime?model=gpt-realtime"
    assert [value for name, value in echoing.headers if name == "authorization"] == [f"Bearer {SECRET}"]
    assert token not in echoing.head
    assert "api-key" not in echoing.head
    offered = [value for name, value in echoing.headers if name == "sec-websocket-protocol"]
    assert offered == (["realtime"] if "subprotocols" in CARRIERS[carrier](token) else [])
    assert client.subprotocol == ("realtime" if offered else None)


async def test_a_live_session_by_query(base: str, echoing: Service) -> None:
    token = mint(base, ("realtime:google.com", SECRET))
    async with opening(base, f"{LIVE}?alt=x&key={token}") as client:
        await client.send(b'{"setup":{}}')
        assert await client.recv() == b'{"setup":{}}'
    assert echoing.path == LIVE.removeprefix("/gemini") + "?alt=x"
    assert ("x-goog-api-key", SECRET) in echoing.headers
    assert token not in echoing.head


async def test_the_handshake_that_travels_on(base: str, echoing: Service) -> None:
    """What speaks of the client's connection, of where it came from, or of a page stays here."""
    token = mint(base, ("", SECRET))
    headers = {
        "OpenAI-Beta": "realtime=v1",
        "X-Forwarded-For": "9.9.9.9",
        "Cookie": "a=b",
        "Keep-Alive": "1",
        "X-Latin": "f\xfcr",
        "Origin": "https://page.example",
        "Content-Length": "0",
    }
    path = "/openai/v1/some%2Fother;a=b?x=%20y&key=&z"
    options = {"subprotocols": ["realtime", "openai-organization.x"], "compression": "deflate"}
    async with opening(base, path, token, headers=headers, user_agent_header="sdk/1", **options) as client:
        assert client.protocol.extensions == []
    assert echoing.path == "/v1/some%2Fother;a=b?x=%20y&z"
    assert sorted((name, value) for name, value in echoing.headers if name != "sec-websocket-key") == [
        ("authorization", f"Bearer {SECRET}"),
        ("connection", "Upgrade"),
        ("host", URL.removeprefix("http://")),
        ("openai-beta", "realtime=v1"),
        ("sec-websocket-protocol", "realtime, openai-organization.x"),
        ("sec-websocket-version", "13"),
        ("upgrade", "websocket"),
        ("user-agent", "sdk/1"),
        ("x-latin", "f\xfcr"),
    ]
    assert client.response
    assert client.request
    assert client.request.headers["Sec-WebSocket-Key"] not in echoing.head


async def test_a_service_that_selects_no_subprotocol(base: str) -> None:
    """Browsers give up where none of what they offered is selected, so the one that belongs to the key's is."""
    async with service():
        token = mint(base, ("", SECRET))
        async with opening(base, subprotocols=["realtime", KEY_SUBPROTOCOL + token, "openai-beta.realtime-v1"]) as client:
            assert client.subprotocol == "realtime"
        async with opening(base, subprotocols=[KEY_SUBPROTOCOL + token]) as client:
            assert client.subprotocol is None
        async with opening(base, token=token, subprotocols=["realtime"]) as client:
            assert client.subprotocol is None


async def test_a_default_token(echoing: Service) -> None:
    key = create_app(settings(hosts=["127.0.0.1"]))
    with serve(key) as minting:
        token = mint(minting, ("", SECRET))
    with gateway(hosts=["127.0.0.1"], default_api_key=token) as base:
        async with opening(base):
            assert ("authorization", f"Bearer {SECRET}") in echoing.headers
        await closing(echoing.last)


async def test_proxies_of_the_environment_are_ignored(base: str, echoing: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    async with opening(base, token=mint_without_proxies(base)) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


def mint_without_proxies(base: str) -> str:
    wanted = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": SECRET}]}}
    with httpx.Client(trust_env=False) as client:
        return str(client.post(f"{base}/api/v1/oauth/token", json=wanted).json()["access_token"])


async def test_tls_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    secure = URL.replace("http", "https")
    with authority.cert_pem.tempfile() as trusted:
        async with service(ssl=context):
            with gateway(secure) as base:
                assert (await refused(base, token=mint(base, ("", SECRET)))).status_code == 502
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
            with gateway(secure) as base:
                async with opening(base, token=mint(base, ("", SECRET))) as client:
                    await client.send("hello")
                    assert await client.recv() == "hello"


# --- Refused before the upgrade -----------------------------------------------------------------------------------------------


async def test_refusals_are_answers_in_the_services_dialect(base: str, echoing: Service) -> None:
    token = mint(base, ("realtime:openai.com/gpt-realtime", SECRET), ("chat:google.com", SECRET))
    another = mint(base, ("", SECRET))

    missing = await refused(base)
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert missing.json()["error"]["code"] == "missing_credential"
    assert missing.headers["x-request-id"].startswith("req_")
    tampered = await refused(base, token=token + "x")
    assert (tampered.status_code, tampered.json()["error"]["code"]) == (401, "invalid_token")
    in_subprotocol = await refused(base, subprotocols=["realtime", f"{KEY_SUBPROTOCOL}{token}x"])
    assert (in_subprotocol.status_code, in_subprotocol.json()["error"]["code"]) == (401, "invalid_token")
    foreign = await refused(base, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN])
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (401, "invalid_token")
    two = await refused(base, token=token, subprotocols=[KEY_SUBPROTOCOL + another])
    assert (two.status_code, two.json()["error"]["code"]) == (400, "invalid_request")
    empty = await refused(base, subprotocols=["realtime", KEY_SUBPROTOCOL])
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "invalid_request")

    engine = await refused(base, "/openai/v1/realtime?model=gpt-dear", token)
    assert (engine.status_code, engine.json()["error"]["code"]) == (403, "service_not_allowed")
    assert "realtime:openai.com/gpt-dear" in engine.json()["error"]["message"]
    twice = await refused(base, f"{REALTIME}&model=gpt-dear", token)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "invalid_request")
    live = await refused(base, f"{LIVE}?key={token}")
    assert (live.status_code, live.json()["error"]["status"]) == (403, "PERMISSION_DENIED")

    assert (await refused(base, "/nothing", token)).status_code == 404
    assert (await refused(base, "/dummy/v1/realtime", another)).json()["error"]["code"] == "not_found"
    assert (await refused(base, "/openai/v1/../realtime", another)).status_code == 400
    assert echoing.connections == []


async def test_a_socket_is_counted_once_and_refused_over_the_quota(base: str, echoing: Service) -> None:
    token = mint(base, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerHour": 2}})
    async with opening(base, token=token) as client:
        assert client.response
        assert client.response.headers["ratelimit"].startswith('"token-hour";r=1')
        for _ in range(5):
            await client.send("hello")
            await client.recv()
    async with opening(base, token=token):
        pass
    over = await refused(base, token=token)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(over.headers["retry-after"]) > 60
    assert over.headers["x-should-retry"] == "false"
    assert len(echoing.connections) == 2


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        (["*"], "https://evil.example", None),
        (["https://page.example"], "https://page.example", None),
        (["https://page.example"], "https://evil.example", 403),
        ([], "null", 403),
    ],
)
async def test_a_page_of_another_origin(echoing: Service, origins: list[str], origin: str, status: int | None) -> None:
    with gateway(cors_origins=origins) as base:
        token = mint(base, ("", SECRET))
        if status is None:
            async with opening(base, token=token, origin=origin):
                pass
        else:
            assert (await refused(base, token=token, origin=origin)).status_code == status
        async with opening(base, token=token, origin=base):  # a page of our own
            pass
        await closing(echoing.last)


async def test_a_server_without_http_answers_gets_a_close() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": [(b"host", b"h")]}
    for path in ("/openai/v1/realtime", "/nothing"):
        await create_app(settings())({**scope, "path": path, "extensions": None}, receive, send)
        assert sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]
        sent.clear()


async def test_a_client_that_was_gone_before_it_was_read() -> None:
    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise AssertionError

    scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": [(b"host", b"h")]}
    await create_app(settings())(scope, receive, send)


# --- Refused by the service ---------------------------------------------------------------------------------------------------


def answer(status: str, *headers: str, body: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode("latin-1")


async def test_the_services_refusal_is_relayed(base: str) -> None:
    body = '{"error":{"message":"No such model."}}'
    headers = ["Content-Type: application/json", "X-Request-Id: req_up", "X-RateLimit-Limit: 5", "Connection: x, close", "X: y"]
    headers += ["Access-Control-Allow-Origin: https://other", "RateLimit: up", "X-Latin: f\xfcr", "Sec-WebSocket-Version: 13"]
    async with answers(answer("403 Forbidden", *headers, body=body)):
        token = mint(base, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerMinute": 9}})
        response = await refused(base, token=token)
    assert response.status_code == 403
    assert response.text == body
    assert {**response.headers, "date": ""} == {
        "content-type": "application/json",
        "x-request-id": "req_up",
        "x-ratelimit-limit": "5",
        "x-latin": "f\xfcr",
        "content-length": str(len(body)),
        "ratelimit-policy": '"token-minute";q=9;w=60',
        "ratelimit": '"token-minute";r=8;t=60',
        "connection": "close",
        "date": "",
    }


OPENED = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        pytest.param(answer("401 No", body=f"Bad key: {SECRET}"), 502, "upstream_credential_rejected", id="credential"),
        pytest.param(answer("302 Found", "Location: ws://127.0.0.1:1/"), 302, None, id="redirect"),
        pytest.param(answer("200 OK", body="a page"), 200, None, id="no WebSocket there"),
        pytest.param(answer("204 No Content"), 204, None, id="no content"),
        pytest.param(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 500, None, id="chunked"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", 502, "upstream_error", id="interim answer"),
        pytest.param(b"SSH-2.0-OpenSSH_9\r\n", 502, "upstream_error", id="garbage"),
        pytest.param(b"", 502, "upstream_error", id="closed"),
        pytest.param(b"HTTP/1.1 101 Yes\r\n" + OPENED.encode() + b"x\r\n\r\n", 502, "upstream_error", id="wrong accept"),
        pytest.param(answer("403 No", body="x" * 2_000_000), 502, "upstream_error", id="long"),
    ],
)
async def test_a_handshake_that_fails(base: str, raw: bytes, status: int, code: str | None) -> None:
    async with answers(raw) as upstream:
        response = await refused(base, token=mint(base, ("", SECRET)))
        assert response.status_code == status
        assert SECRET not in response.text
        if code is not None:
            assert response.json()["error"]["code"] == code
            assert not re.search(rf"127\.0\.0\.1|{PORT}|OpenSSH", response.text)
        assert upstream.connections == 1


@pytest.mark.parametrize("status", ["401 No", "429 Later"])
async def test_another_secret_is_tried(base: str, status: str) -> None:
    tried: list[bytes] = []

    async def script(peer: Peer) -> None:
        head = await peer.head()
        tried.extend(re.findall(rb"(?i)authorization: Bearer (\S+)", head))
        await peer.send(accepting(head) if tried[-1] == b"sk-good" else answer(status))
        await peer.closed()

    async with RawService(script):
        for secrets, expected in ((["sk-bad", "sk-good"], None), (["sk-bad", "sk-worse"], 502 if status[:3] == "401" else 429)):
            tried.clear()
            token = mint(base, ("", secrets))  # type: ignore[arg-type]
            if expected is None:
                async with opening(base, token=token):
                    pass
            else:
                assert (await refused(base, token=token)).status_code == expected
            assert tried == [secret.encode() for secret in secrets]


@pytest.mark.parametrize("header", ["Sec-WebSocket-Protocol: another", "Sec-WebSocket-Extensions: permessage-deflate"])
async def test_a_service_that_selects_what_was_not_offered(base: str, header: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head(), header))
        await peer.closed()

    async with RawService(script):
        assert (await refused(base, token=mint(base, ("", SECRET)), subprotocols=["realtime"])).status_code == 502


def accepting(head: bytes, *headers: str) -> bytes:
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert key
    lines = ["HTTP/1.1 101 Switching", OPENED + websockets.utils.accept_key(key[1].decode()), *headers, "\r\n"]
    return "\r\n".join(lines).encode()


async def test_a_service_that_cannot_be_reached(base: str) -> None:
    response = await refused(base, token=mint(base, ("", SECRET)))
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")


async def test_a_service_that_does_not_answer() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.closed()

    async with RawService(script) as upstream:
        with gateway(upstream={"header_timeout": 0.2}) as base:
            response = await refused(base, token=mint(base, ("", SECRET)))
            assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
        await until(lambda: upstream.finished == 1, "closing")


async def test_a_client_that_does_not_wait_for_the_service(base: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        client.transport.abort()
        await peer.closed()

    async with RawService(script) as upstream:
        token = mint(base, ("", SECRET))
        _, port = base.rsplit(":", 1)
        _, client = await asyncio.open_connection("127.0.0.1", int(port))
        client.write(handshake("Authorization: Bearer " + token))
        begun = time.monotonic()
        await until(lambda: upstream.finished == 1, "closing")
        assert time.monotonic() - begun < 1


async def test_a_foreign_credential_is_forwarded_where_that_is_set() -> None:
    async with answers(answer("401 No", body="your key")):
        with gateway(foreign_credentials="forward") as base:
            response = await refused(base, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN])
            assert (response.status_code, response.text) == (401, "your key")
    async with service() as there:
        with gateway(foreign_credentials="forward") as base:
            async with opening(base, subprotocols=["realtime", KEY_SUBPROTOCOL + FOREIGN]) as client:
                assert client.subprotocol == "realtime"
            assert ("authorization", f"Bearer {FOREIGN}") in there.headers
            assert ("sec-websocket-protocol", "realtime") in there.headers


class Client:
    """A client as an ASGI server shows it: what it sends is put into `incoming`, and what it gets goes through `take`."""

    def __init__(self, take: Callable[[Any], Awaitable[None]]) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.incoming.put_nowait({"type": "websocket.connect"})
        self._take = take

    async def connect(self) -> None:
        app = create_app(settings(services={"openai": {"base_url": URL}}, foreign_credentials="forward"))
        headers = [(b"host", b"h"), (b"authorization", b"Bearer " + FOREIGN.encode())]
        scope = {"type": "websocket", "path": "/openai/v1/realtime", "query_string": b"", "headers": headers}
        await app({**scope, "extensions": {"websocket.http.response": {}}}, self.incoming.get, self._take)


@pytest.mark.parametrize("raw", [b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", None], ids=["refused", "accepted"])
async def test_a_client_that_is_gone_when_the_service_answers(caplog: pytest.LogCaptureFixture, raw: bytes | None) -> None:
    async def script(peer: Peer) -> None:
        head = await peer.head()
        await peer.send(raw or accepting(head))
        await peer.closed()

    async def fail(message: Any) -> None:
        raise OSError

    async with RawService(script) as upstream:
        await Client(fail).connect()
        await until(lambda: upstream.finished == 1, "closing")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# --- Both directions ----------------------------------------------------------------------------------------------------------


async def test_messages_keep_kind_boundaries_and_order(base: str) -> None:
    messages: list[str | bytes] = [
        "text",
        b"bytes",
        "",
        b"",
        "f\xfcr \U0001f600",
        bytes(range(256)),
        "x" * 1_000_000,
        b"y" * 3_000_000,
    ]
    messages += [f"{n}" for n in range(300)]
    async with service(max_size=None), opening(base, token=mint(base, ("", SECRET)), max_size=None) as client:

        async def send() -> None:
            for message in messages:
                await client.send(message)
            await client.send(["frag", "men", "ted"])

        sending = asyncio.create_task(send())
        assert [await client.recv() for _ in messages] == messages
        assert await client.recv() == "fragmented"
        await sending


async def test_pings_are_answered_on_both_sides() -> None:
    answered = asyncio.Event()

    async def ping(socket: ServerConnection) -> None:
        await (await socket.ping(b"are you there"))
        answered.set()
        await hold(socket)

    async with service(ping):
        with gateway(serving={"ws_ping_interval": 0.05}) as base:
            async with opening(base, token=mint(base, ("", SECRET)), ping_interval=None) as client:
                async with asyncio.timeout(WAIT):
                    await answered.wait()
                    await (await client.ping(b"and you"))


@pytest.mark.parametrize("downwards", [True, False], ids=["from the service", "from the client"])
async def test_who_does_not_read_slows_the_other_side_down(base: str, downwards: bool) -> None:
    held = asyncio.Event()
    chunk = b"x" * 262_144
    sockets: list[ServerConnection] = []

    async def handle(socket: ServerConnection) -> None:
        sockets.append(socket)
        await held.wait()

    async def fill(sender: ServerConnection | ClientConnection) -> int:
        for sent in range(1000):
            try:
                async with asyncio.timeout(0.5):
                    await sender.send(chunk)
            except TimeoutError:
                return sent + 1  # the library has taken it, and waits for its buffer to go down
        raise AssertionError("250 MB were taken")

    options: dict[str, Any] = {"max_queue": 1, "ping_interval": None}
    async with service(handle, **options), opening(base, token=mint(base, ("", SECRET)), **options) as client:
        sender, reader = (sockets[0], client) if downwards else (client, sockets[0])
        sent = await fill(sender)
        assert sent < 160  # 40 MB, of which most are in the system's buffers
        async with asyncio.timeout(WAIT):
            for _ in range(sent):
                assert await reader.recv() == chunk
        held.set()


# --- The end ------------------------------------------------------------------------------------------------------------------


CLOSES = [(1000, ""), (1000, "bye"), (1001, "moving"), (1011, "bug"), (3000, "invalid_request_error.x"), (4999, "\xfc" * 61)]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_the_client_closes(base: str, code: int, reason: str) -> None:
    async with service(hold) as upstream, opening(base, token=mint(base, ("", SECRET))) as client:
        await client.close(code, reason)
        assert await closing(upstream.last) == (code, reason)


async def test_the_client_closes_without_a_code(base: str) -> None:
    async with service(hold) as upstream, opening(base, token=mint(base, ("", SECRET))) as client:
        await client.close(None)  # type: ignore[arg-type]
        assert await closing(upstream.last) == (1005, "")


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_the_service_closes(base: str, code: int, reason: str) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.send("last words")
        await socket.close(code, reason)

    async with service(close), opening(base, token=mint(base, ("", SECRET))) as client:
        assert await client.recv() == "last words"
        assert await closing(client) == (code, reason)


async def test_the_service_closes_without_a_code(base: str) -> None:
    async def close(socket: ServerConnection) -> None:
        await socket.close(None)  # type: ignore[arg-type]

    async with service(close), opening(base, token=mint(base, ("", SECRET))) as client:
        assert await closing(client) == (1000, "")


async def test_last_words_reach_a_client_that_still_talks(base: str) -> None:
    """That the service takes no more is no reason not to deliver what it has said."""

    async def close(socket: ServerConnection) -> None:
        await socket.recv()
        for n in range(50):
            await socket.send(f"{n}" + "x" * 100_000)
        await asyncio.gather(socket.close(3000, "done"), hold(socket), return_exceptions=True)

    async with service(close, close_timeout=WAIT), opening(base, token=mint(base, ("", SECRET))) as client:

        async def talk() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await client.send("and another thing")
                    await asyncio.sleep(0)

        talking = asyncio.create_task(talk())
        received = [await client.recv() for _ in range(50)]
        assert [str(message).rstrip("x") for message in received] == [f"{n}" for n in range(50)]
        assert await closing(client) == (3000, "done")
        await talking


async def test_what_was_said_is_delivered_although_the_service_takes_no_more() -> None:
    taken: list[Any] = []
    slow = asyncio.Event()

    async def take(message: Any) -> None:
        taken.append(message)
        if message.get("text") == "1":
            await slow.wait()

    async def close(socket: ServerConnection) -> None:
        for number in (1, 2, 3):
            await socket.send(f"{number}")
        await socket.close(3000, "done")
        client.incoming.put_nowait({"type": "websocket.receive", "text": "too late"})
        asyncio.get_running_loop().call_later(0.05, slow.set)

    client = Client(take)
    async with service(close):
        async with asyncio.timeout(WAIT):
            await client.connect()
    assert [message.get("text") for message in taken[1:-1]] == ["1", "2", "3"]
    assert taken[-1] == {"type": "websocket.close", "code": 3000, "reason": "done"}


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_a_server_that_takes_no_more(caplog: pytest.LogCaptureFixture, error: type[Exception]) -> None:
    """The one says that the client has gone (ASGI 2.4); the other is uvicorn's, where it has closed the socket itself."""

    async def take(message: Any) -> None:
        if message["type"] == "websocket.send":
            gone = {"type": "websocket.disconnect", "code": 4001, "reason": "bye"}
            asyncio.get_running_loop().call_later(0.05, client.incoming.put_nowait, gone)
            raise error

    async def talk(socket: ServerConnection) -> None:
        await socket.send("hello")
        await hold(socket)

    client = Client(take)
    async with service(talk) as upstream:
        await client.connect()
        assert await closing(upstream.last) == (4001, "bye")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_service_that_closes_and_does_not_hang_up(base: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head()) + b"\x88\x02\x0f\xa0")
        await peer.closed()
        await until(client_told.is_set)  # our end was cut, and this one is still open

    client_told = asyncio.Event()
    async with RawService(script):
        async with opening(base, token=mint(base, ("", SECRET))) as client:
            begun = time.monotonic()
            assert await closing(client) == (4000, "")
            assert time.monotonic() - begun < 3
        client_told.set()


FAILURES: dict[str, Callable[[ServerConnection], None]] = {
    "cut": lambda socket: socket.transport.abort(),
    "closed": lambda socket: socket.transport.close(),
    "no frame": lambda socket: socket.transport.write(b"\xff\xff SENTINEL"),
    "no UTF-8": lambda socket: socket.transport.write(b"\x81\x01\xff"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_breaks_off(base: str, failure: str) -> None:
    async def fail(socket: ServerConnection) -> None:
        FAILURES[failure](socket)
        await socket.wait_closed()

    async with service(fail), opening(base, token=mint(base, ("", SECRET))) as client:
        assert await closing(client) == (1014, "The AI service broke off.")


async def test_a_client_that_breaks_off(base: str) -> None:
    async with service(hold) as upstream, opening(base, token=mint(base, ("", SECRET))) as client:
        client.transport.abort()
        begun = time.monotonic()
        assert await closing(upstream.last) == (1005, "")
        assert time.monotonic() - begun < 1


async def test_a_client_that_breaks_off_while_it_is_sent_to(base: str) -> None:
    async def talk(socket: ServerConnection) -> None:
        while True:
            await socket.send("x" * 1000)

    async with service(talk) as upstream, opening(base, token=mint(base, ("", SECRET))) as client:
        await client.recv()
        client.transport.abort()
        begun = time.monotonic()
        await closing(upstream.last)
        assert time.monotonic() - begun < 1


async def test_a_service_that_does_not_answer_the_close_is_cut_off(base: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(accepting(await peer.head()))
        begun = time.monotonic()
        received.append(await peer.closed())
        took.append(time.monotonic() - begun)

    received: list[bytes] = []
    took: list[float] = []
    async with RawService(script):
        async with opening(base, token=mint(base, ("", SECRET))) as client:
            await client.close()
        await until(lambda: took, "the cut")
    assert received[0][:1] == b"\x88"
    assert took[0] < 3


async def test_a_long_message_from_the_client() -> None:
    async with service(hold, max_size=None) as upstream:
        with gateway(serving={"ws_max_size": 1000}) as base:
            token = mint(base, ("", SECRET))
            async with opening(base, token=token) as client:
                await client.send("x" * 1000)
                await client.send("x" * 1001)
                assert (await closing(client))[0] == 1009
                assert (await closing(upstream.last))[0] == 1009


async def test_a_long_message_where_the_server_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(hold, max_size=None) as upstream:
        with gateway(serving={"ws_max_size": 1 << 30}) as base:
            async with opening(base, token=mint(base, ("", SECRET))) as client:
                await client.send(b"x" * ((16 << 20) + 1))
                assert (await closing(client))[0] == 1009
                assert (await closing(upstream.last))[0] == 1001


async def test_a_long_message_from_the_service(base: str) -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(b"x" * (16 << 20))
        await socket.send(b"x" * ((16 << 20) + 1))
        await socket.wait_closed()

    async with service(talk) as upstream, opening(base, token=mint(base, ("", SECRET)), max_size=None) as client:
        assert len(await client.recv()) == 16 << 20
        assert (await closing(client))[0] == 1009
        assert (await closing(upstream.last))[0] == 1009


async def test_a_token_that_expires() -> None:
    now = [1000.0]
    async with service() as upstream:
        with gateway(clock=lambda: now[0]) as base:
            token = mint(base, ("", SECRET), expirationTimeSpan="1h")
            async with opening(base, token=token) as client:
                await client.send("hello")
                await client.recv()  # both directions are open, so its time runs
                now[0] = 1000 + 3600 - 0.1
                async with opening(base, token=token) as late:
                    assert await closing(late) == (1008, "The API key has expired.")
                    assert await closing(upstream.last) == (1001, "")
                assert client.close_code is None
            now[0] += 0.1
            assert (await refused(base, token=token)).status_code == 401


# --- What is told -------------------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [dict(record.msg) for record in caplog.records if record.name == "aisbreaker_mw.access"]  # type: ignore[arg-type]


async def test_one_line_per_socket_and_no_secret_in_any(base: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(socket: ServerConnection) -> None:
        assert socket.request
        await socket.send("f\xfcr" if "ok" in socket.request.path else SECRET)
        if "ok" in socket.request.path:
            await socket.close(4000, "x")
        else:
            socket.transport.abort()

    for name in ("uvicorn.error", "websockets", "websockets.client", "websockets.server", "asyncio"):
        caplog.set_level(1, name)
    caplog.set_level(1)
    async with service(fail, logger=logging.Logger("quiet")):
        token = mint(base, ("realtime:openai.com", SECRET))
        for number, path in enumerate(("/openai/v1/realtime?ok=&", "/openai/v1/realtime?"), 2):
            async with opening(base, f"{path}key={token}") as client:
                await closing(client)
            await until(lambda n=number: len(lines(caplog)) == n)  # type: ignore[misc]
        await refused(base, subprotocols=[f"{KEY_SUBPROTOCOL}{token}x"])
        await until(lambda: len(lines(caplog)) == 4)
    assert SECRET not in caplog.text
    assert token[:40] not in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    _, done, lost, turned_away = lines(caplog)
    assert (done["status"], done["bytes"], done["complete"], done["error"]) == (101, 4, True, None)
    assert (done["method"], done["service_id"], done["client"]) == ("GET", "realtime:openai.com", "127.0.0.1")
    assert done["total_ms"] >= done["first_byte_ms"] > 0
    assert (lost["status"], lost["complete"], lost["error"]) == (101, False, "response_interrupted")
    assert lost["cause"] == "ConnectionClosedError"
    assert (turned_away["status"], turned_away["error"]) == (401, "invalid_token")


async def test_how_a_failure_is_logged(base: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    token = mint(base, ("", SECRET))
    await refused(base, token=token)
    async with service(hold) as upstream, opening(base, token=token) as client:
        client.transport.abort()
        await closing(upstream.last)
        await until(lambda: len(lines(caplog)) == 3)
    _, unreachable, gone = lines(caplog)
    assert (unreachable["status"], unreachable["error"]) == (502, "upstream_error")
    assert unreachable["cause"] == "ConnectionRefusedError"
    assert (gone["status"], gone["complete"], gone["error"]) == (101, False, "client_gone")


async def test_a_socket_of_the_wrapped_app_is_told_as_well(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["aisbreaker"].jti})
        await send({"type": "websocket.close"})

    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    with serve(AIsBreakerMiddleware(app, settings())) as base:
        token = mint(base, ("", SECRET), quotas={"globalRequestLimits": {"requestsPerMinute": 1}})
        async with opening(base, "/ws", token) as client:
            assert len(await client.recv()) == 22
            assert client.response
            assert client.response.headers["ratelimit"] == '"token-minute";r=0;t=60'
        assert (await refused(base, "/ws", token)).status_code == 429
    assert [(line["status"], line["bytes"]) for line in lines(caplog)][1:] == [(101, 22), (429, lines(caplog)[2]["bytes"])]


# --- OpenAI's SDK -------------------------------------------------------------------------------------------------------------


async def converse(socket: ServerConnection) -> None:
    """Answer as the realtime API does (https://platform.openai.com/docs/api-reference/realtime)."""
    await socket.send(json.dumps({"type": "session.created", "event_id": "event_1", "session": {"type": "realtime"}}))
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "response.create":
            for number, word in enumerate(["Hello", " there"]):
                delta = {"type": "response.output_text.delta", "event_id": f"event_{number + 2}", "delta": word}
                place = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "content_index": 0}
                await socket.send(json.dumps({**delta, **place}))
            done = {"type": "response.done", "event_id": "event_9", "response": {"id": "resp_1", "status": "completed"}}
            await socket.send(json.dumps(done))


async def test_the_sdk(base: str) -> None:
    async with service(converse) as upstream:
        token = mint(base, ("realtime:openai.com/gpt-realtime", SECRET))
        async with AsyncOpenAI(base_url=f"{base}/openai/v1", api_key=token) as client:
            async with client.realtime.connect(model="gpt-realtime") as connection:
                await connection.response.create()
                words = []
                async for event in connection:
                    if event.type == "response.output_text.delta":
                        words.append(event.delta)
                    elif event.type == "response.done":
                        break
                assert words == ["Hello", " there"]
            assert upstream.path == "/v1/realtime?model=gpt-realtime"
            assert ("authorization", f"Bearer {SECRET}") in upstream.headers
            assert any(name == "user-agent" for name, _ in upstream.headers)
            with pytest.raises(InvalidStatus, match="403"):
                await client.realtime.connect(model="gpt-dear").enter()
        async with AsyncOpenAI(base_url=f"{base}/openai", api_key=f"{token}x") as client:
            with pytest.raises(InvalidStatus, match="401"):
                await client.realtime.connect(model="gpt-realtime").enter()


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")  # the SDK's business
async def test_the_sdk_without_asyncio(base: str) -> None:
    def talk(base: str, token: str) -> list[str]:
        client = OpenAI(base_url=f"{base}/openai/v1", api_key=token)
        with client, client.realtime.connect(model="gpt-realtime") as connection:
            connection.response.create()
            events: list[str] = []
            for event in connection:
                events.append(event.type)
                if event.type == "response.done":
                    return events
        raise AssertionError

    async with service(converse):
        events = await asyncio.to_thread(talk, base, mint(base, ("", SECRET)))
    assert events == ["session.created", *["response.output_text.delta"] * 2, "response.done"]


# --- `aisbreaker serve` -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def standalone(url: str, **environment: str) -> AsyncIterator[tuple[str, subprocess.Popen[str]]]:
    environment = {"AISBREAKER_KEY": KEY, "AISBREAKER_SERVICES__OPENAI__BASE_URL": url, **environment}
    command = [sys.executable, "-m", "aisbreaker_mw", "serve", "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        told = await asyncio.to_thread(process.stderr.readline)
        base = re.search(r"listening on (http://127\.0\.0\.1:\d+)", told)
        assert base, told + process.communicate()[1]
        yield base[1], process
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


def handshake(*headers: str, target: str = REALTIME, method: str = "GET", version: str = "13", key: str | None = None) -> bytes:
    key = base64.b64encode(bytes(16)).decode() if key is None else key
    always = ["Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Version: {version}"]
    lines = [f"{method} {target} HTTP/1.1", *always, f"Sec-WebSocket-Key: {key}", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def test_the_standalone_server(echoing: Service) -> None:
    async with standalone(URL, AISBREAKER_LOG_FORMAT="json") as (base, process):
        token = mint(base, ("realtime:openai.com", SECRET))
        missing = await refused(base)
        assert (missing.status_code, missing.json()["error"]["code"]) == (401, "missing_credential")
        async with opening(base, f"{REALTIME}&key={token}", compression="deflate") as client:
            assert client.protocol.extensions == []
            assert client.response
            assert len(client.response.headers.get_all("Date")) == 1
            for message in ("hello", b"\x00" * 100_000):
                await client.send(message)
                assert await client.recv() == message
            await client.close(3001, "bye")
        assert await closing(echoing.last) == (3001, "bye")

        # A socket that is open does not hold the drain up, and is told.
        async with opening(base, token=token) as client:
            process.send_signal(signal.SIGTERM)
            assert (await closing(client))[0] == 1012
            assert (await closing(echoing.last))[0] == 1012
        assert await asyncio.to_thread(process.wait, WAIT) == 0
        assert process.stderr
        told = process.stderr.read()
    sockets = [json.loads(line) for line in told.splitlines() if '"status":101' in line]
    assert [(line["bytes"], line["complete"]) for line in sockets] == [(100_005, True), (0, True)]
    assert not re.search("SENTINEL|aisbreaker_ey|Traceback", told)


# --- The server's side of the handshake ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        pytest.param(handshake(version="8"), 400, "invalid_request", id="version"),
        pytest.param(handshake("Sec-WebSocket-Version: 13"), 400, "invalid_request", id="two versions"),
        pytest.param(handshake(key="SENTINEL"), 400, "invalid_request", id="short key"),
        pytest.param(handshake(key="f\xfcr"), 400, "invalid_request", id="no base64"),
        pytest.param(handshake(key=""), 400, "invalid_request", id="no key"),
        pytest.param(handshake("Sec-WebSocket-Key: " + "A" * 22 + "=="), 400, "invalid_request", id="two keys"),
        pytest.param(handshake("X: " + "SENTINEL" * 1100), 431, "request_header_fields_too_large", id="long line"),
        pytest.param(handshake(target="/openai/?" + "x" * 9000), 431, "request_header_fields_too_large", id="long target"),
        pytest.param(handshake() + b"\x81\x80\x00\x00\x00\x00", 400, "invalid_request", id="early frame"),
        pytest.param(handshake("Sec-WebSocket-Protocol: a b"), 400, "invalid_request", id="subprotocol"),
        pytest.param(handshake("Sec-WebSocket-Protocol: "), 400, "invalid_request", id="empty subprotocol"),
        # Not an opening handshake, so the header is ignored, and the body is a body.
        pytest.param(handshake("Content-Length: 2", "Connection: close") + b"hi", 401, "missing_credential", id="body"),
        pytest.param(handshake("Connection: close", method="POST"), 401, "missing_credential", id="POST"),
    ],
)
def test_a_handshake_that_is_none(base: str, request_bytes: bytes, status: int, code: str) -> None:
    head, _, body = raw_exchange(base, request_bytes).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["code"] == code
    assert b"SENTINEL" not in head + body
    if b"Version: 8" in request_bytes:
        assert b"\r\nsec-websocket-version: 13" in head


async def test_a_frame_before_the_answer_cuts_the_connection(base: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.to_thread(client.sendall, b"\x81\x80\x00\x00\x00\x00")
        await peer.closed()

    async with RawService(script) as upstream:
        with connect_raw(base) as client:
            client.sendall(handshake("Authorization: Bearer " + mint(base, ("", SECRET))))
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1000) == b""
            await until(lambda: upstream.finished == 1, "closing")


@pytest.mark.parametrize("end", ["the token expires", "no ping is answered"])
async def test_a_client_that_reads_nothing_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    now = [1000.0]
    cut = threading.Event()

    class Protocol(WebSocketProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.close_timeout = 0.1

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            cut.set()

    async def talk(socket: ServerConnection) -> None:
        while True:
            await socket.send(b"x" * 100_000)

    monkeypatch.setattr("aisbreaker_mw.serving.websocket_protocol._CUT_AFTER", 0.1)
    monkeypatch.setattr("aisbreaker_mw.upstream.websocket._CLOSE_TIMEOUT", 0.1)
    serving = {"ws": Protocol, "ws_ping_interval": 0.2 if end == "no ping is answered" else None, "ws_ping_timeout": 0.2}
    async with service(talk, ping_interval=None) as upstream:
        with gateway(serving=serving, clock=lambda: now[0]) as base, connect_raw(base) as client:
            token = mint(base, ("", SECRET), expirationTimeSpan="1h")
            if end == "the token expires":
                now[0] += 3600 - 0.3
            client.sendall(handshake("Authorization: Bearer " + token))
            assert await asyncio.to_thread(cut.wait, WAIT)
            await closing(upstream.last)


# --- Units --------------------------------------------------------------------------------------------------------------------


def test_a_handshake_is_taken_apart() -> None:
    headers = [
        (b"host", b"h"),
        (b"sec-websocket-key", b"k"),
        (b"sec-websocket-protocol", b"realtime,\topenai-insecure-api-key.sk-1 "),
        (b"x", b"y"),
        (b"sec-websocket-protocol", b"aisbreaker_ey"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    ]
    assert read_handshake(headers) == (
        [(b"host", b"h"), (b"x", b"y"), (b"authorization", b"Bearer sk-1"), (b"authorization", b"Bearer aisbreaker_ey")],
        ["realtime"],
        True,
    )
    assert read_handshake([(b"sec-websocket-protocol", b"realtime")]) == ([], ["realtime"], False)
    assert len(headers) == 6


@pytest.mark.parametrize("value", [b"", b"a,,b", b"a b", b"a;b", b"f\xfcr", b"a,", b"\x00"])
def test_a_subprotocol_is_a_token(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_handshake([(b"sec-websocket-protocol", value)])


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, [], True),
        (b"https://a", ["https://a"], True),
        (b"https://a", ["*"], True),
        (b"https://a", ["https://ab"], False),
        (b"http://h:80", [], True),
        (b"http://h", [], False),
        (b"null", [], False),
        (b"", [], False),
    ],
)
def test_pages(origin: bytes | None, origins: list[str], allowed: bool) -> None:
    headers = [(b"host", b"h:80"), *([(b"origin", origin)] if origin is not None else [])]
    assert from_allowed_page(headers, origins) is allowed
