"""
A small app with pages of its own, wrapped by the middleware:

    uvicorn sample_app.main:app

`/` is the app's page and needs no token. `/api/v1/foo` is the app's own route: whoever calls it with an `aisbreaker_...` token
is checked and counted by the middleware, and the route receives the OpenAI key that is sealed in the token. The AI services
and `/api/v1/oauth/token` are the middleware's.
"""

import logging

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from aisbreaker_mw import AIsBreakerMiddleware, Settings, TokenClaims, generate_key

PAGE = """<!doctype html>
<title>sample app</title>
<h1>An app of one's own</h1>
<p>This page needs no token. <code>POST /api/v1/foo</code> needs one:</p>
<pre>curl http://localhost:8000/api/v1/foo -X POST -H "Authorization: Bearer ${AISBREAKER_API_KEY}" -d '{"xxx": {}}'</pre>
"""


async def index(request: Request) -> HTMLResponse:
    """Show a page of the app's own."""
    return HTMLResponse(PAGE)


async def foo(request: Request) -> Response:
    """Tell what this route received: how much of a body, under which token, and whether a credential was injected."""
    claims: TokenClaims | None = request.scope.get("aisbreaker")
    if claims is None:
        error = {"message": "Send an aisbreaker_... token.", "type": "authentication_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=401, headers={"www-authenticate": "Bearer"})
    # Here the app would call the AI service with this credential. It is somebody's secret: never log or answer it.
    credential = request.headers.get("authorization", "").removeprefix("Bearer ")
    received = 0
    async for piece in request.stream():
        received += len(piece)
    return JSONResponse({"received_bytes": received, "token": claims.jti, "credential_injected": bool(credential)})


def _settings() -> Settings:
    settings = Settings(inject={"/api/v1/foo": "chat:openai.com"})
    if settings.has_key():
        return settings
    logging.getLogger("uvicorn.error").warning("NO MASTER KEY IS SET: tokens end with this run; set AISBREAKER_KEY")
    return settings.model_copy(update={"key": SecretStr(generate_key())})


app = AIsBreakerMiddleware(
    Starlette(routes=[Route("/", index), Route("/api/v1/foo", foo, methods=["POST"])]), settings=_settings()
)
