"""Azure OpenAI: the resource in the base URL, the deployment in the path, the key in `api-key`."""

import json
import socket
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from ..support import Recorded, RecordingUpstream, bearer, mint, ok, proxy

VERSION = "2024-10-21"
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
    }
).encode()
CHUNKS = b"".join(
    b"data: "
    + json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-4o",
            "choices": [{"index": 0, "finish_reason": None, "delta": {"content": piece}}],
        }
    ).encode()
    + b"\n\n"
    for piece in ("Hel", "lo")
)
EMBEDDING = (
    b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0]}],"model":"e","usage":'
    b'{"prompt_tokens":1,"total_tokens":1}}'
)


def answer(request: Recorded, connection: socket.socket) -> bytes:
    if b"/embeddings" in request.target:
        return ok(EMBEDDING)
    if b'"stream":true' in request.body.replace(b" ", b""):
        body = CHUNKS + b"data: [DONE]\n\n"
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    if b"/anthropic/" in request.target:
        return ok(
            b'{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"Hello"}],'
            b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}'
        )
    return ok(COMPLETION)


@pytest.fixture
def resource() -> Iterator[RecordingUpstream]:
    with RecordingUpstream(answer) as resource:
        yield resource


@pytest.fixture
def server(resource: RecordingUpstream) -> Iterator[str]:
    with proxy(resource, "azure") as server:
        yield server


def azure(server: str, token: str) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(azure_endpoint=f"{server}/azure", api_key=token, api_version=VERSION, max_retries=0)


def test_there_is_no_azure_until_its_resource_is_configured() -> None:
    with proxy() as server:
        token = mint(server, ("", "az-key"))
        response = httpx.post(f"{server}/azure/openai/v1/chat/completions", json={}, headers=bearer(token))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_azures_sdk(server: str, resource: RecordingUpstream) -> None:
    with azure(server, mint(server, ("chat:azure.com/my-gpt", "az-key"))) as client:
        completion = client.chat.completions.create(model="my-gpt", messages=[{"role": "user", "content": "Hi"}])
    assert completion.choices[0].message.content == "Hello"
    assert resource.last.target == f"/openai/deployments/my-gpt/chat/completions?api-version={VERSION}".encode()
    assert resource.last.all(b"api-key") == [b"az-key"]
    assert resource.last.all(b"authorization") == []


def test_azures_sdk_streams(server: str, resource: RecordingUpstream) -> None:
    with azure(server, mint(server, ("chat:azure.com", "az-key"))) as client:
        chunks = client.chat.completions.create(model="my-gpt", messages=[{"role": "user", "content": "Hi"}], stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"


def test_the_deployment_is_the_engine_whatever_the_body_names(server: str, resource: RecordingUpstream) -> None:
    token = mint(server, ("chat:azure.com/my-gpt", "az-key"))
    with azure(server, token) as client, pytest.raises(openai.PermissionDeniedError, match=r"chat:azure\.com/their-gpt"):
        client.chat.completions.create(model="their-gpt", messages=[])
    url = f"{server}/azure/openai/deployments/{{}}/chat/completions?api-version={VERSION}"
    assert httpx.post(url.format("their-gpt"), json={"model": "my-gpt"}, headers={"api-key": token}).status_code == 403
    assert httpx.post(url.format("my-gpt"), json={"model": "their-gpt"}, headers={"api-key": token}).status_code == 200
    assert len(resource.requests) == 1


def test_embeddings_are_another_task(server: str, resource: RecordingUpstream) -> None:
    with azure(server, mint(server, ("embeddings:azure.com", "az-key"))) as client:
        assert client.embeddings.create(model="e", input="x", encoding_format="float").data[0].embedding == [1.0]
        assert resource.last.target == f"/openai/deployments/e/embeddings?api-version={VERSION}".encode()
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="e", messages=[])


@pytest.mark.parametrize("path", ["/azure/openai/v1", "/azure/v1"])
def test_openais_sdk_on_the_newer_api(server: str, resource: RecordingUpstream, path: str) -> None:
    token = mint(server, ("chat:azure.com/my-gpt", "az-key"))
    with openai.OpenAI(base_url=server + path, api_key=token, max_retries=0) as client:
        client.chat.completions.create(model="my-gpt", messages=[])
        assert resource.last.target == b"/openai/v1/chat/completions"
        assert resource.last.all(b"api-key") == [b"az-key"]
        assert resource.last.all(b"authorization") == []
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="their-gpt", messages=[])


def test_anthropics_sdk(server: str, resource: RecordingUpstream) -> None:
    token = mint(server, ("chat:azure.com/claude", "az-key"))
    with anthropic.Anthropic(base_url=f"{server}/azure/anthropic", api_key=token, max_retries=0) as client:
        message = client.messages.create(model="claude", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
        assert message.content[0].type == "text"
        assert resource.last.target == b"/anthropic/v1/messages"
        assert resource.last.all(b"x-api-key") == [b"az-key"]
        with pytest.raises(anthropic.PermissionDeniedError):
            client.messages.create(model="other", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])


def test_several_keys_of_one_resource(resource: RecordingUpstream) -> None:
    def limited(request: Recorded, connection: socket.socket) -> bytes:
        return ok(status=b"429 Too Many Requests") if request.all(b"api-key") == [b"key-1"] else ok(COMPLETION)

    resource.script = limited
    with proxy(resource, "azure") as server:
        wanted = {"serviceSecrets": [{"serviceId": "chat:azure.com", "authSecret": ["key-1", "key-2"]}]}
        response = httpx.post(f"{server}/api/v1/oauth/token", json={"requestAuthAndQuotas": wanted})
        with azure(server, response.json()["access_token"]) as client:
            client.chat.completions.create(model="my-gpt", messages=[])
    assert [request.all(b"api-key") for request in resource.requests] == [[b"key-1"], [b"key-2"]]
