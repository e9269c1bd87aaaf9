"""The Replicate SDK, sync and async."""

from collections.abc import Iterator

import pytest
import replicate
from replicate.exceptions import ReplicateError

from .conftest import Site
from .vendors import PIECES, Vendor

MODEL = "meta/meta-llama-3-8b-instruct"
PREDICTION = "gm3qorzdhgbfurvjtvhg6dckhu"


@pytest.fixture
def vendor(site: Site) -> Vendor:
    return site.vendors["replicate"]


@pytest.fixture
def client(site: Site) -> Iterator[replicate.Client]:
    client = replicate.Client(api_token=site.token, base_url=f"{site.base}/replicate")
    yield client
    client._client.close()


def test_run_and_wait(client: replicate.Client, vendor: Vendor) -> None:
    assert client.run(MODEL, input={"prompt": "hi"}) == PIECES
    assert vendor.check(f"POST /v1/models/{MODEL}/predictions").all(b"prefer") == [b"wait"]


def test_create_and_poll(client: replicate.Client, vendor: Vendor) -> None:
    prediction = client.predictions.create(version="0" * 64, input={"prompt": "hi"})
    prediction.reload()
    assert (prediction.status, prediction.output) == ("succeeded", PIECES)
    vendor.check("POST /v1/predictions", f"GET /v1/predictions/{PREDICTION}")


def test_models(client: replicate.Client, vendor: Vendor) -> None:
    assert client.models.get(MODEL).owner == "meta"
    vendor.check(f"GET /v1/models/{MODEL}")


def test_the_vendors_own_error_arrives(client: replicate.Client, vendor: Vendor) -> None:
    with pytest.raises(ReplicateError) as caught:
        client.models.get("meta/nothing")
    assert (caught.value.status, caught.value.detail) == (404, "The requested resource could not be found.")
    vendor.check("GET /v1/models/meta/nothing")


async def test_async(site: Site, vendor: Vendor) -> None:
    client = replicate.Client(api_token=site.token, base_url=f"{site.base}/replicate")
    assert await client.async_run(MODEL, input={"prompt": "hi"}) == PIECES
    await client._async_client.aclose()
    vendor.check(f"POST /v1/models/{MODEL}/predictions")
