"""Where a request to a service may carry its API key, and so a token of ours."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

__all__ = ["COMMON_HEADERS", "KeyPlaces"]

COMMON_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Headers in which SDKs send an API key, whatever the service."""
_SCHEMES = frozenset({b"bearer", b"token"})
"""Schemes of Authorization behind which SDKs send an API key. The key may also stand alone."""
_COMMON_QUERY = "key"


@dataclass(frozen=True, slots=True)
class KeyPlaces:
    """
    The headers and query parameters that may carry an API key to one service.

    Args:
        headers: schemes in lower case by header name; a key may stand behind one of them, or alone.
        queries: names of query parameters.
        own_headers: the names in `headers` that are this service's own, in order.
        header_names: all names in `headers`.
    """

    headers: Mapping[bytes, frozenset[bytes]]
    queries: frozenset[str]
    own_headers: tuple[bytes, ...] = field(init=False)
    header_names: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header_names", frozenset(self.headers))
        object.__setattr__(self, "own_headers", tuple(sorted(self.headers.keys() - COMMON_HEADERS)))

    @classmethod
    def of(cls, formats: Iterable[tuple[bytes, str]], queries: Iterable[str]) -> Self:
        """
        Return the usual places, and those where a service's own credential goes.

        Args:
            formats: the service's own headers: names in lower case, and formats such as `Token {secret}`.
            queries: names of the service's own query parameters.
        """
        headers = dict.fromkeys(COMMON_HEADERS, frozenset[bytes]())
        headers[b"authorization"] = _SCHEMES
        for name, template in formats:
            scheme, space, _ = template.partition(" ")
            schemes = {scheme.lower().encode("ascii")} if space and "{secret}" not in scheme else set()
            headers[name] = headers.get(name, frozenset()) | schemes
        return cls(headers, frozenset({_COMMON_QUERY, *queries}))
