"""The tables of headers in `docs/security.md`: as the code has them, and as a request and its response show them."""

import re
from pathlib import Path

import httpx
import pytest

from aisbreaker_mw.client.loops import PASSED_HEADER
from aisbreaker_mw.credentials import aws
from aisbreaker_mw.exceptions import RequestError
from aisbreaker_mw.http1.fields import CLIENT_ADDRESS, HOP_BY_HOP, OVERRIDES, PAGE, RATE_LIMIT_HEADERS
from aisbreaker_mw.services.catalog import ServiceCatalog
from aisbreaker_mw.services.key_places import COMMON_HEADERS
from aisbreaker_mw.settings import Settings
from aisbreaker_mw.upstream.redaction import OF_THE_BODY
from aisbreaker_mw.upstream.request import _DROPPED, _INERT

from ..support import RecordingUpstream, bearer, mint, ok, proxy, raw_exchange

REPOSITORY = Path(__file__).parents[2]
PAGE_OF_SECURITY = (REPOSITORY / "docs" / "security.md").read_text("utf-8")
CHAT = "/openai/v1/chat/completions"
Table = dict[str, set[bytes]]


def table(heading: str) -> Table:
    """Return the header names of a table of the page, by the kind that its first column names."""
    text = PAGE_OF_SECURITY.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE)[2:]
    assert rows, heading
    return {kind: {name.encode() for name in re.findall(r"`([a-z0-9-]+)`", cells)} for kind, cells in rows}


NOT_FORWARDED, ADDED = table("Not forwarded to a service"), table("Added for a service")
NOT_RELAYED, ADDED_FOR_CLIENT = table("Not relayed to the client"), table("Added for the client")


def only(rows: Table, beginning: str) -> set[bytes]:
    """Return the names of the one row whose kind begins like that, without words that are settings."""
    (names,) = [names for kind, names in rows.items() if kind.startswith(beginning)]
    return names - {b"credential", b"network"}


def test_request_headers_are_those_that_the_code_drops() -> None:
    assert only(NOT_FORWARDED, "API keys") == COMMON_HEADERS
    assert only(NOT_FORWARDED, "the connection") == HOP_BY_HOP
    assert only(NOT_FORWARDED, "the calling page") == PAGE
    assert only(NOT_FORWARDED, "overrides") == OVERRIDES
    assert only(NOT_FORWARDED, "the client's address") == CLIENT_ADDRESS
    assert only(NOT_FORWARDED, "between") == {PASSED_HEADER}
    assert only(NOT_FORWARDED, "AWS") == aws._OURS


def test_every_header_that_is_not_forwarded_is_in_the_page() -> None:
    from aisbreaker_mw.assembly import _NOT_FORWARDED

    rest = only(NOT_FORWARDED, "met by this server")
    assert rest | HOP_BY_HOP | OVERRIDES | PAGE == _NOT_FORWARDED


def test_added_request_headers_are_those_of_the_catalogue() -> None:
    services = list(ServiceCatalog.load())
    matches = [service.resolve("POST", b"/v1/messages")[0] for service in services if service.base_url]
    assert only(ADDED, "what the service requires") == {name for match in matches for name, _ in match.default_headers}
    assert only(ADDED, "the credential") == COMMON_HEADERS
    assert all(service.credential.header_names <= COMMON_HEADERS for service in services)


def test_response_headers_are_those_that_the_code_drops() -> None:
    rows = {kind: names for kind, names in NOT_RELAYED.items() if not kind.startswith("where")}
    assert set.union(*rows.values()) == _DROPPED
    assert only(NOT_RELAYED, "the connection") == HOP_BY_HOP
    assert only(NOT_RELAYED, "where this server counted") == RATE_LIMIT_HEADERS
    assert only(NOT_RELAYED, "where the credential") == OF_THE_BODY


def test_added_response_headers_are_those_of_the_code() -> None:
    assert only(ADDED_FOR_CLIENT, "counted") == RATE_LIMIT_HEADERS
    assert only(ADDED_FOR_CLIENT, "HTML") == {name for name, _ in _INERT}

    def subclasses(kind: type[RequestError]) -> list[type[RequestError]]:
        return [kind, *(each for below in kind.__subclasses__() for each in subclasses(below))]

    errors = [kind("POST") if kind.code == "method_not_allowed" else kind() for kind in subclasses(RequestError)]
    assert {name for error in errors for name, _ in error.headers} <= set.union(*ADDED_FOR_CLIENT.values())


def sent_names(rows: Table) -> list[bytes]:
    """Return the names of all rows that a test can send as it likes: they neither frame the message nor are settings."""
    framing = b"transfer-encoding content-length content-encoding te trailer connection upgrade expect host authorization"
    return sorted(set.union(*rows.values()).difference(framing.split(), {b"credential", b"network"}))


def test_what_the_page_says_is_not_forwarded_is_not() -> None:
    """To a service that signs nothing: all but AWS's own headers."""
    names = [name for name in sent_names(NOT_FORWARDED) if not name.startswith(b"x-amz-")]
    with RecordingUpstream() as upstream, proxy(upstream, minting={"mode": "secret", "secret": "s"}) as base:
        token = mint(base, ("", "sk-1"), clientSecret="s").encode()
        values = {name: token if name in COMMON_HEADERS else b"stray" for name in names}
        fields = b"".join(b"%b: %b\r\n" % item for item in values.items())
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close, x-nominated\r\nX-Nominated: stray\r\nX_Stray: stray\r\n"
        head = head % (b"/openai/v1/models", base[7:].encode()) + b"X-Kept: kept\r\n" + fields
        answer = raw_exchange(base, head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert upstream.last.all(b"x-kept") == [b"kept"]
        assert b"stray" not in upstream.last.head
        assert token not in upstream.last.raw
        added = {name for name, _ in upstream.last.headers} - {b"x-kept"}
        assert added <= set.union(*ADDED.values())


def test_what_the_page_says_is_not_relayed_is_not() -> None:
    names = [name for name in sent_names(NOT_RELAYED) if name not in OF_THE_BODY]
    given = [b"X-Nominated: stray", b"Connection: x-nominated", b"X-Kept: kept", *(b"%b: stray" % name for name in names)]
    with RecordingUpstream(ok(b"{}", *given)) as upstream, proxy(upstream) as base:
        token = mint(base, ("", "sk-1"), quotas={"globalRequestLimits": {"requestsPerDay": 9}})
        response = httpx.post(base + CHAT, headers=bearer(token))
        assert response.headers["x-kept"] == "kept"
        assert "stray" not in str(response.headers)


def test_every_header_that_reaches_a_client_beside_the_services_own_is_in_the_page() -> None:
    origin = {"origin": "https://app.example"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    with RecordingUpstream() as upstream, proxy(upstream, cors_origins=["https://app.example"]) as base:
        token = mint(base, ("", "sk-1"), quotas={"globalRequestLimits": {"requestsPerDay": 2}})
        sent = {**bearer(token), **origin}
        upstream.script = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        responses = [
            httpx.options(base + CHAT, headers=preflight),
            httpx.get(f"{base}/api/v1/ping"),
            httpx.get(f"{base}/api/v1/oauth/token"),
            httpx.post(f"{base}/api/v1/oauth/token", json={}),
            httpx.post(base + CHAT),
            httpx.post(f"{base}/anthropic/v1/messages"),
            *(httpx.post(base + CHAT, headers=sent) for _ in range(3)),
        ]
    assert [response.status_code for response in responses] == [200, 200, 405, 400, 401, 401, 200, 200, 429]
    seen = {name.lower().encode() for response in responses for name, _ in response.headers.multi_items()}
    listed = set.union(*ADDED_FOR_CLIENT.values())
    assert seen <= listed
    assert {b"ratelimit", b"content-security-policy", b"retry-after", b"access-control-allow-origin", b"vary"} <= seen


def test_the_page_names_existing_settings_only() -> None:
    text = PAGE_OF_SECURITY.partition("\n## Threats\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .+ \| .* \|(.*)\|$", text, re.MULTILINE)
    named = {name for row in rows[2:] for name in re.findall(r"`([a-z_.<>*]+)`", row)}
    assert {"hosts", "minting.mode", "trusted_proxies", "quotas.server", "services.<name>.strangers"} <= named
    for name in named - {"upstream.*_timeout"}:
        first, _, rest = name.partition(".")
        field = Settings.model_fields[first]
        if rest and first != "services":
            assert rest in type(field.default).model_fields, name
    with pytest.raises(Exception, match="is not a setting; it takes") as refusal:
        ServiceCatalog.load({"openai": {"nothing": 1}})
    for name in named:
        if name.startswith("services."):
            assert name.rpartition(".")[2] in str(refusal.value)


def test_links_lead_somewhere() -> None:
    for file in ("SECURITY.md", "docs/security.md", "README.md", "docs/configuration.md"):
        path = REPOSITORY / file
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), (file, target)
