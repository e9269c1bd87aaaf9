"""The middleware under uvicorn's own protocols, and our protocols under uvicorn's command line."""

import json
from collections.abc import Iterator

import httpx
import pytest

from aisbreaker_mw import create_app
from aisbreaker_mw.client.address import ClientIdentifier

from ..ports import free_port
from ..support import KEY, RecordingUpstream, bearer, mint, proxy, raw_exchange, run_process, serve, settings, towards
from ..upstream.websocket.support import handshake
from .support import request

CLIENT, FORGED = "9.9.9.9", "1.2.3.%d"


@pytest.fixture(scope="module", params=["httptools", "h11", "ours"])
def front(request: pytest.FixtureRequest) -> Iterator[str]:
    """The base URL of a server that believes its peer's X-Forwarded-For."""
    with RecordingUpstream() as upstream:
        if request.param == "ours":
            with proxy(upstream, trusted_proxies=["127.0.0.1"]) as base:
                yield base
            return
        app = create_app(settings(services=towards(upstream), trusted_proxies=["127.0.0.1"]))
        with serve(app, http=request.param) as base:
            yield base


@pytest.mark.parametrize("forwarded", [["9.9.9.9"], ["8.8.8.8", "9.9.9.9"]], ids=["one line", "two lines"])
def test_a_trailer_is_no_client_address(front: str, forwarded: list[str]) -> None:
    token = mint(front, ("", "sk-x"), quotas={"perClientRequestLimits": {"requestsPerMinute": 1}})
    statuses = []
    for number in range(3):
        head = ["POST /openai/v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
        head += ["Transfer-Encoding: chunked", "Connection: close", *(f"X-Forwarded-For: {each}" for each in forwarded)]
        trailer = f"X-Forwarded-For: {FORGED % number}"
        answered = raw_exchange(front, "\r\n".join([*head, "", "2", "{}", "0", trailer, "", ""]).encode())
        statuses.append(int(answered.split()[1]))
    assert statuses == [200, 429, 429]


@pytest.mark.parametrize(
    ("headers", "extensions", "client"),
    [
        pytest.param([(b"x-forwarded-for", b"9.9.9.9")], None, "9.9.9.9", id="one line"),
        pytest.param([(b"x-forwarded-for", b"9.9.9.9"), (b"x-forwarded-for", b"1.2.3.4")], None, "10.0.0.1", id="two lines"),
        pytest.param(
            [(b"x-forwarded-for", b"8.8.8.8"), (b"x-forwarded-for", b"9.9.9.9")],
            {"aisbreaker.trailers_dropped": {}},
            "9.9.9.9",
            id="two lines where trailers are dropped",
        ),
    ],
)
def test_of_a_chunked_request(headers: list[tuple[bytes, bytes]], extensions: object, client: str) -> None:
    chunked = (b"transfer-encoding", b"chunked")
    scope = {"client": ("10.0.0.1", 1), "headers": [chunked, *headers], "extensions": extensions}
    assert ClientIdentifier(["10.0.0.0/8"]).identify(scope) == client


def test_our_protocols_on_uvicorns_command_line() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = ["uvicorn", "--factory", "aisbreaker_mw:create_app", "--port", str(port), "--log-level", "warning"]
    command += ["--http", "aisbreaker_mw.serving:HTTPProtocol", "--ws", "aisbreaker_mw.serving:WebSocketProtocol"]
    with RecordingUpstream() as upstream:
        environment = {"AISBREAKER_SERVICES__OPENAI__BASE_URL": upstream.url, "AISBREAKER_KEY": KEY}
        with run_process(command, f"{base}/api/v1/ping", **environment):
            token = mint(base, ("", "sk-x"))
            assert httpx.get(f"{base}/openai/v1/models", headers=bearer(token)).json() == {"ok": True}
            # uvicorn's own protocols answer these in another way.
            assert raw_exchange(base, request(b"STEAL / HTTP/1.1")).startswith(b"HTTP/1.1 501")
            refused = raw_exchange(base, handshake(key="short"))
            assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"
