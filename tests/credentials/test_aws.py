"""AWS Bedrock: the request that arrives is signed as AWS documents it, byte for byte."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import botocore.auth
import httpx
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from aisbreaker_mw import AIsBreakerMiddleware
from aisbreaker_mw.client.body import RequestBody
from aisbreaker_mw.credentials.aws import SignatureStrategy
from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.upstream.request import UpstreamRequest

from ..support import KEY, Recorded, RecordingUpstream, bearer, mint, ok, proxy, serve, settings

NOW = 1_700_000_000.0
REGION = "eu-west-1"
KEY_ID, SECRET_KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
CONVERSED = json.dumps(
    {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "metrics": {"latencyMs": 1},
    }
).encode()


@pytest.fixture
def bedrock() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as bedrock:
        yield bedrock


def at(bedrock: RecordingUpstream) -> dict[str, Any]:
    return {"bedrock": {"base_url": bedrock.url, "credential": {"strategy": "aws-sigv4", "region": REGION}}}


@pytest.fixture(params=["native", "httpx"])
def server(request: pytest.FixtureRequest, bedrock: RecordingUpstream) -> Iterator[str]:
    configured = settings(services=at(bedrock), upstream={"transport": request.param})
    with serve(AIsBreakerMiddleware(None, configured, clock=lambda: NOW)) as server:
        yield server


def signed_by_botocore(request: Recorded, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> dict[str, str]:
    """Return the headers with which botocore signs what has arrived."""
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: datetime.fromtimestamp(NOW, UTC))
    url = f"https://{request.all(b'host')[0].decode()}{request.target.decode()}"
    names = (b"host", b"content-type", b"x-amz-extra")
    headers = {name.decode(): value.decode() for name, value in request.headers if name in names}
    method = request.request_line.split(b" ")[0].decode()
    wanted = AWSRequest(method, url, headers=headers, data=request.body)
    botocore.auth.SigV4Auth(Credentials(KEY_ID, SECRET_KEY, token), "bedrock", REGION).add_auth(wanted)
    return {name.lower(): value for name, value in wanted.headers.items()}


def assert_signed(request: Recorded, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> None:
    expected = signed_by_botocore(request, monkeypatch, token)
    for name in ("authorization", "x-amz-date", "x-amz-security-token"):
        arrived = [value.decode() for value in request.all(name.encode())]
        assert arrived == ([expected[name]] if name in expected else []), name
    assert f"Credential={KEY_ID}/20231114/{REGION}/bedrock/aws4_request" in expected["authorization"]


ESCAPED = MODEL.replace(":", "%3A")
ARN = "arn%3Aaws%3Abedrock%3Aeu-west-1%3A123456789012%3Ainference-profile%2Feu.anthropic.claude-3-haiku-20240307-v1%3A0"


@pytest.mark.parametrize("operation", ["invoke", "invoke-with-response-stream", "converse", "converse-stream"])
@pytest.mark.parametrize("model", [MODEL, ESCAPED, ARN, "amazon.nova-lite-v1"], ids=["colon", "escaped", "arn", "plain"])
def test_a_request_is_signed_as_it_is_sent(
    server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, operation: str, model: str
) -> None:
    token = mint(server, ("*:aws.amazon.com", f"{KEY_ID}:{SECRET_KEY}"))
    body = '{"messages":[{"role":"user","content":[{"text":"Zwölf"}]}]}'.encode()
    headers = {**bearer(token), "content-type": "application/json", "x-amz-extra": "a  b", "x-amzn-other": "1"}
    # httpx would escape anew what it is given as a string.
    url = httpx.URL(server).copy_with(raw_path=f"/bedrock/model/{model}/{operation}".encode())
    assert httpx.post(url, content=body, headers=headers).status_code == 200
    assert bedrock.last.target == f"/model/{model}/{operation}".encode()
    assert bedrock.last.body == body
    assert bedrock.last.all(b"x-amzn-other") == [b"1"]
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-extra," in bedrock.last.all(b"authorization")[0].decode()
    assert_signed(bedrock.last, monkeypatch)


def test_a_temporary_key_has_a_session_token(server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}:session/token=="))
    ours = {"x-amz-security-token": "mine", "x-amz-date": "20000101T000000Z", "x-amz-content-sha256": "0" * 64}
    url = f"{server}/bedrock/model/m/converse"
    assert httpx.post(url, json={}, headers={**bearer(token), **ours}).status_code == 200
    assert bedrock.last.all(b"x-amz-security-token") == [b"session/token=="]
    assert bedrock.last.all(b"x-amz-date") == [b"20231114T221320Z"]
    assert bedrock.last.all(b"x-amz-content-sha256") == []
    assert_signed(bedrock.last, monkeypatch, "session/token==")


def test_a_chunked_body_arrives_with_its_length(
    server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}"))
    pieces = iter([b"x" * 300_000, b"y" * 300_000])
    assert httpx.post(f"{server}/bedrock/model/m/invoke", content=pieces, headers=bearer(token)).status_code == 200
    assert bedrock.last.all(b"content-length") == [b"600000"]
    assert bedrock.last.all(b"transfer-encoding") == []
    assert_signed(bedrock.last, monkeypatch)


def test_a_query_and_no_body(server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}"))
    response = httpx.get(f"{server}/bedrock/async-invoke?statusEquals=Completed&maxResults=2", headers=bearer(token))
    assert response.status_code == 200
    assert_signed(bedrock.last, monkeypatch)


def test_an_api_key_of_bedrocks_is_a_bearer_token(server: str, bedrock: RecordingUpstream) -> None:
    token = mint(server, ("", "ABSKQmVkcm9ja0FQSUtleQ=="))
    assert httpx.post(f"{server}/bedrock/model/m/converse", json={}, headers=bearer(token)).status_code == 200
    assert bedrock.last.all(b"authorization") == [b"Bearer ABSKQmVkcm9ja0FQSUtleQ=="]
    assert bedrock.last.all(b"x-amz-date") == []


def test_a_body_over_the_bound_is_413(bedrock: RecordingUpstream) -> None:
    with proxy(services=at(bedrock), upstream={"max_engine_scan_bytes": 1000}) as server:
        token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}"))
        response = httpx.post(f"{server}/bedrock/model/m/invoke", content=b"x" * 1001, headers=bearer(token))
    assert response.status_code == 413
    assert "signed" in response.json()["error"]["message"]
    assert not bedrock.requests


def test_the_engine_is_the_model(server: str, bedrock: RecordingUpstream) -> None:
    token = mint(server, (f"chat:aws.amazon.com/{MODEL}", f"{KEY_ID}:{SECRET_KEY}"))
    for model, status in ((MODEL, 200), (ESCAPED, 200), (ESCAPED.replace("%3A", "%3a"), 200), ("amazon.nova", 403)):
        url = httpx.URL(server).copy_with(raw_path=f"/bedrock/model/{model}/converse".encode())
        assert httpx.post(url, json={}, headers=bearer(token)).status_code == status
    assert httpx.post(f"{server}/bedrock/model/{MODEL}/invoke", json={}, headers=bearer(token)).status_code == 403
    assert len(bedrock.requests) == 3


def test_event_streams_pass(server: str, bedrock: RecordingUpstream) -> None:
    body = bytes(range(256)) * 10
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
    bedrock.script = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}"))
    response = httpx.post(f"{server}/bedrock/model/m/converse-stream", json={}, headers=bearer(token))
    assert response.headers["content-type"] == "application/vnd.amazon.eventstream"
    assert response.content == body


# What AWS's own suite of test vectors says (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-test-suite.html)

SESSION = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/"
    "qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVq"
    "r7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
VECTORS = [
    ("get-vanilla", "GET", "/", [], b"", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    ("post-vanilla", "POST", "/", [], b"", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
    (
        "get-vanilla-query-order-key-case",
        "GET",
        "/?Param2=value2&Param1=value1",
        [],
        b"",
        "",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "post-x-www-form-urlencoded",
        "POST",
        "/",
        [(b"content-type", b"application/x-www-form-urlencoded")],
        b"Param1=value1",
        "",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    (
        "post-sts-header-before",
        "POST",
        "/",
        [],
        b"",
        SESSION,
        "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    ),
]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "session", "signature"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS]
)
async def test_awss_vectors(
    method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes, session: str, signature: str
) -> None:
    now = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()
    strategy = SignatureStrategy(region="us-east-1", service="service", clock=lambda: now, max_body_bytes=1000)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    request = UpstreamRequest(
        method, ("https", "example.amazonaws.com", 443), target.encode(), [(b"host", b"example.amazonaws.com"), *headers]
    )
    secret = f"{KEY_ID}:{SECRET_KEY}" + (f":{session}" if session else "")
    signed = await strategy.authorize(request, RequestBody(receive, 1000), secret)
    authorization = dict(signed.headers)[b"authorization"].decode()
    assert re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=[a-z0-9;-]+, "
        rf"Signature={signature}",
        authorization,
    )


# What goes wrong


@pytest.mark.parametrize(
    ("status", "kind", "answered"),
    [
        (b"403 Forbidden", b"UnrecognizedClientException", 502),
        (b"403 Forbidden", b"InvalidSignatureException:http://internal.amazon.com/coral/com.amazon.coral.service/", 502),
        (b"403 Forbidden", b"com.amazon.coral.service#ExpiredTokenException", 502),
        (b"400 Bad Request", b"IncompleteSignatureException", 502),
        (b"401 Unauthorized", b"", 502),
        (b"403 Forbidden", b"AccessDeniedException", 403),
        (b"400 Bad Request", b"ValidationException", 400),
        (b"429 Too Many Requests", b"ThrottlingException", 429),
    ],
)
def test_what_aws_refuses(server: str, bedrock: RecordingUpstream, status: bytes, kind: bytes, answered: int) -> None:
    # The text for a bad signature quotes what should have been signed, a session token included.
    bedrock.script = ok(b'{"message":"x-amz-security-token:SENTINEL"}', b"x-amzn-ErrorType: " + kind, status=status)
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}:SENTINEL"))
    response = httpx.post(f"{server}/bedrock/model/m/converse", json={}, headers=bearer(token))
    assert response.status_code == answered
    assert ("SENTINEL" in response.text) is (answered != 502)


@pytest.mark.parametrize("length", [None, 20, 20_000], ids=["chunked", "short", "long"])
def test_several_keys_take_turns(
    server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    def answer(request: Recorded, connection: socket.socket) -> bytes:
        if b"AKIDOTHER" in request.all(b"authorization")[0]:
            return ok(b"{}", b"x-amzn-ErrorType: UnrecognizedClientException", status=b"403 Forbidden")
        return ok()

    bedrock.script = answer
    wanted = {"serviceSecrets": [{"serviceId": "", "authSecret": ["AKIDOTHER:x", f"{KEY_ID}:{SECRET_KEY}"]}]}
    token = httpx.post(f"{server}/api/v1/oauth/token", json={"requestAuthAndQuotas": wanted}).json()["access_token"]
    body = b"first second" if length is None else b"x" * length
    content = iter([body[:6], body[6:]]) if length is None else body
    assert httpx.post(f"{server}/bedrock/model/m/converse", content=content, headers=bearer(token)).status_code == 200
    assert [request.body for request in bedrock.requests] == [body] * 2
    assert_signed(bedrock.last, monkeypatch)


def test_a_missing_library_is_told_to_the_operator_alone(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}"))
    response = httpx.post(f"{server}/bedrock/model/m/converse", json={}, headers=bearer(token))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "credential_unsupported")
    assert "install aisbreaker-mw[bedrock]" in caplog.text


def test_check_config_tells_which_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from aisbreaker_mw.cli import commands as cli

    monkeypatch.setenv("AISBREAKER_KEY", KEY)
    assert "can't make" not in CliRunner().invoke(cli.main, ["check-config"]).output
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    told = CliRunner().invoke(cli.main, ["check-config"]).output
    assert "services.bedrock: can't make its credentials: install aisbreaker-mw[bedrock]" in told
    assert "services.vertex: can't make its credentials: install aisbreaker-mw[vertex]" in told


def test_no_log_has_a_secret(server: str, caplog: pytest.LogCaptureFixture) -> None:
    token = mint(server, ("", f"{KEY_ID}:{SECRET_KEY}:SENTINEL"))
    with caplog.at_level(logging.DEBUG):
        httpx.post(f"{server}/bedrock/model/m/converse", json={}, headers=bearer(token))
    assert "SENTINEL" not in caplog.text
    assert SECRET_KEY not in caplog.text


# Clients


def test_awss_sdk(server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    bedrock.script = ok(CONVERSED)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", mint(server, ("chat:aws.amazon.com", f"{KEY_ID}:{SECRET_KEY}")))
    # The SDK sends a Bearer token to https alone; behind that, and for no other reason, there is no TLS here.
    https = server.replace("http://", "https://")
    client = boto3.client("bedrock-runtime", endpoint_url=f"{https}/bedrock", region_name="us-east-1")

    def without_tls(request: Any, **_: Any) -> None:
        request.url = request.url.replace("https://", "http://")

    client.meta.events.register("before-send.bedrock-runtime.Converse", without_tls)
    try:
        answer = client.converse(modelId=MODEL, messages=[{"role": "user", "content": [{"text": "Hi"}]}])
        assert answer["output"]["message"]["content"] == [{"text": "Hello"}]
        assert bedrock.last.target == f"/model/{ESCAPED}/converse".encode()
        assert_signed(bedrock.last, monkeypatch)
    finally:
        client.close()


def test_anthropics_sdk(server: str, bedrock: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    import anthropic

    bedrock.script = ok(
        b'{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"Hello"}],'
        b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}'
    )
    token = mint(server, (f"inference:aws.amazon.com/{MODEL}", f"{KEY_ID}:{SECRET_KEY}"))
    with anthropic.AnthropicBedrock(
        base_url=f"{server}/bedrock", api_key=token, aws_region="us-east-1", max_retries=0
    ) as client:
        message = client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
    assert message.content[0].type == "text"
    assert bedrock.last.target == f"/model/{MODEL}/invoke".encode()
    assert_signed(bedrock.last, monkeypatch)


# Configuration


@pytest.mark.parametrize(
    ("base_url", "region"),
    [
        ("https://bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://vpce-1234-abcd.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://bedrock-runtime.eu-central-1.api.aws", "eu-central-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_the_base_url_says_which_region(base_url: str, region: str) -> None:
    service = ServiceCatalog.load({"bedrock": {"base_url": base_url}}).get("bedrock")
    assert service is not None
    assert dict(service.credential.options) == {"region": region, "service": "bedrock"}


def test_a_base_url_without_a_region_takes_one_beside_it() -> None:
    table: dict[str, Any] = {"base_url": "https://bedrock.internal.example"}
    with pytest.raises(ConfigurationError, match=r"services\.bedrock\.credential takes .*region"):
        ServiceCatalog.load({"bedrock": table})
    table["credential"] = {"strategy": "aws-sigv4", "region": REGION}
    service = ServiceCatalog.load({"bedrock": table}).get("bedrock")
    assert service is not None
    assert dict(service.credential.options)["region"] == REGION


@pytest.mark.parametrize(
    "credential",
    [
        {"strategy": "aws"},
        {"strategy": ["aws-sigv4"]},
        {"strategy": "aws-sigv4", "region": "EU WEST"},
        {"strategy": "aws-sigv4", "token_url": "https://x.example/token"},
        {"strategy": "google-cloud", "token_url": "ftp://x.example/token"},
        {"strategy": "google-cloud", "token_url": "https://user@x.example/token"},
        ["aws-sigv4", "bearer"],
    ],
)
def test_what_is_no_strategy(credential: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"services\.openai\.credential takes"):
        ServiceCatalog.load({"openai": {"credential": credential}})
