"""A service's refusal of the client's own credential is the client's to read."""

import httpx

from ..support import RecordingUpstream, bearer, mint, ok, proxy

PATH = "/openai/v1/chat/completions"


def test_a_401_reaches_the_client_whose_credential_it_refuses(upstream: RecordingUpstream) -> None:
    upstream.script = ok(b'{"error":"bad key"}', b"WWW-Authenticate: Bearer", status=b"401 Unauthorized")
    with proxy(upstream, foreign_credentials="forward") as base:
        own = httpx.post(base + PATH, headers=bearer("sk-own"))
        ours = httpx.post(base + PATH, headers=bearer(mint(base, ("chat:openai.com", "sk-1"))))
    assert (own.status_code, own.content) == (401, b'{"error":"bad key"}')
    assert own.headers["www-authenticate"] == "Bearer"
    assert ours.status_code == 502
    assert ours.json()["error"]["code"] == "upstream_credential_rejected"
