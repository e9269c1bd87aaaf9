"""Finding the caller's token, and choosing the secret that replaces it."""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from aisbreaker_mw.credentials.carriers import (
    PresentedCredential,
    bearer_token,
    choose,
    choose_for,
    find,
    parse_query,
    replace_authorization,
    reveal,
    with_credential,
    without_keys,
)
from aisbreaker_mw.exceptions import InvalidRequest, ServiceNotAllowed
from aisbreaker_mw.services.key_places import COMMON_HEADERS, KeyPlaces
from aisbreaker_mw.services.second_models import NamedModels
from aisbreaker_mw.services.service import CredentialStyle, RouteMatch
from aisbreaker_mw.tokens.claims import ServiceSecret

TOKEN, OTHER = "aisbreaker_aaaa.bbbb", "aisbreaker_cccc.dddd"
OURS = PresentedCredential(TOKEN, False)
NOTHING, FOREIGN, BOTH = PresentedCredential(None, False), PresentedCredential(None, True), PresentedCredential(TOKEN, True)
Headers = list[tuple[bytes, bytes]]
PLACES_OF_KEYS = KeyPlaces.of((), ())


def header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode("latin-1")


# find


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        pytest.param([header("authorization", f"Bearer {TOKEN}")], b"", OURS, id="Bearer"),
        pytest.param([header("authorization", f"bearer {TOKEN}")], b"", OURS, id="bearer"),
        pytest.param([header("authorization", f"BEARER   {TOKEN}  ")], b"", OURS, id="BEARER with more spaces"),
        pytest.param([header("authorization", f"Bearer\t{TOKEN}")], b"", OURS, id="Bearer and a tab"),
        pytest.param([header("x-api-key", TOKEN)], b"", OURS, id="x-api-key"),
        pytest.param([header("api-key", TOKEN)], b"", OURS, id="api-key"),
        pytest.param([header("x-goog-api-key", f" {TOKEN} ")], b"", OURS, id="x-goog-api-key with spaces"),
        pytest.param([], f"key={TOKEN}".encode(), OURS, id="?key"),
        pytest.param([], f"alt=sse&key={TOKEN}&x=1".encode(), OURS, id="?key among others"),
        pytest.param([], f"%6b%65y={TOKEN}".encode(), OURS, id="?key with its name escaped"),
        pytest.param([], b"%6B%45%59=sk&%4bey=x", NOTHING, id="names of parameters have a case"),
        pytest.param([], b"key=" + quote(TOKEN).replace("_", "%5F").encode(), OURS, id="?key with its value escaped"),
        pytest.param([], b"%6bey=%61isbreaker%5faaaa%2ebbbb", OURS, id="?key with both escaped"),
        pytest.param([header("authorization", f"Bearer {TOKEN}")], f"key={TOKEN}".encode(), OURS, id="same token twice"),
        pytest.param([header("x-api-key", TOKEN)] * 2, b"", OURS, id="same token, same header twice"),
        pytest.param(
            [header(name.decode(), TOKEN) for name in COMMON_HEADERS - {b"authorization"}], b"", OURS, id="everywhere"
        ),
        pytest.param([], b"", NOTHING, id="nothing"),
        pytest.param([header("accept", "*/*")], b"a=1&b=%20", NOTHING, id="nothing of interest"),
        pytest.param([header("x-api-key", "")], b"key=", NOTHING, id="empty values"),
        pytest.param([header("authorization", "")], b"key", NOTHING, id="empty Authorization, key without value"),
        pytest.param([header("x-key", f"my {TOKEN}")], f"token=my{TOKEN}".encode(), NOTHING, id="tokens in other texts"),
        pytest.param([header("user-agent", TOKEN), header("cookie", TOKEN)], b"", NOTHING, id="names like tokens"),
        pytest.param([header("authorization", f"Token {TOKEN}")], b"", OURS, id="Token"),
        pytest.param([header("authorization", TOKEN)], b"", OURS, id="bare"),
        pytest.param([header("authorization", "Bearer sk-foreign")], b"", FOREIGN, id="foreign Bearer"),
        pytest.param([header("authorization", "Basic dXNlcjpwdw==")], b"", FOREIGN, id="Basic"),
        pytest.param([header("authorization", "sk-bare")], b"", FOREIGN, id="foreign and bare"),
        pytest.param([header("x-api-key", "sk-ant-foreign")], b"", FOREIGN, id="foreign x-api-key"),
        pytest.param([header("x-api-key", TOKEN.upper())], b"", FOREIGN, id="the prefix has a case"),
        pytest.param([], b"key=AIzaForeign", FOREIGN, id="foreign ?key"),
        pytest.param(
            [header("authorization", "Bearer sk-foreign"), header("x-api-key", TOKEN)], b"", BOTH, id="ours and foreign"
        ),
        pytest.param([header("x-api-key", TOKEN)], b"key=AIzaForeign", BOTH, id="ours and foreign ?key"),
    ],
)
def test_a_token_is_found_where_sdks_put_it(headers: Headers, query: bytes, found: PresentedCredential) -> None:
    assert find(headers, query, PLACES_OF_KEYS) == found
    assert find(headers[::-1], query, PLACES_OF_KEYS) == found


PLACES: list[tuple[Headers, bytes]] = [
    ([header("authorization", f"Bearer {TOKEN}")], b""),
    ([header("x-api-key", TOKEN)], b""),
    ([header("api-key", TOKEN)], b""),
    ([header("x-goog-api-key", TOKEN)], b""),
    ([], f"key={TOKEN}".encode()),
    ([], f"%6Bey={TOKEN}".encode()),
]


@pytest.mark.parametrize("first", PLACES, ids=lambda place: str(place))
@pytest.mark.parametrize("second", PLACES, ids=lambda place: str(place))
def test_two_different_tokens_are_refused(first: tuple[Headers, bytes], second: tuple[Headers, bytes]) -> None:
    other: Headers = [(name, value.replace(TOKEN.encode(), OTHER.encode())) for name, value in second[0]]
    query = b"&".join(part for part in (first[1], second[1].replace(TOKEN.encode(), OTHER.encode())) if part)
    with pytest.raises(InvalidRequest) as caught:
        find(first[0] + other, query, PLACES_OF_KEYS)
    twice = [name for name, _ in first[0] + other].count(b"authorization") > 1
    expected = "has more than one Authorization header" if twice else "carries two different tokens"
    assert str(caught.value) == f"The request {expected}."


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "bearer ",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN}, {OTHER}",
        f"Bearer {TOKEN} x",
        f"{TOKEN} x",
        "Token a b",
        "Bearer a b",
    ],
)
def test_a_malformed_authorization_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        find([header("authorization", value)], b"", PLACES_OF_KEYS)
    assert str(caught.value) == "The Authorization header must be: Bearer, one space, the token."


@given(st.lists(st.tuples(st.sampled_from([*COMMON_HEADERS, b"accept"]), st.binary(max_size=30))), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(headers: Headers, query: bytes) -> None:
    try:
        credential = find(headers, query, PLACES_OF_KEYS)
    except InvalidRequest:
        return
    assert credential.token is None or credential.token.startswith("aisbreaker_")


# The query


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        (b"", b""),
        (b"a=1&b=2", b"a=1&b=2"),
        (b"key=x", b""),
        (b"key", b""),
        (b"a=1&key=x", b"a=1"),
        (b"key=x&a=1", b"a=1"),
        (b"a=1&key=x&b=2&key=y&c", b"a=1&b=2&c"),
        (b"%6bey=x&a=%6bey", b"a=%6bey"),
        (b"%6B%65%79=x&a=1", b"a=1"),
        (b"a=%2F%2f+%20&&=&key=x&b==c=&%zz=%", b"a=%2F%2f+%20&&=&b==c=&%zz=%"),
        (b"monkey=1&keys=2&Key=3&key%20=4&key+=5&%256bey=6", b"monkey=1&keys=2&Key=3&key%20=4&key+=5&%256bey=6"),
        (b"a=\xff&key=\xff", b"a=\xff"),
        (b"a=key=1&b=&key&", b"a=key=1&b=&"),
        (b"&key=x&", b"&"),
    ],
    ids=lambda value: value.decode("latin-1") or "empty",
)
def test_the_key_is_taken_out_and_the_rest_survives_byte_for_byte(query: bytes, rest: bytes) -> None:
    assert without_keys(query, PLACES_OF_KEYS) == rest


PIECE = st.binary(max_size=8).map(lambda data: data.replace(b"&", b"")) | st.sampled_from(
    [b"key", b"key=x", b"%6bey=", b"k%65y"]
)


@given(st.lists(PIECE, max_size=8))
def test_no_key_is_left_and_nothing_else_is_touched(pieces: list[bytes]) -> None:
    query = b"&".join(pieces)
    rest = without_keys(query, PLACES_OF_KEYS)
    assert "key" not in dict(parse_query(rest))
    kept = [piece for piece in pieces if "key" not in dict(parse_query(piece))]
    assert rest == b"&".join(kept)


@pytest.mark.parametrize(
    ("query", "parameter", "credential", "sent"),
    [
        (b"", "key", "AIza", b"key=AIza"),
        (b"key=ours", "key", "AIza", b"key=AIza"),
        (b"a=%2f&key=ours&b=1&%6bey=ours", "key", "AIza", b"a=%2f&b=1&key=AIza"),
        (b"a=1&token=theirs&t%6Fken=theirs&key=ours", "token", "AIza", b"a=1&token=AIza"),
        (b"a=1&key=ours", "key", "", b"a=1"),
        (b"a=1&token=theirs", "token", "", b"a=1"),
        (b"a=1", "key", "a&b=c d+e%", b"a=1&key=a%26b%3Dc+d%2Be%25"),
    ],
)
def test_a_service_may_want_its_credential_in_the_query(query: bytes, parameter: str, credential: str, sent: bytes) -> None:
    rest = without_keys(query, KeyPlaces.of((), [parameter]))
    target = with_credential(b"/x?" + rest if rest else b"/x", CredentialStyle(query=parameter), credential)
    assert target.partition(b"?")[2] == sent


def test_every_key_is_read() -> None:
    found = parse_query(b"key=a+b&x=1&%6bey=%41%ff&key&key==")
    assert found == [("key", "a b"), ("x", "1"), ("key", "Aÿ"), ("key", ""), ("key", "=")]
    assert parse_query(b"") == []


# bearer_token


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([header("authorization", f"Bearer {TOKEN}")], TOKEN),
        ([header("authorization", f"bEARER  {TOKEN} ")], TOKEN),
        ([header("authorization", f"Bearer\t{TOKEN}")], TOKEN),
        ([header("authorization", "Basic x"), header("authorization", "Bearer y")], None),
        ([header("authorization", "Bearer eyJhbGciOi")], None),
        ([header("authorization", "Bearer")], None),
        ([header("authorization", "Bearer a b")], None),
        ([header("authorization", "")], None),
        ([header("authorization", TOKEN)], None),
        ([header("authorization", f"Basic {TOKEN}")], None),
        ([header("x-api-key", TOKEN)], None),
        ([], None),
    ],
    ids=[
        "Bearer",
        "case and spaces",
        "tab",
        "two of the app's own",
        "the app's own token",
        "no value",
        "two values",
        "empty",
        "bare token",
        "another scheme",
        "another carrier",
        "nothing",
    ],
)
def test_on_paths_of_the_app_only_a_bearer_token_of_ours_counts(headers: Headers, token: str | None) -> None:
    assert bearer_token(headers) == token


@pytest.mark.parametrize("other", [f"Bearer {OTHER}", f"Bearer {TOKEN}", "Basic x"])
def test_on_paths_of_the_app_a_token_beside_another_authorization_is_refused(other: str) -> None:
    both = [header("authorization", f"Bearer {TOKEN}"), header("authorization", other)]
    for headers in (both, both[::-1]):
        with pytest.raises(InvalidRequest, match=r"^The request has more than one Authorization header\.$"):
            bearer_token(headers)


# choose


def secrets(*patterns: str) -> list[ServiceSecret]:
    return [ServiceSecret(pattern, SecretStr(str(number))) for number, pattern in enumerate(patterns)]


def route(task: str = "chat", source: str | None = "json:model", engine: str = "") -> RouteMatch:
    return RouteMatch(task, "openai.com", source, engine, CredentialStyle(), "openai", ())


def reader(engine: str, *others: str) -> tuple[Callable[[], Awaitable[NamedModels]], list[str]]:
    reads: list[str] = []

    async def read() -> NamedModels:
        reads.append(engine)
        return NamedModels(engine, frozenset(others))

    return read, reads


@pytest.mark.parametrize(
    ("patterns", "chosen", "reads"),
    [
        pytest.param(["chat:openai.com"], 0, 0, id="every engine: none is read"),
        pytest.param(["", "chat:openai.com"], 0, 0, id="first match wins, catch-all first"),
        pytest.param(["chat:openai.com", ""], 0, 0, id="first match wins, catch-all last"),
        pytest.param(["chat:mistral.ai", "files:openai.com", ""], 2, 0, id="others are passed over"),
        pytest.param(["chat:openai.com/gpt-4o"], 0, 1, id="engine"),
        pytest.param(["chat:openai.com/gpt"], None, 1, id="beginning of an engine without a star"),
        pytest.param(["chat:openai.com/gpt*"], 0, 1, id="beginning of an engine"),
        pytest.param(["*:openai.com/gpt-4o"], 0, 1, id="engine of any task"),
        pytest.param(["chat:openai.com/o3", "chat:openai.com/gpt-4o", "chat:openai.com"], 1, 1, id="read once for three"),
        pytest.param(["chat:openai.com/o3", "chat:openai.com"], 1, 1, id="another engine, then all"),
        pytest.param(["chat:openai.com", "chat:openai.com/gpt-4o"], 0, 0, id="all, then an engine"),
        pytest.param(["", "chat:openai.com/gpt-4o"], 0, 0, id="catch-all, then an engine"),
        pytest.param(["chat:openai.com/o3", "chat:openai.com/o4"], None, 1, id="none of the engines"),
        pytest.param(["files:openai.com/gpt-4o", "chat:mistral.ai/gpt-4o"], None, 0, id="engines of others are not asked for"),
        pytest.param(["=chat:openai.com/gpt-4o"], 0, 1, id="exactly this engine"),
        pytest.param(["=chat:openai.com/gpt"], None, 1, id="exactly another engine"),
        pytest.param(["=chat:openai.com"], None, 1, id="exactly no engine"),
        pytest.param(["chat:openai.co", "chat:openai.community", "cha"], None, 0, id="no boundary"),
        pytest.param([], None, 0, id="no secrets"),
    ],
)
async def test_the_first_match_wins_and_the_engine_is_read_when_it_must_be(
    patterns: list[str], chosen: int | None, reads: int
) -> None:
    read, made = reader("gpt-4o")
    if chosen is None:
        with pytest.raises(ServiceNotAllowed) as caught:
            await choose(secrets(*patterns), route(), read)
        named = "chat:openai.com/gpt-4o" if reads else "chat:openai.com"
        assert str(caught.value) == f"The token holds no secret for {named}."
    else:
        secret, service_id = await choose(secrets(*patterns), route(), read)
        assert secret.auth_secret.get_secret_value() == str(chosen)
        assert service_id == ("chat:openai.com/gpt-4o" if reads else "chat:openai.com")
    assert len(made) == reads


async def test_a_request_without_an_engine_matches_no_engine() -> None:
    read, made = reader("")
    patterns = secrets("chat:openai.com/gpt-4o", "chat:openai.com/*", "chat:openai.com/", "chat:openai.com")
    secret, service_id = await choose(patterns, route(), read)
    assert (secret.auth_secret.get_secret_value(), service_id, len(made)) == ("3", "chat:openai.com", 1)


@pytest.mark.parametrize("engine", ["gpt-4o-mini", "GPT-4o", "gpt-4o ", "o3"])
async def test_an_engine_is_not_another(engine: str) -> None:
    read, _ = reader(engine)
    with pytest.raises(ServiceNotAllowed):
        await choose(secrets("chat:openai.com/gpt-4o"), route(), read)


async def test_the_engine_in_a_path_is_known_and_the_body_is_read_for_others() -> None:
    read, made = reader("")
    secret, service_id = await choose(
        secrets("chat:openai.com/o3", "chat:openai.com/gpt-4o"), route(source="path", engine="gpt-4o"), read
    )
    assert (secret.auth_secret.get_secret_value(), service_id, made) == ("1", "chat:openai.com/gpt-4o", [""])
    await choose(secrets("chat:openai.com"), route(source="path", engine="gpt-4o"), read)
    assert made == [""], "a pattern that covers every engine needs no reading"


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["chat:openai.com/gpt-4o"], None),
        (["chat:openai.com/gpt-4o", "chat:openai.com"], None),
        (["chat:openai.com/o3", "chat:openai.com"], 1),
        (["chat:openai.com/*"], 0),
        (["chat:openai.com/gpt-*"], 0),
        (["=chat:openai.com/gpt-4o"], None),
        (["chat:openai.com/gpt-image-1", "chat:openai.com/gpt-*"], 1),
    ],
)
async def test_the_secret_of_the_engine_must_cover_every_other_model(patterns: list[str], chosen: int | None) -> None:
    read, _ = reader("gpt-4o", "gpt-image-1", "gpt-4o")
    if chosen is None:
        with pytest.raises(ServiceNotAllowed, match=r"chat:openai\.com/gpt-image-1"):
            await choose(secrets(*patterns), route(), read)
    else:
        secret, _ = await choose(secrets(*patterns), route(), read)
        assert secret.auth_secret.get_secret_value() == str(chosen)


async def test_a_place_that_cannot_be_checked_refuses_a_key_that_names_engines() -> None:
    async def read() -> NamedModels:
        return NamedModels("gpt-4o", unchecked=True)

    with pytest.raises(InvalidRequest, match="can't be checked"):
        await choose(secrets("chat:openai.com/gpt-4o"), route(), read)
    secret, _ = await choose(secrets("chat:openai.com/o3", "chat:openai.com"), route(), read)
    assert secret.auth_secret.get_secret_value() == "1"


@pytest.mark.parametrize("other", ["models/gpt-4o", "publishers/google/models/gpt-4o", "gpt-4o"])
async def test_google_calls_a_model_by_its_resource(other: str) -> None:
    read, _ = reader("", other)
    await choose(secrets("chat:openai.com/gpt-4o"), route(source="path", engine="gpt-4o"), read)
    for model in ("models/gpt-5", "models/x/models/gpt-4o", "models/"):
        read, _ = reader("", model)
        with pytest.raises(ServiceNotAllowed):
            await choose(secrets("chat:openai.com/gpt-4o"), route(source="path", engine="gpt-4o"), read)


async def test_a_route_without_an_engine_is_not_read() -> None:
    read, made = reader("never")
    with pytest.raises(ServiceNotAllowed, match=r"^The token holds no secret for files:openai\.com\.$"):
        await choose(secrets("files:openai.com/gpt-4o"), route("files", source=None), read)
    assert made == []


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("chat:openai.com", True),
        ("chat:openai.com/gpt-4o", True),
        ("files:openai.com", True),
        ("*:openai.com/o3", True),
        ("", True),
        ("chat:mistral.ai", False),
        ("chat:openai.community", False),
        ("aisbreaker:network", False),
    ],
)
async def test_listing_models_takes_any_secret_for_the_vendor(pattern: str, allowed: bool) -> None:
    read, made = reader("never")
    models = route("models", source=None)
    if allowed:
        secret, service_id = await choose(secrets("chat:other.example", pattern), models, read)
        assert (secret.auth_secret.get_secret_value(), service_id) == ("1", "models:openai.com")
    else:
        with pytest.raises(ServiceNotAllowed):
            await choose(secrets(pattern), models, read)
    assert made == []


async def test_a_failure_to_read_the_engine_is_passed_on() -> None:
    async def read() -> NamedModels:
        raise InvalidRequest("twice")

    with pytest.raises(InvalidRequest, match="twice"):
        await choose(secrets("chat:openai.com/gpt-4o", ""), route(), read)


def test_choosing_for_a_service_id() -> None:
    held = secrets("chat:mistral.ai", "chat:openai.com", "")
    assert choose_for(held, "chat:openai.com").auth_secret.get_secret_value() == "1"
    assert choose_for(held, "files:x.example").auth_secret.get_secret_value() == "2"
    with pytest.raises(ServiceNotAllowed, match=r"^The token holds no secret for files:x\.example\.$"):
        choose_for(held[:2], "files:x.example")


# What is sent


@pytest.mark.parametrize(
    ("auth_secret", "sent"),
    [("sk-key", "sk-key"), ("", ""), ("INVALID", "INVALID"), ("{{secret}}", TOKEN), ("x{{secret}}", "x{{secret}}")],
)
def test_a_secret_stands_for_a_credential(auth_secret: str, sent: str) -> None:
    assert reveal(ServiceSecret("", SecretStr(auth_secret)), TOKEN) == sent


def test_authorization_is_replaced_in_a_copy() -> None:
    headers = [header("authorization", f"Bearer {TOKEN}"), header("accept", "*/*"), header("authorization", "Basic x")]
    before = list(headers)
    assert replace_authorization(headers, "sk-key") == [header("accept", "*/*"), header("authorization", "Bearer sk-key")]
    assert replace_authorization(headers, "") == [header("accept", "*/*")]
    assert headers == before


@pytest.mark.parametrize("carrier", [("x-api-key", "Bearer "), ("authorization", "Basic "), ("api-key", "key=")])
def test_a_token_in_a_wrong_place_never_passes_for_a_foreign_credential(carrier: tuple[str, str]) -> None:
    name, before = carrier
    with pytest.raises(InvalidRequest) as refusal:
        find([header(name, before + TOKEN)], b"", PLACES_OF_KEYS)
    assert TOKEN not in str(refusal.value)


def test_a_key_goes_whose_parameter_has_a_space_in_its_name() -> None:
    assert without_keys(b"api+key=secret&a=1", KeyPlaces.of((), ("api key",))) == b"a=1"
