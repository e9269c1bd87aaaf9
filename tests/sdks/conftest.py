"""A server of ours in front of every vendor, and a token for all of them."""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from ..support import mint, proxy
from .vendors import SECRETS, Vendor, make_vendors

_CONFIGURATION = ("OPENAI_", "ANTHROPIC_", "GOOGLE_", "GEMINI_", "HF_TOKEN", "REPLICATE_", "LANGCHAIN_", "LANGSMITH_")

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the internet for prices when it is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["LANGSMITH_TRACING"] = "false"


@pytest.fixture(scope="session", autouse=True)
def no_connection_left_open() -> Iterator[None]:
    """LiteLLM keeps a client for each provider, which nobody else closes."""
    yield
    litellm = sys.modules.get("litellm")
    if litellm is not None:
        for client in [litellm.module_level_client, *litellm.in_memory_llm_clients_cache.cache_dict.values()]:
            if hasattr(client, "close") and not inspect.iscoroutinefunction(client.close):
                client.close()


@dataclass
class Site:
    """A server, a token for every service of it, and the upstreams behind."""

    base: str
    token: str
    vendors: dict[str, Vendor]


@pytest.fixture(scope="session")
def running_site() -> Iterator[Site]:
    with ExitStack() as stack:
        vendors = {name: stack.enter_context(vendor) for name, vendor in make_vendors().items()}
        base = stack.enter_context(proxy(services={name: {"base_url": vendor.url} for name, vendor in vendors.items()}))
        token = mint(base, *((SECRETS[name], vendor.secret) for name, vendor in vendors.items()))
        yield Site(base, token, vendors)


@pytest.fixture
def site(running_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site, nothing recorded yet, and no configuration of an SDK from outside."""
    for name in list(os.environ):
        if name.startswith(_CONFIGURATION) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for vendor in running_site.vendors.values():
        vendor.reset()
    return running_site
