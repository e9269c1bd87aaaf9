"""Keys, the documented sample, and the one line of a refusal."""

from collections.abc import Callable
from typing import Any

import pytest

from aisbreaker_mw.exceptions import ConfigurationError
from aisbreaker_mw.settings import Settings

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
max_connections = 1000               # per upstream origin, WebSockets included
fair_share = 4                       # a client, and a token, may hold 4 connections for each free one: alone 80 % of them
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


ALIASES = [
    ("keyphrase", "AUTH_ENCRYPTION_KEYPHRASE"),
    ("retired_keyphrases", "AUTH_ADDITIONAL_DECRYPTION_KEYPHRASES"),
    ("default_api_key", "DEFAULT_AISBREAKER_API_KEY"),
]
