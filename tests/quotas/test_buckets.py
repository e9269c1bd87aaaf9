"""Which windows a request is counted in."""

from typing import Any

import pytest

from aisbreaker_mw.quotas import buckets as module
from aisbreaker_mw.quotas.buckets import BucketPlan, limit_items
from aisbreaker_mw.tokens.claims import RequestLimits, RequestQuotas, TokenClaims

JTI = "0123456789abcdefghijkl"
NONE = RequestQuotas()


def limits(*windows: int | None) -> RequestLimits:
    return RequestLimits.of(list(windows))


def quotas(per_client: RequestLimits, together: RequestLimits) -> RequestQuotas:
    return RequestQuotas(per_client_request_limits=per_client, global_request_limits=together)


def claims(of: RequestQuotas, jti: str = JTI) -> TokenClaims:
    return TokenClaims(jti, 0, 1, of, ())


def told(buckets: Any) -> list[tuple[str, str, str, list[tuple[int, int]]]]:
    return [(each.key, each.slot, each.policy, [(item.amount, item.get_expiry()) for item in each.limits]) for each in buckets]


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        ((None, None, None), []),
        ((60, None, None), [(60, 60)]),
        ((None, 600, None), [(600, 3600)]),
        ((None, None, 6000), [(6000, 86_400)]),
        ((60, 600, 6000), [(60, 60), (600, 3600), (6000, 86_400)]),
        ((2**31, 1, 2**31), [(2**31, 60), (1, 3600), (2**31, 86_400)]),
    ],
)
def test_limits_become_windows_of_a_minute_an_hour_and_a_day(given: Any, windows: Any) -> None:
    assert [(item.amount, item.get_expiry()) for item in limit_items(limits(*given))] == windows


def test_a_request_is_counted_in_four_sets() -> None:
    plan = BucketPlan(quotas(limits(1, 2, 3), limits(4, 5, 6)))
    token = claims(quotas(limits(7, 8, 9), limits(10, 11, 12)))
    day = 86_400
    assert told(plan.for_request("192.0.2.1", token)) == [
        ("srv:c:192.0.2.1", "srv", "server-client", [(1, 60), (2, 3600), (3, day)]),
        ("srv", "srv", "server", [(4, 60), (5, 3600), (6, day)]),
        (f"tok:{JTI}:c:192.0.2.1", f"tok:{JTI}", "token-client", [(7, 60), (8, 3600), (9, day)]),
        (f"tok:{JTI}", f"tok:{JTI}", "token", [(10, 60), (11, 3600), (12, day)]),
    ]


def test_what_has_no_limit_is_not_counted() -> None:
    assert told(BucketPlan(NONE).for_request("192.0.2.1", claims(NONE))) == []
    only = claims(quotas(limits(None, 8, None), limits(None, None, None)))
    assert told(BucketPlan(NONE).for_request("192.0.2.1", only)) == [
        (f"tok:{JTI}:c:192.0.2.1", f"tok:{JTI}", "token-client", [(8, 3600)])
    ]


def test_without_a_token_the_servers_windows_count() -> None:
    plan = BucketPlan(quotas(limits(1, None, None), limits(4, None, None)))
    assert [key for key, *_ in told(plan.for_request("192.0.2.1", None))] == ["srv:c:192.0.2.1", "srv"]


def test_minting_has_a_window_of_its_own() -> None:
    plan = BucketPlan(quotas(limits(1, None, None), NONE.global_request_limits), minting=30)
    assert told(plan.for_minting("192.0.2.1")) == [("mint:c:192.0.2.1", "mint", "minting", [(30, 60)])]
    assert told(BucketPlan(NONE).for_minting("192.0.2.1")) == []


def test_no_two_clients_tokens_or_scopes_share_a_key() -> None:
    every = quotas(limits(1, 1, 1), limits(1, 1, 1))
    plan = BucketPlan(every, minting=1)
    clients, tokens = ["192.0.2.1", "192.0.2.2", "2001:db8::/64", "unix"], [claims(every, jti) for jti in (JTI, JTI[::-1])]
    keys: dict[str, set[tuple[str, str, str]]] = {}
    for client in clients:
        for token in [*tokens, None]:
            for key, _, policy, _ in told(plan.for_request(client, token)):
                owner = (policy, client if "client" in policy else "", token.jti if token and "token" in policy else "")
                keys.setdefault(key, set()).add(owner)
        for key, _, policy, _ in told(plan.for_minting(client)):
            keys.setdefault(key, set()).add((policy, client, ""))
    assert all(len(owners) == 1 for owners in keys.values())
    assert len(keys) == 4 + 1 + 2 * 4 + 2 + 4
    assert all(key.isascii() and key.isprintable() and len(key) <= 200 for key in keys)


def test_a_tokens_windows_share_a_slot() -> None:
    plan = BucketPlan(quotas(limits(1, 1, 1), limits(1, 1, 1)))
    a, b = (claims(quotas(limits(1, 1, 1), limits(1, 1, 1)), jti) for jti in ("a" * 22, "b" * 22))
    slots = [{bucket.slot for bucket in plan.for_request("192.0.2.1", token)} for token in (a, b)]
    assert slots == [{"srv", "tok:" + "a" * 22}, {"srv", "tok:" + "b" * 22}]


def test_the_buckets_of_a_token_and_client_are_made_once_and_not_kept_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHE_SIZE", 10)
    plan = BucketPlan(quotas(limits(1, None, None), NONE.global_request_limits))
    first = plan.for_request("192.0.2.1", None)
    assert plan.for_request("192.0.2.1", None) is first
    for number in range(9):
        plan.for_request(f"198.51.100.{number}", None)
    assert plan.for_request("192.0.2.1", None) is first
    for number in range(10):
        plan.for_request(f"203.0.113.{number}", None)
    again = plan.for_request("192.0.2.1", None)
    assert again is not first
    assert told(again) == told(first)
