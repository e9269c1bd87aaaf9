"""The SDKs for Node: `node --test` runs tests/node against a server of ours."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from aisbreaker_mw import create_app

from ..browser.realtime import realtime
from ..support import bearer, mint, proxy, serve, settings, wait_until
from .vendors import SECRETS, Vendor, make_vendors

NODE = Path(__file__).parents[1] / "node"
INSTALLED = NODE / "node_modules" / ".package-lock.json"
LOCK = NODE / "package-lock.json"

for _command in ("node", "npm"):
    if shutil.which(_command) is None:
        pytest.skip(f"no {_command} here", allow_module_level=True)


@pytest.fixture(scope="module")
def packages() -> None:
    """The packages of the lock file, installed the first time and when it has changed."""
    directory = os.open(NODE, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # one worker installs them, and others wait
        if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            installation = subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=300)
            assert installation.returncode == 0, installation.stderr
    finally:
        os.close(directory)


@pytest.fixture
def site() -> Iterator[tuple[dict[str, Any], dict[str, Vendor]]]:
    with ExitStack() as stack:
        vendors = {name: stack.enter_context(vendor) for name, vendor in make_vendors().items()}
        services = {name: {"base_url": vendor.url} for name, vendor in vendors.items()}
        base = stack.enter_context(proxy(services=services, upstream={"header_timeout": "200ms"}))
        down = {"storage": "redis://127.0.0.1:1", "server": {"global_request_limits": {"requests_per_day": 10**6}}}
        without_storage = stack.enter_context(proxy(services=services, quotas=down))
        secrets = [*((SECRETS[name], vendor.secret) for name, vendor in vendors.items()), ("*:dummy", "")]
        good = mint(base, *secrets)
        tokens = {
            "good": good,
            "broken": good[:-8] + "AAAAAAAA",
            "other": mint(base, ("*:dummy", "")),
            "minute": mint(base, *secrets, quotas={"globalRequestLimits": {"requestsPerMinute": 1}}),
            "day": mint(base, *secrets, quotas={"globalRequestLimits": {"requestsPerDay": 1}}),
        }
        for name in ("minute", "day"):
            assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(tokens[name])).status_code == 200
        upstreams = {name: vendor.url for name, vendor in vendors.items()}
        yield {"base": base, "withoutStorage": without_storage, "tokens": tokens, "upstreams": upstreams}, vendors


GEMINI = "POST /v1/models/gemini-2.5-flash"
SENT = {
    "openai": {
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "POST /v1/embeddings",
        "POST /v1/images/generations",
        "GET /v1/models",
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/speech",
        "POST /v1/files",
    },
    "anthropic": {"POST /v1/messages", "POST /v1/messages/count_tokens"},
    "google": {
        f"{GEMINI}:generateContent",
        f"{GEMINI}:streamGenerateContent?alt=sse",
        f"{GEMINI}:countTokens",
        "POST /v1/models/gemini-embedding-001:batchEmbedContents",
    },
    "vercel": {"POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages", "POST /v1/embeddings"},
}


def run_tests(name: str, description: dict[str, Any], **environment: str) -> None:
    """Run one file of tests, and check that all of them ran and passed."""
    environment = {"PATH": os.environ["PATH"], "SITE": json.dumps(description), **environment}
    command = ["node", "--test", "--test-reporter=tap", f"{name}.test.mjs"]
    run = subprocess.run(command, cwd=NODE, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout
    assert "# skipped 0" in run.stdout


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", SENT)
def test_sdk(site: tuple[dict[str, Any], dict[str, Vendor]], name: str) -> None:
    description, vendors = site
    run_tests(name, description)
    assert {line for vendor in vendors.values() for line in vendor.request_lines} == SENT[name]
    for vendor in vendors.values():
        vendor.check_sealed()


@pytest.mark.usefixtures("packages")
def test_realtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's SDK opens its WebSocket over TLS whatever the base URL says, so that is what our server speaks here."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    secret = "sk-SENTINEL-realtime"
    with ExitStack() as stack:
        trusted = stack.enter_context(authority.cert_pem.tempfile())
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        upstream = stack.enter_context(realtime())
        app = create_app(settings(services={"openai": {"base_url": upstream.url}}))
        base = stack.enter_context(serve(app, ssl_certfile=stack.enter_context(certificate.tempfile())))
        base = base.replace("http", "https", 1)
        good = mint(base, ("realtime:openai.com/gpt-realtime", secret))
        other = mint(base, ("realtime:openai.com/gpt-other", secret))
        tokens = {"good": good, "broken": good[:-8] + "AAAAAAAA", "other": other}
        run_tests("realtime", {"base": base, "tokens": tokens}, NODE_EXTRA_CA_CERTS=trusted)
        wait_until(lambda: upstream.closings, "closing")
    assert upstream.paths == ["/v1/realtime?model=gpt-realtime"]
    assert upstream.messages == ['{"type":"response.create"}']
    assert upstream.closings == [(4000, "enough")]
    upstream.check_sealed(secret)
