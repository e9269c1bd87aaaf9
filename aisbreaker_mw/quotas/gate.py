"""The gate: counts a request in its quotas, and adds the rate-limit headers to its response."""

import math
from functools import lru_cache

from ..client.exchange import Exchange
from ..exceptions import RateLimitExceeded
from ..http1.fields import RawHeaders
from .buckets import MINTING
from .limiter import QuotaLimiter
from .model import Buckets, Decision

_MINTING_LIMIT = "This server mints no more tokens for this client at the moment (minting.requests_per_minute). Retry later."
_WINDOW_NAMES = {60: "minute", 3600: "hour", 86_400: "day"}


class QuotaGate:
    """
    Admits requests whose quotas have room.

    Args:
        limiter: counts the requests.
    """

    def __init__(self, limiter: QuotaLimiter) -> None:
        self._limiter = limiter

    async def admit(self, buckets: Buckets, exchange: Exchange) -> None:
        """
        Count a request in all its windows, or in none.

        In both cases the response will have the rate-limit headers.

        Args:
            buckets: the buckets that the request is counted in.
            exchange: the request's exchange.

        Raises:
            RateLimitExceeded: a window is full.
            QuotaStorageUnavailable: the storage did not reply, and the policy is `deny`.
        """
        limiter = self._limiter
        decision = limiter.consume_now(buckets) if limiter.local else await limiter.consume(buckets)
        if decision is None:
            return
        exchange.headers = rate_limit_headers(decision)
        if not decision.admitted:
            message = _MINTING_LIMIT if decision.policy == MINTING else None
            raise RateLimitExceeded(message, retry_after=decision.reset_after)


def rate_limit_headers(decision: Decision) -> RawHeaders:
    """
    Return the rate-limit headers of a decision's window (draft-ietf-httpapi-ratelimit-headers-10):

        RateLimit-Policy: "token-client-minute";q=60;w=60
        RateLimit: "token-client-minute";r=59;t=42
    """
    name, policy = _policy(decision.policy, decision.limit, decision.window)
    state = b"%b;r=%d;t=%d" % (name, decision.remaining, math.ceil(decision.reset_after))
    return [(b"ratelimit-policy", policy), (b"ratelimit", state)]


@lru_cache(maxsize=4096)
def _policy(policy: str, limit: int, window: int) -> tuple[bytes, bytes]:
    name = f'"{policy}-{_WINDOW_NAMES.get(window, f"{window}s")}"'.encode("ascii")
    return name, b"%b;q=%d;w=%d" % (name, limit, window)
