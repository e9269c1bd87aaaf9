"""The handshake: where the token is found, and what travels on."""

import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trustme

from aisbreaker_mw import create_app

from ...ports import free_port
from ...support import bearer, mint, serve, settings
from .support import KEY_SUBPROTOCOL, LIVE, REALTIME, SECRET, URL, Service, closing, gateway, opening, refused, service

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
async def test_the_token_is_found_and_replaced(front: str, echoing: Service, carrier: str) -> None:
    token = mint(front, ("realtime:openai.com", SECRET))
    async with opening(front, **CARRIERS[carrier](token)) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert echoing.path == "/v1/realtime?model=gpt-realtime"
    assert [value for name, value in echoing.headers if name == "authorization"] == [f"Bearer {SECRET}"]
    assert token not in echoing.head
    assert "api-key" not in echoing.head
    offered = [value for name, value in echoing.headers if name == "sec-websocket-protocol"]
    assert offered == (["realtime"] if "subprotocols" in CARRIERS[carrier](token) else [])
    assert client.subprotocol == ("realtime" if offered else None)


async def test_a_live_session_by_query(front: str, echoing: Service) -> None:
    token = mint(front, ("realtime:google.com", SECRET))
    async with opening(front, f"{LIVE}?alt=x&key={token}") as client:
        await client.send(b'{"setup":{}}')
        assert await client.recv() == b'{"setup":{}}'
    assert echoing.path == LIVE.removeprefix("/gemini") + "?alt=x"
    assert ("x-goog-api-key", SECRET) in echoing.headers
    assert token not in echoing.head


async def test_the_handshake_that_travels_on(front: str, echoing: Service) -> None:
    """What speaks of the client's connection, of where it came from, or of a page stays here."""
    token = mint(front, ("", SECRET))
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
    async with opening(front, path, token, headers=headers, user_agent_header="sdk/1", **options) as client:
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


async def test_a_service_that_selects_no_subprotocol(front: str) -> None:
    """Browsers give up where none of what they offered is selected, so the one that belongs to the key's is."""
    async with service():
        token = mint(front, ("", SECRET))
        async with opening(front, subprotocols=["realtime", KEY_SUBPROTOCOL + token, "openai-beta.realtime-v1"]) as client:
            assert client.subprotocol == "realtime"
        async with opening(front, subprotocols=[KEY_SUBPROTOCOL + token]) as client:
            assert client.subprotocol is None
        async with opening(front, token=token, subprotocols=["realtime"]) as client:
            assert client.subprotocol is None


async def test_a_default_token(echoing: Service) -> None:
    key = create_app(settings(hosts=["127.0.0.1"]))
    with serve(key) as minting:
        token = mint(minting, ("", SECRET))
    with gateway(hosts=["127.0.0.1"], default_api_key=token) as front:
        async with opening(front):
            assert ("authorization", f"Bearer {SECRET}") in echoing.headers
        await closing(echoing.last)


async def test_proxies_of_the_environment_are_ignored(front: str, echoing: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    async with opening(front, token=mint_without_proxies(front)) as client:
        await client.send("hello")
        assert await client.recv() == "hello"


def mint_without_proxies(front: str) -> str:
    wanted = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": SECRET}]}}
    with httpx.Client(trust_env=False) as client:
        return str(client.post(f"{front}/api/v1/oauth/token", json=wanted).json()["access_token"])


async def test_tls_to_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    secure = URL.replace("http", "https")
    with authority.cert_pem.tempfile() as trusted:
        async with service(ssl=context):
            with gateway(secure) as front:
                assert (await refused(front, token=mint(front, ("", SECRET)))).status_code == 502
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
            with gateway(secure) as front:
                async with opening(front, token=mint(front, ("", SECRET))) as client:
                    await client.send("hello")
                    assert await client.recv() == "hello"
