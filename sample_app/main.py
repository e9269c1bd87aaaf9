"""
A small app with its own page and route, wrapped by the middleware:

    uvicorn sample_app.main:app

`/` is the app's page and needs no token. `/api/v1/foo` is the app's route. The middleware checks and counts a request to it
that has an `aisbreaker_...` token, and the route receives the OpenAI key that is sealed in the token. The AI services and
`/api/v1/oauth/token` are served by the middleware.
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
<h1>Sample app</h1>
<p>This page needs no token. <code>POST /api/v1/foo</code> needs one:</p>
<pre>curl http://localhost:8000/api/v1/foo -X POST -H "Authorization: Bearer ${AISBREAKER_API_KEY}" -d '{"xxx": {}}'</pre>
"""


async def index(request: Request) -> HTMLResponse:
    """Show the app's page."""
    return HTMLResponse(PAGE)


async def foo(request: Request) -> Response:
    """Show what the route received: size of the body, token, and whether a credential was injected."""
    claims: TokenClaims | None = request.scope.get("aisbreaker")
    if claims is None:
        error = {"message": "Send an aisbreaker_... token.", "type": "authentication_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=401, headers={"www-authenticate": "Bearer"})
    # Here the app would call the AI service with this credential. It is somebody's secret: never log it or send it back.
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
