"""Keys with names and identifiers: minted by a program, the command line or the endpoint, and told in the log."""

import csv
import io
import json
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from aisbreaker_mw import ConfigurationError, Minted, RequestError, RequestLimits, RequestQuotas, Settings, TokenSealer, mint
from aisbreaker_mw.tokens.claims import TokenClaims

from .support import KEY, RecordingUpstream, bearer, proxy, settings

HOST = "api.example.com"
BODY: dict[str, Any] = {"requestAuthAndQuotas": {"serviceSecrets": [{"serviceId": "chat:dummy", "authSecret": ""}]}}


def opened(minted: Minted, host: str = HOST) -> TokenClaims:
    return TokenSealer(settings().keyring()).unseal(minted.token, host)


# mint()


def test_a_program_mints_what_the_endpoint_would() -> None:
    quotas = RequestQuotas(global_request_limits=RequestLimits(requests_per_hour=5))
    before = int(time.time())
    minted = mint(
        settings(hosts=[HOST]),
        secrets={"chat:openai.com": "sk-1", "": ["sk-2", "sk-3"]},
        quotas=quotas,
        lifetime="15m",
        label="run 12",
    )
    claims = opened(minted)
    assert (minted.key_id, minted.expires_at) == (claims.jti, claims.exp)
    assert before + 900 <= claims.exp <= time.time() + 900
    assert (claims.label, claims.quotas, claims.open) == ("run 12", quotas, False)
    assert [(each.service_id, each.values()) for each in claims.secrets] == [
        ("chat:openai.com", ["sk-1"]),
        ("", ["sk-2", "sk-3"]),
    ]


def test_the_token_is_not_in_its_repr() -> None:
    minted = mint(settings(), secrets={"": "sk-1"}, host=HOST)
    assert minted.token not in repr(minted)
    assert minted.key_id in repr(minted)


def test_the_lifetime_is_the_settings_where_none_is_given() -> None:
    minted = mint(settings(minting={"default_lifetime": "3m"}), secrets={"": "sk-1"}, host=HOST)
    assert 170 <= minted.expires_at - time.time() <= 180


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"secrets": {"chat": "sk"}}, "serviceSecrets[0].serviceId"),
        ({"secrets": {"": "sk\n"}}, "serviceSecrets[0].authSecret"),
        ({"secrets": {"": ["sk", ""]}}, "serviceSecrets[0].authSecret[1]"),
        ({"lifetime": "soon"}, "expirationTimeSpan"),
        ({"lifetime": "2y"}, "expirationTimeSpan: must be at most 366d"),
        ({"label": "x" * 101}, "label: must be at most 100 printable characters"),
        ({"label": "a\nb"}, "label"),
        ({"secrets": {"": "s" * 8000}}, "too large"),
        ({"secrets": {"": "sk-SENTINEL\ud800"}}, "lone surrogates"),
    ],
)
def test_a_program_is_refused_as_the_endpoint_refuses(values: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        mint(settings(), **{"secrets": {"": "sk-SENTINEL"}, "host": HOST, **values})
    assert field in str(refusal.value)
    assert "SENTINEL" not in str(refusal.value)


@pytest.mark.parametrize("host", ["", "https://api.example.com", "api.example.com:443", "\ud800"])
def test_a_program_binds_tokens_to_host_names_only(host: str) -> None:
    with pytest.raises(ConfigurationError, match="host takes host names without scheme and port"):
        mint(settings(), secrets={"": "sk"}, host=host)


def test_a_host_name_in_capitals_is_the_same_host() -> None:
    minted = mint(settings(), secrets={"": "sk"}, host="API.example.com")
    assert TokenSealer(settings().keyring()).unseal(minted.token, "api.example.com").jti == minted.key_id


def test_minting_needs_a_key_and_a_host() -> None:
    with pytest.raises(ConfigurationError, match="AISBREAKER_KEY"):
        mint(Settings(), secrets={"": "sk"}, host=HOST)
    with pytest.raises(ConfigurationError, match="hosts"):
        mint(settings(), secrets={"": "sk"})


# The endpoint, and the log


def post(base: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{base}/api/v1/oauth/token", json={**BODY, **fields})


def test_the_endpoint_seals_a_label_and_names_the_key() -> None:
    with proxy() as base:
        minted = post(base, label="class 7b, Ana").json()
        claims = TokenSealer(settings().keyring()).unseal(minted["access_token"], "127.0.0.1")
        assert (claims.label, claims.jti) == ("class 7b, Ana", minted["key_id"])


@pytest.mark.parametrize("label", ["x" * 101, "tab\t", "\u2028", None, 7, ["x"]], ids=repr)
def test_a_bad_label_is_refused_by_its_name(label: Any) -> None:
    with proxy() as base:
        response = post(base, label=label)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "label"


def test_a_token_without_a_label_is_the_same_as_ever() -> None:
    """Only a label that is there is sealed."""
    secrets = {"": "sk-1"}
    short, long = (mint(settings(), secrets=secrets, host=HOST, label=label).token for label in ("", "x"))
    assert len(long) - len(short) == 4 * len(',"label":"x"') // 3


def log_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [dict(record.msg) for record in caplog.records if record.name == "aisbreaker_mw.access"]  # type: ignore[arg-type]


def test_each_line_of_the_log_names_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "aisbreaker_mw.access")
    with proxy() as base:
        minted = post(base, label="run 12").json()
        httpx.get(f"{base}/dummy/v1/models", headers=bearer(minted["access_token"]))
    line = log_lines(caplog)[-1]
    assert (line["key_id"], line["label"], line["status"]) == (minted["key_id"], "run 12", 200)


def test_the_log_tells_the_operator_why_a_token_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    """The client is told the same each time, but for an expiry."""
    from aisbreaker_mw import create_app, generate_key

    from .support import serve

    caplog.set_level("INFO", "aisbreaker_mw.access")
    clock = [time.time()]
    with serve(create_app(settings())) as base:
        good = post(base).json()["access_token"]
        stranger = mint(Settings(key=generate_key()), secrets={"": "sk"}, host="127.0.0.1").token
        answers = []
        for token in (stranger, good[:-2] + "AA", "aisbreaker_nonsense"):
            answers.append(httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).json()["error"]["message"])
    assert len(set(answers)) == 1
    causes = [(line["cause"], line["kid"]) for line in log_lines(caplog)[1:]]
    own = TokenSealer(settings().keyring()).unseal(good, "127.0.0.1").kid
    assert [cause for cause, _ in causes] == ["unknown_key", "not_opened", "not_opened"]
    assert causes[0][1] not in (None, own)
    assert [kid for _, kid in causes[1:]] == [own, None]

    caplog.clear()
    from aisbreaker_mw import AIsBreakerMiddleware

    with serve(AIsBreakerMiddleware(None, settings(), clock=lambda: clock[0])) as base:
        token = post(base, expirationTimeSpan="1m").json()["access_token"]
        clock[0] += 61
        assert "expired" in httpx.get(f"{base}/dummy/v1/models", headers=bearer(token)).text
    assert log_lines(caplog)[-1]["cause"] == "expired"


def test_the_limit_on_minting_says_that_it_is_mintings() -> None:
    with proxy(minting={"requests_per_minute": 1}) as base:
        assert post(base).status_code == 200
        refused = post(base)
        assert refused.status_code == 429
        assert "minting.requests_per_minute" in refused.json()["error"]["message"]


# The command line


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aisbreaker_mw", *arguments]
    return subprocess.run(command, input=stdin, env={**environment}, capture_output=True, text=True, timeout=60)


def test_a_batch_of_labels_is_a_table(tmp_path: Any) -> None:
    names = ['Ana "the first"', "Ben, the second", *(f"student {number}" for number in range(2000))]
    (tmp_path / "labels.txt").write_text("\n".join(names[1:]) + "\n\n", encoding="utf-8")
    arguments = ("--host", HOST, "--label", names[0], "--labels", str(tmp_path / "labels.txt"))
    made = run("token", "create", *arguments, stdin=json.dumps(BODY), AISBREAKER_KEY=KEY)
    assert made.returncode == 0, made.stderr
    rows = list(csv.DictReader(io.StringIO(made.stdout)))
    assert [row["label"] for row in rows] == names
    assert len({row["key_id"] for row in rows}) == len(names)
    for row in (*rows[:3], rows[-1]):
        claims = TokenSealer(settings().keyring()).unseal(row["token"], HOST)
        assert (claims.label, claims.jti) == (row["label"], row["key_id"])


def test_a_batch_through_a_server_is_the_same_table() -> None:
    with proxy() as base:
        made = run("token", "create", "--server", base, "--label", "a", "--label", "b", stdin=json.dumps(BODY))
        rows = list(csv.DictReader(io.StringIO(made.stdout)))
        assert [row["label"] for row in rows] == ["a", "b"]
        assert [TokenSealer(settings().keyring()).unseal(row["token"], "127.0.0.1").label for row in rows] == ["a", "b"]


def test_a_batch_with_a_bad_label_says_so() -> None:
    made = run("token", "create", "--host", HOST, "--label", "x" * 101, stdin=json.dumps(BODY), AISBREAKER_KEY=KEY)
    assert made.returncode == 1
    assert "label: must be at most 100 printable characters" in made.stderr


def test_a_file_of_labels_that_is_no_text_is_refused_in_one_line(tmp_path: Any) -> None:
    (tmp_path / "labels.txt").write_bytes(b"Ana\nBj\xf6rn\n")
    arguments = ("--host", HOST, "--labels", str(tmp_path / "labels.txt"))
    made = run("token", "create", *arguments, stdin=json.dumps(BODY), AISBREAKER_KEY=KEY)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr == f"Error: {tmp_path}/labels.txt: the labels must be UTF-8\n"


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Any) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfAna\n")
    arguments = ("--host", HOST, "--labels", str(tmp_path / "labels.txt"))
    made = run("token", "create", *arguments, stdin=json.dumps(BODY), AISBREAKER_KEY=KEY)
    assert [row["label"] for row in csv.DictReader(io.StringIO(made.stdout))] == ["Ana"]


def test_a_server_that_is_no_url_is_refused_in_one_line() -> None:
    made = run("token", "create", "--server", "http://[::", stdin=json.dumps(BODY))
    assert made.returncode == 1
    assert made.stderr == "Error: http://[::/api/v1/oauth/token: InvalidURL\n"


@pytest.mark.parametrize("host", ["https://api.example.com", "api.example.com:443", "a b", ""])
def test_host_takes_host_names_only(host: str) -> None:
    made = run("token", "create", "--host", host, stdin=json.dumps(BODY), AISBREAKER_KEY=KEY)
    assert made.returncode == 2
    assert "takes host names without scheme and port" in made.stderr


def test_inspect_says_in_words_why_a_token_does_not_open() -> None:
    from aisbreaker_mw import generate_key

    good = mint(settings(), secrets={"": "sk"}, host=HOST, label="run 12")
    other = mint(Settings(key=generate_key()), secrets={"": "sk"}, host=HOST)
    shown = run("token", "inspect", good.token, "--host", HOST, AISBREAKER_KEY=KEY)
    assert (json.loads(shown.stdout)["key_id"], json.loads(shown.stdout)["label"]) == (good.key_id, "run 12")
    for token, host, words in (
        (other.token, HOST, "which is none of these settings' keys"),
        (good.token, "other.example", "made for another host than other.example"),
        (good.token[:-3] + "AAA", HOST, "changed or cut"),
        ("sk-12345", HOST, "This is no token"),
    ):
        refused = run("token", "inspect", token, "--host", host, AISBREAKER_KEY=KEY)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert token not in refused.stderr


def test_a_service_sees_nothing_of_a_label(upstream: RecordingUpstream) -> None:
    with proxy(upstream) as base:
        minted = mint(settings(), secrets={"": "sk-1"}, host="127.0.0.1", label="private name")
        assert httpx.get(f"{base}/openai/v1/models", headers=bearer(minted.token)).status_code == 200
        assert b"private name" not in upstream.last.raw


def test_the_error_of_a_server_shows_no_password() -> None:
    refused = run("token", "create", "--server", "http://user:SENTINEL@127.0.0.1:1", stdin=json.dumps(BODY))
    assert refused.returncode == 1
    assert "http://127.0.0.1:1/api/v1/oauth/token: ConnectError" in refused.stderr
    assert "SENTINEL" not in refused.stderr
