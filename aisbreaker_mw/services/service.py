"""
An AI service: the serviceId of each request to it, and the path that it is asked for.

The task of a serviceId comes from the service's routes. A path that no route lists literally has the task `other`, so a
token for one task reaches no path that the catalogue doesn't know:

    service = ServiceCatalog.load().get("openai")
    match, target = service.resolve("POST", b"/chat/completions")
    match.service_id    # "chat:openai.com"
    target              # b"/v1/chat/completions"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

from ..client.responses import Dialect
from ..exceptions import InvalidRequest
from .key_places import KeyPlaces

__all__ = [
    "ENGINES",
    "PLACEHOLDER",
    "PLACEHOLDERS",
    "CredentialStyle",
    "PathProtocol",
    "Route",
    "RouteMatch",
    "RouteTable",
    "Service",
    "check_path",
]


@dataclass(frozen=True, slots=True)
class CredentialStyle:
    """
    How a service wants its credential. It may want it in several places; each gets the whole credential.

    Attributes:
        headers: pairs of a name in lower case and a value's format with one `{secret}`.
        query: name of the query parameter that carries the credential, or None.
        strategy: name of the credential strategy (`google-cloud`, `aws-sigv4`), or None where the secret is the credential.
        options: names and values of the strategy's options.
        header_names: names of the headers that carry the credential.
    """

    headers: tuple[tuple[bytes, str], ...] = ()
    query: str | None = None
    strategy: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    header_names: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header_names", frozenset(name for name, _ in self.headers))

    def headers_for(self, secret: str) -> list[tuple[bytes, bytes]]:
        """Return the raw headers that carry `secret`, which is ASCII. An empty secret has none."""
        if not secret:
            return []
        return [(name, template.replace("{secret}", secret).encode("ascii")) for name, template in self.headers]


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """
    The meaning of one request to a service.

    Attributes:
        task: kebab-case word, such as `chat`; `other` for a path that the catalogue doesn't list.
        vendor: vendor of the service, such as `openai.com`.
        engine_source: where the engine stands: `json:<key>`, `form:<key>`, `query:<key>`, or `path` and `deployment` (then
            `engine` has it); None where there is no engine. See `engine_reader.EngineReader`.
        engine: engine from the path, or "".
        credential: how this path wants its credential.
        errors: dialect of this path's errors.
        default_headers: raw headers that are sent where the client sent none of that name.
    """

    task: str
    vendor: str
    engine_source: str | None
    engine: str
    credential: CredentialStyle
    errors: Dialect
    default_headers: tuple[tuple[bytes, bytes], ...]

    @property
    def listing(self) -> bool:
        """Whether the request lists models. Any token with a secret for the vendor may (see `covers_vendor`)."""
        return self.task == "models"

    @property
    def service_id(self) -> str:
        """`task:vendor`, without an engine."""
        return f"{self.task}:{self.vendor}"

    def service_id_with(self, engine: str) -> str:
        """`task:vendor/engine`, or `task:vendor` for an empty engine."""
        return f"{self.task}:{self.vendor}/{engine}" if engine else self.service_id


@dataclass(frozen=True, slots=True)
class PathProtocol:
    """The protocol of the paths below `prefix`. A service can have a second vendor's protocol beside its own."""

    prefix: bytes
    credential: CredentialStyle
    errors: Dialect
    default_headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of a service's routes, its alternatives expanded."""

    method: str
    path: str
    task: str
    engine_source: str | None


# Bytes that no path may have: outside printable ASCII; backslash, fragment and query; a malformed escape (IIS's %u002e
# among them); an escaped control character or backslash.
_UNSAFE = re.compile(rb"[^!-~]|[\\#?]|%(?![0-9A-Fa-f]{2})|%(?:[01][0-9A-Fa-f]|7[Ff]|5[Cc])")


def check_path(path: bytes) -> None:
    """
    Refuse a path that an upstream could read as another path.

    Escapes are decoded once, as anybody on the way may do (RFC 3986, 6.2.2); `%252e` stays as it is. Path parameters
    (`..;x=y`, RFC 3986, 3.3) and blanks don't hide a dot segment, and overlong UTF-8 (`%c0%ae`) is no UTF-8.

    Raises:
        InvalidRequest: the path is ambiguous or malformed.
    """
    if _UNSAFE.search(path) or (path and path[:1] != b"/") or path[:2] == b"//":
        raise InvalidRequest("The path has a character or an escape that is not allowed.")
    if b"%" in path or b"/." in path:
        decoded = unquote_to_bytes(path)
        try:
            decoded.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest("The path's escapes are not UTF-8.") from None
        if any(segment.partition(b";")[0].strip(b" ") in (b".", b"..") for segment in decoded.split(b"/")):
            raise InvalidRequest("The path has dot segments.")


def _under(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")


# Placeholders match no `;`, and no escape but for those below: a path that an upstream could read in two ways is not
# literally the listed path, so it is `other`. `check_path` has refused dot segments before.
PLACEHOLDERS: dict[str, bytes] = {
    "{id}": rb"[A-Za-z0-9._~!$&'()*+,=:@-]+",
    "{engine}": rb"(?P<engine>[A-Za-z0-9._~@+-]+)",
    # An engine that holds whichever model the body names.
    "{deployment}": rb"(?P<engine>[A-Za-z0-9._~@+-]+)",
    "{engine:2}": rb"(?P<engine>[A-Za-z0-9._~@+-]+/[A-Za-z0-9._~@+-]+)",
    # AWS's ids have colons (`anthropic.claude-3-haiku-20240307-v1:0`), and ARNs slashes, which its SDKs escape.
    "{engine:arn}": rb"(?P<engine>(?:[A-Za-z0-9._~@+:-]|%3[Aa]|%2[Ff])+)",
    # Nothing, or any segments below. SDKs escape the slash of an id such as `meta-llama/Llama-3`. However often an upstream
    # decodes it, the path stays below the listed one.
    "{/*}": rb"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%2[Ff]|%3[Aa]|%40)+)*",
}
ENGINES = frozenset(name for name, pattern in PLACEHOLDERS.items() if b"?P<engine>" in pattern)
"""Placeholders that take the engine out of the path."""
PLACEHOLDER = re.compile(r"(\{[^{}]*\})")


def _compile_path(path: str) -> re.Pattern[bytes] | None:
    """Return the pattern of a path with placeholders, or None for a path without."""
    parts = PLACEHOLDER.split(path)
    if len(parts) == 1:
        return None
    return re.compile(b"".join(PLACEHOLDERS.get(part) or re.escape(part.encode("ascii")) for part in parts))


class RouteTable:
    """
    A service's routes, compiled.

    Args:
        vendor: vendor of the service.
        unlisted_task: task of a path that no route lists.
        protocols: the protocols by prefix; the last one has the prefix "", so that one always fits.
        routes: the routes, in the order of trying. Exact paths are tried before those with placeholders.
    """

    def __init__(self, vendor: str, unlisted_task: str, protocols: tuple[PathProtocol, ...], routes: Iterable[Route]) -> None:
        self._vendor = vendor
        self._unlisted_task = unlisted_task
        self._protocols = protocols
        self._exact: dict[tuple[str, bytes], RouteMatch] = {}
        self._templates: list[tuple[str, re.Pattern[bytes], Route]] = []
        for route in routes:
            pattern = _compile_path(route.path)
            if pattern is not None:
                self._templates.append((route.method, pattern, route))
            else:
                path = route.path.encode("ascii")
                self._exact.setdefault((route.method, path), self._match(path, route.task, route.engine_source, ""))

    def find(self, method: str, path: bytes) -> RouteMatch:
        """Return the meaning of a request. `path`: the upstream's path, checked, without the base URL's own."""
        exact = self._exact.get((method, path)) or self._exact.get(("ANY", path))
        if exact is not None:
            return exact
        for allowed, pattern, route in self._templates:
            if allowed in (method, "ANY") and (found := pattern.fullmatch(path)):
                engine = unquote(found["engine"].decode("ascii")) if "engine" in pattern.groupindex else ""
                return self._match(path, route.task, route.engine_source, engine)
        return self._match(path, self._unlisted_task, None, "")

    def _match(self, path: bytes, task: str, engine_source: str | None, engine: str) -> RouteMatch:
        speaks = next(protocol for protocol in self._protocols if _under(path, protocol.prefix))
        return RouteMatch(task, self._vendor, engine_source, engine, speaks.credential, speaks.errors, speaks.default_headers)


@dataclass(frozen=True, eq=False)
class Service:
    """
    One AI service: its address, its credential style, and the meaning of its paths. Made by `ServiceCatalog.load`.

    Attributes:
        name: first segment of our path, such as `openai`.
        vendor: vendor in serviceIds, such as `openai.com`.
        base_url: URL of the service; None where it is embedded, or the configuration must still name the URL.
        api_prefix: beginning of the service's paths that a client may leave out, such as `/v1`.
        other_prefixes: beginnings of paths that are not below `api_prefix`.
        credential: how it wants its credential; a `RouteMatch` has the style of one path.
        errors: dialect of its errors; a `RouteMatch` has the dialect of one path.
        default_headers: raw headers that are sent where the client sent none of that name.
        embedded: whether it runs inside this process (`dummy`).
        delay: seconds between streamed pieces of an embedded service.
        keyless: whether a token may reach it without a credential (`authSecret` "").
        closed_to_strangers: whether tokens that anybody can mint reach it from this machine only.
        places: where a request may carry its API key.
        rejections: texts of error bodies by status, with which it refuses a credential, beside 401.
        scheme, host, port, host_header, base_path: parts of `base_url`; empty and 0 without one. `host` has no brackets,
            `host_header` is the value of `Host`, `base_path` has no trailing slash.
        origin: (scheme, host, port).
    """

    name: str
    vendor: str
    base_url: str | None
    api_prefix: str
    other_prefixes: tuple[str, ...]
    credential: CredentialStyle
    errors: Dialect
    default_headers: tuple[tuple[bytes, bytes], ...]
    embedded: bool
    delay: float
    keyless: bool
    closed_to_strangers: bool
    places: KeyPlaces = field(repr=False)
    rejections: Mapping[int, bytes] = field(repr=False)
    scheme: str
    host: str
    port: int
    host_header: bytes
    base_path: bytes
    _routes: RouteTable = field(repr=False)
    _completions: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    origin: tuple[str, str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", (self.scheme, self.host, self.port))

    @property
    def is_network(self) -> bool:
        """Whether it is another AIsBreaker server."""
        return self.vendor == "network"

    @property
    def available(self) -> bool:
        """Whether requests can be served: the service is embedded, or has a base URL."""
        return self.embedded or self.base_url is not None

    def resolve(self, method: str, rest: bytes) -> tuple[RouteMatch, bytes]:
        """
        Find what a request does, and the path that the upstream is asked for.

        That path is the base URL's own path, the part of the API prefix that the client left out, and `rest` byte for byte.

        Args:
            method: HTTP method in upper case; `GET` for a WebSocket.
            rest: raw path after `/<name>`, without the query; empty, or beginning with a slash.

        Raises:
            InvalidRequest: the path has dot segments, control characters and the like.
        """
        path = self._complete(rest)
        return self._routes.find(method, path), self.base_path + path

    def _complete(self, rest: bytes) -> bytes:
        check_path(rest)
        for head, missing in self._completions:
            if _under(rest, head):
                return missing + rest
        return rest or b"/"
