"""The documentation's page of services."""

import re
import tomllib
from pathlib import Path

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.services import catalog
from aisbreaker_mw.services.catalog import ServiceCatalog

from . import make_routes

PROVIDERS = (Path(__file__).parents[2] / "docs" / "providers.md").read_text("utf-8")


def test_the_documentation_lists_every_service_with_its_vendor_and_tasks() -> None:
    tables = tomllib.loads((Path(catalog.__file__).parent / "catalog.toml").read_text("utf-8"))
    rows = {
        found[1]: (found[2], set(re.findall(r"`([^`]+)`", found[3])))
        for found in re.finditer(r"^\| `([^`]+)` \| `([^`]+)` \| .* \| (.*) \|$", PROVIDERS, re.MULTILINE)
    }
    assert rows == {
        name: (table["vendor"], {line.split()[0] for line in table.get("routes", {"": "aisbreaker"}).values()})
        for name, table in tables.items()
    }


def test_the_documentation_lists_every_route_as_its_script_writes_it() -> None:
    assert PROVIDERS.partition(make_routes.HEADING)[2] == make_routes.render()


def test_the_documentations_examples_work() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PROVIDERS, re.DOTALL)
    tables = [tomllib.loads(example)["services"] for example in examples]
    loaded = ServiceCatalog.load({name: table for each in tables for name, table in each.items()})
    vllm, acme = loaded.get("my-vllm"), loaded.get("acme")
    assert vllm is not None
    assert acme is not None
    assert vllm.resolve("POST", b"/chat/completions")[0].service_id == "chat:llm.internal"
    assert acme.resolve("GET", b"/speech/voice-1")[1] == b"/gateway/v2/speech/voice-1"
    assert acme.resolve("POST", b"/speech/voice-1")[0].engine == "voice-1"
    assert acme.credential.headers_for("s") == [(b"x-acme-key", b"Key s")]
    assert acme.default_headers == ((b"x-acme-version", b"2025-01-01"),)
    assert all(len([line for line in example.splitlines() if line]) <= 10 for example in examples), "ten lines are enough"


def test_the_documentation_names_every_key() -> None:
    with pytest.raises(ConfigurationError, match="is not a setting; it takes") as refusal:
        ServiceCatalog.load({"openai": {"nothing": 1}})
    known = str(refusal.value).partition("it takes ")[2].split(", ")
    assert set(known) <= set(re.findall(r"^\| `([a-z_]+)` \|", PROVIDERS, re.MULTILINE))
