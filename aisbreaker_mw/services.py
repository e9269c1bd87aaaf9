"""
Which AI services there are, and what a request to one of them is called.

A serviceId is `task:vendor[/engine]`, such as `chat:openai.com/gpt-4o`. The task comes from the service's routes, which
are data in `catalog.toml` and in the configuration. A path that no route lists literally has the task `other`, so a
token that was made for one task reaches no path that the catalogue doesn't know:

    catalog = ServiceCatalog.load()
    service = catalog.get("openai")
    match = service.route("POST", b"/chat/completions")   # match.service_id == "chat:openai.com"
    service.upstream_target(b"/chat/completions")         # b"/v1/chat/completions"
    matches("chat:openai.com", match.service_id)          # True
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal
from urllib.parse import unquote_to_bytes, urlsplit

from .exceptions import ConfigurationError, InvalidRequest

__all__ = [
    "LONGEST_PATTERN",
    "CredentialStyle",
    "Dialect",
    "RouteMatch",
    "Service",
    "ServiceCatalog",
    "covers_vendor",
    "matches",
    "needs_engine",
    "validate_pattern",
]

Dialect = Literal["openai", "anthropic", "google"]
"""Whose shape an error has."""

LONGEST_PATTERN = 256
"""Characters of a pattern in a token, at most."""

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VENDOR = _TASK
_PATTERN = re.compile(
    rf"""
    \*?                                                  # nothing, or any service
    | (?: \* | {_TASK.pattern} ) : \*?                   # any vendor
    | (?: \* | {_TASK.pattern} ) : {_VENDOR.pattern} (?: \* | / [!-)+-~]* \*? )?
    | {_TASK.pattern} \*                                 # any task with this beginning
    """,
    re.VERBOSE,
)


def validate_pattern(text: str) -> None:
    """
    Check what may stand as a `serviceId` in a token.

    Args:
        text: `""` (everything), `task:vendor`, `task:vendor/engine`, a beginning of these that ends in `:` or `/`; each
            may end in `*`, and the task may be `*`. Printable ASCII, at most `LONGEST_PATTERN` characters.

    Raises:
        ValueError: with a fixed text that does not repeat the pattern.
    """
    if len(text) > LONGEST_PATTERN:
        raise ValueError(f"must have at most {LONGEST_PATTERN} characters")
    if not _PATTERN.fullmatch(text):
        raise ValueError("must be a serviceId: task:vendor, task:vendor/engine, either with a trailing *, *:vendor, or empty")


def matches(pattern: str, service_id: str) -> bool:
    """
    Tell whether a token's pattern covers a serviceId.

    It does if it is empty, equal, or a prefix that ends at a boundary: its last or the next character is `:` or `/`.
    A trailing `*` stands for any rest, a leading `*:` for any task.
    """
    if pattern.startswith("*:"):
        pattern, service_id = pattern[2:], service_id.partition(":")[2]
    if pattern.endswith("*"):
        return service_id.startswith(pattern[:-1])
    if not service_id.startswith(pattern):
        return False
    return len(pattern) in (0, len(service_id)) or pattern[-1] in ":/" or service_id[len(pattern)] in ":/"


def needs_engine(pattern: str, service_id: str) -> bool:
    """
    Tell whether a pattern that doesn't match a serviceId without an engine could match it with one.

    Args:
        pattern: as for `matches`.
        service_id: `task:vendor`.
    """
    if pattern.startswith("*:"):
        pattern, service_id = pattern[2:], service_id.partition(":")[2]
    return pattern.startswith(service_id + "/")


def covers_vendor(pattern: str, vendor: str) -> bool:
    """
    Tell whether a pattern covers anything of a vendor, whatever the task and the engine.

    This is what listing the vendor's models takes (see `RouteMatch.listing`).
    """
    task, colon, rest = pattern.partition(":")
    if not colon:
        return not task or task.endswith("*") or _TASK.fullmatch(task) is not None
    return matches(rest, vendor) or rest.startswith(vendor + "/")


@dataclass(frozen=True, slots=True)
class CredentialStyle:
    """
    How a service wants its credential. Several places are allowed, each gets the whole credential.

    Attributes:
        headers: name in lower case, and the value's format with one `{secret}`.
        query: name of a parameter in the query that gets the credential, or None.
    """

    headers: tuple[tuple[bytes, str], ...] = ()
    query: str | None = None

    def headers_for(self, secret: str) -> list[tuple[bytes, bytes]]:
        """Return the raw headers that carry `secret`, which is ASCII; none for an empty one."""
        if not secret:
            return []
        return [(name, template.replace("{secret}", secret).encode("ascii")) for name, template in self.headers]


_STYLES: dict[str, CredentialStyle] = {
    "bearer": CredentialStyle(((b"authorization", "Bearer {secret}"),)),
    "token": CredentialStyle(((b"authorization", "Token {secret}"),)),
    "x-api-key": CredentialStyle(((b"x-api-key", "{secret}"),)),
    "x-goog-api-key": CredentialStyle(((b"x-goog-api-key", "{secret}"),)),
    "api-key": CredentialStyle(((b"api-key", "{secret}"),)),
}


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """
    What one request to a service is.

    Attributes:
        task: kebab-case word, such as `chat`; `other` for a path that the catalogue doesn't list.
        vendor: the service's vendor, such as `openai.com`.
        engine_source: where the engine stands: `json:<key>`, `form:<key>` (both for `engines.read_engine`),
            `query:<key>` (for `engines.read_query_engine`), `path` (then `engine` has it), or None: it has none.
        engine: the engine from the path, or "".
        credential: how this path wants the credential.
        errors: whose error shape this path's SDK reads.
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
        """Whether this lists models, which any token with a secret for the vendor may (see `covers_vendor`)."""
        return self.task == "models"

    @property
    def service_id(self) -> str:
        """`task:vendor`, without an engine."""
        return f"{self.task}:{self.vendor}"

    def service_id_with(self, engine: str) -> str:
        """`task:vendor/engine`, or `task:vendor` for an empty engine."""
        return f"{self.task}:{self.vendor}/{engine}" if engine else self.service_id


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What the paths under `prefix` speak: a service can have a second vendor's protocol beside its own."""

    prefix: bytes
    credential: CredentialStyle
    errors: Dialect
    default_headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Route:
    """One line of a service's routes, its alternatives expanded."""

    method: str
    path: str
    task: str
    engine_source: str | None


# Bytes that a path never has here: outside printable ASCII; backslash, fragment and query; an escape that is none
# (IIS's %u002e among them); an escaped control character or backslash.
_UNSAFE = re.compile(rb"[^!-~]|[\\#?]|%(?![0-9A-Fa-f]{2})|%(?:[01][0-9A-Fa-f]|7[Ff]|5[Cc])")


def _check_path(path: bytes) -> None:
    """
    Refuse a path that an upstream could take for another one than it looks like.

    Escapes are decoded once, as RFC 3986, 6.2.2 lets anybody do on the way; `%252e` stays what it is. Path parameters
    (`..;x=y`, RFC 3986, 3.3) and blanks don't hide a dot segment, and overlong UTF-8 (`%c0%ae`) is no UTF-8.

    Raises:
        InvalidRequest
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


# Placeholders never take an escape (but for `{/*}`, see below) nor a `;`: what an upstream could read in two ways is
# not literally the listed path, and so is `other`. A dot segment doesn't get as far as this.
_PLACEHOLDERS: dict[str, bytes] = {
    "{id}": rb"[A-Za-z0-9._~!$&'()*+,=:@-]+",
    "{engine}": rb"(?P<engine>[A-Za-z0-9._~@+-]+)",
    "{engine:2}": rb"(?P<engine>[A-Za-z0-9._~@+-]+/[A-Za-z0-9._~@+-]+)",
    # Nothing, or any segments below. SDKs escape the slash of an id such as `meta-llama/Llama-3`; however often an
    # upstream decodes that, it stays below the listed path.
    "{/*}": rb"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%2[Ff]|%3[Aa]|%40)+)*",
}
_PLACEHOLDER = re.compile(r"(\{[^{}]*\})")


def _compile_path(path: str) -> re.Pattern[bytes] | None:
    """Return the path template as a pattern, or None for a path without placeholders."""
    parts = _PLACEHOLDER.split(path)
    if len(parts) == 1:
        return None
    return re.compile(b"".join(_PLACEHOLDERS.get(part) or re.escape(part.encode("ascii")) for part in parts))


class _RouteTable:
    """A service's routes, compiled: exact paths in a dict, templates in the order in which they are tried."""

    def __init__(self, vendor: str, unlisted_task: str, protocols: tuple[_Protocol, ...], routes: Iterable[_Route]) -> None:
        self._vendor = vendor
        self._unlisted_task = unlisted_task
        self._protocols = protocols  # the last one has the prefix "", so that one always fits
        self._exact: dict[tuple[str, bytes], RouteMatch] = {}
        self._templates: list[tuple[str, re.Pattern[bytes], _Route]] = []
        for route in routes:
            pattern = _compile_path(route.path)
            if pattern is not None:
                self._templates.append((route.method, pattern, route))
            else:
                path = route.path.encode("ascii")
                self._exact.setdefault((route.method, path), self._match(path, route.task, route.engine_source, ""))

    def find(self, method: str, path: bytes) -> RouteMatch:
        exact = self._exact.get((method, path)) or self._exact.get(("ANY", path))
        if exact is not None:
            return exact
        for allowed, pattern, route in self._templates:
            if allowed in (method, "ANY") and (found := pattern.fullmatch(path)):
                engine = found["engine"].decode("ascii") if route.engine_source == "path" else ""
                return self._match(path, route.task, route.engine_source, engine)
        return self._match(path, self._unlisted_task, None, "")

    def _match(self, path: bytes, task: str, engine_source: str | None, engine: str) -> RouteMatch:
        speaks = next(protocol for protocol in self._protocols if _under(path, protocol.prefix))
        return RouteMatch(task, self._vendor, engine_source, engine, speaks.credential, speaks.errors, speaks.default_headers)


@dataclass(frozen=True, eq=False)
class Service:
    """
    One AI service: where it is, how it wants its credential, and what its paths do. Made by `ServiceCatalog.load`.

    Attributes:
        name: first segment of our path, such as `openai`.
        vendor: the vendor in serviceIds, such as `openai.com`.
        base_url: where it is, or None for an embedded service and for one that the configuration must complete.
        api_prefix: what is added to a path where the client left it out, such as `/v1`.
        other_prefixes: beginnings of paths that are not below `api_prefix`.
        credential: how it wants its credential; a `RouteMatch` says it for one path.
        errors: whose error shape its SDK reads; a `RouteMatch` says it for one path.
        default_headers: raw headers that are sent where the client sent none of that name.
        embedded: answered inside this process (`dummy`).
        delay: seconds between streamed pieces of an embedded service.
        scheme, host, port, host_header, base_path: the parts of `base_url`; empty and 0 without one. `host` is without
            brackets, `host_header` is what belongs into `Host`, `base_path` has no slash at its end.
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
    scheme: str
    host: str
    port: int
    host_header: bytes
    base_path: bytes
    _routes: _RouteTable = field(repr=False)
    _completions: tuple[tuple[bytes, bytes], ...] = field(repr=False)

    @property
    def available(self) -> bool:
        """Whether requests can be answered: it is embedded, or has a base URL."""
        return self.embedded or self.base_url is not None

    def route(self, method: str, rest: bytes) -> RouteMatch:
        """
        Find what a request does.

        Args:
            method: the HTTP method, upper case; `GET` for a WebSocket.
            rest: the raw path after `/<name>`: empty, or beginning with a slash; without the query.

        Raises:
            InvalidRequest: the path has dot segments, control characters and the like.
        """
        return self._routes.find(method, self._complete(rest))

    def upstream_target(self, rest: bytes) -> bytes:
        """
        Make the path that is asked of the upstream: the base URL's own path, the API prefix where the client left it
        (or the beginning of it) out, and `rest` byte for byte.

        Args:
            rest: as for `route`.

        Raises:
            InvalidRequest: as for `route`.
        """
        return self.base_path + self._complete(rest)

    def _complete(self, rest: bytes) -> bytes:
        _check_path(rest)
        for head, missing in self._completions:
            if _under(rest, head):
                return missing + rest
        return rest or b"/"


class ServiceCatalog:
    """The services of one server, by name."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = dict(services)
        self._by_vendor: dict[str, Service] = {}
        for service in self._services.values():
            self._by_vendor.setdefault(service.vendor, service)

    @classmethod
    def load(cls, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> ServiceCatalog:
        """
        Read the built-in catalogue and lay the configuration's `[services.<name>]` tables over it.

        Args:
            overrides: per service name: `like` (another service, whose everything is taken over), `base_url`, `vendor`,
                `api_prefix`, `other_prefixes`, `credential`, `errors`, `default_headers`, `unlisted_task`, `routes`,
                `variants`, and `delay` (seconds, embedded services only). Routes and variants are added to those that
                are there, and go before them.

        Raises:
            ConfigurationError: one line, naming the key and what it takes.
        """
        text = resources.files("aisbreaker_mw").joinpath("catalog.toml").read_text("utf-8")
        tables: dict[str, dict[str, Any]] = tomllib.loads(text)
        given: dict[str, dict[str, Any]] = {}
        for name, table in (overrides or {}).items():
            if not re.fullmatch("[a-z0-9][a-z0-9-]*", name) or name == "api":
                raise ConfigurationError(
                    f"services: {name!a} can't be a name: it takes a-z, 0-9 and -, beginning with no -, and not 'api'"
                )
            if not isinstance(table, Mapping):
                raise ConfigurationError(f"services.{name} takes a table")
            given[name] = dict(table)
            if "embedded" in table:
                raise _unknown(name, "embedded")
        resolved = {name: _resolve(name, tables, given, ()) for name in tables | given}
        return cls({name: _Builder(name, table).build() for name, table in resolved.items()})

    def get(self, name: str) -> Service | None:
        """Return the service of this name, the first segment of our path."""
        return self._services.get(name)

    def by_vendor(self, vendor: str) -> Service | None:
        """Return the first service of this vendor; the built-in ones come first."""
        return self._by_vendor.get(vendor)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def __len__(self) -> int:
        return len(self._services)


def _unknown(name: str, key: str) -> ConfigurationError:
    return ConfigurationError(f"services.{name}.{key} is not a setting; it takes {', '.join(sorted(_Builder.KEYS))}")


def _resolve(
    name: str,
    tables: Mapping[str, dict[str, Any]],
    given: Mapping[str, dict[str, Any]],
    via: tuple[str, ...],
) -> dict[str, Any]:
    """Return one service's table with what it is `like` and what the configuration says laid over each other."""
    own = given.get(name, {})
    base = tables.get(name, {})
    original = own.get("like", base.get("like"))
    if original is not None:
        if not isinstance(original, str) or original in (*via, name) or (original not in tables and original not in given):
            raise ConfigurationError(f"services.{name}.like takes the name of another service")
        base = _over(_resolve(original, tables, given, (*via, name)), base if "like" not in own else {})
    return _over(base, own)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **own}
    for key in ("routes", "variants"):
        above, below = own.get(key), base.get(key)
        if isinstance(above, Mapping) and isinstance(below, Mapping):
            merged[key] = {**above, **{path: value for path, value in below.items() if path not in above}}
    return merged


class _Builder:
    """Checks one service's table and makes the service."""

    KEYS = frozenset(
        {
            "like",
            "base_url",
            "vendor",
            "api_prefix",
            "other_prefixes",
            "credential",
            "errors",
            "default_headers",
            "unlisted_task",
            "routes",
            "variants",
            "delay",
        }
    )

    def __init__(self, name: str, table: Mapping[str, Any]) -> None:
        self.name = name
        self.table = table

    def build(self) -> Service:
        for key in self.table:
            if key not in self.KEYS | {"embedded"}:
                raise _unknown(self.name, key)
        embedded = bool(self.table.get("embedded"))
        if "delay" in self.table and not embedded:
            raise self.takes("delay", "nothing here: only the embedded service has a delay")
        if "base_url" in self.table and embedded:
            raise self.takes("base_url", "nothing here: this service is embedded")
        if "vendor" not in self.table:
            raise self.takes("vendor", "the vendor in serviceIds, such as 'openai.com', and is missing")
        prefix = self.path("api_prefix", self.table.get("api_prefix", ""))
        others = self.table.get("other_prefixes", [])
        if not isinstance(others, list | tuple):
            raise self.takes("other_prefixes", "a list of paths")
        others = tuple(self.path("other_prefixes", other) for other in others)
        scheme, host, port, base_path = self.base_url()
        base_path = base_path.removesuffix(prefix)  # `https://host/v1` is what people paste
        literal = f"[{host}]" if ":" in host else host
        default = {"https": 443, "http": 80}.get(scheme)
        vendor = self.word("vendor", self.table["vendor"])
        protocols = self.protocols()
        own = protocols[-1]
        return Service(
            name=self.name,
            vendor=vendor,
            base_url=self.table.get("base_url"),
            api_prefix=prefix,
            other_prefixes=others,
            credential=own.credential,
            errors=own.errors,
            default_headers=own.default_headers,
            embedded=embedded,
            delay=self.delay(self.table.get("delay", 0)),
            scheme=scheme,
            host=host,
            port=port,
            host_header=(literal if port == default or not host else f"{literal}:{port}").encode("ascii"),
            base_path=base_path.encode("ascii"),
            _routes=_RouteTable(
                vendor, self.word("unlisted_task", self.table.get("unlisted_task", "other")), protocols, self.routes()
            ),
            _completions=_completions(prefix, others),
        )

    def takes(self, key: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"services.{self.name}.{key} takes {what}")

    def word(self, key: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > 128 or not _VENDOR.fullmatch(value):
            raise self.takes(key, "letters, digits, '.', '_' and '-', at most 128 characters, such as 'openai.com'")
        return value

    def path(self, key: str, value: object) -> str:
        """Return a path without a slash at its end, so "" for the root."""
        if isinstance(value, str) and value.isascii() and len(value) <= 1024 and not _PLACEHOLDER.search(value):
            path = value.rstrip("/").encode("ascii")
            try:
                _check_path(path)
            except InvalidRequest:
                pass
            else:
                return path.decode("ascii")
        raise self.takes(key, "a path such as '/v1', without dot segments and query")

    def base_url(self) -> tuple[str, str, int, str]:
        """Return scheme, host in lower case, port, and path without a slash at its end."""
        value = self.table.get("base_url")
        if value is None:
            return "", "", 0, ""
        refusal = self.takes("base_url", "an http or https URL with a host, without user, query and fragment")
        # urlsplit drops tabs and newlines, and an empty query or fragment, without a word.
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value) or re.search(r"[?#@\\]", value):
            raise refusal
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise refusal from None
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or port == 0 or not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host):
            raise refusal
        return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), self.path("base_url", parts.path)

    def credential(self, key: str, value: object) -> CredentialStyle:
        refusal = self.takes(
            key,
            f"one of {', '.join(sorted(_STYLES))}, a table {{header = 'x-key', format = 'Bearer {{secret}}'}} or "
            "{query = 'key'}, or a list of these",
        )
        if isinstance(value, list | tuple):
            styles = [self.credential(key, each) for each in value]
            queries = [style.query for style in styles if style.query]
            if not styles or len(queries) > 1:
                raise refusal
            headers = tuple(header for style in styles for header in style.headers)
            return CredentialStyle(headers, queries[0] if queries else None)
        if isinstance(value, str) and value in _STYLES:
            return _STYLES[value]
        if not isinstance(value, Mapping):
            raise refusal
        if set(value) == {"query"} and isinstance(value["query"], str) and _TASK.fullmatch(value["query"]):
            return CredentialStyle(query=value["query"])
        template = value.get("format", "{secret}")
        if not set(value) <= {"header", "format"} or not isinstance(template, str) or template.count("{secret}") != 1:
            raise refusal
        name, text = self.header(key, value.get("header"), template)
        return CredentialStyle(((name, text.decode("ascii")),))

    def header(self, key: str, name: object, value: object) -> tuple[bytes, bytes]:
        # RFC 9110, 5.1 and 5.5
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise self.takes(key, "header names of letters, digits and '-'")
        if not isinstance(value, str) or not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", value):
            raise self.takes(key, "header values of printable ASCII")
        return name.lower().encode("ascii"), value.encode("ascii")

    def headers(self, key: str, value: object) -> tuple[tuple[bytes, bytes], ...]:
        if not isinstance(value, Mapping):
            raise self.takes(key, "a table of header names and values")
        return tuple(self.header(key, name, text) for name, text in value.items())

    def errors(self, key: str, value: object) -> Dialect:
        if value not in ("openai", "anthropic", "google"):
            raise self.takes(key, "one of openai, anthropic, google")
        return value

    def delay(self, value: object) -> float:
        try:  # an environment variable gives a string
            seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= 60:
            raise self.takes("delay", "seconds, from 0 to 60")
        return seconds

    def protocols(self) -> tuple[_Protocol, ...]:
        """Return the variants, and after them the service's own."""
        table = self.table
        credential = self.credential("credential", table.get("credential", "bearer"))
        errors = self.errors("errors", table.get("errors", "openai"))
        headers = self.headers("default_headers", table.get("default_headers", {}))
        variants = table.get("variants", {})
        if not isinstance(variants, Mapping):
            raise self.takes("variants", "a table of path prefixes")
        protocols = []
        for prefix, variant in variants.items():
            key = f"variants.{prefix!a}"
            if not isinstance(variant, Mapping) or not set(variant) <= {"credential", "errors", "default_headers"}:
                raise self.takes(key, "a table with credential, errors or default_headers")
            protocols.append(
                _Protocol(
                    self.path(key, prefix).encode("ascii"),
                    self.credential(key, variant["credential"]) if "credential" in variant else credential,
                    self.errors(key, variant["errors"]) if "errors" in variant else errors,
                    self.headers(key, variant["default_headers"]) if "default_headers" in variant else headers,
                )
            )
        return (*protocols, _Protocol(b"", credential, errors, headers))

    def routes(self) -> Iterator[_Route]:
        value = self.table.get("routes", {})
        if not isinstance(value, Mapping):
            raise self.takes("routes", "a table such as {'POST /v1/rerank' = 'rerank json:model'}")
        for line, meaning in value.items():
            key = f"routes.{line!a}"
            head = re.fullmatch(r"([A-Z]+) ([!-~]+)", line)
            if head is None or not all(path.startswith("/") for path in _expand(head[2])):
                raise self.takes(key, "a key of method (or ANY) and path, such as 'POST /v1/rerank'")
            tail = (
                re.fullmatch(rf"({_TASK.pattern})(?: ((?:json|form|query):\w+))?", meaning, re.ASCII)
                if isinstance(meaning, str)
                else None
            )
            if tail is None:
                raise self.takes(key, "a task and where the engine stands, such as 'rerank json:model'")
            for path in _expand(head[2]):
                placeholders = [part for part in _PLACEHOLDER.findall(path)]
                if any(part not in _PLACEHOLDERS for part in placeholders):
                    raise self.takes(key, f"no placeholders but {', '.join(_PLACEHOLDERS)} and alternatives {{/a|/b}}")
                in_path = sum(part.startswith("{engine") for part in placeholders)
                if in_path > 1 or (in_path and tail[2]):
                    raise self.takes(key, "one place of the engine")
                yield _Route(head[1], path, tail[1], "path" if in_path else tail[2])


def _completions(prefix: str, others: tuple[str, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """
    Return pairs of how a path can begin and what is then missing before it, in the order in which they are tried.

    For `/openai/v1`: nothing is missing before `/openai/v1`, `/openai` before `/v1`, all of it before anything else.
    """
    if not prefix:
        return ()
    cuts = [at for at, character in enumerate(prefix) if character == "/"]
    pairs = [(other, "") for other in others] + [(prefix[at:], prefix[:at]) for at in cuts] + [("", prefix)]
    return tuple((head.encode("ascii"), missing.encode("ascii")) for head, missing in pairs)


def _expand(path: str) -> Iterator[str]:
    """Write out the alternatives: `/{v1|v2}/x` is `/v1/x` and `/v2/x`, `{/v1|}/x` is `/v1/x` and `/x`."""
    parts = _PLACEHOLDER.split(path)
    choices = [part[1:-1].split("|") if part.startswith("{") and "|" in part else [part] for part in parts]
    return ("".join(choice) for choice in itertools.product(*choices))
