"""A client that is gone is no failure of the service, and a page may read when it can try again."""

from typing import Any

import httpx
import pytest

from aisbreaker_mw import AIsBreakerMiddleware

from ..support import RecordingUpstream, proxy, settings


def log_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (fields,) = [dict(record.msg) for record in caplog.records if record.name == "aisbreaker_mw.access"]  # type: ignore[arg-type]
    return fields


async def ask(app: AIsBreakerMiddleware, fails_at: str) -> list[Any]:
    """Ask a service. The client is gone when it is sent a message of the type `fails_at`."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == fails_at:
            raise OSError("closed")
        sent.append(message)

    headers = [(b"host", b"h"), (b"authorization", b"Bearer sk-own")]
    scope = {"type": "http", "method": "GET", "path": "/openai/v1/models", "query_string": b"", "headers": headers}
    await app({**scope, "http_version": "1.1", "client": ("127.0.0.1", 1), "scheme": "http"}, receive, send)
    return sent


async def test_a_client_that_is_gone_is_not_logged_as_an_error_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "aisbreaker_mw.access")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(b"hi")))
    app = AIsBreakerMiddleware(None, settings(foreign_credentials="forward"), transport=transport)
    sent = await ask(app, "http.response.body")
    assert [message["type"] for message in sent] == ["http.response.start"]
    line = log_line(caplog)
    assert (line["status"], line["complete"], line["error"], line["cause"]) == (200, False, None, None)
    await app.aclose()


async def test_an_error_of_the_operating_system_before_the_response_is_the_upstreams(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise OSError("no route")

    caplog.set_level("INFO", "aisbreaker_mw.access")
    app = AIsBreakerMiddleware(None, settings(foreign_credentials="forward"), transport=httpx.MockTransport(broken))
    sent = await ask(app, "")
    assert sent[0]["status"] == 502
    line = log_line(caplog)
    assert (line["status"], line["error"], line["cause"]) == (502, "upstream_error", "OSError")
    await app.aclose()


@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms", "x-should-retry", "request-id", "ratelimit-policy"])
def test_a_page_may_read_when_it_can_try_again(upstream: RecordingUpstream, name: str) -> None:
    origin = "https://app.example.com"
    with proxy(upstream, cors_origins=[origin]) as base:
        response = httpx.post(f"{base}/openai/v1/chat/completions", headers={"origin": origin})
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert name in exposed
