"""What every test stands on."""

import functools
import os
import ssl
from collections.abc import Iterator

import httpx._transports.default
import pytest

from .support import RecordingUpstream, proxy

SERVICES = ("openai", "anthropic", "gemini", "mistral", "stability")

for _name in [*(name for name in os.environ if name.startswith(("AISBREAKER_", "AUTH_"))), "DEFAULT_AISBREAKER_API_KEY"]:
    os.environ.pop(_name, None)  # the configuration of whoever runs the tests is not the tests'


_make_context = httpx._transports.default.create_ssl_context


@functools.cache
def _share_context(sources: tuple[str | None, ...]) -> ssl.SSLContext:
    return _make_context()


def _context(verify: ssl.SSLContext | str | bool = True, cert: object = None, trust_env: bool = True) -> ssl.SSLContext:
    """As httpx makes one, but the usual one only once: to read all certificates takes longer than most tests."""
    if verify is True and cert is None and trust_env:
        return _share_context(tuple(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")))
    return _make_context(verify, cert, trust_env)  # type: ignore[arg-type]


httpx._transports.default.create_ssl_context = _context


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    """A service on loopback that records what it gets, and answers 200 with a little JSON."""
    with RecordingUpstream() as recording:
        yield recording


@pytest.fixture(scope="module")
def base(upstream: RecordingUpstream) -> Iterator[str]:
    """The base URL of the standalone proxy, with all the services that these tests name at `upstream`."""
    with proxy(upstream, *SERVICES) as url:
        yield url


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("REQUIRE_COMPONENTS") and skipped:
        terminalreporter.section("REQUIRE_COMPONENTS is set, and tests were skipped", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("REQUIRE_COMPONENTS") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
