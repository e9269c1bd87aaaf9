"""LangChain's OpenAI and Anthropic packages."""

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from .conftest import Site
from .vendors import TEXT, VECTOR


def openai_chat(site: Site, **options: object) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o", base_url=f"{site.base}/openai/v1", api_key=site.token, **options)


def anthropic_chat(site: Site) -> ChatAnthropic:
    return ChatAnthropic(model="claude-sonnet-5", base_url=f"{site.base}/anthropic", api_key=site.token)


def test_openai_chat(site: Site) -> None:
    assert openai_chat(site).invoke("hi").content == TEXT
    site.vendors["openai"].check("POST /v1/chat/completions")


def test_openai_chat_streamed(site: Site) -> None:
    vendor, text = site.vendors["openai"], ""
    for chunk in openai_chat(site).stream("hi"):
        vendor.release()
        text += str(chunk.content)
    assert text == TEXT
    vendor.check("POST /v1/chat/completions")


def test_openai_responses(site: Site) -> None:
    assert openai_chat(site, use_responses_api=True).invoke("hi").text == TEXT
    site.vendors["openai"].check("POST /v1/responses")


async def test_openai_chat_async(site: Site) -> None:
    vendor, text, model = site.vendors["openai"], "", openai_chat(site)
    assert (await model.ainvoke("hi")).content == TEXT
    async for chunk in model.astream("hi"):
        vendor.release()
        text += str(chunk.content)
    await model.root_async_client.close()
    assert text == TEXT
    vendor.check("POST /v1/chat/completions", "POST /v1/chat/completions")


def test_openai_embeddings(site: Site) -> None:
    """The length check would fetch a tokenizer's vocabulary from the internet."""
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=f"{site.base}/openai/v1",
        api_key=site.token,
        check_embedding_ctx_length=False,
    )
    assert embeddings.embed_query("hi") == VECTOR
    site.vendors["openai"].check("POST /v1/embeddings")


def test_anthropic_chat(site: Site) -> None:
    assert anthropic_chat(site).invoke("hi").content == TEXT
    site.vendors["anthropic"].check("POST /v1/messages")


def test_anthropic_chat_streamed(site: Site) -> None:
    vendor, text = site.vendors["anthropic"], ""
    for chunk in anthropic_chat(site).stream("hi"):
        vendor.release()
        text += str(chunk.text)
    assert text == TEXT
    vendor.check("POST /v1/messages")


async def test_anthropic_chat_async(site: Site) -> None:
    vendor, text, model = site.vendors["anthropic"], "", anthropic_chat(site)
    assert (await model.ainvoke("hi")).content == TEXT
    async for chunk in model.astream("hi"):
        vendor.release()
        text += str(chunk.text)
    await model._async_client.close()
    assert text == TEXT
    vendor.check("POST /v1/messages", "POST /v1/messages")
