"""
The configuration: one model, filled from arguments, the environment and a TOML file, in that order of precedence.

The environment variable of a setting is its name behind `AISBREAKER_`, nested with `__`. Lists and tables are JSON.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from .client.address import ClientIdentifier
from .durations import parse_span, parse_timeout
from .exceptions import ConfigurationError
from .http1.fields import host_name
from .services.patterns import validate_pattern
from .tokens.claims import MAX_LIMIT, Limit, RequestQuotas
from .tokens.keyring import Keyring, parse_key, stretch_keyphrase

ENV_PREFIX = "AISBREAKER_"
"""Beginning of every setting's environment variable."""
CONFIG_VARIABLE = "AISBREAKER_CONFIG"
"""Environment variable with the path of the TOML file."""

# Variables that begin like settings but are not: the token, as the contract's client examples export it, and the variables
# that container platforms set for a service named "aisbreaker".
_NO_SETTING = re.compile(r"AISBREAKER_(API_KEY|CONFIG|SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_.*|NAME|ENV_.*)")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", re.ASCII)
_ORIGIN = re.compile(r"\*|https?://[^/\s?#]+", re.ASCII)
_PATH = re.compile(r"/[\x21-\x7e]*", re.ASCII)


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic reads True as 1
        raise ValueError("takes a number")
    return value


def _span(value: Any) -> Any:
    return parse_span(value) if isinstance(value, str) else _number(value)


def _timeout(value: Any) -> Any:
    return parse_timeout(value) if isinstance(value, str) else _number(value)


def _matching(pattern: re.Pattern[str], requirement: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(requirement)
        return text

    return AfterValidator(check)


def parse_host_name(text: str) -> str:
    """
    Return a host name in lower case, an IPv6 address without brackets.

    Raises:
        ValueError: it is none, or has a scheme or port; with a fixed text.
    """
    plain = text.strip().lower().removesuffix(".")
    name = host_name(plain.encode("utf-8", "replace"))
    # `host_name` cuts off a port, and here it could be the rest of a URL: only brackets may be gone.
    if plain not in (name, f"[{name}]") or not (_is_ipv6(name) if ":" in name else _HOST_NAME.fullmatch(name)):
        raise ValueError("takes host names without scheme and port")
    return name


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _trusted_proxies(names: list[str]) -> list[str]:
    ClientIdentifier(names)
    return names


def _pattern(text: str) -> str:
    validate_pattern(text)
    return text


Span = Annotated[int, BeforeValidator(_span), Field(gt=0)]
Timeout = Annotated[float, BeforeValidator(_timeout), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_number), Field(gt=0)]
HostName = Annotated[str, AfterValidator(parse_host_name)]
Origin = Annotated[str, _matching(_ORIGIN, "takes origins like https://app.example.com, or *")]
AppPath = Annotated[str, _matching(_PATH, "takes paths that begin with /")]
Pattern = Annotated[str, AfterValidator(_pattern)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class MintingSettings(_Section):
    """Who may mint tokens, and for how long they live. Times in seconds."""

    mode: Literal["open", "secret", "off"] = "open"
    secret: SecretStr | None = None
    default_lifetime: Span = 2 * 3600
    max_lifetime: Span = 366 * 86_400
    requests_per_minute: Limit = 30

    @property
    def mode_is_written(self) -> bool:
        """Whether the configuration names the mode, and does not just leave the default."""
        return "mode" in self.model_fields_set


class QuotaSettings(_Section):
    """Where requests are counted, and the limits over all of them. Times in seconds."""

    storage: SecretStr = SecretStr("memory://")
    """Storage URI of the limits library. It is secret, as it may hold a password."""
    on_storage_error: Literal["deny", "local", "allow"] = "deny"
    storage_timeout: Timeout = 0.25
    storage_connect_timeout: Timeout = 5.0
    max_clients: Count = 1_000_000
    server: RequestQuotas = RequestQuotas()


class UpstreamSettings(_Section):
    """Limits of the connections to AI services. Times in seconds."""

    transport: Literal["native", "httpx"] = "native"
    http2: bool = False
    connect_timeout: Timeout = 5.0
    header_timeout: Timeout = 600.0
    idle_timeout: Timeout = 300.0
    pool_timeout: Timeout = 5.0
    max_connections: Count = 1000
    fair_share: Count = 4
    max_body_bytes: Count = 1 << 30
    max_buffered_bytes: Count = 1 << 28
    max_engine_scan_bytes: Count = 32 << 20
    forward_client_address: bool = False
    """Whether X-Forwarded-For and its like are forwarded as the client sent them."""


class Settings(BaseSettings):
    """
    All settings. The repr shows no secret.

    Raises:
        ConfigurationError: a value is bad or a name unknown; one line that names the key and what it takes.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    key: SecretStr | None = None
    retired_keys: SecretStr = SecretStr("")
    """Space-separated."""
    keyphrase: SecretStr | None = Field(None, validation_alias="AUTH_ENCRYPTION_KEYPHRASE")
    retired_keyphrases: SecretStr = Field(SecretStr(""), validation_alias="AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES")
    """Space-separated."""
    default_api_key: SecretStr | None = Field(None, validation_alias="DEFAULT_AISBREAKER_API_KEY")

    hosts: list[HostName] = []
    trusted_proxies: Annotated[list[str], AfterValidator(_trusted_proxies)] = []
    cors_origins: list[Origin] = ["*"]
    foreign_credentials: Literal["refuse", "forward"] = "refuse"
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["text", "json"] = "text"

    minting: MintingSettings = MintingSettings()
    quotas: QuotaSettings = QuotaSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    services: dict[str, dict[str, Any]] = {}
    inject: dict[AppPath, Pattern] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as errors:
            raise ConfigurationError(_one_line(errors)) from None
        except SettingsError as error:
            # The text names the field and shows no value: 'error parsing value for field "hosts" from source ...'
            field = str(error).partition('"')[2].partition('"')[0]
            raise ConfigurationError(f"{ENV_PREFIX}{field.upper()}: takes JSON") from None
        except RecursionError:
            raise ConfigurationError(f"{ENV_PREFIX}...: a variable's JSON is nested too deep") from None
        if self.minting.mode == "secret" and not (self.minting.secret and self.minting.secret.get_secret_value()):
            raise ConfigurationError("minting.secret: must be set when minting.mode is secret")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        _refuse_unknown_variables(os.environ, cls.model_fields)
        return init_settings, env_settings, _TomlFile(settings_cls, os.environ.get(CONFIG_VARIABLE))

    def has_key(self) -> bool:
        """Return whether a master key or a keyphrase is set."""
        return bool(_reveal(self.key) or _reveal(self.keyphrase))

    def keyring(self) -> Keyring:
        """
        Return the keyring of the configured keys. Stretching a keyphrase takes about a tenth of a second.

        Raises:
            ConfigurationError: no key is set, both a key and a keyphrase are set, or one is malformed.
        """
        key, keyphrase = _reveal(self.key), _reveal(self.keyphrase)
        if key and keyphrase:
            raise ConfigurationError(
                "AISBREAKER_KEY and AUTH_ENCRYPTION_KEYPHRASE: set one; the other belongs to the retired ones"
            )
        retired = [
            *(parse_key(text, name="AISBREAKER_RETIRED_KEYS") for text in _reveal(self.retired_keys).split()),
            *(
                stretch_keyphrase(text, name="AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES")
                for text in _reveal(self.retired_keyphrases).split()
            ),
        ]
        if key:
            return Keyring(parse_key(key, name="AISBREAKER_KEY"), retired)
        if keyphrase:
            return Keyring(stretch_keyphrase(keyphrase, name="AUTH_ENCRYPTION_KEYPHRASE"), retired)
        raise ConfigurationError(
            "AISBREAKER_KEY: no master key is set; make one with `aisbreaker keygen`, or set AUTH_ENCRYPTION_KEYPHRASE"
        )


def load_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """
    Return the settings from the environment and a TOML file.

    Args:
        path: path of the file, by default the one in `AISBREAKER_CONFIG`, if any. It is put into `AISBREAKER_CONFIG`, so that
            worker processes read the same file.

    Raises:
        ConfigurationError: one line that names the key and what it takes.
    """
    if path is not None:
        os.environ[CONFIG_VARIABLE] = os.fspath(path)
    return Settings()


class _TomlFile(PydanticBaseSettingsSource):
    """The TOML file as a source of settings."""

    def __init__(self, settings_cls: type[BaseSettings], path: str | None) -> None:
        super().__init__(settings_cls)
        values = _read_toml(Path(path)) if path else {}
        # pydantic lays the sources over each other by name, so a setting with an alias must have the alias here, too.
        aliases = {name: field.validation_alias for name, field in settings_cls.model_fields.items()}
        self._values = {str(aliases.get(name) or name): value for name, value in values.items()}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        # The message shows line and column, and at most one character of the file.
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: is nested too deep") from None


def _refuse_unknown_variables(environment: Mapping[str, str], fields: Mapping[str, Any]) -> None:
    for name in environment:
        if not name.startswith(ENV_PREFIX) or _NO_SETTING.fullmatch(name):
            continue
        field, nested, _ = name[len(ENV_PREFIX) :].lower().partition("__")
        if field not in fields or fields[field].validation_alias or (nested and not _has_keys(fields[field].default)):
            raise ConfigurationError(f"{name}: is not a known setting")


def _has_keys(default: Any) -> bool:
    return isinstance(default, BaseModel | dict)


def _reveal(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""


def _one_line(errors: ValidationError) -> str:
    error = errors.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(step) for step in error["loc"] if step != "[key]")
    path = path if path.isprintable() else ascii(path)
    match error["type"]:
        case "extra_forbidden":
            requirement = "is not a known setting"
        case "literal_error":
            requirement = f"takes {error['ctx']['expected']}"
        case "value_error":
            requirement = str(error["ctx"]["error"])
        case "model_type" | "dict_type" | "model_attributes_type":
            requirement = "takes a table"
        case "list_type":
            requirement = "takes a list"
        case "string_type":
            requirement = "takes a string"
        case "bool_type" | "bool_parsing":
            requirement = "takes true or false"
        case "int_type" | "int_parsing" | "int_from_float" | "less_than_equal" | "greater_than_equal":
            requirement = f"takes an integer from 1 to {MAX_LIMIT}"
        case _:
            requirement = error["msg"][:1].lower() + error["msg"][1:]
    return f"{path}: {requirement}"
