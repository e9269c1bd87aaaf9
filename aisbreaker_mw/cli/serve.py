"""`aisbreaker serve`: prepares the log, the key and the quota storage, and runs the server."""

import contextlib
import logging
import logging.config
import os
from ipaddress import ip_address

from pydantic import SecretStr

from ..app import create_app
from ..exceptions import ConfigurationError
from ..quotas.embedded import EmbeddedValkey
from ..serving.open_files import files_needed, raise_limit
from ..serving.server import run
from ..settings import Settings
from ..telemetry.logs import hush_libraries, log_config
from ..tokens.keyring import generate_key

_logger = logging.getLogger("aisbreaker_mw.standalone")

_EMBEDDED = "embedded://"
_MEMORY = "memory://"


def serve(settings: Settings, *, host: str, port: int, workers: int, grace: float) -> int:
    """
    Run the standalone proxy until a signal ends it.

    Args:
        settings: settings of the environment and the TOML file. Worker processes read them again.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        workers: number of processes; above 1 they need a shared quota storage.
        grace: time that open streams have to end after the first signal, in seconds.

    Returns:
        The exit status.

    Raises:
        ConfigurationError: the server can't start with these settings; one line that names what to set.
    """
    config = log_config(settings.log_level, settings.log_format)
    logging.config.dictConfig(config)
    hush_libraries()
    storage = settings.quotas.storage.get_secret_value()
    if workers > 1 and storage.startswith(_MEMORY):
        raise ConfigurationError(
            "quotas.storage: --workers above 1 needs a shared storage; set embedded:// (one machine) or redis://HOST:PORT"
        )
    if not settings.has_key():
        settings = _with_key_for_this_run(settings, host, workers)
    if not settings.minting.mode_is_written and not _is_loopback(host):
        raise ConfigurationError(
            "minting.mode: must be written down where others can reach the server: open (anybody may mint), secret, "
            "or off; set AISBREAKER_MINTING__MODE, or listen on a loopback address"
        )
    _check_open_files(settings.upstream.max_connections)
    with contextlib.ExitStack() as stack:
        if storage == _EMBEDDED:
            uri = stack.enter_context(EmbeddedValkey())
            os.environ["AISBREAKER_QUOTAS__STORAGE"] = uri  # worker processes read it there
            quotas = settings.quotas.model_copy(update={"storage": SecretStr(uri)})
            settings = settings.model_copy(update={"quotas": quotas})
        if workers > 1:
            create_app(settings)  # a bad setting stops the start here, once, instead of in every worker
            return run("aisbreaker_mw:create_app", host=host, port=port, workers=workers, grace=grace, log_config=config)
        return run(lambda: create_app(settings), host=host, port=port, grace=grace, log_config=config)


def _check_open_files(connections: int) -> None:
    """Raise the limit of open files, and say so if the configured connections do not fit."""
    limit, needed = raise_limit(), files_needed(connections)
    if limit is not None and limit < needed:
        _logger.warning(
            "upstream.max_connections = %d needs about %d open files, with as many clients, and a process may have %d: "
            "raise the limit (ulimit -n, or LimitNOFILE= of systemd), or set fewer connections",
            connections,
            needed,
            limit,
        )


def _with_key_for_this_run(settings: Settings, host: str, workers: int) -> Settings:
    if not _is_loopback(host) or workers > 1:
        raise ConfigurationError(
            "AISBREAKER_KEY: no master key is set; make one with `aisbreaker keygen`, or set AUTH_ENCRYPTION_KEYPHRASE "
            "(only one worker on a loopback address runs without)"
        )
    _logger.warning(
        "NO MASTER KEY IS SET: one was made for this run, and every token dies with it. "
        "Make a lasting one with `aisbreaker keygen` and set AISBREAKER_KEY."
    )
    return settings.model_copy(update={"key": SecretStr(generate_key())})


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
