"""What every test stands on."""

import os

import pytest

for _name in [*(name for name in os.environ if name.startswith(("AISBREAKER_", "AUTH_"))), "DEFAULT_AISBREAKER_API_KEY"]:
    os.environ.pop(_name, None)  # the configuration of whoever runs the tests is not the tests'


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
