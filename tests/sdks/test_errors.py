"""What the SDKs make of our errors: the exception that people catch, and retries where they help and nowhere else."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import anthropic
import anyio
import httpx
import litellm
import openai
import pytest
import replicate
from google import genai
from google.genai import errors, types
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from replicate.exceptions import ReplicateError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aisbreaker_mw import create_app

from ..support import bearer, mint, serve, settings
from .vendors import PIECES, SECRETS, TEXT, Trouble, Vendor, make_vendors

MESSAGES = [{"role": "user", "content": "hi"}]
pytestmark = pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning")  # of models that LiteLLM declares


class Clock:
    """The monotonic clock, which an SDK's sleeping moves on without any time passing."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._offset = 0
        self._now = time.monotonic_ns

    def __call__(self) -> int:
        return self._now() + self._offset

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._offset += int(seconds * 1e9)

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


class Counting:
    """Notes the status of every answer of an app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.statuses: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])
            await send(message)

        await self.app(scope, receive, note)


@dataclass
class Place:
    """One server, and how many requests it has answered."""

    base: str
    answers: Counting


@dataclass
class Sites:
    """A server that works, one whose quota storage is down, and the upstreams behind both."""

    working: Place
    without_storage: Place
    vendors: dict[str, Vendor]
    clock: Clock
    tokens: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def running_sites() -> Iterator[Sites]:
    clock = Clock()
    with ExitStack() as stack:
        vendors = {name: stack.enter_context(vendor) for name, vendor in make_vendors().items()}
        services = {name: {"base_url": vendor.url} for name, vendor in vendors.items()}

        def start(**values: Any) -> Place:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "monotonic_ns", clock)  # the counters take it once, when they are made
                answers = Counting(create_app(settings(services=services, **values)))
            return Place(stack.enter_context(serve(answers)), answers)

        server = {"global_request_limits": {"requests_per_day": 10**6}}
        working = start(upstream={"header_timeout": "100ms"})
        nowhere = start(quotas={"storage": "redis://127.0.0.1:1", "server": server})
        sites = Sites(working, nowhere, vendors, clock)
        sites.tokens = {"good": make_token(sites), "other": mint(working.base, ("*:dummy", ""))}
        yield sites


@pytest.fixture
def sites(running_sites: Sites, monkeypatch: pytest.MonkeyPatch) -> Sites:
    sites = running_sites
    for vendor in sites.vendors.values():
        vendor.reset()
    for place in (sites.working, sites.without_storage):
        place.answers.statuses.clear()
    sites.clock.slept.clear()
    monkeypatch.setattr(time, "sleep", sites.clock.sleep)
    monkeypatch.setattr(anyio, "sleep", sites.clock.sleep_async)
    return sites


def make_token(sites: Sites, **quotas: int) -> str:
    secrets = [(SECRETS[name], vendor.secret) for name, vendor in sites.vendors.items()]
    return mint(sites.working.base, *secrets, ("*:dummy", ""), quotas={"globalRequestLimits": quotas} if quotas else None)


# Each SDK's call, as (base URL, token, retries) -> what the model said


def call_openai(base: str, token: str, retries: int) -> str | None:
    with openai.OpenAI(base_url=f"{base}/openai/v1", api_key=token, max_retries=retries) as client:
        return client.chat.completions.create(model="gpt-4o", messages=MESSAGES).choices[0].message.content


def call_openai_async(base: str, token: str, retries: int) -> str | None:
    async def call() -> str | None:
        async with openai.AsyncOpenAI(base_url=f"{base}/openai/v1", api_key=token, max_retries=retries) as client:
            return (await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)).choices[0].message.content

    return anyio.run(call)


def call_openai_streaming(base: str, token: str, retries: int) -> str:
    with openai.OpenAI(base_url=f"{base}/openai/v1", api_key=token, max_retries=retries) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def call_anthropic(base: str, token: str, retries: int) -> str:
    with anthropic.Anthropic(base_url=f"{base}/anthropic", api_key=token, max_retries=retries) as client:
        return client.messages.create(model="claude-sonnet-5", max_tokens=9, messages=MESSAGES).content[0].text


def call_anthropic_async(base: str, token: str, retries: int) -> str:
    async def call() -> str:
        async with anthropic.AsyncAnthropic(base_url=f"{base}/anthropic", api_key=token, max_retries=retries) as client:
            message = await client.messages.create(model="claude-sonnet-5", max_tokens=9, messages=MESSAGES)
            return message.content[0].text

    return anyio.run(call)


def call_google(base: str, token: str, retries: int) -> str | None:
    options = types.HttpOptions(base_url=f"{base}/gemini")
    if retries:
        options.retry_options = types.HttpRetryOptions(attempts=1 + retries)
    with genai.Client(api_key=token, http_options=options) as client:
        return client.models.generate_content(model="gemini-2.5-flash", contents="hi").text


def call_langchain_openai(base: str, token: str, retries: int) -> str:
    model = ChatOpenAI(model="gpt-4o", base_url=f"{base}/openai/v1", api_key=token, max_retries=retries)
    return str(model.invoke("hi").content)


def call_langchain_anthropic(base: str, token: str, retries: int) -> str:
    model = ChatAnthropic(model="claude-sonnet-5", base_url=f"{base}/anthropic", api_key=token, max_retries=retries)
    return str(model.invoke("hi").content)


def call_litellm(model: str, path: str) -> Callable[[str, str, int], str]:
    def call(base: str, token: str, retries: int) -> str:
        answer = litellm.completion(model, MESSAGES, api_base=base + path, api_key=token, max_retries=retries)
        return str(answer.choices[0].message.content)

    return call


def call_huggingface(base: str, token: str, retries: int) -> str | None:
    client = InferenceClient(base_url=f"{base}/huggingface/v1", api_key=token)
    return client.chat_completion(MESSAGES, model="org/model").choices[0].message.content


def call_replicate(base: str, token: str, retries: int) -> str:
    client = replicate.Client(api_token=token, base_url=f"{base}/replicate")
    try:
        return "".join(client.run("meta/meta-llama-3-8b-instruct", input={"prompt": "hi"}))
    finally:
        client._client.close()


@dataclass(frozen=True)
class Sdk:
    """
    One SDK.

    Args:
        service: of the catalogue.
        call: does one request.
        raises: the exceptions for 401, 403, 429 and 5xx.
        retries: whether it retries by itself when told how often, obeying `Retry-After` and `x-should-retry`.
    """

    service: str
    call: Callable[[str, str, int], str | None]
    raises: tuple[type[Exception], type[Exception], type[Exception], type[Exception]]
    retries: bool = False


OPENAI = (openai.AuthenticationError, openai.PermissionDeniedError, openai.RateLimitError, openai.InternalServerError)
ANTHROPIC = (
    anthropic.AuthenticationError,
    anthropic.PermissionDeniedError,
    anthropic.RateLimitError,
    anthropic.InternalServerError,
)
# LiteLLM's are OpenAI's classes or below them; which one stands for 403 and 5xx depends on the provider.
LITELLM = (litellm.AuthenticationError, openai.APIError, litellm.RateLimitError, openai.APIError)
SDKS = {
    "openai": Sdk("openai", call_openai, OPENAI, retries=True),
    "openai-async": Sdk("openai", call_openai_async, OPENAI, retries=True),
    "openai-streaming": Sdk("openai", call_openai_streaming, OPENAI, retries=True),
    "anthropic": Sdk("anthropic", call_anthropic, ANTHROPIC, retries=True),
    "anthropic-async": Sdk("anthropic", call_anthropic_async, ANTHROPIC, retries=True),
    "google": Sdk("gemini", call_google, (errors.ClientError,) * 3 + (errors.ServerError,)),
    "langchain-openai": Sdk("openai", call_langchain_openai, OPENAI, retries=True),
    "langchain-anthropic": Sdk("anthropic", call_langchain_anthropic, ANTHROPIC, retries=True),
    "litellm-openai": Sdk("openai", call_litellm("openai/gpt-4o", "/openai/v1"), LITELLM, retries=True),
    "litellm-anthropic": Sdk("anthropic", call_litellm("anthropic/claude-sonnet-5", "/anthropic"), LITELLM),
    "litellm-gemini": Sdk("gemini", call_litellm("gemini/gemini-2.5-flash", "/gemini/v1beta"), LITELLM),
    "huggingface": Sdk("huggingface", call_huggingface, (HfHubHTTPError,) * 4),
    "replicate": Sdk("replicate", call_replicate, (ReplicateError,) * 4),
}
each_sdk = pytest.mark.parametrize("sdk", SDKS.values(), ids=SDKS)
each_retrying = pytest.mark.parametrize(
    "sdk", [sdk for sdk in SDKS.values() if sdk.retries], ids=[name for name, sdk in SDKS.items() if sdk.retries]
)


@dataclass(frozen=True)
class Case:
    """
    One row of the table of errors.

    Args:
        status: what the server answers.
        retried: whether an SDK does well to try again.
        attempts_upstream: whether each attempt reaches the upstream.
        prepare: arranges for the error, and returns the token to use.
    """

    status: int
    retried: bool
    attempts_upstream: bool
    prepare: Callable[[Sites, Vendor], str]
    without_storage: bool = False


def with_a_broken_token(sites: Sites, vendor: Vendor) -> str:
    return sites.tokens["good"][:-8] + "AAAAAAAA"


def with_a_token_for_another_service(sites: Sites, vendor: Vendor) -> str:
    return sites.tokens["other"]


def with_a_used_up_window(**window: int) -> Callable[[Sites, Vendor], str]:
    def prepare(sites: Sites, vendor: Vendor) -> str:
        token = make_token(sites, **window)
        assert httpx.get(f"{sites.working.base}/dummy/v1/models", headers=bearer(token)).status_code == 200
        sites.working.answers.statuses.clear()
        return token

    return prepare


def with_trouble(kind: str) -> Callable[[Sites, Vendor], str]:
    def prepare(sites: Sites, vendor: Vendor) -> str:
        vendor.trouble = Trouble(kind)
        return sites.tokens["good"]

    return prepare


def with_a_good_token(sites: Sites, vendor: Vendor) -> str:
    return sites.tokens["good"]


CASES = {
    "401-invalid-token": Case(401, False, False, with_a_broken_token),
    "403-service-not-allowed": Case(403, False, False, with_a_token_for_another_service),
    "429-minute": Case(429, True, False, with_a_used_up_window(requestsPerMinute=1)),
    "429-day": Case(429, False, False, with_a_used_up_window(requestsPerDay=1)),
    "502-upstream-error": Case(502, True, True, with_trouble("garbage")),
    "502-credential-rejected": Case(502, False, True, with_trouble("401 Unauthorized")),
    "503-storage-down": Case(503, True, False, with_a_good_token, without_storage=True),
    "504-upstream-timeout": Case(504, True, True, with_trouble("silent")),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def attempt(sites: Sites, sdk: Sdk, case: Case, retries: int) -> tuple[list[int], Exception | str | None]:
    """Do one call, and return the statuses that the server answered and what the caller got."""
    vendor = sites.vendors[sdk.service]
    vendor.release()
    token = case.prepare(sites, vendor)
    place = sites.without_storage if case.without_storage else sites.working
    try:
        result: Exception | str | None = sdk.call(place.base, token, retries)
    except Exception as error:
        result = error
    if not case.attempts_upstream:
        assert len(vendor.requests) == place.answers.statuses.count(200)
    else:
        assert len(vendor.requests) == len(place.answers.statuses)
    return place.answers.statuses, result


@each_case
@each_sdk
def test_the_exception_that_people_catch(sites: Sites, sdk: Sdk, case: Case) -> None:
    statuses, error = attempt(sites, sdk, case, 0)
    assert statuses == [case.status]
    assert isinstance(error, sdk.raises[{401: 0, 403: 1, 429: 2}.get(case.status, 3)])
    assert sites.clock.slept == []
    assert "aisbreaker_ey" not in str(error)
    assert sites.vendors[sdk.service].secret not in str(error)
    status = getattr(error, "status_code", None) or getattr(error, "code", None) or getattr(error, "status", None)
    if sdk.service in ("openai", "anthropic", "gemini") and sdk.raises is not LITELLM:
        assert status == case.status


@each_case
@each_retrying
def test_retries_where_they_help_and_nowhere_else(sites: Sites, sdk: Sdk, case: Case) -> None:
    statuses, result = attempt(sites, sdk, case, 1)
    if case.status == 429 and case.retried:
        assert (statuses, result) == ([429, 200], TEXT)
        assert 0 < sites.clock.slept[0] <= 60
    else:
        assert statuses == [case.status] * (2 if case.retried else 1)
        assert isinstance(result, Exception)
    assert len(sites.clock.slept) == (1 if case.retried else 0)


@each_retrying
@pytest.mark.parametrize("status", ["429 Too Many Requests"])
def test_the_vendors_own_limit_is_obeyed(sites: Sites, sdk: Sdk, status: str) -> None:
    """Its status, Retry-After and body pass unchanged, so the SDK waits as it would without us in between."""
    vendor = sites.vendors[sdk.service]
    vendor.trouble = Trouble(status, (b"Retry-After: 7",))
    with pytest.raises(sdk.raises[2]):
        sdk.call(sites.working.base, sites.tokens["good"], 1)
    assert len(vendor.requests) == 2
    assert sites.clock.slept == [7]


@each_case
def test_googles_retries_look_at_the_status_alone(sites: Sites, case: Case) -> None:
    """They are off unless asked for, and then know neither Retry-After nor x-should-retry."""
    statuses, _ = attempt(sites, SDKS["google"], case, 1)
    assert statuses == [case.status] * (1 if case.status in (401, 403) else 2)


def test_messages_reach_the_caller(sites: Sites) -> None:
    """Where the SDK knows a field for it: message, code, request id."""
    base = sites.working.base
    with pytest.raises(openai.PermissionDeniedError) as caught:
        call_openai(base, sites.tokens["other"], 0)
    assert caught.value.code == "service_not_allowed"
    assert "chat:openai.com" in caught.value.body["message"]
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(anthropic.PermissionDeniedError) as refused:
        call_anthropic(base, sites.tokens["other"], 0)
    assert refused.value.body["error"]["type"] == "permission_error"
    assert "chat:anthropic.com" in refused.value.body["error"]["message"]
    assert refused.value.request_id.startswith("req_")
    with pytest.raises(errors.ClientError) as denied:
        call_google(base, sites.tokens["other"], 0)
    assert denied.value.status == "PERMISSION_DENIED"
    assert "chat:google.com" in denied.value.message
    with pytest.raises(HfHubHTTPError, match=r"chat:huggingface\.co"):
        call_huggingface(base, sites.tokens["other"], 0)


def test_replicates_polling_waits_as_it_is_told(sites: Sites) -> None:
    """Its SDK retries GET alone."""
    vendor = sites.vendors["replicate"]
    token = with_a_used_up_window(requestsPerMinute=2)(sites, vendor)
    client = replicate.Client(api_token=token, base_url=f"{sites.working.base}/replicate")
    prediction = client.predictions.create(version="0" * 64, input={"prompt": "hi"})
    prediction.reload()
    client._client.close()
    assert prediction.output == PIECES
    assert sites.working.answers.statuses == [200, 429, 200]
    assert 0 < sites.clock.slept[0] <= 60


def test_a_stream_that_breaks_off_is_an_error(sites: Sites) -> None:
    """The upstream hangs up in the middle of its stream; the SDK must not take what came for the whole."""
    vendor = sites.vendors["openai"]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'

    def break_off(request: Any, connection: Any) -> None:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(event), event))
        raise Vendor.Hangup

    script, vendor.script = vendor.script, break_off
    try:
        with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
            call_openai_streaming(sites.working.base, sites.tokens["good"], 0)
    finally:
        vendor.script = script
