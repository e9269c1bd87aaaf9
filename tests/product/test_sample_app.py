"""The sample app, run as its docstring says."""

import httpx

from ..ports import free_port
from ..support import bearer, mint, run_process


def test_the_sample_app() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with run_process(["uvicorn", "sample_app.main:app", "--port", str(port), "--log-level", "error"], base):
        assert "Sample app" in httpx.get(base).text
        assert httpx.post(f"{base}/api/v1/foo").status_code == 401
        token = mint(base, ("chat:openai.com", "sk-1"))
        # The contract's example, its unbalanced body included.
        answer = httpx.post(f"{base}/api/v1/foo", content=b'{ "xxx": { }', headers=bearer(token))
        assert answer.json()["received_bytes"] == 12
        assert answer.json()["credential_injected"] is True
        assert "sk-1" not in answer.text
        chat = httpx.post(
            f"{base}/dummy/v1/chat/completions",
            json={"model": "dummy", "messages": [{"role": "user", "content": "hi"}]},
            headers=bearer(mint(base, ("", ""))),
        )
        assert chat.status_code == 200
