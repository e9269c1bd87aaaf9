"""Where the configuration comes from: arguments, environment, file; and the names that it takes."""

import os
from pathlib import Path

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.settings import Settings, load_settings
from aisbreaker_mw.tokens.claims import RequestLimits, RequestQuotas

from .support import ALIASES, SAMPLE, Configure, refused

# Defaults


def test_defaults(configure: Configure) -> None:
    assert Settings().model_dump() == {
        "key": None,
        "retired_keys": Settings().retired_keys,
        "keyphrase": None,
        "retired_keyphrases": Settings().retired_keyphrases,
        "default_api_key": None,
        "hosts": [],
        "trusted_proxies": [],
        "cors_origins": ["*"],
        "foreign_credentials": "refuse",
        "log_level": "INFO",
        "log_format": "text",
        "minting": {
            "mode": "open",
            "secret": None,
            "default_lifetime": 2 * 3600,
            "max_lifetime": 366 * 86_400,
            "requests_per_minute": 30,
        },
        "quotas": {
            "storage": Settings().quotas.storage,
            "on_storage_error": "deny",
            "storage_timeout": 0.25,
            "storage_connect_timeout": 5.0,
            "max_clients": 1_000_000,
            "server": RequestQuotas().model_dump(),
        },
        "upstream": {
            "transport": Settings().upstream.transport,
            "http2": False,
            "connect_timeout": 5.0,
            "header_timeout": 600.0,
            "idle_timeout": 300.0,
            "pool_timeout": 5.0,
            "max_connections": 1000,
            "fair_share": 4,
            "max_body_bytes": 1_073_741_824,
            "max_buffered_bytes": 268_435_456,
            "max_engine_scan_bytes": 32 * 1024 * 1024,
            "forward_client_address": False,
        },
        "services": {},
        "inject": {},
    }
    assert Settings().quotas.storage.get_secret_value() == "memory://"
    assert Settings().upstream.transport in ("native", "httpx")
    assert not Settings().has_key()


def test_the_documented_sample_is_the_defaults_and_what_it_names(configure: Configure) -> None:
    configure(SAMPLE)
    settings = Settings()
    named = {
        "hosts": ["api.example.com"],
        "trusted_proxies": ["10.0.0.0/8"],
        "services": {
            "openai": {"base_url": "https://api.openai.com"},
            "my-vllm": {"like": "openai", "vendor": "llm.internal", "base_url": "http://10.0.0.7:8000"},
        },
        "inject": {"/api/v1/foo": "chat:openai.com"},
    }
    configure("")
    expected = Settings().model_dump() | named
    expected["quotas"]["server"]["per_client_request_limits"]["requests_per_minute"] = 600
    assert settings.model_dump() == expected
    ServiceCatalog.load(settings.services)


# Sources


@pytest.mark.parametrize(
    ("toml", "variables", "arguments", "expected"),
    [
        ("", {}, {}, "INFO"),
        ('log_level = "ERROR"', {}, {}, "ERROR"),
        ("", {"AISBREAKER_LOG_LEVEL": "WARNING"}, {}, "WARNING"),
        ("", {}, {"log_level": "DEBUG"}, "DEBUG"),
        ('log_level = "ERROR"', {"AISBREAKER_LOG_LEVEL": "WARNING"}, {}, "WARNING"),
        ('log_level = "ERROR"', {}, {"log_level": "DEBUG"}, "DEBUG"),
        ("", {"AISBREAKER_LOG_LEVEL": "WARNING"}, {"log_level": "DEBUG"}, "DEBUG"),
        ('log_level = "ERROR"', {"AISBREAKER_LOG_LEVEL": "WARNING"}, {"log_level": "DEBUG"}, "DEBUG"),
        ('log_level = "ERROR"', {"AISBREAKER_LOG_LEVEL": ""}, {}, "ERROR"),
        ('log_level = "error"', {}, {}, "ERROR"),
    ],
    ids=[
        "default",
        "file",
        "environment",
        "argument",
        "env>file",
        "arg>file",
        "arg>env",
        "all",
        "empty variable",
        "lower case",
    ],
)
def test_arguments_go_before_the_environment_and_that_before_the_file(
    configure: Configure, toml: str, variables: dict[str, str], arguments: dict[str, str], expected: str
) -> None:
    configure(toml, **variables)
    assert Settings(**arguments).log_level == expected


@pytest.mark.parametrize(("name", "variable"), ALIASES)
@pytest.mark.parametrize("in_file", [None, "name", "variable"])
@pytest.mark.parametrize("in_environment", [False, True])
@pytest.mark.parametrize("as_argument", [False, True])
def test_settings_with_a_variable_of_their_own_have_the_same_precedence(
    configure: Configure, name: str, variable: str, in_file: str | None, in_environment: bool, as_argument: bool
) -> None:
    toml = "" if in_file is None else f'{name if in_file == "name" else variable} = "from-file"'
    configure(toml, **({variable: "from-environment"} if in_environment else {}))
    settings = Settings(**({name: "from-argument"} if as_argument else {}))
    value = getattr(settings, name)
    expected = "from-argument" if as_argument else "from-environment" if in_environment else "from-file" if in_file else None
    assert (value.get_secret_value() or None if value is not None else None) == expected


def test_sections_are_laid_over_each_other_key_by_key(configure: Configure) -> None:
    configure(
        """
        [minting]
        mode = "off"
        default_lifetime = "1m"
        [quotas.server]
        per_client_request_limits = { requests_per_minute = 7, requests_per_hour = 9 }
        [services.openai]
        base_url = "http://file.example"
        api_prefix = "/v2"
        """,
        AISBREAKER_MINTING__DEFAULT_LIFETIME="2m",
        AISBREAKER_QUOTAS__SERVER__PER_CLIENT_REQUEST_LIMITS__REQUESTS_PER_MINUTE="5",
        AISBREAKER_SERVICES__OPENAI__BASE_URL="http://127.0.0.1:9001",
        AISBREAKER_UPSTREAM__MAX_CONNECTIONS="3",
    )
    settings = Settings(minting={"max_lifetime": "1h"})
    assert (settings.minting.mode, settings.minting.default_lifetime, settings.minting.max_lifetime) == ("off", 120, 3600)
    assert settings.quotas.server.per_client_request_limits == RequestLimits(requests_per_minute=5, requests_per_hour=9)
    assert settings.services == {"openai": {"base_url": "http://127.0.0.1:9001", "api_prefix": "/v2"}}
    assert settings.upstream.max_connections == 3


def test_lists_and_tables_are_json_in_the_environment(configure: Configure) -> None:
    configure(
        AISBREAKER_HOSTS='["api.example.com", "other.example.com"]',
        AISBREAKER_TRUSTED_PROXIES='["10.0.0.0/8", "unix"]',
        AISBREAKER_CORS_ORIGINS="[]",
        AISBREAKER_INJECT='{"/api/v1/foo": "chat:openai.com"}',
        AISBREAKER_SERVICES='{"my-vllm": {"like": "openai", "vendor": "llm.internal"}}',
        AISBREAKER_MINTING='{"mode": "off"}',
    )
    settings = Settings()
    assert settings.hosts == ["api.example.com", "other.example.com"]
    assert settings.trusted_proxies == ["10.0.0.0/8", "unix"]
    assert settings.cors_origins == []
    assert settings.inject == {"/api/v1/foo": "chat:openai.com"}
    assert settings.services == {"my-vllm": {"like": "openai", "vendor": "llm.internal"}}
    assert settings.minting.mode == "off"


def test_a_path_given_is_the_file_for_workers_as_well(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure('log_level = "ERROR"')
    monkeypatch.setenv("AISBREAKER_CONFIG", "to be put back")
    path = tmp_path / "aisbreaker.toml"
    assert load_settings(path).log_level == "ERROR"
    assert os.environ["AISBREAKER_CONFIG"] == str(path)
    assert load_settings().log_level == "ERROR"
    assert Settings().log_level == "ERROR"


# Names


@pytest.mark.parametrize(
    "name",
    [
        "AISBREAKER_FOO",
        "AISBREAKER_KEYS",
        "AISBREAKER_HOST",
        "AISBREAKER_KEYPHRASE",
        "AISBREAKER_RETIRED_KEYPHRASES",
        "AISBREAKER_DEFAULT_API_KEY",
        "AISBREAKER_MINTING_MODE",
        "AISBREAKER_LOG_LEVEL__X",
        "AISBREAKER_KEY__FOO",
        "AISBREAKER_",
    ],
)
def test_an_unknown_variable_is_refused(configure: Configure, name: str) -> None:
    configure(**{name: "SENTINEL"})
    assert refused() == f"{name}: is not a known setting"


@pytest.mark.parametrize(
    "name",
    [
        "AISBREAKER_API_KEY",
        "AISBREAKER_PORT",
        "AISBREAKER_PORT_3000_TCP",
        "AISBREAKER_PORT_3000_TCP_ADDR",
        "AISBREAKER_SERVICE_HOST",
        "AISBREAKER_SERVICE_PORT",
        "AISBREAKER_SERVICE_PORT_HTTP",
    ],
)
def test_what_others_set_is_tolerated(configure: Configure, name: str) -> None:
    configure(**{name: "tcp://10.0.0.1:3000"})
    assert Settings().model_dump(exclude={"retired_keys", "retired_keyphrases"})["services"] == {}


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        ("foo = 1", "foo"),
        ("SENTINEL_ = 1".replace("SENTINEL_", "Hosts"), "Hosts"),
        ("[minting]\nfoo = 1", "minting.foo"),
        ("[quotas]\nfoo = 'SENTINEL'", "quotas.foo"),
        ("[quotas.server]\nfoo = 1", "quotas.server.foo"),
        (
            "[quotas.server.global_request_limits]\nrequests_per_second = 1",
            "quotas.server.global_request_limits.requests_per_second",
        ),
        ("[upstream]\nfoo = {a = 'SENTINEL'}", "upstream.foo"),
        ("[foo]\na = 1", "foo"),
    ],
    ids=lambda value: ascii(value),
)
def test_an_unknown_key_in_the_file_is_refused(configure: Configure, toml: str, name: str) -> None:
    configure(toml)
    assert refused() == f"{name}: is not a known setting"


def test_an_unknown_key_is_shown_on_one_line(configure: Configure) -> None:
    configure('"a\\nb" = 1')
    assert refused() == "'a\\nb': is not a known setting"


def test_an_unknown_argument_is_refused(configure: Configure) -> None:
    assert refused(foo="SENTINEL") == "foo: is not a known setting"
    assert refused(minting={"foo": "SENTINEL"}) == "minting.foo: is not a known setting"


def test_an_unknown_key_of_a_service_is_refused(configure: Configure) -> None:
    configure("[services.openai]\nfoo = 'SENTINEL'")
    with pytest.raises(ConfigurationError, match=r"^services\.openai\.foo is not a setting; it takes [ -~]+$") as caught:
        ServiceCatalog.load(Settings().services)
    assert "SENTINEL" not in str(caught.value)


# The file


@pytest.mark.parametrize(
    "toml",
    [
        "=",
        "a",
        "hosts = [",
        "key = SENTINEL",
        "key = 'SENTINEL",
        'key = "SENTINEL',
        "hosts = []\nhosts = []",
        "[minting\n",
        "a = 1 b",
    ],
)
def test_a_file_that_is_no_toml_is_told_in_one_line(configure: Configure, toml: str) -> None:
    configure(toml)
    line = refused()
    assert line.startswith(f"{os.environ['AISBREAKER_CONFIG']}: is not valid TOML: ")
    assert "line 1" in line or "line 2" in line or "end of document" in line


def test_a_file_that_is_no_text(configure: Configure) -> None:
    configure(b"key = 'SENTINEL\xff'")
    assert refused() == f"{os.environ['AISBREAKER_CONFIG']}: is not UTF-8 text"


@pytest.mark.parametrize(("name", "reason"), [("missing.toml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(configure: Configure, tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    configure(AISBREAKER_CONFIG=str(path))
    assert refused() == f"{path}: can't be read ({reason})"


def test_values_that_are_nested_too_deep(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure("hosts = " + "[" * 20_000)
    assert refused() == f"{os.environ['AISBREAKER_CONFIG']}: is nested too deep"
    configure("")
    monkeypatch.setenv("AISBREAKER_HOSTS", "[" * 60_000)
    assert refused() == "AISBREAKER_...: a variable's JSON is nested too deep"
