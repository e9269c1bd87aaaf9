"""The commands of `aisbreaker`."""

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx

from .. import __version__
from ..endpoints.token_request import parse_token_request
from ..exceptions import AIsBreakerError, ConfigurationError
from ..http1.fields import host_name
from ..services.catalog import ServiceCatalog
from ..settings import CONFIG_VARIABLE, Settings, load_settings
from ..tokens.claims import ServiceSecret
from ..tokens.keyring import generate_key
from ..tokens.sealer import TokenSealer, TokenTooLong
from .demo import run_demo
from .serve import serve as run_server

_MASK = "**********"
_LIBRARIES = {"google-cloud": ("google.auth", "vertex"), "aws-sigv4": ("botocore", "bedrock")}
"""The library that a credential strategy needs, and the extra that installs it."""


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
@click.option("--host", help="Host name that the token is bound to. Default: the first of `hosts`.")
@_config
def create_token(server: str | None, request_file: Any, host: str | None, config: Path | None) -> None:
    """Mint a token from a token request, and print it."""
    body = request_file.read()
    if server is not None:
        click.echo(_ask_server(server, body))
        return
    settings = load_settings(config)
    sealer = TokenSealer(settings.keyring())
    minting = settings.minting
    claims = parse_token_request(body).claims(
        now=int(time.time()), default_lifetime=minting.default_lifetime, max_lifetime=minting.max_lifetime
    )
    try:
        click.echo(sealer.seal(claims, _host(host, settings)))
    except TokenTooLong as error:
        raise click.ClickException(str(error)) from None


@token.command("inspect")
@click.argument("token_text", metavar="TOKEN")
@click.option("--host", help="Host name that the token is bound to. Default: the first of `hosts`.")
@_config
def inspect_token(token_text: str, host: str | None, config: Path | None) -> None:
    """Print a token's claims, every secret masked. With - as TOKEN, read it from stdin."""
    settings = load_settings(config)
    text = sys.stdin.read().strip() if token_text == "-" else token_text  # noqa: S105 - a dash is not a secret
    claims = TokenSealer(settings.keyring()).open(text, _host(host, settings))
    quotas = claims.quotas.model_dump(by_alias=True, exclude_none=True)
    shown = {
        "jti": claims.jti,
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


def _ask_server(server: str, body: bytes) -> str:
    url = server.rstrip("/") + "/api/v1/oauth/token"
    try:
        response = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=30)
        content = response.json()
    except httpx.HTTPError as error:
        raise click.ClickException(f"{url}: {type(error).__name__}") from None
    except ValueError:
        raise click.ClickException(f"{url}: status {response.status_code}, without JSON") from None
    if response.status_code != 200:
        raise click.ClickException(f"{url}: status {response.status_code}: {content['error']['message']}")
    return str(content["access_token"])


def _host(host: str | None, settings: Settings) -> str:
    if host is not None:
        return host_name(host.encode())
    if settings.hosts:
        return settings.hosts[0]
    raise ConfigurationError("hosts: none is configured; give --host, the host name under which clients reach the server")


def _mask(secret: ServiceSecret) -> str | list[str]:
    masked = [_MASK if value else "" for value in secret.values()]
    return masked if secret.others else masked[0]


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
