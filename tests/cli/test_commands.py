"""The command line, as a person types it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ..ports import free_port
from ..support import KEY, WAIT, bearer, mint, run_process, serve_process

REQUEST = json.dumps(
    {
        "requestAuthAndQuotas": {
            "requestQuotas": {"globalRequestLimits": {"requestsPerDay": 5}},
            "serviceSecrets": [
                {"serviceId": "chat:openai.com", "authSecret": "sk-cli-secret"},
                {"serviceId": "", "authSecret": ""},
            ],
        },
        "expirationTimeSpan": "1h",
    }
)


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aisbreaker_mw", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_keygen_prints_a_key_that_serves() -> None:
    first, second = run("keygen"), run("keygen")
    assert first.returncode == 0
    assert first.stdout != second.stdout
    assert len(first.stdout.strip()) == 43
    assert run("token", "create", "--host", "h", stdin=REQUEST, AISBREAKER_KEY=first.stdout.strip()).returncode == 0


def test_a_token_made_offline_opens_on_the_server_and_can_be_inspected() -> None:
    made = run("token", "create", "--host", "127.0.0.1", stdin=REQUEST, AISBREAKER_KEY=KEY)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    with serve_process(stderr=subprocess.PIPE, AISBREAKER_KEY=KEY) as (base, _):
        assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).status_code == 200
    for way in (("token", "inspect", token), ("token", "inspect", "-")):
        shown = run(*way, "--host", "127.0.0.1", stdin=token, AISBREAKER_KEY=KEY)
        claims = json.loads(shown.stdout)
        assert claims["requestQuotas"]["globalRequestLimits"] == {"requestsPerDay": 5}
        assert [each["serviceId"] for each in claims["serviceSecrets"]] == ["chat:openai.com", ""]
        assert claims["expired"] is False
        assert "sk-cli-secret" not in shown.stdout + shown.stderr
    wrong = run("token", "inspect", token, "--host", "elsewhere", AISBREAKER_KEY=KEY)
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert token not in wrong.stderr


def test_a_token_made_through_a_server(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(REQUEST)
    with serve_process(stderr=subprocess.PIPE, AISBREAKER_KEY=KEY) as (base, _):
        made = run("token", "create", "--server", base, "--request", str(request))
        assert made.returncode == 0, made.stderr
        answer = httpx.get(f"{base}/dummy/v1/models", headers=bearer(made.stdout.strip()))
        assert answer.status_code == 200
        request.write_text("{}")
        refused = run("token", "create", "--server", base, "--request", str(request))
    assert refused.returncode == 1
    assert "requestAuthAndQuotas: is required" in refused.stderr
    gone = run("token", "create", "--server", base, "--request", str(request))
    assert gone.returncode == 1
    assert "ConnectError" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("--host", "0.0.0.0"), {}, "AISBREAKER_KEY"),
        (("--workers", "2"), {"AISBREAKER_KEY": KEY}, "embedded://"),
        (("--workers", "2"), {"AISBREAKER_QUOTAS__STORAGE": "redis://127.0.0.1:1"}, "AISBREAKER_KEY"),
        ((), {"AISBREAKER_KEY": "not-a-key"}, "aisbreaker keygen"),
        ((), {"AUTH_ENCRYPTION_KEYPHRASE": "too short"}, "AUTH_ENCRYPTION_KEYPHRASE: takes at least 20 characters"),
        ((), {"AISBREAKER_KEY": KEY, "AUTH_ENCRYPTION_KEYPHRASE": "x" * 20}, "set one"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_TYPO": "1"}, "AISBREAKER_TYPO"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_MINTING__MODE": "closed"}, "minting.mode"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_MINTING__MODE": "secret"}, "minting.secret"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_HOSTS": "a,b"}, "AISBREAKER_HOSTS"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_QUOTAS__STORAGE": "nosuch://x"}, "quotas.storage"),
        ((), {"AISBREAKER_KEY": KEY, "AISBREAKER_SERVICES__OPENAI__BASE_URL": "ftp://x"}, "services.openai.base_url"),
    ],
)
def test_a_start_that_is_refused_says_in_one_line_what_to_set(
    arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    refused = run("serve", "--port", str(free_port()), *arguments, **environment)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert KEY not in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = run("serve", "--port", str(taken.getsockname()[1]), AISBREAKER_KEY=KEY)
    assert refused.returncode == 1
    assert "in use" in refused.stderr


def test_without_a_key_one_is_made_for_the_run_and_never_printed() -> None:
    with serve_process(stderr=subprocess.PIPE) as (base, process):
        token = mint(base, ("", ""))
        assert httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=10)
    assert process.returncode == 0
    loud = [line for line in told.splitlines() if "NO MASTER KEY" in line]
    assert len(loud) == 1
    assert "aisbreaker is listening on http://127.0.0.1:" in told


def test_a_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "aisbreaker.toml"
    config.write_text('hosts = ["127.0.0.1"]\n[minting]\nmode = "off"\n')
    shown = run("check-config", "--config", str(config), AISBREAKER_KEY=KEY)
    assert shown.returncode == 0
    effective = json.loads(shown.stdout)
    assert effective["hosts"] == ["127.0.0.1"]
    assert effective["minting"]["mode"] == "off"
    assert KEY not in shown.stdout + shown.stderr
    options = ("--config", str(config), "--log-format", "json")
    with serve_process(*options, stderr=subprocess.PIPE, AISBREAKER_KEY=KEY) as (
        base,
        process,
    ):
        refused = httpx.post(f"{base}/api/v1/oauth/token", json={})
        assert refused.json()["error"]["code"] == "minting_refused"
        process.terminate()
        _, told = process.communicate(timeout=10)
    lines = [json.loads(line) for line in told.splitlines()]
    assert any(line.get("error") == "minting_refused" and line["status"] == 403 for line in lines)
    config.write_text("[minting]\nmood = 1\n")
    bad = run("check-config", "--config", str(config))
    assert bad.returncode == 1
    assert "minting.mood: is not a known setting" in bad.stderr


def test_the_factory_runs_under_uvicorn_itself() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = ["uvicorn", "--factory", "aisbreaker_mw:create_app", "--port", str(port)]
    with run_process(command, f"{base}/api/v1/health", stderr=subprocess.PIPE, AISBREAKER_KEY=KEY) as process:
        token = mint(base, ("", ""))
        assert httpx.get(f"{base}/dummy/v1/models?key={token}").status_code == 200
        process.terminate()
        _, told = process.communicate(timeout=10)
    assert token not in told


def test_the_demo() -> None:
    tour = run("demo", "--port", str(free_port()), "--exit")
    assert tour.returncode == 0, tour.stderr
    assert '"access_token": "aisbreaker_eyJ2ZXIi' in tour.stdout
    assert tour.stdout.count("data: {") > 5
    assert "data: [DONE]" in tour.stdout
    assert 'ratelimit: "token-client-minute";r=59' in tour.stdout
    assert "HTTP/1.1 429 Too Many Requests" in tour.stdout
    assert "retry-after: " in tour.stdout


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_the_demo_on_a_taken_port(address: str) -> None:
    """Another server there would be toured instead, and one that accepts and is silent be waited for."""
    with socket.create_server((address, free_port())) as taken:
        taken.settimeout(0)
        port = taken.getsockname()[1]
        refused = run("demo", "--port", str(port), "--exit")
        with pytest.raises(BlockingIOError):
            taken.accept()
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr == f"Error: port {port} is taken. Take another one: aisbreaker demo --port {port + 1}\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_a_demo_that_is_killed_takes_its_server_along() -> None:
    port = free_port()
    command = [sys.executable, "-m", "aisbreaker_mw", "demo", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as demo:
        assert demo.stdout is not None
        assert any("The server stays up" in line for line in demo.stdout)
        demo.terminate()
        assert demo.wait(WAIT) == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=WAIT)


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("aisbreaker, version ")
    for command in ("serve", "demo", "keygen", "token", "check-config"):
        assert command in run("--help").stdout
