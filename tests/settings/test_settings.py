"""The configuration: its sources, what they take, and that refusals are one line without a secret in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.settings import Settings, load_settings
from aisbreaker_mw.tokens.base64url import b64url_encode
from aisbreaker_mw.tokens.claims import RequestLimits, RequestQuotas
from aisbreaker_mw.tokens.keyring import Keyring, key_id, stretch_keyphrase

KEY, OLD, OLDER = (bytes([number]) * 32 for number in range(3))
PHRASE, OLD_PHRASE = "correct-horse-battery-staple", "staple-battery-horse-correct"

# Every key that the documentation shows.
SAMPLE = """
hosts = ["api.example.com"]          # the names this server answers to; keys are bound to the first
trusted_proxies = ["10.0.0.0/8"]     # peers whose X-Forwarded-For and X-Forwarded-Proto are believed; default none
cors_origins = ["*"]                 # for services; minting is same-origin only
foreign_credentials = "refuse"       # refuse | forward: a service request whose credential is no aisbreaker_ token
log_level = "INFO"
log_format = "text"                  # text | json

[minting]
mode = "open"                        # open | secret (AISBREAKER_MINTING__SECRET, sent as clientSecret) | off
default_lifetime = "2h"
max_lifetime = "366d"
requests_per_minute = 30             # per client

[quotas]
storage = "memory://"
on_storage_error = "deny"            # deny (503) | local (this process's own counters) | allow
[quotas.server]                      # over all requests, same shape as requestQuotas; default none
per_client_request_limits = { requests_per_minute = 600 }

[upstream]
connect_timeout = "5s"
header_timeout = "600s"              # until the response's first byte
idle_timeout = "300s"                # between two chunks
pool_timeout = "5s"
max_connections = 1000               # per upstream origin
max_body_bytes = 1073741824

[services.openai]                    # built in: say only what differs
base_url = "https://api.openai.com"
[services.my-vllm]                   # an OpenAI-compatible server of one's own
like = "openai"
vendor = "llm.internal"
base_url = "http://10.0.0.7:8000"

[inject]                             # wrapping an app: which credential the app's own routes receive
"/api/v1/foo" = "chat:openai.com"
"""

Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Sets environment variables and the TOML file's text, for this test only."""
    for name in list(os.environ):
        if name.startswith(("AISBREAKER_", "AUTH_", "DEFAULT_AISBREAKER_")):
            monkeypatch.delenv(name)

    def write(toml: str | bytes | None = None, **variables: str) -> None:
        if toml is not None:
            path = tmp_path / "aisbreaker.toml"
            path.write_bytes(toml.encode() if isinstance(toml, str) else toml)
            monkeypatch.setenv("AISBREAKER_CONFIG", str(path))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return write


def refused(**arguments: Any) -> str:
    """Return the one line of a refusal."""
    with pytest.raises(ConfigurationError) as caught:
        Settings(**arguments)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert "SENTINEL" not in line
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would show the values"
    return line


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
            "max_body_bytes": 1_073_741_824,
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


ALIASES = [
    ("keyphrase", "AUTH_ENCRYPTION_KEYPHRASE"),
    ("retired_keyphrases", "AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES"),
    ("default_api_key", "DEFAULT_AISBREAKER_API_KEY"),
]


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
    assert refused() == f"{name}: is no known setting"


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
    assert refused() == f"{name}: is no known setting"


def test_an_unknown_key_is_shown_on_one_line(configure: Configure) -> None:
    configure('"a\\nb" = 1')
    assert refused() == "'a\\nb': is no known setting"


def test_an_unknown_argument_is_refused(configure: Configure) -> None:
    assert refused(foo="SENTINEL") == "foo: is no known setting"
    assert refused(minting={"foo": "SENTINEL"}) == "minting.foo: is no known setting"


def test_an_unknown_key_of_a_service_is_refused(configure: Configure) -> None:
    configure("[services.openai]\nfoo = 'SENTINEL'")
    with pytest.raises(ConfigurationError, match=r"^services\.openai\.foo is not a setting; it takes [ -~]+$") as caught:
        ServiceCatalog.load(Settings().services)
    assert "SENTINEL" not in str(caught.value)


# Values

SPAN = "must be a positive integer and one of s m h d w y, like 2h"
TIMEOUT = "must be a positive integer and one of ms s m h d w y, like 5s"
LIMIT = "takes an integer from 1 to 2147483648"
OVER_ZERO = "input should be greater than 0"
HOSTS = "takes host names without scheme and port"
ORIGINS = "takes origins like https://app.example.com, or *"
NETWORKS = "takes networks like 10.0.0.0/8, addresses, or unix"

BAD_VALUES: list[tuple[str, str, list[str]]] = [
    # key, what it takes, values as TOML
    ("hosts", "takes a list", ["'SENTINEL'", "1", "true", "{}"]),
    ("hosts.0", "takes a string", ["[1]", "[true]", "[['SENTINEL']]"]),
    (
        "hosts.0",
        HOSTS,
        [
            "['https://SENTINEL.example']",
            "['https:']",
            "['SENTINEL.example:443']",
            "['abc.de:80']",
            "['10.0.0.1:80']",
            "['[::1]:80']",
            "['[::1']",
            "['::g']",
            "['a/b']",
            "['a b']",
            "['']",
            "['*.example.com']",
            "['-a']",
            "['bücher.example']",
            "['a@b']",
        ],
    ),
    ("trusted_proxies", NETWORKS, ["['SENTINEL']", "['10.0.0.0/33']", "['']"]),
    ("trusted_proxies", "takes a list", ["'10.0.0.0/8'"]),
    (
        "cors_origins.1",
        ORIGINS,
        [f"['*', '{bad}']" for bad in ("SENTINEL", "https://a.example/", "ftp://a.example", "", "https://")],
    ),
    ("foreign_credentials", "takes 'refuse' or 'forward'", ["'SENTINEL'", "true", "['forward']"]),
    ("log_level", "takes 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'", ["'SENTINEL'", "10", "true"]),
    ("log_format", "takes 'text' or 'json'", ["'SENTINEL'", "'JSON'"]),
    ("minting", "takes a table", ["'SENTINEL'", "1", "[]"]),
    ("minting.mode", "takes 'open', 'secret' or 'off'", ["'SENTINEL'", "false"]),
    ("minting.default_lifetime", SPAN, ["'SENTINEL'", "'2'", "'0s'", "'-1h'", "'5ms'"]),
    ("minting.default_lifetime", OVER_ZERO, ["0", "-1"]),
    ("minting.max_lifetime", "takes a number", ["true", "false"]),
    ("minting.max_lifetime", LIMIT, ["1.5", "['1h']"]),
    ("minting.requests_per_minute", LIMIT, ["0", "-1", "1.5", "'SENTINEL'", "2147483649", "['1']"]),
    ("minting.requests_per_minute", LIMIT.replace("takes", "must be"), ["true", "false"]),
    ("quotas", "takes a table", ["'memory://'"]),
    ("quotas.on_storage_error", "takes 'deny', 'local' or 'allow'", ["'SENTINEL'"]),
    ("quotas.storage", "takes a string", ["1", "['redis://:SENTINEL@host']"]),
    ("quotas.storage_timeout", TIMEOUT, ["'0ms'", "'SENTINELms'"]),
    ("quotas.max_clients", "takes a number", ["true"]),
    ("quotas.max_clients", OVER_ZERO, ["0"]),
    ("quotas.server", "takes a table", ["'SENTINEL'", "1"]),
    ("quotas.server.per_client_request_limits.requests_per_minute", LIMIT, ["0", "1.5", "'SENTINEL'", "2147483649"]),
    ("quotas.server.global_request_limits", "takes a table", ["60"]),
    ("upstream.connect_timeout", SPAN, ["'SENTINEL'", "'0s'", "'5'", "''"]),
    ("upstream.idle_timeout", "takes a number", ["true"]),
    ("upstream.idle_timeout", OVER_ZERO, ["0", "0.0", "-1", "nan", "-inf"]),
    ("upstream.idle_timeout", "input should be a finite number", ["inf"]),
    ("upstream.max_connections", OVER_ZERO, ["0", "-1"]),
    ("upstream.max_connections", "takes a number", ["true"]),
    ("upstream.max_connections", LIMIT, ["1.5", "'SENTINEL'", "[1]"]),
    ("upstream.http2", "takes true or false", ["'SENTINEL'", "2"]),
    ("upstream.transport", "takes 'native' or 'httpx'", ["'SENTINEL'"]),
    ("services", "takes a table", ["'SENTINEL'", "[]"]),
    ("services.openai", "takes a table", ["'SENTINEL'", "1"]),
    ("inject", "takes a table", ["'SENTINEL'"]),
    ("key", "takes a string", ["1", "['SENTINEL']"]),
    ("default_api_key", "takes a string", ["1"]),
]


@pytest.mark.parametrize(
    ("key", "requirement", "value"),
    [pytest.param(key, takes, value, id=f"{key}={value}") for key, takes, values in BAD_VALUES for value in values],
)
def test_a_bad_value_is_told_in_one_line(configure: Configure, key: str, requirement: str, value: str) -> None:
    path = key.split(".")
    if path[-1].isdigit():
        path.pop()
    line = f"{path[-1]} = {value}"
    configure(f"[{'.'.join(path[:-1])}]\n{line}" if path[1:] else line)
    named = dict(ALIASES).get(key, key)
    assert refused() == f"{named}: {requirement}"


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[inject]\nfoo = 'chat:openai.com'", "inject.foo: takes paths that begin with /"),
        ("[inject]\n'/foo' = 1", "inject./foo: takes a string"),
        (
            "[inject]\n'/foo' = '::'",
            "inject./foo: must be a serviceId: task:vendor, task:vendor/engine, either with a trailing *, *:vendor, or empty",
        ),
        ("[minting]\nmode = 'secret'", "minting.secret: must be set when minting.mode is secret"),
        ("[minting]\nmode = 'secret'\nsecret = ''", "minting.secret: must be set when minting.mode is secret"),
    ],
)
def test_what_does_not_fit_together_is_told_in_one_line(configure: Configure, toml: str, line: str) -> None:
    configure(toml)
    assert refused() == line


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("AISBREAKER_HOSTS", "SENTINEL.example", "AISBREAKER_HOSTS: takes JSON"),
        ("AISBREAKER_HOSTS", '"SENTINEL"', "hosts: takes a list"),
        ("AISBREAKER_MINTING", '{"secret": "SENTINEL"', "AISBREAKER_MINTING: takes JSON"),
        ("AISBREAKER_QUOTAS", '{"storage": "redis://:SENTINEL@x"', "AISBREAKER_QUOTAS: takes JSON"),
        ("AISBREAKER_MINTING", "5", "minting: takes a table"),
        ("AISBREAKER_MINTING__FOO", "SENTINEL", "minting.foo: is no known setting"),
        ("AISBREAKER_MINTING__MODE", "SENTINEL", "minting.mode: takes 'open', 'secret' or 'off'"),
        ("AISBREAKER_MINTING__REQUESTS_PER_MINUTE", "1e3", f"minting.requests_per_minute: {LIMIT}"),
        ("AISBREAKER_UPSTREAM__IDLE_TIMEOUT", "30", f"upstream.idle_timeout: {SPAN}"),
        ("AISBREAKER_SERVICES__OPENAI", "SENTINEL", "services.openai: takes a table"),
    ],
)
def test_a_bad_variable_is_told_in_one_line(configure: Configure, name: str, value: str, line: str) -> None:
    configure(**{name: value})
    assert refused() == line


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM", "api.example.com"),
        (" api.example.com. ", "api.example.com"),
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_hosts_are_what_requests_call_the_server_by(configure: Configure, written: str, host: str) -> None:
    assert Settings(hosts=[written]).hosts == [host]


@pytest.mark.parametrize(
    ("toml", "seconds"),
    [("'250ms'", 0.25), ("'5s'", 5.0), ("'2m'", 120.0), ("3", 3.0), ("0.5", 0.5)],
)
def test_timeouts_are_spans_or_seconds(configure: Configure, toml: str, seconds: float) -> None:
    configure(f"[upstream]\nidle_timeout = {toml}")
    assert Settings().upstream.idle_timeout == seconds


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
    assert line.startswith(f"{os.environ['AISBREAKER_CONFIG']}: is no valid TOML: ")
    assert "line 1" in line or "line 2" in line or "end of document" in line


def test_a_file_that_is_no_text(configure: Configure) -> None:
    configure(b"key = 'SENTINEL\xff'")
    assert refused() == f"{os.environ['AISBREAKER_CONFIG']}: is no UTF-8 text"


@pytest.mark.parametrize(("name", "reason"), [("missing.toml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(configure: Configure, tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    configure(AISBREAKER_CONFIG=str(path))
    assert refused() == f"{path}: can't be read ({reason})"


# Keys


def keyring(**arguments: Any) -> Keyring:
    return Settings(**arguments).keyring()


def test_keys(configure: Configure) -> None:
    ring = keyring(key=b64url_encode(KEY), retired_keys=f" {b64url_encode(OLD)}\n{b64url_encode(OLDER)} ")
    assert ring.kid == key_id(KEY)
    assert repr(ring) == f"Keyring(kid='{key_id(KEY)}', retired=2)"
    assert key_id(OLD) in ring
    assert key_id(OLDER) in ring


def test_keys_of_the_environment(configure: Configure) -> None:
    configure(AISBREAKER_KEY=b64url_encode(KEY), AISBREAKER_RETIRED_KEYS=b64url_encode(OLD))
    assert Settings().has_key()
    ring = Settings().keyring()
    assert ring.kid == key_id(KEY)
    assert key_id(OLD) in ring


def test_keyphrases_of_the_environment(configure: Configure) -> None:
    configure(
        AUTH_ENCRYPTION_KEYPHRASE=PHRASE,
        AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES=f"{OLD_PHRASE}",
        AISBREAKER_RETIRED_KEYS=b64url_encode(OLD),
    )
    assert Settings().has_key()
    ring = Settings().keyring()
    assert ring.kid == key_id(stretch_keyphrase(PHRASE, name=""))
    assert key_id(stretch_keyphrase(OLD_PHRASE, name="")) in ring
    assert key_id(OLD) in ring


def test_a_key_may_follow_a_keyphrase(configure: Configure) -> None:
    ring = keyring(key=b64url_encode(KEY), retired_keyphrases=PHRASE)
    assert ring.kid == key_id(KEY)
    assert key_id(stretch_keyphrase(PHRASE, name="")) in ring


BAD_KEY = "takes a key made by `aisbreaker keygen` (32 bytes, base64url)"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "AISBREAKER_KEY: no master key is set; make one with `aisbreaker keygen`, or set AUTH_ENCRYPTION_KEYPHRASE"),
        (
            {"key": ""},
            "AISBREAKER_KEY: no master key is set; make one with `aisbreaker keygen`, or set AUTH_ENCRYPTION_KEYPHRASE",
        ),
        ({"key": "SENTINEL"}, f"AISBREAKER_KEY: {BAD_KEY}"),
        ({"key": b64url_encode(KEY), "retired_keys": "SENTINEL"}, f"AISBREAKER_RETIRED_KEYS: {BAD_KEY}"),
        ({"keyphrase": "SENTINEL"}, "AUTH_ENCRYPTION_KEYPHRASE: takes at least 20 characters"),
        (
            {"key": b64url_encode(KEY), "retired_keyphrases": "SENTINEL"},
            "AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES: takes at least 20 characters",
        ),
        (
            {"key": b64url_encode(KEY), "keyphrase": PHRASE},
            "AISBREAKER_KEY and AUTH_ENCRYPTION_KEYPHRASE: set one; the other belongs to the retired ones",
        ),
    ],
    ids=["none", "empty", "bad key", "bad retired key", "short phrase", "short retired phrase", "both"],
)
def test_a_bad_key_is_told_in_one_line(configure: Configure, arguments: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        keyring(**arguments)
    assert str(caught.value) == line


def test_no_repr_and_no_dump_shows_a_secret(configure: Configure) -> None:
    settings = Settings(
        key="SENTINEL-1",
        retired_keys="SENTINEL-2",
        keyphrase="SENTINEL-3",
        retired_keyphrases="SENTINEL-4",
        default_api_key="SENTINEL-5",
        minting={"mode": "secret", "secret": "SENTINEL-6"},
        quotas={"storage": "redis://:SENTINEL-7@host"},
    )
    shown = (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump()), repr(settings.quotas))
    for text in shown:
        assert "SENTINEL" not in text
    assert settings.quotas.storage.get_secret_value() == "redis://:SENTINEL-7@host"


def test_settings_do_not_change(configure: Configure) -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.log_level = "DEBUG"
    with pytest.raises(ValueError, match="frozen"):
        settings.minting.mode = "off"
