"""Who may do what by default: strangers' tokens, services without a key, the default token, and tokens in unusual places."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from aisbreaker_mw import AIsBreakerMiddleware, create_app
from tests.support import RecordingUpstream, bearer, mint, proxy, raw_exchange, serve, settings, towards

CHAT = "/openai/v1/chat/completions"
MINT: dict[str, Any] = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": "sk-made-up"}]}}


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as recording:
        yield recording


def mint_as(base: str, host: str, secret: str = "sk-made-up", **fields: Any) -> str:
    body = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "", "authSecret": secret}]}, **fields}
    response = httpx.post(f"{base}/api/v1/oauth/token", json=body, headers={"host": host})
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def ask(base: str, path: str, token: str, **headers: str) -> httpx.Response:
    return httpx.post(base + path, json={"model": "m"}, headers={**bearer(token), **headers})


# Strangers: tokens that the endpoint minted in mode `open`


ADDED = {"like": "openai", "vendor": "llm.internal"}


@pytest.mark.parametrize("name", ["openai", "my-vllm"], ids=["built-in service at a private address", "added service"])
def test_a_strangers_token_reaches_a_private_service_on_this_machine_only(upstream: RecordingUpstream, name: str) -> None:
    services = {"openai": {"base_url": upstream.url}, "my-vllm": {**ADDED, "base_url": upstream.url}}
    with proxy(services=services) as base:
        path = f"/{name}/v1/chat/completions"
        assert ask(base, path, mint(base, ("", "sk-1"))).status_code == 200
        refused = ask(base, path, mint_as(base, "box.local"), host="box.local")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "service_not_allowed")
        assert "services.<name>.strangers" in refused.json()["error"]["message"]
        assert len(upstream.requests) == 1


def test_forwarding_headers_do_not_make_a_stranger_local(upstream: RecordingUpstream) -> None:
    with proxy(upstream, trusted_proxies=["127.0.0.0/8"]) as base:
        token = mint_as(base, "box.local")
        refused = ask(
            base, CHAT, token, **{"host": "box.local", "x-forwarded-for": "127.0.0.1", "x-forwarded-host": "localhost"}
        )
        assert refused.status_code == 403


def test_a_service_that_allows_strangers_is_reached(upstream: RecordingUpstream) -> None:
    with proxy(services={"my-vllm": {**ADDED, "base_url": upstream.url, "strangers": "allow"}}) as base:
        assert ask(base, "/my-vllm/v1/models", mint_as(base, "box.local"), host="box.local").status_code == 200


def test_what_a_service_allows_is_not_handed_on_to_services_like_it(upstream: RecordingUpstream) -> None:
    services = {
        "first": {**ADDED, "base_url": upstream.url, "strangers": "allow", "keyless": "allow"},
        "second": {"like": "first", "base_url": upstream.url},
        "third": {"like": "network", "base_url": upstream.url},
    }
    with proxy(services=services) as base:
        token = mint_as(base, "box.local")
        codes = [ask(base, f"/{name}/v1/x", token, host="box.local").status_code for name in services]
        assert codes == [200, 403, 403]
        assert ask(base, "/third/v1/x", mint(base, ("", ""))).status_code == 403


def test_a_token_that_took_the_minting_secret_is_nobody_strange(upstream: RecordingUpstream) -> None:
    with proxy(upstream, minting={"mode": "secret", "secret": "s"}) as base:
        token = mint_as(base, "box.local", clientSecret="s")
        assert ask(base, CHAT, token, host="box.local").status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        (("127.0.0.1", 1), b"localhost:3000", 200),
        (("::1", 1), b"[::1]", 200),
        (("::ffff:127.0.0.1", 1), b"x.localhost", 200),
        (None, b"localhost", 200),
        (("203.0.113.7", 1), b"localhost", 403),
        (("10.0.0.1", 1), b"127.0.0.1", 403),
        (("127.0.0.1", 1), b"api.example.com", 403),
        (("127.0.0.1", 1), b"10.0.0.1", 403),
        (("testclient", 1), b"localhost", 403),
    ],
    ids=str,
)
async def test_connection_and_host_must_both_be_loopback(
    upstream: RecordingUpstream, peer: tuple[str, int] | None, host: bytes, status: int
) -> None:
    """The decision about the same request over loopback is remembered, and does not hold for another connection."""
    app = create_app(settings(services=towards(upstream)))

    async def call(path: str, client: tuple[str, int] | None, body: bytes, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        sent: list[Any] = []
        pieces = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return pieces.pop(0) if pieces else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(b"host", host), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        await app({**scope, "headers": raw, "client": client}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    import json

    status_of_mint, minted = await call("/api/v1/oauth/token", ("203.0.113.7", 1), json.dumps(MINT).encode())
    assert status_of_mint == 200
    token = (b"authorization", b"Bearer " + json.loads(minted)["access_token"].encode())
    for client, expected in ((("127.0.0.1", 9), None), (peer, status), (peer, status)):
        answered, _ = await call(CHAT, client, b"{}", token)
        assert expected in (None, answered)
    await app.aclose()


def test_claims_tell_that_anybody_could_mint() -> None:
    """Only where that is so: a token of another mode is the same as ever."""
    from aisbreaker_mw.tokens.sealer import TokenSealer

    sealer = TokenSealer(settings().keyring())
    with proxy() as base, proxy(minting={"mode": "secret", "secret": "s"}) as secret_base:
        host = "127.0.0.1"
        assert sealer.unseal(mint(base, ("", "sk-1")), host).open is True
        assert sealer.unseal(mint(secret_base, ("", "sk-1"), clientSecret="s"), host).open is False


# Services without a key


@pytest.mark.parametrize("secrets", [("",), ("", "later")], ids=["alone", "before another secret"])
def test_a_token_without_a_credential_reaches_no_service_that_needs_one(
    upstream: RecordingUpstream, secrets: tuple[str, ...]
) -> None:
    services = {"my-vllm": {**ADDED, "base_url": upstream.url}, "free": {**ADDED, "base_url": upstream.url, "keyless": "allow"}}
    with proxy(services=services) as base:
        token = mint(base, *(("", secret) for secret in secrets))
        refused = ask(base, "/my-vllm/v1/models", token)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "service_not_allowed")
        assert not upstream.requests
        assert ask(base, "/free/v1/models", token).status_code == 200
        assert not upstream.last.all(b"authorization")
        assert ask(base, "/dummy/v1/chat/completions", token).status_code != 403


@pytest.mark.parametrize("key", ["keyless", "strangers"])
def test_a_bad_value_is_refused_at_the_start(key: str) -> None:
    from aisbreaker_mw import ConfigurationError

    with pytest.raises(ConfigurationError, match=f"services.x.{key} takes refuse or allow"):
        create_app(settings(services={"x": {**ADDED, "base_url": "http://127.0.0.1:1", key: "yes"}}))


# Names that resolve to this machine


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:3000", 200),
        ("[::1]:3000", 200),
        ("192.168.1.7", 200),
        ("box", 200),
        ("box.local", 200),
        ("ai.internal", 200),
        ("x.localhost", 200),
        ("rebound.example.com", 421),
        ("local.example", 421),
        ("internal.", 200),
        ("evil.com.", 421),
    ],
)
def test_minting_over_loopback_needs_a_local_name(host: str, status: int) -> None:
    with proxy() as base:
        response = httpx.post(f"{base}/api/v1/oauth/token", json=MINT, headers={"host": host})
        assert response.status_code == status
        if status == 421:
            assert "Set `hosts`" in response.json()["error"]["message"]


def test_minting_with_configured_names_takes_them() -> None:
    with proxy(hosts=["api.example.com"]) as base:
        response = httpx.post(f"{base}/api/v1/oauth/token", json=MINT, headers={"host": "api.example.com"})
        assert response.status_code == 200


# The default token


@contextlib.contextmanager
def with_default_token(upstream: RecordingUpstream, **values: Any) -> Iterator[str]:
    with proxy(upstream) as base:
        token = mint(base, ("chat:openai.com", "sk-default"))
    with proxy(upstream, DEFAULT_AISBREAKER_API_KEY=token, **values) as base:
        yield base


OWN, FOREIGN = "http://{host}", "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": OWN}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": OWN}, 200),
        ({"origin": "https://app.example"}, 200),
        ({"origin": "https://app.example", "sec-fetch-site": "cross-site"}, 200),
        ({"origin": FOREIGN}, 401),
        ({"origin": "null"}, 401),
        ({"origin": FOREIGN, "sec-fetch-site": "same-origin"}, 401),
        ({"origin": FOREIGN, "content-type": "text/plain"}, 401),
        ({"sec-fetch-site": "cross-site"}, 401),
        ({"sec-fetch-site": "same-site"}, 401),
        ({"origin": "https://app.example.evil.example"}, 401),
    ],
    ids=str,
)
def test_the_default_token_is_not_for_foreign_pages(upstream: RecordingUpstream, headers: dict[str, str], status: int) -> None:
    """Whether or not the same request without a page came just before."""
    with with_default_token(upstream, cors_origins=["*", "https://app.example"]) as base:
        sent = {name: value.format(host=base.removeprefix("http://")) for name, value in headers.items()}
        assert httpx.post(base + CHAT, content=b"{}").status_code == 200
        for _ in range(2):
            response = httpx.post(base + CHAT, content=b"{}", headers=sent)
            assert response.status_code == status
            if status == 401:
                assert response.json()["error"]["code"] == "missing_credential"


def test_the_default_token_over_loopback_needs_a_local_name(upstream: RecordingUpstream) -> None:
    with proxy(upstream) as base:
        token = mint_as(base, "box.local", "sk-default")
    with proxy(upstream, DEFAULT_AISBREAKER_API_KEY=token) as base:
        # The token is bound to a name; what counts is which check comes first.
        assert httpx.post(base + CHAT, headers={"host": "rebound.example.com"}).status_code == 421


def test_somebody_elses_key_in_the_services_own_header_is_no_reason_for_the_default_token(upstream: RecordingUpstream) -> None:
    voice = {"vendor": "voice.example", "base_url": upstream.url, "credential": {"header": "xi-api-key"}}
    with proxy(services={"voice": voice}) as base:
        token = mint(base, ("", "sk-default"))
    with proxy(services={"voice": voice}, DEFAULT_AISBREAKER_API_KEY=token) as base:
        assert httpx.post(f"{base}/voice/v1/x").status_code == 200
        assert httpx.post(f"{base}/voice/v1/x", headers={"xi-api-key": "somebody's"}).status_code == 401


# Where a token may be

STYLES: dict[str, dict[str, Any]] = {
    "bare header": {"header": "xi-api-key"},
    "Token": {"header": "authorization", "format": "Token {secret}"},
    "bare Authorization": {"header": "authorization", "format": "{secret}"},
    "Key": {"header": "authorization", "format": "Key {secret}"},
    "scheme in an own header": {"header": "x-key", "format": "Secret {secret}"},
    "subscription": {"header": "ocp-apim-subscription-key"},
    "query": {"query": "api_key"},
}
SENT: dict[str, tuple[bytes, bytes]] = {
    "bare header": (b"xi-api-key", b"sk-1"),
    "Token": (b"authorization", b"Token sk-1"),
    "bare Authorization": (b"authorization", b"sk-1"),
    "Key": (b"authorization", b"Key sk-1"),
    "scheme in an own header": (b"x-key", b"Secret sk-1"),
    "subscription": (b"ocp-apim-subscription-key", b"sk-1"),
}


@pytest.mark.parametrize("style", STYLES)
def test_the_token_is_found_where_the_services_key_goes(upstream: RecordingUpstream, style: str) -> None:
    """It is taken out there, and each token is its own decision."""
    credential = STYLES[style]
    with proxy(services={"voice": {"vendor": "v.example", "base_url": upstream.url, "credential": credential}}) as base:
        tokens = [mint(base, ("", "sk-1")), mint(base, ("", "sk-2"))]
        for number, (token, _) in enumerate(itertools.product(tokens, range(2))):
            secret = b"sk-1" if number < 2 else b"sk-2"
            if "query" in credential:
                response = httpx.post(f"{base}/voice/v1/x?a=1&api_key={token}&b=2")
                assert upstream.last.target == b"/v1/x?a=1&b=2&api_key=" + secret
            else:
                value = credential.get("format", "{secret}").replace("{secret}", token)
                response = httpx.post(f"{base}/voice/v1/x", headers={credential["header"]: value})
                name, expected = SENT[style]
                assert upstream.last.all(name) == [expected.replace(b"sk-1", secret)]
            assert response.status_code == 200
            assert b"aisbreaker_" not in upstream.last.raw


@pytest.mark.parametrize("scheme", ["Token ", "token ", "", "BEARER ", "Bearer\t"], ids=repr)
def test_authorization_takes_the_schemes_of_sdks(upstream: RecordingUpstream, scheme: str) -> None:
    with proxy(upstream) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        assert httpx.post(base + CHAT, headers={"authorization": scheme + token}).status_code == 200
        assert upstream.last.all(b"authorization") == [b"Bearer sk-1"]


@pytest.mark.parametrize(
    "stray",
    [
        {"xi-api-key": "{token}"},
        {"x-foo": "{token}"},
        {"referer": "{token}"},
        {"x-foo": "aisbreaker_anything"},
        {"accept": "{token}"},
    ],
    ids=str,
)
def test_a_token_where_the_service_does_not_look_is_refused(upstream: RecordingUpstream, stray: dict[str, str]) -> None:
    """Also beside a good one, and after the same request without it was answered."""
    with proxy(upstream, DEFAULT_AISBREAKER_API_KEY="unused") as base:
        token, other = mint(base, ("chat:openai.com", "sk-1")), mint(base, ("chat:openai.com", "sk-2"))
        wrong = {name: value.format(token=other) for name, value in stray.items()}
        assert ask(base, CHAT, token).status_code == 200
        for headers in (wrong, {**bearer(token), **wrong}, {**bearer(token), **wrong}, {"x-api-key": token, **wrong}):
            response = httpx.post(base + CHAT, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
            assert other not in response.text
        assert ask(base, CHAT, token).status_code == 200
        assert len(upstream.requests) == 2


def test_a_client_may_call_itself_like_a_token(upstream: RecordingUpstream) -> None:
    with proxy(upstream) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        for _ in range(2):
            assert ask(base, CHAT, token, **{"user-agent": "aisbreaker_client/1"}).status_code == 200
            assert ask(base, CHAT, token, cookie="aisbreaker_session=1").status_code == 200
        # what is remembered of such a request does not let another one in
        assert ask(base, CHAT, token, **{"x-foo": "aisbreaker_client/1"}).status_code == 400


@pytest.mark.parametrize("query", ["token={token}", "a=1&x=%61isbreaker_%65", "api_key={token}"])
def test_a_token_in_a_parameter_that_is_no_key_is_refused(upstream: RecordingUpstream, query: str) -> None:
    with proxy(upstream) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        assert ask(base, f"{CHAT}?{query.format(token=token)}", token).status_code == 400
        assert not upstream.requests


@pytest.mark.parametrize(
    "values", [("Bearer {token}", "Bearer {token}"), ("Bearer {token}", "Basic eDp5"), ("Bearer x", "Bearer y")]
)
def test_two_authorization_fields_are_refused(upstream: RecordingUpstream, values: tuple[str, str]) -> None:
    with proxy(upstream, foreign_credentials="forward") as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        fields = "".join(f"Authorization: {value.format(token=token)}\r\n" for value in values)
        answer = raw_exchange(base, f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert not upstream.requests


# Paths of the wrapped app


async def show(scope: Any, receive: Any, send: Any) -> None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    body = repr((scope["path"], values)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("path", ["/api/v1/foo", "/api/v1/%66oo", "/%61pi/v1/foo"])
@pytest.mark.parametrize("authorization", ["Bearer {token}", "Bearer\t{token}", "bearer  {token}"], ids=repr)
def test_a_mapped_path_is_compared_as_the_app_routes_it(path: str, authorization: str) -> None:
    app = AIsBreakerMiddleware(show, settings=settings(inject={"/api/v1/foo": "chat:openai.com"}))
    with serve(app) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        head = f"GET {path} HTTP/1.1\r\nHost: {base[7:]}\r\nConnection: close\r\n"
        answer = raw_exchange(base, f"{head}Authorization: {authorization.format(token=token)}\r\n\r\n".encode())
        assert answer.endswith(b"('/api/v1/foo', [b'Bearer sk-1'])")


def test_the_token_never_reaches_the_app() -> None:
    with serve(AIsBreakerMiddleware(show, settings=settings())) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        assert httpx.get(f"{base}/page", headers=bearer(token)).text == "('/page', [])"
        assert httpx.get(f"{base}/page", headers=bearer("sk-own")).text == "('/page', [b'Bearer sk-own'])"


@pytest.mark.parametrize("authorization", ["Bearer {token}\r\nAuthorization: Bearer x", "Bearer {token} x"])
def test_a_token_beside_something_else_is_refused_on_the_apps_paths(authorization: str) -> None:
    with serve(AIsBreakerMiddleware(show, settings=settings())) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        head = f"GET /page HTTP/1.1\r\nHost: {base[7:]}\r\nConnection: close\r\n"
        answer = raw_exchange(base, f"{head}Authorization: {authorization.format(token=token)}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_mounted_app_compares_paths_below_its_mount_point() -> None:
    from starlette.applications import Starlette

    host = Starlette()
    host.mount("/ai", AIsBreakerMiddleware(show, settings=settings(inject={"/foo": "chat:openai.com"})))
    with serve(host) as base:
        token = mint(f"{base}/ai", ("chat:openai.com", "sk-1"))
        assert "Bearer sk-1" in httpx.get(f"{base}/ai/f%6fo", headers=bearer(token)).text
        assert "Bearer" not in httpx.get(f"{base}/ai/ai/foo", headers=bearer(token)).text


# Methods, headers, loops


@pytest.mark.parametrize("method", ["TRACE", "trace", "CONNECT"])
def test_a_service_gets_no_trace(upstream: RecordingUpstream, method: str) -> None:
    """It would repeat the credential. Our own server takes no CONNECT, and no method in lower case."""
    with proxy(upstream) as base:
        token = mint(base, ("", "sk-1"))
        head = f"{method} /openai/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        answer = raw_exchange(base, f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        assert answer.startswith({"TRACE": b"HTTP/1.1 405 ", "CONNECT": b"HTTP/1.1 400 ", "trace": b"HTTP/1.1 501 "}[method])
        if method == "TRACE":
            assert b"\r\nallow: GET, HEAD, POST" in answer
        assert not upstream.requests


@pytest.mark.parametrize(
    "name",
    [
        "x_original_url",
        "X_Forwarded_For",
        "x-original-url",
        "x-rewrite-url",
        "x-override-url",
        "cf-connecting-ip",
        "true-client-ip",
        "x-client-ip",
        "http2-settings",
        "x-aisbreaker-passed",
    ],
)
def test_a_header_that_others_understand_does_not_travel(upstream: RecordingUpstream, name: str) -> None:
    with proxy(upstream, minting={"mode": "secret", "secret": "s"}) as base:
        token = mint(base, ("", "sk-1"), clientSecret="s")
        for _ in range(2):
            assert ask(base, CHAT, token, **{name: "/v1/files", "x-harmless": "yes"}).status_code == 200
            assert b"/v1/files" not in upstream.last.head
            assert upstream.last.all(b"x-harmless") == [b"yes"]


def test_a_request_that_comes_back_is_refused(upstream: RecordingUpstream) -> None:
    """After its first return, however it comes back."""
    with proxy(upstream, "network") as base:

        def send_back(request: Any, connection: Any) -> bytes:
            line, _, rest = request.raw.partition(b"\r\n")
            target = line.replace(b" /", b" /network/", 1)
            return raw_exchange(base, target + b"\r\nConnection: close\r\n" + rest.replace(upstream_host, own_host))

        own_host, upstream_host = base[7:].encode(), upstream.url[7:].encode()
        upstream.script = send_back
        token = mint(base, ("aisbreaker:network", "{{secret}}"))
        response = ask(base, "/network/x", token)
        assert (response.status_code, response.json()["error"]["code"]) == (508, "loop_detected")
        assert len(upstream.requests) == 1


def test_a_chain_of_servers_has_an_end(upstream: RecordingUpstream) -> None:
    with proxy(upstream, "network") as base:
        token = mint(base, ("aisbreaker:network", "x"))
        for passed, status in ((15, 200), (16, 508)):
            fields = "X-AISBreaker-Passed: 00\r\n" * passed + f"Authorization: Bearer {token}\r\nConnection: close\r\n"
            answer = raw_exchange(base, f"GET /network/x HTTP/1.1\r\nHost: {base[7:]}\r\n{fields}\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert len(upstream.last.all(b"x-aisbreaker-passed")) == 16
