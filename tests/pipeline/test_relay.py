"""The relay: what a service is told of a request, and a client of its response."""

import httpx

from ..support import RecordingUpstream, bearer, mint, ok, proxy

CHAT = "/openai/v1/chat/completions"
QUOTAS = {"globalRequestLimits": {"requestsPerMinute": 5}}


def test_a_services_rate_limit_gives_way_to_the_tokens() -> None:
    """A client could not tell which of two `RateLimit` headers holds for it."""
    theirs = ok(b"{}", b'RateLimit: "theirs";r=1;t=2', b'RateLimit-Policy: "theirs";q=3;w=4')
    with RecordingUpstream(theirs) as upstream, proxy(upstream, "openai") as base:
        counted = httpx.post(base + CHAT, headers=bearer(mint(base, ("chat:openai.com", "sk-1"), quotas=QUOTAS)))
        assert counted.headers.get_list("ratelimit") == ['"token-minute";r=4;t=60']
        assert counted.headers.get_list("ratelimit-policy") == ['"token-minute";q=5;w=60']
        uncounted = httpx.post(base + CHAT, headers=bearer(mint(base, ("chat:openai.com", "sk-1"))))
        assert uncounted.headers.get_list("ratelimit") == ['"theirs";r=1;t=2']
