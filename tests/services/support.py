"""The built-in services, with and without settings of their own."""

from typing import Any

from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.services.service import Service

CATALOG = ServiceCatalog.load()


def service(name: str = "openai", **overrides: Any) -> Service:
    found = (ServiceCatalog.load({name: overrides}) if overrides else CATALOG).get(name)
    assert found is not None
    return found
