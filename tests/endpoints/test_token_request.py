"""Reading token requests: what is accepted, and that refusals name the field and never show what was in it."""

import json
import shlex
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.endpoints.token_request import parse_token_request
from aisbreaker_mw.exceptions import InvalidRequest
from aisbreaker_mw.tokens.claims import MAX_LIMIT, RequestLimits, RequestQuotas

NOW = 1_700_000_000
DAY = 86_400

# As the contract prints it, for a shell.
CONTRACT = r"""
curl "${HOSTPORT}/api/v1/oauth/token" \
  -v -X POST \
  -H "Content-Type: application/json" \
  -d '{
    "requestAuthAndQuotas": {
      "requestQuotas": {
        "perClientRequestLimits": {
          "requestsPerMinute": 60,
          "requestsPerHour": 600,
          "requestsPerDay": 600
        },
        "globalRequestLimits": {
          "requestsPerMinute": 120,
          "requestsPerHour": 1200,
          "requestsPerDay": 1200
        }
      },
      "serviceSecrets": [
        { "serviceId": "aisbreaker:network", "authSecret": "{{secret}}" },
        { "serviceId": "chat:openai.com", "authSecret": "'"${OPENAI_API_KEY}"'" },
        { "serviceId": "chat:dummy", "authSecret": "" },
        { "serviceId": "", "authSecret": "INVALID" }
      ]
    },
    "expirationTimeSpan": "365d"
  }'
"""

SECRET = "sk-SENTINEL-0123456789"
"""Stands wherever a refusal must not look."""
COMPLETE: dict[str, Any] = {
    "requestAuthAndQuotas": {
        "requestQuotas": {
            "perClientRequestLimits": {"requestsPerMinute": 987654, "requestsPerHour": 987654, "requestsPerDay": 987654},
            "globalRequestLimits": {"requestsPerMinute": 987654, "requestsPerHour": 987654, "requestsPerDay": 987654},
        },
        "serviceSecrets": [
            {"serviceId": "chat:SENTINEL.example", "authSecret": SECRET},
            {"serviceId": "chat:SENTINEL.example", "authSecret": SECRET},
        ],
    },
    "expirationTimeSpan": "987654s",
    "clientId": SECRET,
    "clientSecret": SECRET,
}
MINIMAL: dict[str, Any] = {"requestAuthAndQuotas": {"serviceSecrets": []}}
QUOTAS = ("requestAuthAndQuotas", "requestQuotas")
SECRETS = ("requestAuthAndQuotas", "serviceSecrets")


def changed(path: tuple[str | int, ...], value: Any, base: dict[str, Any] = COMPLETE) -> bytes:
    """Return a request whose field at `path` is `value`."""
    request = deepcopy(base)
    at: Any = request
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(request).encode()


def without(path: tuple[str | int, ...]) -> bytes:
    request = deepcopy(COMPLETE)
    at: Any = request
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return json.dumps(request).encode()


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def refused(body: bytes) -> InvalidRequest:
    """Return the refusal, after looking that nothing of the request is in it."""
    with pytest.raises(InvalidRequest) as caught:
        parse_token_request(body).claims(now=NOW, default_lifetime=7200, max_lifetime=366 * DAY)
    error = caught.value
    assert (error.status, error.code) == (400, "invalid_request")
    for text in (str(error), repr(error), error.message, error.param or ""):
        for trace in ("SENTINEL", "sentinel", "987654", "sk-"):
            assert trace not in text
        assert text.isascii()
        assert text.isprintable()
    assert error.__cause__ is None
    return error


# What is accepted


def test_the_contracts_request_as_a_shell_sends_it() -> None:
    words = shlex.split(CONTRACT.replace("\\\n", "").replace("${OPENAI_API_KEY}", "sk-my-key"))
    request = parse_token_request(words[words.index("-d") + 1].encode())
    claims = request.claims(now=NOW, default_lifetime=1, max_lifetime=366 * DAY)
    assert claims.quotas == RequestQuotas(
        per_client_request_limits=RequestLimits(requests_per_minute=60, requests_per_hour=600, requests_per_day=600),
        global_request_limits=RequestLimits(requests_per_minute=120, requests_per_hour=1200, requests_per_day=1200),
    )
    assert [(secret.service_id, secret.auth_secret.get_secret_value()) for secret in claims.secrets] == [
        ("aisbreaker:network", "{{secret}}"),
        ("chat:openai.com", "sk-my-key"),
        ("chat:dummy", ""),
        ("", "INVALID"),
    ]
    assert (claims.iat, claims.exp, claims.kid) == (NOW, NOW + 365 * DAY, "")


def test_the_complete_request_is_accepted() -> None:
    request = parse_token_request(json.dumps(COMPLETE).encode())
    assert request.client_id == SECRET
    assert request.client_secret is not None
    assert request.client_secret.get_secret_value() == SECRET
    assert request.claims(now=NOW, default_lifetime=1, max_lifetime=366 * DAY).exp == NOW + 987654


def test_no_repr_shows_a_secret() -> None:
    request = parse_token_request(changed(("clientId",), "me"))
    claims = request.claims(now=NOW, default_lifetime=1, max_lifetime=366 * DAY)
    for text in (repr(request), str(request), repr(request.request_auth_and_quotas.service_secrets), repr(claims)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        (None, RequestQuotas()),
        ({}, RequestQuotas()),
        ({"perClientRequestLimits": {}}, RequestQuotas()),
        (
            {"globalRequestLimits": {"requestsPerHour": 1}},
            RequestQuotas(global_request_limits=RequestLimits(requests_per_hour=1)),
        ),
    ],
    ids=["no quotas", "empty quotas", "empty limits", "one window"],
)
def test_what_is_absent_is_no_limit(quotas: Any, expected: RequestQuotas) -> None:
    body = json.dumps(MINIMAL).encode() if quotas is None else changed(QUOTAS, quotas, MINIMAL)
    assert parse_token_request(body).claims(now=NOW, default_lifetime=1, max_lifetime=1).quotas == expected


@pytest.mark.parametrize("limit", [1, 2**31 - 1, 2**31])
def test_limits_at_their_ends(limit: int) -> None:
    assert MAX_LIMIT == 2**31
    request = parse_token_request(changed((*QUOTAS, "globalRequestLimits", "requestsPerDay"), limit))
    assert request.request_auth_and_quotas.request_quotas.global_request_limits.requests_per_day == limit


def test_64_secrets_are_accepted_in_their_order() -> None:
    pairs = [{"serviceId": f"chat:v{number}.example", "authSecret": f"key-{number}"} for number in range(64)]
    claims = parse_token_request(changed(SECRETS, pairs)).claims(now=NOW, default_lifetime=1, max_lifetime=366 * DAY)
    assert [secret.service_id for secret in claims.secrets] == [f"chat:v{number}.example" for number in range(64)]


@pytest.mark.parametrize(
    "secret",
    ["", "x", "{{secret}}", "INVALID", "a b", "!~", "".join(map(chr, range(33, 127))), "x" * 4000],
    ids=["empty", "one character", "placeholder", "INVALID", "space within", "ends of the range", "all characters", "long"],
)
def test_secrets_are_taken_as_they_are(secret: str) -> None:
    request = parse_token_request(changed((*SECRETS, 1, "authSecret"), secret))
    assert request.request_auth_and_quotas.service_secrets[1].auth_secret.get_secret_value() == secret


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "chat:openai.com", "chat:openai.com/gpt-4o", "chat:openai.com/gpt*", "*:openai.com", "chat:", "chat:dummy"],
)
def test_service_ids_may_be_patterns(pattern: str) -> None:
    request = parse_token_request(changed((*SECRETS, 0, "serviceId"), pattern))
    assert request.request_auth_and_quotas.service_secrets[0].service_id == pattern


@pytest.mark.parametrize(
    ("span", "lifetime"),
    [
        ("1s", 1),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("365d", 365 * DAY),
        ("4w", 28 * DAY),
        ("1y", 365 * DAY),
        ("366d", 366 * DAY),
    ],
)
def test_lifetimes(span: str, lifetime: int) -> None:
    request = parse_token_request(changed(("expirationTimeSpan",), span))
    assert request.claims(now=NOW, default_lifetime=5, max_lifetime=366 * DAY).exp == NOW + lifetime


def test_the_default_lifetime_is_for_requests_that_name_none_and_never_over_the_maximum() -> None:
    request = parse_token_request(json.dumps(MINIMAL).encode())
    assert request.claims(now=NOW, default_lifetime=7200, max_lifetime=366 * DAY).exp == NOW + 7200
    assert request.claims(now=NOW, default_lifetime=7200, max_lifetime=3600).exp == NOW + 3600


def test_every_token_has_its_own_identifier() -> None:
    request = parse_token_request(json.dumps(MINIMAL).encode())
    assert len({request.claims(now=NOW, default_lifetime=1, max_lifetime=1).jti for _ in range(20)}) == 20


# What is refused, by field

OBJECT, LIST, STRING = "must be an object", "must be a list", "must be a string"
LIMIT = "must be an integer from 1 to 2147483648"
SPAN = "must be a positive integer and one of s m h d w y, like 2h"
PRINTABLE = "must be printable ASCII without spaces at either end"
SERVICE_ID = "must be a serviceId: task:vendor, task:vendor/engine, either with a trailing * or a leading =, *:vendor, or empty"


def wrong_types(*right: type) -> list[Any]:
    values: list[Any] = [None, True, False, 987654, -1.5, SECRET, [SECRET], {SECRET: SECRET}, [], {}]
    return [value for value in values if not isinstance(value, right)]


def cases() -> list[Any]:
    fields: list[tuple[tuple[str | int, ...], str, list[Any]]] = [
        (("requestAuthAndQuotas",), OBJECT, wrong_types(dict)),
        (QUOTAS, OBJECT, wrong_types(dict)),
        ((*QUOTAS, "perClientRequestLimits"), OBJECT, wrong_types(dict)),
        ((*QUOTAS, "globalRequestLimits"), OBJECT, wrong_types(dict)),
        (SECRETS, LIST, wrong_types(list)),
        ((*SECRETS, 1), OBJECT, wrong_types(dict)),
        ((*SECRETS, 1, "serviceId"), STRING, wrong_types(str)),
        ((*SECRETS, 1, "authSecret"), STRING, wrong_types(str, list)),
        (("expirationTimeSpan",), STRING, wrong_types(str)),
        (("clientId",), STRING, wrong_types(str)),
        (("clientSecret",), STRING, wrong_types(str)),
        (SECRETS, "must have at most 64 entries", [[{"serviceId": "", "authSecret": SECRET}] * 65]),
        (
            (*SECRETS, 1, "authSecret"),
            PRINTABLE,
            [f"{SECRET}{odd}{SECRET}" for odd in ("\r", "\n", "\r\nx-evil: 1", "\0", "\t", "\x7f", "é", "\u2028", "€", "😀")]
            + [" ", f" {SECRET}", f"{SECRET} ", f"{SECRET}\n", f"\ufeff{SECRET}"],
        ),
        (
            (*SECRETS, 0, "serviceId"),
            SERVICE_ID,
            [
                "SENTINEL",
                ":",
                ":SENTINEL",
                "chat:a b",
                "chat:a\n",
                "chat:é",
                "/x",
                "chat:/gpt",
                "chat:a:b",
                "-:x",
                "**",
                "chat:*x",
            ],
        ),
        ((*SECRETS, 0, "serviceId"), "must have at most 256 characters", ["chat:" + "SENTINEL" * 40]),
        (
            ("expirationTimeSpan",),
            SPAN,
            [
                "",
                "0s",
                "0d",
                "-1d",
                "-987654s",
                "987654",
                "1.5h",
                "987654x",
                "1 d",
                "1D",
                "1mo",
                "987654s ",
                SECRET,
                "9" * 11 + "s",
            ],
        ),
        (("expirationTimeSpan",), "must be at most 366d", ["367d", "2y", "31622401s", "9999999999y"]),
    ]
    for group in ("perClientRequestLimits", "globalRequestLimits"):
        for window in ("requestsPerMinute", "requestsPerHour", "requestsPerDay"):
            values = [*wrong_types(int), True, False, 0, -1, -987654, 987654.0, 1.5, 1e3, 2**31 + 1, 10**25, "60"]
            fields.append(((*QUOTAS, group, window), LIMIT, values))
    return [
        pytest.param(path, value, requirement, id=f"{dotted(path)}={value!a:.40}")
        for path, requirement, values in fields
        for value in values
    ]


@pytest.mark.parametrize(("path", "value", "requirement"), cases())
def test_a_wrong_value_is_refused_by_its_path(path: tuple[str | int, ...], value: Any, requirement: str) -> None:
    error = refused(changed(path, value))
    assert error.param == dotted(path)
    assert error.message == f"{dotted(path)}: {requirement}."


@pytest.mark.parametrize(
    "path",
    [("requestAuthAndQuotas",), SECRETS, (*SECRETS, 1, "serviceId"), (*SECRETS, 0, "authSecret")],
    ids=dotted,
)
def test_what_must_be_there_is_asked_for(path: tuple[str | int, ...]) -> None:
    error = refused(without(path))
    assert error.param == dotted(path)
    assert error.message == f"{dotted(path)}: is required."


LEVELS: list[tuple[str | int, ...]] = [
    (),
    ("requestAuthAndQuotas",),
    QUOTAS,
    (*QUOTAS, "perClientRequestLimits"),
    (*QUOTAS, "globalRequestLimits"),
    (*SECRETS, 1),
]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: dotted(level) or "top")
@pytest.mark.parametrize("name", ["expires", "service_id", "requests_per_minute", "service_secrets"])
def test_an_unknown_field_is_refused_at_every_level(level: tuple[str | int, ...], name: str) -> None:
    path = dotted((*level, name))
    for value in (SECRET, None, {SECRET: SECRET}):
        error = refused(changed((*level, name), value))
        assert (error.param, error.message) == (path, f"{path}: is not a known field.")


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: dotted(level) or "top")
@pytest.mark.parametrize(
    "name",
    [
        SECRET,
        "sk-proj-abc",
        "skSENTINEL0123456789",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",  # letters only, as that service makes them
        "r8_0123456789abcdefghijklmnopqrstuvwxyz0",
        "AKIAIOSFODNN7EXAMPLE",
        "aisbreaker_eyJ2ZXIi.AAAA",
        "with space",
        "with\nnewline",
        "with\0",
        "ünknown",
        "",
        "requestQuotas.globalRequestLimits",
        "[0]",
    ],
)
def test_a_field_name_that_may_be_a_secret_is_not_shown(level: tuple[str | int, ...], name: str) -> None:
    path = dotted((*level, "?"))
    error = refused(changed((*level, name), SECRET))
    assert (error.param, error.message) == (path, f"{path}: is not a known field.")


def test_a_field_has_one_name() -> None:
    for path, name in (((), "request_auth_and_quotas"), (QUOTAS, "per_client_request_limits"), (SECRETS[:1], "request_quotas")):
        assert refused(changed((*path, name), {})).param == dotted((*path, name))
    renamed = json.dumps(COMPLETE).replace("requestsPerMinute", "requests_per_minute").encode()
    assert refused(renamed).param == dotted((*QUOTAS, "perClientRequestLimits", "requests_per_minute"))
    refused(json.dumps(COMPLETE).replace("requestAuthAndQuotas", "request_auth_and_quotas").encode())


# What is refused as a whole


def nested(levels: int) -> bytes:
    return b'{"requestAuthAndQuotas":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request body must be valid JSON."),
        (b"sk-SENTINEL", "The request body must be valid JSON."),
        (b'{"clientId": sk-SENTINEL}', "The request body must be valid JSON."),
        (b"{'clientId': 'sk-SENTINEL'}", "The request body must be valid JSON."),
        (json.dumps(MINIMAL).encode() + b"sk-SENTINEL", "The request body must be valid JSON."),
        (json.dumps(MINIMAL).encode() + b"{}", "The request body must be valid JSON."),
        (json.dumps(MINIMAL).encode()[:-1] + b",}", "The request body must be valid JSON."),
        (b"\xef\xbb\xbf" + json.dumps(MINIMAL).encode(), "The request body must be valid JSON."),
        (json.dumps(MINIMAL).encode("utf-16"), "The request body must be UTF-8."),
        (b'{"clientId": "sk-SENTINEL\xff"}', "The request body must be UTF-8."),
        (b'{"clientId": "sk-SENTINEL\n"}', "The request body must be valid JSON."),
        (b'{"clientId": "sk-SENTINEL", "clientId": "sk-SENTINEL"}', "The request body must not have duplicate keys."),
        (b'{"clientId": "sk-SENTINEL", "clie\\u006etId": ""}', "The request body must not have duplicate keys."),
        (
            b'{"requestAuthAndQuotas": {"serviceSecrets": [], "x": {"a": 1, "a": 1}}}',
            "The request body must not have duplicate keys.",
        ),
        (b'{"clientId": NaN}', "The request body must not have NaN or Infinity."),
        (b'{"clientId": -Infinity}', "The request body must not have NaN or Infinity."),
        (b'{"clientId": 1e999}', "The request body must not have numbers that are out of range."),
        (b'{"clientId": ' + b"9" * 5000 + b"}", "The request body must not have numbers that are out of range."),
        (b'{"clientId": "sk-SENTINEL\\ud800"}', "The request body must not have lone surrogates."),
        (nested(17), "The request body must not be nested that deep."),
        (b"[" * 60_000, "The request body must not be nested that deep."),
        (b'{"a":' * 12_000, "The request body must not be nested that deep."),
        (b"[]", "The request body: must be an object."),
        (b"null", "The request body: must be an object."),
        (b'"sk-SENTINEL"', "The request body: must be an object."),
        (b"987654", "The request body: must be an object."),
        (b"true", "The request body: must be an object."),
    ],
    ids=lambda value: f"{value[:40]!a}" if isinstance(value, bytes) else "",
)
def test_what_is_no_request_at_all(body: bytes, message: str) -> None:
    error = refused(body)
    assert (error.message, error.param) == (message, None)


def test_a_request_is_less_deep_than_what_is_refused() -> None:
    assert refused(nested(16)).param == "requestAuthAndQuotas.serviceSecrets"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(COMPLETE)), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from([(), *LEVELS, SECRETS, (*SECRETS, 0, "authSecret"), (*QUOTAS, "globalRequestLimits")]))
def test_any_json_is_read_or_refused(value: Any, path: tuple[str | int, ...]) -> None:
    try:
        request = parse_token_request(changed(path, value) if path else json.dumps(value).encode())
    except InvalidRequest as error:
        message = error.message
    else:
        message = str(request.claims(now=NOW, default_lifetime=1, max_lifetime=366 * DAY).exp)
    assert "SENTINEL" not in message
    assert message.isascii()
    assert message.isprintable()


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_token_request(body)
