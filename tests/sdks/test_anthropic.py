"""The Anthropic SDK, sync and async."""

from collections.abc import Iterator

import anthropic
import pytest

from .conftest import Site
from .vendors import PIECES, TEXT, Vendor

ASK = {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def vendor(site: Site) -> Vendor:
    return site.vendors["anthropic"]


@pytest.fixture
def client(site: Site) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{site.base}/anthropic", api_key=site.token) as client:
        yield client


def test_message(client: anthropic.Anthropic, vendor: Vendor) -> None:
    message = client.messages.create(**ASK)
    assert message.content[0].text == TEXT
    assert message._request_id == "req_anthropic"
    request = vendor.check("POST /v1/messages")
    assert request.all(b"anthropic-version") == [client.default_headers["anthropic-version"].encode()]


def test_message_streamed(client: anthropic.Anthropic, vendor: Vendor) -> None:
    pieces = []
    with client.messages.stream(**ASK) as stream:
        for piece in stream.text_stream:
            vendor.release()
            pieces.append(piece)
        assert stream.get_final_message().usage.output_tokens == 3
    assert pieces == PIECES
    vendor.check("POST /v1/messages")


def test_raw_events(client: anthropic.Anthropic, vendor: Vendor) -> None:
    kinds = []
    with client.messages.create(**ASK, stream=True) as stream:
        for event in stream:
            vendor.release()
            kinds.append(event.type)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    vendor.check("POST /v1/messages")


def test_count_tokens(client: anthropic.Anthropic, vendor: Vendor) -> None:
    assert client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"]).input_tokens == 14
    vendor.check("POST /v1/messages/count_tokens")


def test_a_bearer_token_becomes_the_vendors_own_header(site: Site, vendor: Vendor) -> None:
    """`auth_token`, which coding agents set by ANTHROPIC_AUTH_TOKEN, goes into Authorization."""
    with anthropic.Anthropic(base_url=f"{site.base}/anthropic", auth_token=site.token) as client:
        assert client.messages.create(**ASK).content[0].text == TEXT
    vendor.check("POST /v1/messages")


def test_the_environment_is_configuration_enough(site: Site, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"{site.base}/anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", site.token)
    with anthropic.Anthropic() as client:
        assert client.messages.create(**ASK).content[0].text == TEXT
    vendor.check("POST /v1/messages")


def test_the_vendors_own_error_arrives(client: anthropic.Anthropic, vendor: Vendor) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**ASK, "model": "missing"})
    assert caught.value.body["error"]["message"] == "model: missing"
    assert caught.value.request_id == "req_anthropic"
    vendor.check("POST /v1/messages")


async def test_async(site: Site, vendor: Vendor) -> None:
    async with anthropic.AsyncAnthropic(base_url=f"{site.base}/anthropic", api_key=site.token) as client:
        assert (await client.messages.create(**ASK)).content[0].text == TEXT
        assert (await client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])).input_tokens == 14
        pieces = []
        async with client.messages.stream(**ASK) as stream:
            async for piece in stream.text_stream:
                vendor.release()
                pieces.append(piece)
    assert pieces == PIECES
    vendor.check("POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/messages")
