"""The assembly: settings reach the parts that they are for, and closing reaches every part."""

import pytest

from aisbreaker_mw import AIsBreakerMiddleware
from aisbreaker_mw.quotas import QuotaLimiter
from aisbreaker_mw.upstream.proxy import UpstreamProxy

from ..support import settings


async def test_closing_reaches_the_services_and_the_quota_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[type] = []

    async def close(part: object) -> None:
        closed.append(type(part))

    for kind in (UpstreamProxy, QuotaLimiter):
        monkeypatch.setattr(kind, "aclose", close)
    await AIsBreakerMiddleware(None, settings()).aclose()
    assert closed == [UpstreamProxy, QuotaLimiter]


def test_each_timeout_is_the_one_of_its_name() -> None:
    waits = {"connect_timeout": 1.0, "header_timeout": 2.0, "idle_timeout": 3.0, "pool_timeout": 4.0}
    timeouts = AIsBreakerMiddleware(None, settings(upstream=waits))._parts.proxy._timeouts
    assert (timeouts.connect, timeouts.header, timeouts.idle, timeouts.pool) == (1.0, 2.0, 3.0, 4.0)
