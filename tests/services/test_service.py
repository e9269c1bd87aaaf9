"""Paths of services: which are refused, and which task they are."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aisbreaker_mw.exceptions import InvalidRequest

from .support import service

REFUSED_PATHS = [
    b"chat/completions",
    b"//evil.example/v1",
    b"//",
    b"/v1/../files",
    b"/..",
    b"/.",
    b"/v1/./files",
    b"/v1/chat/completions/../../files",
    b"/v1/%2e%2e/files",
    b"/v1/.%2E/files",
    b"/v1/%2e/files",
    b"/v1/..%2ffiles",
    b"/v1/x%2F..%2Ffiles",
    b"/v1/..;/files",
    b"/v1/..;x=y/files",
    b"/v1/..%3bx/files",
    b"/v1/%2e%2e%3B/files",
    b"/v1/..%20/files",
    b"/v1/%20../files",
    b"/v1\\files",
    b"/v1/..%5cfiles",
    b"/v1/%5C",
    b"/v1/a\x00b",
    b"/v1/a b",
    b"/v1/a\tb",
    b"/v1/a\r\nb",
    b"/v1/a\x7fb",
    b"/v1/\xc3\xa9",
    b"/v1/%00",
    b"/v1/%0d%0aHost:x",
    b"/v1/%1F",
    b"/v1/%7f",
    b"/v1/%c0%ae%c0%ae/files",
    b"/v1/%e0%80%ae/files",
    b"/v1/%ff",
    b"/v1/%u002e%u002e/files",
    b"/v1/%",
    b"/v1/%2",
    b"/v1/%zz",
    b"/v1?x=y",
    b"/v1#x",
]


@pytest.mark.parametrize("rest", REFUSED_PATHS, ids=ascii)
@pytest.mark.parametrize("name", ["openai", "gemini", "perplexity", "network", "dummy"])
def test_a_path_that_could_be_taken_for_another_is_refused(name: str, rest: bytes) -> None:
    with pytest.raises(InvalidRequest):
        service(name).resolve("GET", rest)


@pytest.mark.parametrize(
    ("name", "rest", "target"),
    [
        ("openai", b"", b"/v1"),
        ("openai", b"/", b"/v1/"),
        ("openai", b"/v1", b"/v1"),
        ("openai", b"/v1/", b"/v1/"),
        ("openai", b"/chat/completions", b"/v1/chat/completions"),
        ("openai", b"/v1/chat/completions", b"/v1/chat/completions"),
        ("openai", b"/v10/x", b"/v1/v10/x"),
        ("openai", b"/v1beta", b"/v1/v1beta"),
        ("openai", b"/%76%31/x", b"/v1/%76%31/x"),
        ("openai", b"/files/a%2Fb%2fc%20%252e%252e%c3%a9", b"/v1/files/a%2Fb%2fc%20%252e%252e%c3%a9"),
        ("openai", b"/v1//files", b"/v1//files"),
        ("openai", b"/v1/a.b/.c/...", b"/v1/a.b/.c/..."),
        ("gemini", b"/models", b"/v1beta/models"),
        ("gemini", b"/v1alpha/models", b"/v1alpha/models"),
        ("gemini", b"/upload/v1beta/files", b"/upload/v1beta/files"),
        ("gemini", b"/openai/chat/completions", b"/v1beta/openai/chat/completions"),
        ("groq", b"/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/openai/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("groq", b"/openai/v2/x", b"/openai/v1/openai/v2/x"),
        ("openrouter", b"/v1/chat/completions", b"/api/v1/chat/completions"),
        ("perplexity", b"", b"/"),
        ("perplexity", b"/chat/completions", b"/chat/completions"),
        ("network", b"/openai/v1/models", b"/openai/v1/models"),
    ],
)
def test_the_api_prefix_is_added_where_it_is_missing_and_nothing_else_changes(name: str, rest: bytes, target: bytes) -> None:
    assert service(name).resolve("GET", rest)[1] == target


@pytest.mark.parametrize(
    ("base_url", "target"),
    [
        ("http://10.0.0.7:8000", b"/v1/models"),
        ("http://10.0.0.7:8000/", b"/v1/models"),
        ("http://10.0.0.7:8000/v1", b"/v1/models"),
        ("http://10.0.0.7:8000/v1/", b"/v1/models"),
        ("http://10.0.0.7:8000/gateway/openai", b"/gateway/openai/v1/models"),
        ("http://10.0.0.7:8000/gateway/v1", b"/gateway/v1/models"),
        ("http://10.0.0.7:8000/gatewayv1", b"/gatewayv1/v1/models"),
    ],
)
def test_the_base_urls_own_path_goes_first(base_url: str, target: bytes) -> None:
    mine = service("mine", like="openai", base_url=base_url)
    assert mine.resolve("GET", b"/v1/models")[1] == target
    match, completed = mine.resolve("GET", b"/models")
    assert completed == target
    assert match.listing


# What a lenient upstream might make of a path: everything decoded twice, parameters dropped, slashes merged, case folded.
def most_lenient(path: bytes) -> bytes:
    path = unquote_to_bytes(unquote_to_bytes(path)).replace(b"\\", b"/").lower()
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        segment = segment.partition(b";")[0].partition(b"?")[0].strip()
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return b"/" + b"/".join(segments)


pieces = st.sampled_from(
    [
        *(b"/", b"//", b"/v1", b"/chat", b"/completions", b"/files", b"/responses", b"/models", b"/messages"),
        *(b"/batches", b"..", b"/..", b"/../", b".", b"%2e", b"%2E", b"%252e", b"%2f", b"%252f", b"%5c", b"\\"),
        *(b";", b";x", b"%3b", b"%00", b"?", b"#", b"%23", b"%3f", b" ", b"%20", b"x", b"F", b"/Files", b"%66iles"),
        *(b"%c0%ae", b"@", b":"),
    ]
)


@given(st.sampled_from(["openai", "anthropic", "dummy", "perplexity"]), st.lists(pieces, max_size=9).map(b"".join))
@example("openai", b"/v1/chat/completions/%252e%252e/files")
@example("openai", b"/v1/chat/completions%2f..%2ffiles")
def test_no_spelling_of_a_path_makes_it_chat_unless_it_is_that_path(name: str, rest: bytes) -> None:
    try:
        found, target = service(name).resolve("POST", rest)
    except InvalidRequest:
        return
    if found.task == "chat":
        assert most_lenient(target) == target
        assert target in {
            *(b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/chat/completions"),
            *(b"/v1/messages", b"/v1/complete"),
        }
    if found.task == "models":
        assert most_lenient(target).startswith(b"/v1/models")


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", b"/v1//files"),
        ("GET", b"/v1/%66iles"),
        ("POST", b"/v1/%63hat/completions"),
        ("POST", b"/v1/chat%2Fcompletions"),
        ("POST", b"/v1/chat/completions/"),
        ("POST", b"/v1/chat/completions;x"),
        ("POST", b"/v1/chat/completions%3Fx"),
        ("POST", b"/v1/chat//completions"),
        ("POST", b"/V1/chat/completions"),
        ("POST", b"/v1/Chat/Completions"),
        ("PUT", b"/v1/chat/completions"),
        ("HEAD", b"/v1/models"),
        ("GET", b"/v1/models/a%252e%252e%252f"),
        ("GET", b"/v1/organization/admin_api_keys"),
        ("GET", b"/v1/responses"),
        ("GET", b""),
    ],
)
def test_what_is_not_literally_listed_is_other(method: str, rest: bytes) -> None:
    found = service().resolve(method, rest)[0]
    assert (found.task, found.engine_source, found.listing) == ("other", None, False)


def test_no_path_takes_more_than_a_moment() -> None:
    path = b"/v1/models" + b"/a%2Fb" * 2000 + b"/%25"  # backtracking would need longer than the universe has
    assert service().resolve("GET", path)[0].task == "other"
