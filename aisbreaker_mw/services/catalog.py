"""The services of one server: the built-in catalogue (`catalog.toml`) under the configuration's `[services]`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from ..exceptions import ConfigurationError
from .service import Service
from .tables import ServiceBuilder, unknown_key

__all__ = ["ServiceCatalog"]


class ServiceCatalog:
    """
    The services of one server.

    Args:
        services: services by name, the built-in ones first.
    """

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
            overrides: tables by service name; docs/providers.md lists their keys. `like` names a service whose keys are
                taken over. Routes and variants are added before the inherited ones; any other key replaces the inherited one.

        Raises:
            ConfigurationError: one line, naming the key and what it takes.
        """
        text = resources.files(__package__).joinpath("catalog.toml").read_text("utf-8")
        tables: dict[str, dict[str, Any]] = tomllib.loads(text)
        given: dict[str, dict[str, Any]] = {}
        for name, table in (overrides or {}).items():
            if not re.fullmatch("[a-z0-9][a-z0-9-]*", name) or name == "api":
                raise ConfigurationError(
                    f"services: {name!a} can't be a name: it takes a-z, 0-9 and -, does not begin with -, and is not 'api'"
                )
            if not isinstance(table, Mapping):
                raise ConfigurationError(f"services.{name} takes a table")
            given[name] = dict(table)
            if "embedded" in table:
                raise unknown_key(name, "embedded")
        resolved = {name: _resolve(name, tables, given, ()) for name in tables | given}
        return cls({name: ServiceBuilder(name, table, added=name not in tables).build() for name, table in resolved.items()})

    def get(self, name: str) -> Service | None:
        """Return the service of this name, or None."""
        return self._services.get(name)

    def at(self, path: bytes) -> Service | None:
        """Return the service that the first segment of a path names, or None."""
        return self._services.get(path[1:].partition(b"/")[0].decode("latin-1"))

    def by_vendor(self, vendor: str) -> Service | None:
        """Return the first service of this vendor, or None. Built-in services come first."""
        return self._by_vendor.get(vendor)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def __len__(self) -> int:
        return len(self._services)


def _resolve(
    name: str,
    tables: Mapping[str, dict[str, Any]],
    given: Mapping[str, dict[str, Any]],
    via: tuple[str, ...],
) -> dict[str, Any]:
    """Return one service's table: the one that it is `like`, under its built-in one, under the configured one."""
    own = given.get(name, {})
    base = tables.get(name, {})
    original = own.get("like", base.get("like"))
    if original is not None:
        if not isinstance(original, str) or original in (*via, name) or (original not in tables and original not in given):
            raise ConfigurationError(f"services.{name}.like takes the name of another service")
        inherited = _resolve(original, tables, given, (*via, name))
        # Who may use a service is said of that service alone.
        inherited = {key: value for key, value in inherited.items() if key not in ("keyless", "strangers")}
        base = _over(inherited, base if "like" not in own else {})
    return _over(base, own)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **own}
    for key in ("routes", "variants"):
        above, below = own.get(key), base.get(key)
        if isinstance(above, Mapping) and isinstance(below, Mapping):
            merged[key] = {**above, **{path: value for path, value in below.items() if path not in above}}
    return merged
