"""The contenders: how each one is installed, started and called."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import CONTENDER_CORE, LOAD_CORES, free_port, is_alive, running

HERE = Path(__file__).parent
UPSTREAM_KEY = "sk-bench-4f0d9b1c7a"
"""API key of both upstreams. Contenders that keep keys hold it; clients of the others send it themselves."""
MODEL = "gpt-4o-mini"
CONTENT = (
    "A proxy stands between a client and a server, and each takes it for the other. What it adds should be as little as "
    "can be: a few microseconds to read the head of a request, to find out whose it is and whether there is any of its "
    "quota left, to put one header in the place of another, and to hand over the rest unread. " * 2
).strip()
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-Bq3tXw8YkLm2Np5RsVz7",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": CONTENT}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 19, "completion_tokens": 127, "total_tokens": 146},
        "system_fingerprint": "fp_44709d6fcb",
    }
)
"""The chat completion that the JSON upstream sends: about a kilobyte."""

_CACHE_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class Unavailable(Exception):
    """Raised for a contender that can't take part. The message is the reason."""


@dataclass(frozen=True)
class Call:
    """One request: `POST path` with a body of one line. Host and Content-Length are added to the headers."""

    port: int
    path: str
    headers: dict[str, str]
    body: str

    @property
    def raw(self) -> bytes:
        """The whole request."""
        return "\r\n".join([f"POST {self.path} HTTP/1.1", *self._lines(), "", self.body]).encode("ascii")

    @property
    def for_wrk(self) -> str:
        """The request in the form that `load.lua` reads."""
        return "\n".join([self.path, *self._lines(length=False), "", self.body, "---", ""])

    def _lines(self, *, length: bool = True) -> list[str]:
        headers = {"Host": f"127.0.0.1:{self.port}", **self.headers}
        if length:
            headers["Content-Length"] = str(len(self.body))
        return [f"{name}: {value}" for name, value in headers.items()]

    def send(self, seconds: float = 30.0) -> tuple[int, bytes]:
        """Send the request once on a connection of its own, and return the response's status and body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("POST", self.path, self.body, self.headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def chat(port: int, path: str, key: str, *, stream: bool, model: str = MODEL, **headers: str) -> Call:
    """Return the request for a chat completion."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say something long. stream-000000"}], "stream": stream}
    fixed = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "User-Agent": "bench", "Accept": "*/*"}
    return Call(port, path, {**fixed, **headers}, json.dumps(body))


@dataclass(frozen=True)
class Stage:
    """The ports of the upstreams, a directory for this run, and the cache of installed contenders."""

    json_port: int
    sse_port: int
    directory: Path
    cache: Path


@dataclass(frozen=True)
class Spawned:
    """A contender's process, and the time of its start."""

    pid: int
    began: float


@dataclass
class Running:
    """A running contender."""

    json: Call
    sse: Call
    process: Spawned | None = None
    """None where there is no proxy."""
    startup: float | None = None
    """Seconds from the start of the process to its first 200."""
    response: str = ""
    """How its response differs from the upstream's."""


Start = Callable[["Stage", ExitStack], Running]


@dataclass(frozen=True)
class Contender:
    """
    One of the compared programs.

    Args:
        key: short name, for `--only` and the JSON.
        label: name in the tables.
        about: its setup, in a sentence.
        prepare: installs it if it is missing, and returns its versions.
        start: starts it.
        patience: longest time that its start may take, in seconds.
    """

    key: str
    label: str
    about: str
    prepare: Callable[[Path], str]
    start: Start
    patience: float = 20.0

    @contextlib.contextmanager
    def running(self, stage: Stage) -> Iterator[Running]:
        """
        Start it, and wait until its responses are the upstream's.

        Raises:
            Unavailable: it does not start, or its responses are others.
        """
        log = stage.directory / f"{self.key}.log"
        with contextlib.ExitStack() as stack:
            contender = self.start(stage, stack)
            if contender.process is not None:
                contender.startup = _wait_for_response(contender.json, contender.process, self.patience, log)
            try:
                check(contender)
            except (OSError, HTTPException, ValueError, LookupError) as error:
                raise Unavailable(f"its response can't be read: {type(error).__name__}: {error}") from None
            yield contender


def _wait_for_response(call: Call, process: Spawned, patience: float, log: Path) -> float:
    while True:
        problem = "no response"
        with contextlib.suppress(OSError, HTTPException):
            status, body = call.send()
            if status == 200:
                return time.monotonic() - process.began
            problem = f"status {status}: {body[:200]!r}"
        if not is_alive(process.pid):
            raise Unavailable(f"it ended at once: {_last_line(log)}")
        if time.monotonic() - process.began > patience:
            raise Unavailable(f"{problem} within {patience:.0f} s: {_last_line(log)}")
        time.sleep(0.002)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing in its log")


def check(contender: Running) -> None:
    """
    Check that the responses are the upstream's, which needs the upstream's key.

    Raises:
        Unavailable: they are not.
    """
    status, body = contender.json.send()
    if status != 200 or json.loads(body)["choices"][0]["message"]["content"] != CONTENT:
        raise Unavailable(f"its response is not the upstream's: status {status}, {body[:200]!r}")
    contender.response = "same bytes" if body.decode() == COMPLETION else "same content, rewritten"
    status, body = contender.sse.send()
    events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    texts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events if event != "[DONE]"]
    if status != 200 or "".join(texts) != " one more piece of it" * 3 or events[-1] != "[DONE]":
        raise Unavailable(f"its stream is not the upstream's: status {status}, {body[:200]!r}")


# Installing


def _run(command: list[str | Path], what: str) -> None:
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=900)
    except FileNotFoundError:
        raise Unavailable(f"{what}: {command[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{what}: {lines[-1][:300] if lines else 'failed'}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what}: took more than 15 minutes") from None


def install_in_venv(cache: Path, name: str, *requirements: str) -> Path:
    """Return the virtual environment of that name. Makes it anew unless it holds exactly these requirements."""
    directory = cache / name
    done = directory / "installed"
    if not done.exists() or done.read_text() != " ".join(requirements):
        shutil.rmtree(directory, ignore_errors=True)
        _run([sys.executable, "-m", "venv", directory], "making a virtual environment failed")
        _run([directory / "bin" / "pip", "install", "-q", *requirements], "pip install failed")
        done.write_text(" ".join(requirements))
    return directory


def _venv(name: str, *requirements: str) -> Callable[[Path], str]:
    def prepare(cache: Path) -> str:
        install_in_venv(cache, name, *requirements)
        return ", ".join(requirement.replace("==", " ") for requirement in requirements)

    return prepare


def _program(name: str) -> str:
    # Debian has nginx in a directory that only root's PATH names.
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def nginx_version(cache: Path) -> str:
    """Return nginx's name and version."""
    shown = subprocess.run([_program("nginx"), "-v"], capture_output=True, text=True, check=True).stderr
    return "nginx " + shown.strip().rpartition("/")[2]


def write_nginx_config(name: str, directory: Path, **values: object) -> Path:
    """Fill in one of the configurations in `upstream/`."""
    text = (HERE / "upstream" / name).read_text()
    for key, value in {"directory": directory, "key": UPSTREAM_KEY, **values}.items():
        text = text.replace(f"@{key}@", str(value))
    path = directory / name
    path.write_text(text)
    return path


def nginx_command(config: Path) -> list[str | Path]:
    """Return the command that runs nginx with a configuration, as one process."""
    return [_program("nginx"), "-p", config.parent, "-e", "stderr", "-c", config]


def _environment(**values: str) -> dict[str, str]:
    return {name: os.environ[name] for name in _CACHE_ENVIRONMENT if name in os.environ} | values


def _spawn(
    stage: Stage,
    stack: ExitStack,
    name: str,
    command: list[str | Path],
    environment: dict[str, str] | None = None,
) -> Spawned:
    """Start a contender on its core."""
    log = stage.directory / f"{name}.log"
    began = time.monotonic()
    process = stack.enter_context(
        running(command, CONTENDER_CORE, log=log, environment=environment or _environment(), directory=stage.directory)
    )
    return Spawned(process.pid, began)


# The contenders


def _nothing(cache: Path) -> str:
    return ""


def _start_direct(stage: Stage, stack: ExitStack) -> Running:
    path = "/v1/chat/completions"
    return Running(
        chat(stage.json_port, path, UPSTREAM_KEY, stream=False), chat(stage.sse_port, path, UPSTREAM_KEY, stream=True)
    )


def _start_nginx(stage: Stage, stack: ExitStack) -> Running:
    port = free_port()
    config = write_nginx_config("proxy.conf", stage.directory, port=port, json_port=stage.json_port, sse_port=stage.sse_port)
    return Running(
        chat(port, "/openai/v1/chat/completions", "aisbreaker_token", stream=False),
        chat(port, "/sse/v1/chat/completions", "aisbreaker_token", stream=True),
        _spawn(stage, stack, NGINX, nginx_command(config)),
    )


_HUGE = 2_000_000_000
_SETTINGS = """
log_level = "WARNING"
[minting]
requests_per_minute = 1000000
[quotas.server]
per_client_request_limits = {{ requests_per_minute = {huge}, requests_per_hour = {huge}, requests_per_day = {huge} }}
global_request_limits = {{ requests_per_minute = {huge}, requests_per_hour = {huge}, requests_per_day = {huge} }}
[upstream]
max_connections = 4000
[services.openai]
base_url = "http://127.0.0.1:{json_port}"
[services.sse]
like = "openai"
vendor = "sse.bench"
base_url = "http://127.0.0.1:{sse_port}"
"""


def ours_environment(stage: Stage, **settings: str) -> dict[str, str]:
    """Write our configuration. Returns the environment that names it, with a master key and other settings."""
    config = stage.directory / "aisbreaker.toml"
    config.write_text(_SETTINGS.format(huge=_HUGE, json_port=stage.json_port, sse_port=stage.sse_port))
    return _environment(AISBREAKER_CONFIG=str(config), AISBREAKER_KEY="QmVuY2htYXJrcyBuZWVkIG5vIHNlY3JldCBhdCBhbGw", **settings)


def ours_command(*arguments: str) -> list[str | Path]:
    """Return an `aisbreaker` command."""
    return [sys.executable, "-m", "aisbreaker_mw", *arguments]


def mint(environment: dict[str, str]) -> str:
    """Mint a token with six windows and secrets for both upstreams."""
    windows = {"requestsPerMinute": _HUGE, "requestsPerHour": _HUGE, "requestsPerDay": _HUGE}
    wanted = {
        "requestAuthAndQuotas": {
            "requestQuotas": {"perClientRequestLimits": windows, "globalRequestLimits": windows},
            "serviceSecrets": [
                {"serviceId": "chat:openai.com", "authSecret": UPSTREAM_KEY},
                {"serviceId": "embeddings:openai.com", "authSecret": UPSTREAM_KEY},
                {"serviceId": "text-to-speech:openai.com", "authSecret": UPSTREAM_KEY},
                {"serviceId": "chat:sse.bench", "authSecret": UPSTREAM_KEY},
            ],
        },
        "expirationTimeSpan": "1d",
    }
    made = subprocess.run(
        ours_command("token", "create", "--host", "127.0.0.1"),
        input=json.dumps(wanted),
        env=environment,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise Unavailable(f"no token was made: {made.stderr.strip().rpartition(chr(10))[2]}")
    return made.stdout.strip()


def ours_calls(port: int, token: str) -> tuple[Call, Call]:
    """Return the requests of our client: JSON and streamed."""
    return (
        chat(port, "/openai/v1/chat/completions", token, stream=False),
        chat(port, "/sse/v1/chat/completions", token, stream=True),
    )


def _ours_version(cache: Path) -> str:
    parts = ["aisbreaker-mw", "uvicorn", "uvloop", "httptools", "httpx"]
    plain = "" if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else " (a build without PGO)"
    return f"Python {platform.python_version()}{plain}, " + ", ".join(f"{part} {version(part)}" for part in parts)


def _start_ours(name: str, **settings: str) -> Start:
    def start(stage: Stage, stack: ExitStack) -> Running:
        port = free_port()
        environment = ours_environment(stage, **settings)
        json_call, sse_call = ours_calls(port, mint(environment))
        command = ours_command("serve", "--port", str(port))
        return Running(json_call, sse_call, _spawn(stage, stack, name, command, environment))

    return start


def _prepare_valkey(cache: Path) -> str:
    from aisbreaker_mw.quotas.embedded import find_server

    shown = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    return f"{_ours_version(cache)}, Valkey {shown.partition('v=')[2].partition(' ')[0]}, redis {version('redis')}"


def _start_valkey(stage: Stage, stack: ExitStack) -> Running:
    from aisbreaker_mw.quotas.embedded import find_server

    path = stage.directory / "valkey.sock"
    options = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", stage.directory]
    stack.enter_context(running([find_server(), *options], LOAD_CORES, log=stage.directory / "valkey.log"))
    while not path.exists():
        time.sleep(0.005)
    return _start_ours("valkey", AISBREAKER_QUOTAS__STORAGE=f"redis+unix://{path}")(stage, stack)


def _start_uvicorn(name: str, app: str) -> Start:
    def start(stage: Stage, stack: ExitStack) -> Running:
        port = free_port()
        environment = _environment(
            JSON_UPSTREAM=f"http://127.0.0.1:{stage.json_port}/", SSE_UPSTREAM=f"http://127.0.0.1:{stage.sse_port}/"
        )
        command: list[str | Path] = [stage.cache / name / "bin" / "uvicorn", "--app-dir", HERE / "apps", app]
        command += ["--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return Running(
            chat(port, "/v1/chat/completions", UPSTREAM_KEY, stream=False),
            chat(port, "/sse/v1/chat/completions", UPSTREAM_KEY, stream=True),
            _spawn(stage, stack, name, command, environment),
        )

    return start


def _start_litellm(stage: Stage, stack: ExitStack) -> Running:
    port = free_port()

    def model(name: str, upstream: int) -> dict[str, Any]:
        base = f"http://127.0.0.1:{upstream}/v1"
        return {"model_name": name, "litellm_params": {"model": f"openai/{MODEL}", "api_base": base, "api_key": UPSTREAM_KEY}}

    config = stage.directory / "litellm.yaml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [model(MODEL, stage.json_port), model("sse", stage.sse_port)],
                "general_settings": {"master_key": "sk-master"},
                "litellm_settings": {"telemetry": False, "num_retries": 0},
            }
        )
    )
    environment = _environment(
        LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION", NO_PROXY="*"
    )
    command: list[str | Path] = [stage.cache / "litellm" / "bin" / "litellm", "--config", config, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1"]
    return Running(
        chat(port, "/v1/chat/completions", "sk-master", stream=False),
        chat(port, "/v1/chat/completions", "sk-master", stream=True, model="sse"),
        _spawn(stage, stack, "litellm", command, environment),
    )


# The server package has the version of Portkey's own lock file. With the version that npm would take, every stream gets a 500
# (https://github.com/Portkey-AI/gateway/issues/1389).
_PORTKEY = {
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    "overrides": {"@hono/node-server": "1.13.5"},
}


def _prepare_portkey(cache: Path) -> str:
    directory = cache / "portkey"
    wanted = directory / "package.json"
    done = directory / "installed"
    if not done.exists() or wanted.read_text() != json.dumps(_PORTKEY):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        wanted.write_text(json.dumps(_PORTKEY))
        quiet = ["--no-fund", "--no-audit", "--ignore-scripts", "--no-save"]
        _run([_program("npm"), "install", *quiet, "--prefix", directory], "npm install failed")
        done.touch()
    node = subprocess.run([_program("node"), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = [f"{name} {number}" for each in _PORTKEY.values() for name, number in each.items()]
    return ", ".join([*packages, f"Node.js {node.removeprefix('v')}"])


def _start_portkey(stage: Stage, stack: ExitStack) -> Running:
    port = free_port()
    server = stage.cache / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command: list[str | Path] = [_program("node"), server, f"--port={port}", "--headless"]

    def call(upstream: int, stream: bool) -> Call:
        made = chat(port, "/v1/chat/completions", UPSTREAM_KEY, stream=stream)
        host = f"http://127.0.0.1:{upstream}/v1"
        return replace(made, headers={**made.headers, "x-portkey-provider": "openai", "x-portkey-custom-host": host})

    process = _spawn(stage, stack, "portkey", command, _environment(NODE_ENV="production"))
    return Running(call(stage.json_port, False), call(stage.sse_port, True), process)


OURS = "ours"
NGINX = "nginx"
DIRECT = "direct"

CONTENDERS = (
    Contender(
        DIRECT, "direct", "No proxy: the limit of the upstream and the load generator on their core.", _nothing, _start_direct
    ),
    Contender(
        NGINX,
        "nginx",
        "`proxy_pass` with keep-alive to the upstream, `limit_req`, and an injected `Authorization` header.",
        nginx_version,
        _start_nginx,
    ),
    Contender(
        OURS,
        "aisbreaker",
        "`aisbreaker serve`: opens the token, counts twelve windows in memory, injects the key.",
        _ours_version,
        _start_ours(OURS),
    ),
    Contender(
        "valkey",
        "aisbreaker, Valkey",
        "The same, with a Valkey server for the counters, which runs on the load's core.",
        _prepare_valkey,
        _start_valkey,
    ),
    Contender(
        "stock",
        "aisbreaker, httpx transport",
        'The same as aisbreaker with `upstream.transport = "httpx"`.',
        _ours_version,
        _start_ours("stock", AISBREAKER_UPSTREAM__TRANSPORT="httpx"),
    ),
    Contender(
        "portkey",
        "Portkey gateway",
        "Its npm package with its documented headers. No token and no quotas: the client sends the service's key.",
        _prepare_portkey,
        _start_portkey,
    ),
    Contender(
        "asgi-proxy-lib",
        "asgi-proxy-lib",
        "Its README's app on uvicorn. No token and no quotas: the client sends the service's key.",
        _venv("asgi-proxy-lib", "asgi-proxy-lib==0.2a0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
        _start_uvicorn("asgi-proxy-lib", "asgi_proxy_app:app"),
    ),
    Contender(
        "fastapi-proxy-lib",
        "fastapi-proxy-lib",
        "Its README's app on uvicorn. No token and no quotas: the client sends the service's key.",
        _venv(
            "fastapi-proxy-lib", "fastapi-proxy-lib[standard]==0.3.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"
        ),
        _start_uvicorn("fastapi-proxy-lib", "fastapi_proxy_app:app"),
    ),
    Contender(
        "litellm",
        "LiteLLM proxy",
        "One worker with a master key, no database; it holds the service's key.",
        _venv("litellm", "litellm[proxy]==1.106.2"),
        _start_litellm,
        patience=90.0,
    ),
)
