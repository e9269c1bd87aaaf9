"""`aisbreaker demo`: starts the proxy with its defaults, and shows as a client what it does."""

import contextlib
import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import httpx

from ..exceptions import AIsBreakerError

START_TIMEOUT = 20.0
"""Longest time until the server responds, in seconds."""
PIECE_DELAY = 0.08
"""Time between streamed pieces, in seconds: long enough to be seen."""

# The example of the contract.
TOKEN_REQUEST: dict[str, Any] = {
    "requestAuthAndQuotas": {
        "requestQuotas": {
            "perClientRequestLimits": {"requestsPerMinute": 60, "requestsPerHour": 600, "requestsPerDay": 600},
            "globalRequestLimits": {"requestsPerMinute": 120, "requestsPerHour": 1200, "requestsPerDay": 1200},
        },
        "serviceSecrets": [
            {"serviceId": "aisbreaker:network", "authSecret": "{{secret}}"},
            {"serviceId": "chat:openai.com", "authSecret": "sk-YOUR-OPENAI-KEY"},
            {"serviceId": "chat:dummy", "authSecret": ""},
            {"serviceId": "", "authSecret": "INVALID"},
        ],
    },
    "expirationTimeSpan": "365d",
}


class DemoFailed(AIsBreakerError):
    """The demo did not go as it should."""


def run_demo(port: int, *, leave: bool) -> int:
    """
    Start the proxy on a loopback port, and show what it does.

    Args:
        port: port to listen on.
        leave: whether to end after the tour, instead of staying up until interrupted.

    Returns:
        The exit status.

    Raises:
        DemoFailed: the server did not start, or responded otherwise than it should.
    """
    _require_free(port)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the server as well
    base = f"http://127.0.0.1:{port}"
    with _server(port) as process, httpx.Client(timeout=30, trust_env=False) as client:
        _wait_until_up(base, client, process)
        _tour(base, client)
        if leave:
            return 0
        _say(f"The server stays up at {base}: paste the lines above into another terminal. Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        return 0


def _require_free(port: int) -> None:
    """Check that nothing listens on the port: the tour must not talk to another server."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise DemoFailed(f"port {port} can't be listened on: {os.strerror(error.errno or 0).lower()}") from None
            raise DemoFailed(f"port {port} is taken. Take another one: aisbreaker demo --port {port % 65535 + 1}") from None


@contextlib.contextmanager
def _server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    # The tour runs without the person's own configuration.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AISBREAKER_", "AUTH_"))}
    environment.pop("DEFAULT_AISBREAKER_API_KEY", None)
    environment |= {"AISBREAKER_SERVICES__DUMMY__DELAY": str(PIECE_DELAY), "AISBREAKER_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "aisbreaker_mw", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - this program itself
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(base: str, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if client.get(f"{base}/api/v1/ping").is_success:
                return
        time.sleep(0.05)
    raise DemoFailed("the server did not start")


def _tour(base: str, client: httpx.Client) -> None:
    _say("1. Seal a provider's key, with quotas and an expiry, into a token. The server keeps nothing.")
    url = f"{base}/api/v1/oauth/token"
    _show_curl("POST", url, TOKEN_REQUEST)
    minted = _expect(client.post(url, json=TOKEN_REQUEST), 200)
    click.echo(json.dumps(minted.json(), indent=2))
    token = minted.json()["access_token"]
    authorization = {"authorization": f"Bearer {token}"}
    click.echo(f"\nexport AISBREAKER_API_KEY={token}")

    _say("2. Use the token as the API key of any AI SDK: here a chat with the embedded dummy service, streamed.")
    url = f"{base}/dummy/v1/chat/completions"
    chat = {"model": "dummy", "stream": True, "messages": [{"role": "user", "content": "Hello, who are you?"}]}
    _show_curl("POST", url, chat, authorized=True)
    with client.stream("POST", url, json=chat, headers=authorization) as streamed:
        _expect(streamed, 200)
        for line in streamed.iter_lines():
            if line:
                click.echo(line)
        _say("3. The response's headers tell about the quota.")
        _show_quota(streamed)

    _say("4. Quotas are enforced: the token allows 60 requests a minute to each client.")
    chat["stream"] = False
    _show_curl("POST", url, chat, authorized=True)
    for count in range(1, 200):
        response = client.post(url, json=chat, headers=authorization)
        if response.status_code == 429:
            click.echo(f"... {count - 1} more responses with 200, then:")
            break
        _expect(response, 200)
    _expect(response, 429)
    click.echo(f"HTTP/1.1 429 {response.reason_phrase}")
    _show_quota(response)
    click.echo(response.text)


def _expect(response: httpx.Response, status: int) -> httpx.Response:
    if response.status_code != status:
        raise DemoFailed(f"the server responded with {response.status_code} instead of {status}")
    return response


def _show_quota(response: httpx.Response) -> None:
    for name in ("ratelimit-policy", "ratelimit", "retry-after", "retry-after-ms"):
        if name in response.headers:
            click.echo(f"{name}: {response.headers[name]}")


def _show_curl(method: str, url: str, body: dict[str, Any], *, authorized: bool = False) -> None:
    lines = [f"curl -N -X {method} {url}", "-H 'Content-Type: application/json'"]
    if authorized:
        lines.append('-H "Authorization: Bearer ${AISBREAKER_API_KEY}"')
    lines.append(f"-d {shlex.quote(json.dumps(body))}")
    click.echo(" \\\n  ".join(lines) + "\n")


def _say(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True) + "\n")
