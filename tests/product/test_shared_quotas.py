"""One quota over real server processes: workers, separate servers, a Cluster, and what becomes of it while storage is away."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..quotas.servers import Valkey, cluster
from ..support import KEY, bearer, mint, serve_process, wait_until

REQUESTS = 1_000
CONNECTIONS = 50


@contextlib.contextmanager
def server(*arguments: str, port: int | None = None, **environment: str) -> Iterator[str]:
    """Run `aisbreaker serve`; gives its base URL. It ends without an error."""
    environment = {"AISBREAKER_KEY": KEY, "AISBREAKER_LOG_LEVEL": "WARNING", **environment}
    with serve_process(*arguments, port=port, **environment) as (base, process):
        yield base
    assert process.returncode == 0


def token_of(base: str, **limits: int) -> str:
    return mint(base, ("", ""), quotas={"globalRequestLimits": limits})


async def storm(token: str, *bases: str) -> Counter[int]:
    """Send a thousand requests as fast as they go, over fresh connections too, so that every worker gets some."""
    answers: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS // 2)
    async with httpx.AsyncClient(limits=limits, timeout=30, headers=bearer(token), trust_env=False) as client:
        queue = iter(range(REQUESTS))

        async def ask() -> None:
            for number in queue:
                response = await client.get(f"{bases[number % len(bases)]}/dummy/v1/models")
                answers[response.status_code] += 1

        await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    return answers


EXACT = {200: 100, 429: 900}


async def test_one_process_in_memory() -> None:
    with server() as base:
        assert await storm(token_of(base, requestsPerMinute=100), base) == EXACT


async def test_four_workers_on_valkey() -> None:
    with Valkey() as valkey, server("--workers", "4", AISBREAKER_QUOTAS__STORAGE=valkey.uri) as base:
        assert await storm(token_of(base, requestsPerMinute=100), base) == EXACT


async def test_four_workers_on_an_embedded_valkey() -> None:
    with server("--workers", "4", AISBREAKER_QUOTAS__STORAGE="embedded://") as base:
        assert await storm(token_of(base, requestsPerMinute=100), base) == EXACT


async def test_two_servers_on_one_valkey() -> None:
    with Valkey() as valkey:
        storage = {"AISBREAKER_QUOTAS__STORAGE": valkey.uri}
        with server(**storage) as first, server(**storage) as second:
            assert await storm(token_of(first, requestsPerMinute=100), first, second) == EXACT


async def test_a_cluster_of_three() -> None:
    with cluster() as nodes:
        uri = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        limits = '{"requests_per_minute": 100000}'
        environment = {
            "AISBREAKER_QUOTAS__STORAGE": uri,
            "AISBREAKER_QUOTAS__STORAGE_TIMEOUT": "5s",
            "AISBREAKER_QUOTAS__SERVER__GLOBAL_REQUEST_LIMITS": limits,  # a second slot
        }
        with server("--workers", "2", **environment) as base:
            assert await storm(token_of(base, requestsPerMinute=100), base) == EXACT


def test_a_full_hour_leaves_the_other_windows_where_they_stood() -> None:
    with server() as base:
        quotas = {
            "perClientRequestLimits": {"requestsPerMinute": 50, "requestsPerHour": 2, "requestsPerDay": 60},
            "globalRequestLimits": {"requestsPerMinute": 70},
        }
        token = mint(base, ("", ""), quotas=quotas)
        url = f"{base}/dummy/v1/models"
        assert [httpx.get(url, headers=bearer(token)).status_code for _ in range(5)] == [200, 200, 429, 429, 429]
        refused = httpx.get(url, headers=bearer(token))
        assert refused.headers["ratelimit-policy"] == '"token-client-hour";q=2;w=3600'
        assert 3500 < int(refused.headers["retry-after"]) <= 3600
        assert refused.headers["x-should-retry"] == "false"


def test_the_refusals_of_one_client_never_cost_another() -> None:
    proxies = {"AISBREAKER_TRUSTED_PROXIES": '["127.0.0.1"]'}
    with server(**proxies) as base:
        token = mint(
            base,
            ("", ""),
            quotas={"perClientRequestLimits": {"requestsPerMinute": 2}, "globalRequestLimits": {"requestsPerMinute": 4}},
        )

        def ask(client: str) -> int:
            headers = {**bearer(token), "x-forwarded-for": f"203.0.113.9, {client}"}
            return httpx.get(f"{base}/dummy/v1/models", headers=headers).status_code

        assert [ask("192.0.2.1") for _ in range(20)] == [200] * 2 + [429] * 18
        assert [ask("2001:db8::1"), ask("2001:db8::2"), ask("2001:db8::3")] == [200, 200, 429]  # one /64 is one client
        assert ask("192.0.2.2") == 429  # the four of all clients together are gone


def test_forwarded_addresses_are_believed_from_trusted_proxies_alone() -> None:
    with server() as base:
        token = mint(base, ("", ""), quotas={"perClientRequestLimits": {"requestsPerMinute": 1}})
        answers = [
            httpx.get(f"{base}/dummy/v1/models", headers={**bearer(token), "x-forwarded-for": f"192.0.2.{number}"}).status_code
            for number in range(3)
        ]
    assert answers == [200, 429, 429]


@pytest.mark.parametrize(
    ("policy", "answers", "health"),
    [("deny", [503, 503], "unavailable"), ("allow", [200, 200], "allow"), ("local", [200, 429], "local")],
)
def test_an_outage_and_the_recovery(policy: str, answers: list[int], health: str, capfd: Any) -> None:
    with Valkey() as valkey:
        environment = {"AISBREAKER_QUOTAS__STORAGE": valkey.uri, "AISBREAKER_QUOTAS__ON_STORAGE_ERROR": policy}
        with server(**{**environment, "AISBREAKER_LOG_LEVEL": "INFO"}) as base:
            token = token_of(base, requestsPerMinute=1)
            other = token_of(base, requestsPerMinute=10)
            url = f"{base}/dummy/v1/models"
            assert httpx.get(url, headers=bearer(other)).status_code == 200
            valkey.kill()
            refused = [httpx.get(url, headers=bearer(token)) for _ in range(2)]
            assert [each.status_code for each in refused] == answers
            if policy == "deny":
                assert int(refused[0].headers["retry-after"]) >= 1
            assert httpx.get(f"{base}/api/v1/health").json() == {"status": "ok", "quota_storage": health}
            valkey.start()
            wait_until(
                lambda: (
                    httpx.get(url, headers=bearer(other)).headers.get("ratelimit", "").startswith('"token-minute";r=')
                    and httpx.get(f"{base}/api/v1/health").json()["quota_storage"] == "ok"
                ),
                "the recovery",
            )
    told = capfd.readouterr().err
    assert told.count("quota storage unavailable") == 1
    assert told.count("quota storage restored") == 1
