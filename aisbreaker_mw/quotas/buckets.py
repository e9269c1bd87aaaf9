"""Which windows a request is counted in: the server's and its token's, per client and together."""

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour, RateLimitItemPerMinute

from ..tokens.claims import RequestLimits, RequestQuotas, TokenClaims
from .model import Bucket, Buckets

_WINDOWS: tuple[type[RateLimitItem], ...] = (RateLimitItemPerMinute, RateLimitItemPerHour, RateLimitItemPerDay)
_CACHE_SIZE = 65_536


def limit_items(limits: RequestLimits) -> tuple[RateLimitItem, ...]:
    """Return the windows of `limits`, shortest first."""
    return tuple(window(limit) for window, limit in zip(_WINDOWS, limits.windows(), strict=True) if limit is not None)


class BucketPlan:
    """
    Names the buckets of requests.

    Args:
        server: quotas over all requests, whatever their token.
        minting: token requests per client and minute; None: no limit.
    """

    def __init__(self, server: RequestQuotas, *, minting: int | None = None) -> None:
        self._server_client = limit_items(server.per_client_request_limits)
        self._server_global = limit_items(server.global_request_limits)
        self._minting = () if minting is None else (RateLimitItemPerMinute(minting),)
        self._cache: dict[tuple[str, str], Buckets] = {}

    def for_request(self, client: str, claims: TokenClaims | None) -> Buckets:
        """
        Return the buckets of a request to a service.

        Args:
            client: who asks (`ClientIdentifier.identify`).
            claims: of its token; None where a foreign credential is forwarded.
        """
        key = (claims.jti if claims else "", client)
        buckets = self._cache.get(key)
        if buckets is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            buckets = self._cache[key] = self._name(client, claims)
        return buckets

    def for_minting(self, client: str) -> Buckets:
        """Return the buckets of a token request."""
        return _filled(Bucket(f"mint:c:{client}", "mint", "minting", self._minting))

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
