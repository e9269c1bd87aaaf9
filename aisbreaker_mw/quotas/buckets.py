"""Buckets of a request: the server's and its token's, per client and for all clients together."""

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute

from ..memo import Memo
from ..tokens.claims import RequestLimits, RequestQuotas, TokenClaims
from .model import Bucket, Buckets

_WINDOWS: tuple[type[RateLimitItem], ...] = (RateLimitItemPerMinute, RateLimitItemPerHour, RateLimitItemPerDay)
MINTING = "minting"
"""Name of the policy of token requests."""
_CACHE_SIZE = 65_536
"""Most pairs of token and client whose buckets are remembered."""


def limit_items(limits: RequestLimits) -> tuple[RateLimitItem, ...]:
    """Return the windows of `limits`, shortest first."""
    return tuple(window(limit) for window, limit in zip(_WINDOWS, limits.windows(), strict=True) if limit is not None)


class BucketPlan:
    """
    Names the buckets of requests.

    Args:
        server: quotas over all requests, whatever their token.
        minting: token requests per client and minute, or None for no limit.
    """

    def __init__(self, server: RequestQuotas, *, minting: int | None = None) -> None:
        self._server_client = limit_items(server.per_client_request_limits)
        self._server_global = limit_items(server.global_request_limits)
        self._minting = () if minting is None else (RateLimitItemPerMinute(minting),)
        self._remembered: Memo[tuple[str, str], Buckets] = Memo(_CACHE_SIZE)

    def for_request(self, client: str, claims: TokenClaims | None) -> Buckets:
        """
        Return the buckets of a request to a service.

        Args:
            client: the client (`ClientIdentifier.identify`).
            claims: claims of its token, or None where a foreign credential is forwarded.
        """
        key = (claims.jti if claims else "", client)
        buckets = self._remembered[key]
        if buckets is None:
            buckets = self._name(client, claims)
            self._remembered.remember(key, buckets)
        return buckets

    def for_minting(self, client: str) -> Buckets:
        """Return the buckets of a token request."""
        return _filled(Bucket(f"mint:c:{client}", "mint", MINTING, self._minting))

    def _name(self, client: str, claims: TokenClaims | None) -> Buckets:
        buckets = [
            Bucket(f"srv:c:{client}", "srv", "server-client", self._server_client),
            Bucket("srv", "srv", "server", self._server_global),
        ]
        if claims is not None:
            slot = f"tok:{claims.jti}"
            quotas = claims.quotas
            per_client = limit_items(quotas.per_client_request_limits)
            together = limit_items(quotas.global_request_limits)
            buckets += [
                Bucket(f"{slot}:c:{client}", slot, "token-client", per_client),
                Bucket(slot, slot, "token", together),
            ]
        return _filled(*buckets)


def _filled(*buckets: Bucket) -> Buckets:
    return tuple(bucket for bucket in buckets if bucket.limits)
