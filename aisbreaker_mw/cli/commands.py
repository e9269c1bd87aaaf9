"""The commands of `aisbreaker`."""

import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx

from .. import __version__
from ..endpoints.token_request import parse_token_request
from ..exceptions import AIsBreakerError, ConfigurationError, InvalidToken
from ..minting import Minter
from ..services.catalog import ServiceCatalog
from ..settings import CONFIG_VARIABLE, Settings, load_settings, parse_host_name
from ..tokens.claims import ServiceSecret
from ..tokens.keyring import generate_key
from ..tokens.sealer import UNKNOWN_KEY, TokenSealer
from .demo import run_demo
from .serve import serve as run_server

_MASK = "**********"
_LIBRARIES = {"google-cloud": ("google.auth", "vertex"), "aws-sigv4": ("botocore", "bedrock")}
"""The library that a credential strategy needs, and the extra that installs it."""


class _HostName(click.ParamType):  # type: ignore[type-arg]  # not generic at run time before click 8.2
    """A host name, as `hosts` takes it."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_host_name(value)
        except ValueError as error:
            self.fail(f"{value!a} {error}", param, ctx)


class _Group(click.Group):
    """Prints an error of this package as one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AIsBreakerError as error:
            raise click.ClickException(str(error)) from None


_config = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"TOML file. Default: the one in {CONFIG_VARIABLE}.",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aisbreaker")
def main() -> None:
    """Sealed API keys for AI services."""


@main.command()
@_config
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Number of processes.")
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds that open streams have to end after a signal.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Overrides the configured format.")
def serve(config: Path | None, host: str, port: int, workers: int, grace: float, log_format: str | None) -> None:
    """Run the standalone proxy."""
    if log_format is not None:
        os.environ["AISBREAKER_LOG_FORMAT"] = log_format
    sys.exit(run_server(load_settings(config), host=host, port=port, workers=workers, grace=grace))


@main.command()
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--exit", "leave", is_flag=True, help="End after the tour instead of staying up.")
def demo(port: int, leave: bool) -> None:
    """Start the proxy, and show as a client what it does."""
    sys.exit(run_demo(port, leave=leave))


@main.command()
def keygen() -> None:
    """Print a fresh master key."""
    click.echo(generate_key())


@main.group()
def token() -> None:
    """Make and inspect tokens."""


@token.command("create")
@click.option("--server", metavar="URL", help="Mint through this server. Default: mint here, with the master key.")
@click.option("--request", "request_file", default="-", type=click.File("rb"), help="Token request as JSON. Default: stdin.")
@click.option("--host", type=_HostName(), help="Host name that the token is bound to. Default: the first of `hosts`.")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="Name of a key. Repeat it for a batch.")
@click.option("--labels", "label_file", type=click.File("r", encoding="utf-8-sig"), help="File of labels, one a line.")
@_config
def create_token(
    server: str | None,
    request_file: Any,
    host: str | None,
    labels: tuple[str, ...],
    label_file: Any,
    config: Path | None,
) -> None:
    """
    Mint a token from a token request, and print it.

    With labels, mint a token for each of them, and print CSV: label,key_id,token.
    """
    request = request_file.read()
    names = [*labels, *(_read_labels(label_file) if label_file is not None else [])]
    mint = _minting_at(server) if server is not None else _minting_here(host, config)
    if not labels and label_file is None:
        click.echo(mint(request)[1])
        return
    fields = _request_fields(request)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("label", "key_id", "token"))
    for name in names:
        table.writerow((name, *mint(json.dumps({**fields, "label": name}).encode())))
        sys.stdout.flush()


def _read_labels(file: Any) -> list[str]:
    """Return the lines of a file of labels that are not empty."""
    try:
        return [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError:
        raise click.ClickException(f"{file.name}: the labels must be UTF-8") from None


def _request_fields(request: bytes) -> dict[str, Any]:
    """Return the members of a token request that is checked as a whole."""
    parse_token_request(request)
    fields: dict[str, Any] = json.loads(request)
    return fields


def _minting_here(host: str | None, config: Path | None) -> Callable[[bytes], tuple[str, str]]:
    settings = load_settings(config)
    minter = Minter(settings, _host(host, settings))

    def mint(request: bytes) -> tuple[str, str]:
        minted = minter.mint(parse_token_request(request))
        return minted.key_id, minted.token

    return mint


def _minting_at(server: str) -> Callable[[bytes], tuple[str, str]]:
    def mint(request: bytes) -> tuple[str, str]:
        answer = _ask_server(server, request)
        return str(answer.get("key_id", "")), str(answer["access_token"])

    return mint


@token.command("inspect")
@click.argument("token_text", metavar="TOKEN")
@click.option("--host", type=_HostName(), help="Host name that the token is bound to. Default: the first of `hosts`.")
@_config
def inspect_token(token_text: str, host: str | None, config: Path | None) -> None:
    """Print a token's claims, every secret masked. With - as TOKEN, read it from stdin."""
    settings = load_settings(config)
    text = sys.stdin.read().strip() if token_text == "-" else token_text  # noqa: S105 - a dash is not a secret
    name = _host(host, settings)
    try:
        claims = TokenSealer(settings.keyring()).open(text, name)
    except InvalidToken as error:
        raise click.ClickException(_why_not(error, name)) from None
    quotas = claims.quotas.model_dump(by_alias=True, exclude_none=True)
    shown = {
        "key_id": claims.jti,
        "label": claims.label,
        "kid": claims.kid,
        "iat": _utc(claims.iat),
        "exp": _utc(claims.exp),
        "expired": time.time() >= claims.exp,
        "open": claims.open,
        "requestQuotas": quotas,
        "serviceSecrets": [{"serviceId": each.service_id, "authSecret": _mask(each)} for each in claims.secrets],
    }
    click.echo(json.dumps(shown, indent=2))


@main.command("check-config")
@_config
def check_config(config: Path | None) -> None:
    """Validate the configuration, and print it with secrets masked."""
    from ..app import create_app

    settings = load_settings(config)
    click.echo(json.dumps(settings.model_dump(mode="json"), indent=2))
    if settings.has_key():
        create_app(settings)
    else:
        click.echo("no master key is set: `serve` makes one for the run, but only on a loopback address", err=True)
    for service in ServiceCatalog.load(settings.services):
        library, extra = _LIBRARIES.get(service.credential.strategy or "", ("", ""))
        if library and not _installed(library):
            click.echo(f"services.{service.name}: can't make credentials: install aisbreaker-mw[{extra}]", err=True)


def _installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # its parent package is missing, or the import is blocked
        return False


def _ask_server(server: str, body: bytes) -> dict[str, Any]:
    url = server.rstrip("/") + "/api/v1/oauth/token"
    shown = re.sub("//[^/]*@", "//", url)  # without a user's password
    try:
        response = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
        content = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"{shown}: {type(error).__name__}") from None
    except ValueError:
        raise click.ClickException(f"{shown}: status {response.status_code}, without JSON") from None
    content = content if isinstance(content, dict) else {}
    if response.status_code != 200:
        told = content.get("error")
        message = told.get("message") if isinstance(told, dict) else None
        raise click.ClickException(f"{shown}: status {response.status_code}: {message or 'without a message'}")
    if "access_token" not in content:
        raise click.ClickException(f"{shown}: the response has no access_token")
    return content


def _why_not(error: InvalidToken, host: str) -> str:
    """Return why a token does not open, in words."""
    if error.reason == UNKNOWN_KEY:
        return (
            f"The token was sealed with the master key {error.kid}, which is none of these settings' keys "
            "(AISBREAKER_KEY, AISBREAKER_RETIRED_KEYS)."
        )
    if error.kid is not None:
        return f"The token does not open: it was changed or cut, or it was made for another host than {host}."
    return "This is no token: it has another form."


def _host(host: str | None, settings: Settings) -> str:
    if host is not None:
        return host
    if settings.hosts:
        return settings.hosts[0]
    raise ConfigurationError("hosts: none is configured; give --host, the host name under which clients reach the server")


def _mask(secret: ServiceSecret) -> str | list[str]:
    masked = [_MASK if value else "" for value in secret.values()]
    return masked if secret.others else masked[0]


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
