"""What a token says."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from aisbreaker_mw.tokens.claims import MAX_LIMIT, RequestLimits, RequestQuotas, ServiceSecret, TokenClaims


def test_windows_are_minute_hour_and_day_there_and_back() -> None:
    limits = RequestLimits(requests_per_minute=1, requests_per_day=3)
    assert limits.windows() == (1, None, 3)
    assert RequestLimits.of([1, None, 3]) == limits
    assert RequestLimits.of([None, None, None]) == RequestLimits()


@pytest.mark.parametrize("name", ["requests_per_minute", "requestsPerMinute"])
def test_limits_have_the_contracts_names_and_pythons(name: str) -> None:
    assert RequestLimits(**{name: 5}).requests_per_minute == 5


@pytest.mark.parametrize("value", [None, True, False, 0, -1, 1.5, MAX_LIMIT + 1, "x", [1]], ids=repr)
def test_a_limit_is_an_integer_from_1(value: Any) -> None:
    with pytest.raises(ValidationError):
        RequestLimits(requests_per_minute=value)


@pytest.mark.parametrize(("model", "name"), [(RequestLimits, "requests_per_second"), (RequestQuotas, "limits")])
def test_there_are_no_other_names(model: Any, name: str) -> None:
    with pytest.raises(ValidationError):
        model(**{name: 1})


def test_the_quotas_are_written_as_the_contract_does() -> None:
    quotas = RequestQuotas(global_request_limits=RequestLimits(requests_per_day=3))
    assert quotas.model_dump(by_alias=True, exclude_none=True) == {
        "perClientRequestLimits": {},
        "globalRequestLimits": {"requestsPerDay": 3},
    }


def test_claims_do_not_change_and_show_no_secret() -> None:
    secret = ServiceSecret("chat:openai.com", SecretStr("sk-SENTINEL"))
    claims = TokenClaims("jti", 1, 2, RequestQuotas(), (secret,))
    with pytest.raises(FrozenInstanceError):
        claims.exp = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        secret.service_id = ""  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        claims.quotas.global_request_limits = RequestLimits()
    for text in (repr(claims), str(claims), repr(secret)):
        assert "SENTINEL" not in text
        assert "chat:openai.com" in text
