"""One service's table, as the catalogue and the configuration write it: checked, and made into a `Service`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ..client.loopback import is_private_host
from ..client.responses import Dialect
from ..exceptions import ConfigurationError, InvalidRequest
from ..http1.grammar import TOKEN
from .key_places import KeyPlaces
from .patterns import TASK
from .service import ENGINES, PLACEHOLDER, PLACEHOLDERS, CredentialStyle, PathProtocol, Route, RouteTable, Service, check_path

__all__ = ["ServiceBuilder", "unknown_key"]

_STYLES: dict[str, CredentialStyle] = {
    "bearer": CredentialStyle(((b"authorization", "Bearer {secret}"),)),
    "token": CredentialStyle(((b"authorization", "Token {secret}"),)),
    "x-api-key": CredentialStyle(((b"x-api-key", "{secret}"),)),
    "x-goog-api-key": CredentialStyle(((b"x-goog-api-key", "{secret}"),)),
    "api-key": CredentialStyle(((b"api-key", "{secret}"),)),
}
_STRATEGIES: dict[str, dict[str, str]] = {  # name, and the form of each option
    "google-cloud": {"token_url": r"https?://[^\s?#@/]+/[!-~]*"},
    "aws-sigv4": {"region": r"[a-z0-9-]+", "service": r"[a-z0-9-]+"},
}
_AWS_HOST = re.compile(r"(?:.+\.)?[a-z-]+\.([a-z]{2}(?:-[a-z]+)+-\d)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)")


class ServiceBuilder:
    """
    Makes a service of its table.

    Args:
        name: name of the service.
        table: keys and values of `[services.<name>]`, the catalogue's and the configuration's laid over each other.
    """

    KEYS: ClassVar = frozenset(
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
            "keyless",
            "strangers",
            "rejections",
        }
    )

    def __init__(self, name: str, table: Mapping[str, Any], *, added: bool) -> None:
        self._name = name
        self._table = table
        self._added = added

    def build(self) -> Service:
        """
        Return the service.

        Raises:
            ConfigurationError: one line, naming the key and what it takes.
        """
        for key in self._table:
            if key not in self.KEYS | {"embedded"}:
                raise unknown_key(self._name, key)
        embedded = bool(self._table.get("embedded"))
        if "delay" in self._table and not embedded:
            raise self._takes("delay", "nothing here: only the embedded service has a delay")
        if "base_url" in self._table and embedded:
            raise self._takes("base_url", "nothing here: this service is embedded")
        if "vendor" not in self._table:
            raise self._takes("vendor", "the vendor in serviceIds, such as 'openai.com', and is missing")
        prefix = self._path("api_prefix", self._table.get("api_prefix", ""))
        others = self._table.get("other_prefixes", [])
        if not isinstance(others, list | tuple):
            raise self._takes("other_prefixes", "a list of paths")
        others = tuple(self._path("other_prefixes", other) for other in others)
        scheme, host, port, base_path = self._base_url()
        base_path = base_path.removesuffix(prefix)  # `https://host/v1` is what people paste
        literal = f"[{host}]" if ":" in host else host
        default = {"https": 443, "http": 80}.get(scheme)
        vendor = self._word("vendor", self._table["vendor"])
        protocols = self._protocols()
        own = protocols[-1]
        return Service(
            name=self._name,
            vendor=vendor,
            base_url=self._table.get("base_url"),
            api_prefix=prefix,
            other_prefixes=others,
            credential=own.credential,
            errors=own.errors,
            default_headers=own.default_headers,
            embedded=embedded,
            delay=self._delay(self._table.get("delay", 0)),
            keyless=self._allows("keyless"),
            rejections=self._rejections(self._table.get("rejections", {})),
            closed_to_strangers=not self._allows("strangers") and (self._added or is_private_host(host)),
            places=KeyPlaces.of(
                (header for each in protocols for header in each.credential.headers),
                (each.credential.query for each in protocols if each.credential.query is not None),
            ),
            scheme=scheme,
            host=host,
            port=port,
            host_header=(literal if port == default or not host else f"{literal}:{port}").encode("ascii"),
            base_path=base_path.encode("ascii"),
            _routes=RouteTable(
                vendor, self._word("unlisted_task", self._table.get("unlisted_task", "other")), protocols, self._routes()
            ),
            _completions=_completions(prefix, others),
        )

    def _rejections(self, value: object) -> dict[int, bytes]:
        """Return the texts by status, from a table such as `{400 = "API_KEY_INVALID"}`."""
        if not isinstance(value, Mapping) or not all(
            isinstance(text, str) and text.isascii() and text and re.fullmatch("[45][0-9][0-9]", str(status))
            for status, text in value.items()
        ):
            raise self._takes("rejections", "a table of statuses and texts, such as {400 = 'API_KEY_INVALID'}")
        return {int(status): text.encode("ascii") for status, text in value.items()}

    def _allows(self, key: str) -> bool:
        value = self._table.get(key, "refuse")
        if value not in ("refuse", "allow"):
            raise self._takes(key, "refuse or allow")
        return bool(value == "allow")

    def _takes(self, key: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"services.{self._name}.{key} takes {what}")

    def _word(self, key: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > 128 or not TASK.fullmatch(value):
            raise self._takes(key, "letters, digits, '.', '_' and '-', at most 128 characters, such as 'openai.com'")
        return value

    def _path(self, key: str, value: object) -> str:
        """Return a path without a trailing slash, "" for the root."""
        if isinstance(value, str) and value.isascii() and len(value) <= 1024 and not PLACEHOLDER.search(value):
            path = value.rstrip("/").encode("ascii")
            try:
                check_path(path)
            except InvalidRequest:
                pass
            else:
                return path.decode("ascii")
        raise self._takes(key, "a path such as '/v1', without dot segments and query")

    def _base_url(self) -> tuple[str, str, int, str]:
        """Return scheme, host in lower case, port, and path without a trailing slash."""
        value = self._table.get("base_url")
        if value is None:
            return "", "", 0, ""
        refusal = self._takes("base_url", "an http or https URL with a host, without user, query and fragment")
        # urlsplit silently drops tabs, newlines, and an empty query or fragment.
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
        return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), self._path("base_url", parts.path)

    def _credential(self, key: str, value: object) -> CredentialStyle:
        refusal = self._takes(
            key,
            f"one of {', '.join(sorted(_STYLES | _STRATEGIES))}, a table {{header = 'x-key', format = 'Bearer {{secret}}'}} or "
            "{query = 'key'}, or a list of these",
        )
        if isinstance(value, list | tuple):
            styles = [self._credential(key, each) for each in value]
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
            return self._strategy(key, value)
        if set(value) == {"query"} and isinstance(value["query"], str) and TASK.fullmatch(value["query"]):
            return CredentialStyle(query=value["query"])
        template = value.get("format", "{secret}")
        if not set(value) <= {"header", "format"} or not isinstance(template, str) or template.count("{secret}") != 1:
            raise refusal
        name, text = self._header(key, value.get("header"), template)
        return CredentialStyle(((name, text.decode("ascii")),))

    def _strategy(self, key: str, value: Mapping[str, Any]) -> CredentialStyle:
        name = value["strategy"]
        given = {option: text for option, text in value.items() if option != "strategy"}
        forms = _STRATEGIES.get(name, {}) if isinstance(name, str) else {}
        if not forms or any(
            option not in forms or not isinstance(text, str) or not re.fullmatch(forms[option], text)
            for option, text in given.items()
        ):
            raise self._takes(
                key, "{strategy = 'google-cloud', token_url = 'https://...'} or {strategy = 'aws-sigv4', region = 'eu-west-1'}"
            )
        options = {"token_url": "https://oauth2.googleapis.com/token"}
        if name == "aws-sigv4":
            options = {"service": "bedrock", "region": given.get("region") or self._region(key)}
        return CredentialStyle(strategy=name, options=tuple(sorted({**options, **given}.items())))

    def _region(self, key: str) -> str:
        scheme, host, _, _ = self._base_url()
        found = _AWS_HOST.fullmatch(host)
        if found is not None:
            return found[1]
        if scheme == "https":
            raise self._takes(
                key, "{strategy = 'aws-sigv4', region = '...'} where base_url is no address of AWS that names a region"
            )
        return "us-east-1"  # AWS takes TLS only, so a test server stands in for it, and checks no signature

    def _header(self, key: str, name: object, value: object) -> tuple[bytes, bytes]:
        # RFC 9110, 5.1 and 5.5
        if not isinstance(name, str) or not re.fullmatch(TOKEN, name):
            raise self._takes(key, "header names of letters, digits and '-'")
        if not isinstance(value, str) or not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", value):
            raise self._takes(key, "header values of printable ASCII")
        return name.lower().encode("ascii"), value.encode("ascii")

    def _headers(self, key: str, value: object) -> tuple[tuple[bytes, bytes], ...]:
        if not isinstance(value, Mapping):
            raise self._takes(key, "a table of header names and values")
        return tuple(self._header(key, name, text) for name, text in value.items())

    def _errors(self, key: str, value: object) -> Dialect:
        if value not in ("openai", "anthropic", "google"):
            raise self._takes(key, "one of openai, anthropic, google")
        return value

    def _delay(self, value: object) -> float:
        try:  # from an environment variable it is a string
            seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= 60:
            raise self._takes("delay", "seconds, from 0 to 60")
        return seconds

    def _protocols(self) -> tuple[PathProtocol, ...]:
        """Return the variants' protocols, and after them the service's own."""
        table = self._table
        credential = self._credential("credential", table.get("credential", "bearer"))
        errors = self._errors("errors", table.get("errors", "openai"))
        headers = self._headers("default_headers", table.get("default_headers", {}))
        variants = table.get("variants", {})
        if not isinstance(variants, Mapping):
            raise self._takes("variants", "a table of path prefixes")
        protocols = []
        for prefix, variant in variants.items():
            key = f"variants.{prefix!a}"
            if not isinstance(variant, Mapping) or not set(variant) <= {"credential", "errors", "default_headers"}:
                raise self._takes(key, "a table with credential, errors or default_headers")
            protocols.append(
                PathProtocol(
                    self._path(key, prefix).encode("ascii"),
                    self._credential(key, variant["credential"]) if "credential" in variant else credential,
                    self._errors(key, variant["errors"]) if "errors" in variant else errors,
                    self._headers(key, variant["default_headers"]) if "default_headers" in variant else headers,
                )
            )
        return (*protocols, PathProtocol(b"", credential, errors, headers))

    def _routes(self) -> Iterator[Route]:
        value = self._table.get("routes", {})
        if not isinstance(value, Mapping):
            raise self._takes("routes", "a table such as {'POST /v1/rerank' = 'rerank json:model'}")
        for line, meaning in value.items():
            key = f"routes.{line!a}"
            head = re.fullmatch(r"([A-Z]+) ([!-~]+)", line)
            if head is None or not all(path.startswith("/") for path in _expand(head[2])):
                raise self._takes(key, "a key of method (or ANY) and path, such as 'POST /v1/rerank'")
            tail = (
                re.fullmatch(rf"({TASK.pattern})(?: ((?:json|form|query):\w+))?", meaning, re.ASCII)
                if isinstance(meaning, str)
                else None
            )
            if tail is None:
                raise self._takes(key, "a task and where the engine stands, such as 'rerank json:model'")
            for path in _expand(head[2]):
                placeholders = [part for part in PLACEHOLDER.findall(path)]
                if any(part not in PLACEHOLDERS for part in placeholders):
                    raise self._takes(key, f"no placeholders but {', '.join(PLACEHOLDERS)} and alternatives {{/a|/b}}")
                in_path = ["deployment" if part == "{deployment}" else "path" for part in placeholders if part in ENGINES]
                if len(in_path) > 1 or (in_path and tail[2]):
                    raise self._takes(key, "one place of the engine")
                yield Route(head[1], path, tail[1], in_path[0] if in_path else tail[2])


def unknown_key(name: str, key: str) -> ConfigurationError:
    """Return the error about a key that the table of service `name` must not have."""
    return ConfigurationError(f"services.{name}.{key} is not a setting; it takes {', '.join(sorted(ServiceBuilder.KEYS))}")


def _completions(prefix: str, others: tuple[str, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """
    Return how a path is completed: pairs of its beginning and the text to put before it, in the order of trying.

    For `/openai/v1`: nothing goes before `/openai/v1`, `/openai` goes before `/v1`, and all of it before anything else.
    """
    if not prefix:
        return ()
    cuts = [at for at, character in enumerate(prefix) if character == "/"]
    pairs = [(other, "") for other in others] + [(prefix[at:], prefix[:at]) for at in cuts] + [("", prefix)]
    return tuple((head.encode("ascii"), missing.encode("ascii")) for head, missing in pairs)


def _expand(path: str) -> Iterator[str]:
    """Expand the alternatives: `/{v1|v2}/x` is `/v1/x` and `/v2/x`, `{/v1|}/x` is `/v1/x` and `/x`."""
    parts = PLACEHOLDER.split(path)
    choices = [part[1:-1].split("|") if part.startswith("{") and "|" in part else [part] for part in parts]
    return ("".join(choice) for choice in itertools.product(*choices))
