"""Errors in the dialects of SDKs, their headers, and the rate-limit headers."""

import inspect
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw import exceptions
from aisbreaker_mw.client.responses import error_response, json_response
from aisbreaker_mw.exceptions import (
    ConfigurationError,
    CredentialUnsupported,
    HeadTooLarge,
    InvalidClient,
    InvalidRequest,
    InvalidToken,
    LoopDetected,
    MethodNotAllowed,
    MethodUnknown,
    MintingRefused,
    MisdirectedRequest,
    MissingCredential,
    NotFound,
    PayloadTooLarge,
    QuotaStorageUnavailable,
    RateLimitExceeded,
    RequestError,
    RequestTimeout,
    ResponseInterrupted,
    ServerBusy,
    ServiceNotAllowed,
    ShuttingDown,
    TooMuchBuffered,
    UnsupportedMediaType,
    UpstreamBusy,
    UpstreamCredentialRejected,
    UpstreamError,
    UpstreamTimeout,
    VersionUnsupported,
)
from aisbreaker_mw.quotas import Decision
from aisbreaker_mw.quotas.gate import rate_limit_headers
from aisbreaker_mw.tokens.sealer import EXPIRED

REQUEST_ID = "req_0123456789abcdef"
BEARER = {"www-authenticate": "Bearer"}
NO_RETRY = {"x-should-retry": "false"}
SOON = {"retry-after": "1", "retry-after-ms": "1000"}
INVALID = "invalid_request_error"


def challenge(description: str) -> dict[str, str]:
    return {"www-authenticate": f'Bearer error="invalid_token", error_description="{description}"'}


# error, status, code, type for OpenAI, type for Anthropic, status for Google, headers
ERRORS: list[tuple[RequestError, int, str, str, str, str, dict[str, str]]] = [
    (RequestError(), 500, "internal_error", "server_error", "api_error", "INTERNAL", {}),
    (InvalidRequest(), 400, "invalid_request", INVALID, INVALID, "INVALID_ARGUMENT", {}),
    (MissingCredential(), 401, "missing_credential", "authentication_error", "authentication_error", "UNAUTHENTICATED", BEARER),
    (
        InvalidToken(),
        401,
        "invalid_token",
        "authentication_error",
        "authentication_error",
        "UNAUTHENTICATED",
        challenge("The API key is not valid on this server."),
    ),
    (
        InvalidToken(EXPIRED),
        401,
        "invalid_token",
        "authentication_error",
        "authentication_error",
        "UNAUTHENTICATED",
        challenge("The API key has expired."),
    ),
    (InvalidClient(), 401, "invalid_client", "authentication_error", "authentication_error", "UNAUTHENTICATED", BEARER),
    (ServiceNotAllowed(), 403, "service_not_allowed", "permission_error", "permission_error", "PERMISSION_DENIED", {}),
    (MintingRefused(), 403, "minting_refused", "permission_error", "permission_error", "PERMISSION_DENIED", {}),
    (NotFound(), 404, "not_found", "not_found_error", "not_found_error", "NOT_FOUND", {}),
    (MethodNotAllowed("GET", "HEAD"), 405, "method_not_allowed", INVALID, INVALID, "INVALID_ARGUMENT", {"allow": "GET, HEAD"}),
    (RequestTimeout(), 408, "request_timeout", INVALID, INVALID, "DEADLINE_EXCEEDED", {}),
    (PayloadTooLarge(), 413, "payload_too_large", INVALID, "request_too_large", "INVALID_ARGUMENT", {}),
    (UnsupportedMediaType(), 415, "unsupported_media_type", INVALID, INVALID, "INVALID_ARGUMENT", {}),
    (MisdirectedRequest(), 421, "misdirected_request", INVALID, INVALID, "INVALID_ARGUMENT", {}),
    (RateLimitExceeded(), 429, "rate_limit_exceeded", "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED", SOON),
    (HeadTooLarge(), 431, "request_header_fields_too_large", INVALID, "request_too_large", "INVALID_ARGUMENT", {}),
    (CredentialUnsupported(), 500, "credential_unsupported", "server_error", "api_error", "INTERNAL", NO_RETRY),
    (MethodUnknown(), 501, "method_unknown", "server_error", "api_error", "UNIMPLEMENTED", NO_RETRY),
    (UpstreamError(), 502, "upstream_error", "server_error", "api_error", "UNAVAILABLE", {}),
    (UpstreamCredentialRejected(), 502, "upstream_credential_rejected", "server_error", "api_error", "UNAVAILABLE", NO_RETRY),
    (QuotaStorageUnavailable(), 503, "quota_storage_unavailable", "server_error", "api_error", "UNAVAILABLE", SOON),
    (UpstreamBusy(), 503, "upstream_busy", "server_error", "api_error", "UNAVAILABLE", SOON),
    (TooMuchBuffered(), 503, "too_much_buffered", "server_error", "api_error", "UNAVAILABLE", SOON),
    (ServerBusy(), 503, "server_busy", "server_error", "api_error", "UNAVAILABLE", SOON),
    (ShuttingDown(), 503, "server_shutting_down", "server_error", "api_error", "UNAVAILABLE", SOON),
    (LoopDetected(), 508, "loop_detected", "server_error", "api_error", "UNAVAILABLE", NO_RETRY),
    (UpstreamTimeout(), 504, "upstream_timeout", "server_error", "timeout_error", "DEADLINE_EXCEEDED", {}),
    (VersionUnsupported(), 505, "http_version_unsupported", "server_error", "api_error", "UNIMPLEMENTED", NO_RETRY),
]
each_error = pytest.mark.parametrize(
    ("error", "status", "code", "openai", "anthropic", "google", "headers"),
    ERRORS,
    ids=[f"{type(row[0]).__name__}-{number}" for number, row in enumerate(ERRORS)],
)


def received(answer: tuple[int, list[tuple[bytes, bytes]], bytes]) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON of an answer, after looking that it is sound."""
    status, raw, body = answer
    headers = {name.decode(): value.decode("ascii") for name, value in raw}
    assert len(headers) == len(raw), "a header comes twice"
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in headers)
    assert headers.pop("content-type") == "application/json"
    assert headers.pop("content-length") == str(len(body))
    return status, headers, json.loads(body)


@each_error
def test_openais_sdk_reads_it(
    error: RequestError, status: int, code: str, openai: str, anthropic: str, google: str, headers: dict[str, str]
) -> None:
    assert received(error_response(error, "openai", REQUEST_ID)) == (
        status,
        {"x-request-id": REQUEST_ID, **headers},
        {"error": {"message": error.message, "type": openai, "param": None, "code": code}},
    )


@each_error
def test_anthropics_sdk_reads_it(
    error: RequestError, status: int, code: str, openai: str, anthropic: str, google: str, headers: dict[str, str]
) -> None:
    assert received(error_response(error, "anthropic", REQUEST_ID)) == (
        status,
        {"request-id": REQUEST_ID, **headers},
        {"type": "error", "error": {"type": anthropic, "message": error.message}, "request_id": REQUEST_ID},
    )


@each_error
def test_googles_sdk_reads_it(
    error: RequestError, status: int, code: str, openai: str, anthropic: str, google: str, headers: dict[str, str]
) -> None:
    assert received(error_response(error, "google", REQUEST_ID)) == (
        status,
        {"x-request-id": REQUEST_ID, **headers},
        {"error": {"code": status, "message": error.message, "status": google}},
    )


def test_no_error_is_left_out() -> None:
    answered = {type(row[0]) for row in ERRORS}
    public = {
        value
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, RequestError) and not name.startswith("_")
    }
    assert answered == public
    assert len({row[2] for row in ERRORS}) == len(public), "a code stands for one error"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"── (\w+) +(\d{3} \w+)", exceptions.__doc__ or ""))
    assert drawn == {type(row[0]).__name__: f"{row[1]} {row[2]}" for row in ERRORS if type(row[0]) is not RequestError}
    for other in (ConfigurationError, ResponseInterrupted):
        assert not issubclass(other, RequestError)
        assert f"── {other.__name__} " in (exceptions.__doc__ or "")


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: type(row[0]).__name__)
def test_messages_are_one_line_of_ascii_that_may_stand_in_a_header(row: tuple[Any, ...]) -> None:
    message = row[0].message
    assert str(row[0]) == message
    assert re.fullmatch(r"[A-Z][ !#-\[\]-~]+\.", message), "quotes and backslashes would end the challenge"


def test_a_message_and_a_field_of_ones_own() -> None:
    error = InvalidRequest("a.b: is required.", param="a.b")
    _, _, content = received(error_response(error, "openai", REQUEST_ID))
    assert content["error"] == {
        "message": "a.b: is required.",
        "type": "invalid_request_error",
        "param": "a.b",
        "code": "invalid_request",
    }
    assert InvalidRequest.message == "The request is malformed.", "the class keeps its own"


# Retrying


@pytest.mark.parametrize("kind", [RateLimitExceeded, QuotaStorageUnavailable, UpstreamBusy])
@pytest.mark.parametrize(
    ("retry_after", "seconds", "milliseconds", "by_itself"),
    [
        (0, "1", "1", True),
        (0.0004, "1", "1", True),
        (0.25, "1", "250", True),
        (1, "1", "1000", True),
        (1.001, "2", "1001", True),
        (41.0625, "42", "41063", True),
        (59.001, "60", "59001", True),
        (60, "60", "60000", True),
        (60.5, "61", "60500", False),
        (86_400, "86400", "86400000", False),
    ],
)
def test_when_to_retry(kind: Any, retry_after: float, seconds: str, milliseconds: str, by_itself: bool) -> None:
    _, headers, _ = received(error_response(kind(retry_after=retry_after), "openai", REQUEST_ID))
    del headers["x-request-id"]
    expected = {"retry-after": seconds, "retry-after-ms": milliseconds}
    assert headers == (expected if by_itself else {**expected, "x-should-retry": "false"})


@given(st.integers(1, 10**9).map(lambda microseconds: microseconds / 1e6))
def test_nobody_is_called_back_too_early(retry_after: float) -> None:
    _, headers, _ = received(error_response(RateLimitExceeded(retry_after=retry_after), "openai", REQUEST_ID))
    assert retry_after <= int(headers["retry-after"]) < retry_after + 1
    assert retry_after * 1000 <= int(headers["retry-after-ms"]) < retry_after * 1000 + 1


# Answers


def test_a_json_answer() -> None:
    status, headers, body = json_response(200, {"a": "é", "b": [1, None]}, [(b"cache-control", b"no-store")])
    assert (status, body) == (200, '{"a":"é","b":[1,null]}'.encode())
    assert headers == [(b"content-type", b"application/json"), (b"content-length", b"23"), (b"cache-control", b"no-store")]


# Rate-limit headers (RFC 9651: a list with one item, a string with integers as parameters)

ITEM = re.compile(r'"([ !#-\[\]-~]*)"((?:;[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)')


def structured(value: bytes) -> tuple[str, dict[str, int]]:
    item = ITEM.fullmatch(value.decode("ascii"))
    assert item, value
    parameters = [parameter.split("=") for parameter in item[2].split(";")[1:]]
    assert len(dict(parameters)) == len(parameters)
    return item[1], {name: int(number) for name, number in parameters}


@pytest.mark.parametrize(
    ("decision", "policy", "state"),
    [
        (
            Decision(True, "token-client", 60, 60, 59, 41.2),
            b'"token-client-minute";q=60;w=60',
            b'"token-client-minute";r=59;t=42',
        ),
        (Decision(True, "token", 1200, 3600, 0, 3600.0), b'"token-hour";q=1200;w=3600', b'"token-hour";r=0;t=3600'),
        (Decision(False, "server", 2**31, 86_400, 0, 0.001), b'"server-day";q=2147483648;w=86400', b'"server-day";r=0;t=1'),
        (Decision(False, "server-client", 1, 7, 0, 0.0), b'"server-client-7s";q=1;w=7', b'"server-client-7s";r=0;t=0'),
    ],
)
def test_the_window_nearest_its_limit_is_told(decision: Decision, policy: bytes, state: bytes) -> None:
    assert rate_limit_headers(decision) == [(b"ratelimit-policy", policy), (b"ratelimit", state)]


@given(
    st.sampled_from(["token", "token-client", "server", "server-client", "minting"]),
    st.integers(1, 2**31),
    st.sampled_from([60, 3600, 86_400]),
    st.integers(0, 2**31),
    st.floats(0, 86_400).map(lambda seconds: round(seconds, 3)),
)
def test_rate_limit_headers_are_structured_fields(policy: str, limit: int, window: int, remaining: int, reset: float) -> None:
    headers = dict(rate_limit_headers(Decision(True, policy, limit, window, remaining, reset)))
    name, quota = structured(headers[b"ratelimit-policy"])
    same_name, state = structured(headers[b"ratelimit"])
    assert name == same_name
    assert quota == {"q": limit, "w": window}
    assert state.keys() == {"r", "t"}
    assert state["r"] == remaining
    assert reset <= state["t"] < reset + 1
