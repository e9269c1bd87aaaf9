"""The services of one server: the built-in catalogue (`catalog.toml`), and what the configuration says of it."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from ..client.responses import Dialect
from ..exceptions import ConfigurationError, InvalidRequest
from .patterns import TASK
from .service import ENGINES, PLACEHOLDER, PLACEHOLDERS, CredentialStyle, PathProtocol, Route, RouteTable, Service, check_path

__all__ = ["ServiceCatalog"]

_STYLES: dict[str, CredentialStyle] = {
    "bearer": CredentialStyle(((b"authorization", "Bearer {secret}"),)),
    "token": CredentialStyle(((b"authorization", "Token {secret}"),)),
    "x-api-key": CredentialStyle(((b"x-api-key", "{secret}"),)),
    "x-goog-api-key": CredentialStyle(((b"x-goog-api-key", "{secret}"),)),
    "api-key": CredentialStyle(((b"api-key", "{secret}"),)),
}
_STRATEGIES: dict[str, dict[str, str]] = {  # and the form of each of their options
    "google-cloud": {"token_url": r"https?://[^\s?#@/]+/[!-~]*"},
    "aws-sigv4": {"region": r"[a-z0-9-]+", "service": r"[a-z0-9-]+"},
}
_AWS_HOST = re.compile(r"(?:.+\.)?[a-z-]+\.([a-z]{2}(?:-[a-z]+)+-\d)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)")


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
        text = resources.files(__package__).joinpath("catalog.toml").read_text("utf-8")
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

    def at(self, path: bytes) -> Service | None:
        """Return the service that a path names with its first segment, or None."""
        return self._services.get(path[1:].partition(b"/")[0].decode("latin-1"))

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
            _routes=RouteTable(
                vendor, self.word("unlisted_task", self.table.get("unlisted_task", "other")), protocols, self.routes()
            ),
            _completions=_completions(prefix, others),
        )

    def takes(self, key: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"services.{self.name}.{key} takes {what}")

    def word(self, key: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > 128 or not TASK.fullmatch(value):
            raise self.takes(key, "letters, digits, '.', '_' and '-', at most 128 characters, such as 'openai.com'")
        return value

    def path(self, key: str, value: object) -> str:
        """Return a path without a slash at its end, so "" for the root."""
        if isinstance(value, str) and value.isascii() and len(value) <= 1024 and not PLACEHOLDER.search(value):
            path = value.rstrip("/").encode("ascii")
            try:
                check_path(path)
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
            f"one of {', '.join(sorted(_STYLES | _STRATEGIES))}, a table {{header = 'x-key', format = 'Bearer {{secret}}'}} or "
            "{query = 'key'}, or a list of these",
        )
        if isinstance(value, list | tuple):
            styles = [self.credential(key, each) for each in value]
            queries = [style.query for style in styles if style.query]
            if not styles or len(queries) > 1 or any(style.strategy for style in styles):
                raise refusal
            headers = tuple(header for style in styles for header in style.headers)
            return CredentialStyle(headers, queries[0] if queries else None)
        if isinstance(value, str) and value in _STYLES:
            return _STYLES[value]
        if isinstance(value, str) and value in _STRATEGIES:
            value = {"strategy": value}
        if not isinstance(value, Mapping):
            raise refusal
        if "strategy" in value:
            return self.strategy(key, value)
        if set(value) == {"query"} and isinstance(value["query"], str) and TASK.fullmatch(value["query"]):
            return CredentialStyle(query=value["query"])
        template = value.get("format", "{secret}")
        if not set(value) <= {"header", "format"} or not isinstance(template, str) or template.count("{secret}") != 1:
            raise refusal
        name, text = self.header(key, value.get("header"), template)
        return CredentialStyle(((name, text.decode("ascii")),))

    def strategy(self, key: str, value: Mapping[str, Any]) -> CredentialStyle:
        name = value["strategy"]
        given = {option: text for option, text in value.items() if option != "strategy"}
        forms = _STRATEGIES.get(name, {}) if isinstance(name, str) else {}
        if not forms or any(
            option not in forms or not isinstance(text, str) or not re.fullmatch(forms[option], text)
            for option, text in given.items()
        ):
            raise self.takes(
                key, "{strategy = 'google-cloud', token_url = 'https://...'} or {strategy = 'aws-sigv4', region = 'eu-west-1'}"
            )
        options = {"token_url": "https://oauth2.googleapis.com/token"}
        if name == "aws-sigv4":
            options = {"service": "bedrock", "region": given.get("region") or self.region(key)}
        return CredentialStyle(strategy=name, options=tuple(sorted({**options, **given}.items())))

    def region(self, key: str) -> str:
        scheme, host, _, _ = self.base_url()
        found = _AWS_HOST.fullmatch(host)
        if found is not None:
            return found[1]
        if scheme == "https":
            raise self.takes(key, "{strategy = 'aws-sigv4', region = '...'} where base_url is none of AWS's with a region")
        return "us-east-1"  # AWS has nothing without TLS, so this stands in for it, and checks no signature

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

    def protocols(self) -> tuple[PathProtocol, ...]:
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
                PathProtocol(
                    self.path(key, prefix).encode("ascii"),
                    self.credential(key, variant["credential"]) if "credential" in variant else credential,
                    self.errors(key, variant["errors"]) if "errors" in variant else errors,
                    self.headers(key, variant["default_headers"]) if "default_headers" in variant else headers,
                )
            )
        return (*protocols, PathProtocol(b"", credential, errors, headers))

    def routes(self) -> Iterator[Route]:
        value = self.table.get("routes", {})
        if not isinstance(value, Mapping):
            raise self.takes("routes", "a table such as {'POST /v1/rerank' = 'rerank json:model'}")
        for line, meaning in value.items():
            key = f"routes.{line!a}"
            head = re.fullmatch(r"([A-Z]+) ([!-~]+)", line)
            if head is None or not all(path.startswith("/") for path in _expand(head[2])):
                raise self.takes(key, "a key of method (or ANY) and path, such as 'POST /v1/rerank'")
            tail = (
                re.fullmatch(rf"({TASK.pattern})(?: ((?:json|form|query):\w+))?", meaning, re.ASCII)
                if isinstance(meaning, str)
                else None
            )
            if tail is None:
                raise self.takes(key, "a task and where the engine stands, such as 'rerank json:model'")
            for path in _expand(head[2]):
                placeholders = [part for part in PLACEHOLDER.findall(path)]
                if any(part not in PLACEHOLDERS for part in placeholders):
                    raise self.takes(key, f"no placeholders but {', '.join(PLACEHOLDERS)} and alternatives {{/a|/b}}")
                in_path = ["deployment" if part == "{deployment}" else "path" for part in placeholders if part in ENGINES]
                if len(in_path) > 1 or (in_path and tail[2]):
                    raise self.takes(key, "one place of the engine")
                yield Route(head[1], path, tail[1], in_path[0] if in_path else tail[2])


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
    parts = PLACEHOLDER.split(path)
    choices = [part[1:-1].split("|") if part.startswith("{") and "|" in part else [part] for part in parts]
    return ("".join(choice) for choice in itertools.product(*choices))
