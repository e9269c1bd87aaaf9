"""The values that the configuration takes; a refusal is one line without a secret in it."""

from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.settings import Settings
from aisbreaker_mw.tokens.base64url import b64url_encode
from aisbreaker_mw.tokens.keyring import Keyring, key_id, stretch_keyphrase

from .support import ALIASES, KEY, OLD, OLD_PHRASE, OLDER, PHRASE, Configure, refused

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
    ("quotas.storage_connect_timeout", TIMEOUT, ["'0ms'", "'SENTINELms'"]),
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
    ("upstream.fair_share", OVER_ZERO, ["0", "-1"]),
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
            "inject./foo: must be a serviceId: task:vendor, task:vendor/engine, either with a trailing * or a "
            "leading =, *:vendor, or empty",
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
        ("AISBREAKER_MINTING__FOO", "SENTINEL", "minting.foo: is not a known setting"),
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
