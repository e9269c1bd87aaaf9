"""The guard: a token on the wrapped app's own paths."""

import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from aisbreaker_mw import AIsBreakerMiddleware

from ..support import bearer, mint, serve, settings, wait_until


async def show(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.headers.get("authorization", ""))


def guarded() -> AIsBreakerMiddleware:
    app = Starlette(routes=[Route("/mine", show), Route("/page", show)])
    return AIsBreakerMiddleware(app, settings(inject={"/mine": "chat:openai.com"}))


def test_each_token_has_its_own_turn() -> None:
    with serve(guarded()) as base:
        for name in ("a", "b"):
            secrets = [f"sk-{name}1", f"sk-{name}2"]
            token = mint(base, ("chat:openai.com", secrets))  # type: ignore[arg-type]
            answers = [httpx.get(f"{base}/mine", headers=bearer(token)).text for _ in range(3)]
            assert answers == [f"Bearer {secrets[number]}" for number in (0, 1, 0)]


def test_the_log_tells_which_service_a_credential_was_injected_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aisbreaker_mw.access")
    with serve(guarded()) as base:
        token = mint(base, ("chat:openai.com", "sk-1"))
        for path in ("/mine", "/page"):
            httpx.get(base + path, headers=bearer(token))
        wait_until(lambda: len(caplog.records) == 3, "the last line")  # the first is the token request's
    fields = [record.msg for record in caplog.records]
    assert [each["service_id"] for each in fields] == [None, "chat:openai.com", None]  # type: ignore[index]
