"""A remembered decision, and a request to the wrapped app, are told in the log and let no token through."""

from typing import Any

import httpx
import pytest

from aisbreaker_mw import AIsBreakerMiddleware

from ..support import RecordingUpstream, bearer, mint, proxy, serve, settings, wait_until
from .test_middleware import sample

CHAT = "/openai/v1/chat/completions"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of the log, but that of the minted token."""
    fields = [dict(record.msg) for record in caplog.records if record.name == "aisbreaker_mw.access"]  # type: ignore[arg-type]
    return [line for line in fields if line["method"] == "GET" or line["service_id"]]


def test_every_line_names_the_key_of_a_repeated_request(upstream: RecordingUpstream, caplog: pytest.LogCaptureFixture) -> None:
    with proxy(upstream) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        caplog.set_level("INFO", "aisbreaker_mw.access")
        for _ in range(3):
            assert httpx.post(base + CHAT, headers=bearer(token)).status_code == 200
        wait_until(lambda: len(lines(caplog)) == 3, "the last line")
    (key,) = {line["key_id"] for line in lines(caplog)}
    (kid,) = {line["kid"] for line in lines(caplog)}
    assert key
    assert kid


def test_a_request_to_the_wrapped_app_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serve(AIsBreakerMiddleware(sample(), settings())) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        caplog.set_level("INFO", "aisbreaker_mw.access")
        assert httpx.get(f"{base}/page", headers=bearer("sk-own")).status_code == 200
        response = httpx.get(f"{base}/page", headers=bearer(token))
        wait_until(lambda: lines(caplog), "the line")
    (line,) = lines(caplog)
    assert (line["status"], line["bytes"], line["complete"]) == (200, len(response.content), True)
    assert line["key_id"]


def test_a_token_as_user_agent_opens_no_other_header_to_a_token(upstream: RecordingUpstream) -> None:
    """The client's own credential is forwarded, and a token never is, whatever was remembered before."""
    with proxy(upstream, foreign_credentials="forward") as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        own = bearer("sk-own")
        for _ in range(2):
            assert httpx.post(base + CHAT, headers={**own, "user-agent": token}).status_code == 200
            before = len(upstream.requests)
            assert httpx.post(base + CHAT, headers={**own, "user-agent": "x", "x-other": token}).status_code == 400
            assert len(upstream.requests) == before
