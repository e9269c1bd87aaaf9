"""serviceIds, and the patterns of tokens that match them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aisbreaker_mw.services.patterns import LONGEST_PATTERN, covers_vendor, matches, needs_engine, validate_pattern

VALID = [
    "=chat:openai.com",
    "=chat:openai.com/gpt-4o",
    "",
    "*",
    "chat:",
    "chat:*",
    "chat*",
    "chat:openai.com",
    "chat:openai.com/",
    "chat:openai.com/*",
    "chat:openai.com/gpt-4o",
    "chat:openai.com/gpt-4*",
    "chat:openai.com*",
    "chat:huggingface.co/meta-llama/Llama-3.1-8B:fastest",
    "chat:openai.com/ft:gpt-4o:org::id",
    "*:openai.com",
    "*:openai.com/gpt-4o",
    "*:",
    "*:*",
    "aisbreaker:network",
    "chat:dummy",
    "text-to-image:stability.ai",
    "chat:x/" + "m" * (LONGEST_PATTERN - 7),
]


INVALID = [
    "chat",
    "openai.com",
    ":",
    ":openai.com",
    "chat::openai.com",
    "chat:/gpt-4o",
    "chat:openai.com:gpt",
    "ch*t:openai.com",
    "**",
    "*chat:openai.com",
    "chat:**",
    "chat:*.com",
    "chat:openai.com/gpt*4",
    "chat: openai.com",
    "chat:openai.com ",
    "chat:openai.com/gpt 4",
    "chat:openai.com\n",
    "chat:openai.com/\x00",
    "chat:openai.com/\x7f",
    "chat:opena\u0131.com",
    "chat:openai.com/gpt-\uff14o",
    "-chat:openai.com",
    "chat:x/" + "m" * (LONGEST_PATTERN - 6),
    "=",
    "=chat",
    "=chat:",
    "=*:openai.com",
    "=chat:openai.com/",
    "=chat:openai.com/gpt-*",
    "==chat:openai.com",
    "chat:=openai.com",
]


@pytest.mark.parametrize("pattern", VALID, ids=lambda pattern: pattern[:40] or "empty")
def test_a_token_may_have_this_pattern(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize("pattern", INVALID, ids=lambda pattern: ascii(pattern[:40]))
def test_a_token_may_not_have_this_pattern_and_the_refusal_does_not_repeat_it(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refusal:
        validate_pattern(pattern)
    assert len(pattern) < 5 or pattern not in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "service_id", "expected"),
    [
        ("", "chat:openai.com", True),
        ("*", "files:openai.com", True),
        ("chat:openai.com", "chat:openai.com", True),
        ("chat:openai.com", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com", "chat:openai.com.evil.example", False),
        ("chat:openai.com", "files:openai.com", False),
        ("chat:openai.com", "chat", False),
        ("chat:openai.com/", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com/", "chat:openai.com", False),
        ("chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o", True),
        ("chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o-mini", False),
        ("chat:openai.com/gpt-4o", "chat:openai.com", False),
        ("chat:openai.com/gpt-4*", "chat:openai.com/gpt-4o-mini", True),
        ("chat:openai.com/gpt-4*", "chat:openai.com/gpt-3.5", False),
        ("chat:openai.com/*", "chat:openai.com", False),
        ("chat:huggingface.co/meta-llama", "chat:huggingface.co/meta-llama/Llama-3", True),
        ("chat:x/llama3", "chat:x/llama3:8b", True),
        ("chat", "chat:openai.com", True),
        ("cha", "chat:openai.com", False),
        ("chat:", "chat:openai.com/gpt-4o", True),
        ("chat:", "chatter:openai.com", False),
        ("chat:open", "chat:openai.com", False),
        ("chat:open*", "chat:openai.com", True),
        ("chat:*", "chat:openai.com", True),
        ("*:openai.com", "files:openai.com", True),
        ("*:openai.com", "chat:openai.com/gpt-4o", True),
        ("*:openai.com", "chat:openai.community", False),
        ("*:openai.com", "chat:anthropic.com", False),
        ("*:openai.com/gpt-4*", "chat:openai.com/gpt-4o", True),
        ("*:openai.com/gpt-4", "chat:openai.com/gpt-4o", False),
        ("*:", "chat:openai.com", True),
        ("*:*", "chat:openai.com", True),
        ("aisbreaker:network", "aisbreaker:network", True),
        ("CHAT:openai.com", "chat:openai.com", False),
        ("=chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o", True),
        ("=chat:openai.com/gpt-4o", "chat:openai.com/gpt-4o:free", False),
        ("=chat:openai.com/gpt-4o", "chat:openai.com", False),
        ("=chat:openai.com", "chat:openai.com", True),
        ("=chat:openai.com", "chat:openai.com/gpt-4o", False),
    ],
)
def test_matching(pattern: str, service_id: str, expected: bool) -> None:
    assert matches(pattern, service_id) is expected


words = st.text("ab-*/:.", max_size=8)


engines = st.text("ab-/:.", min_size=1, max_size=8)


@given(st.one_of(words, words.map("t:v/".__add__), words.map("*:v/".__add__), words.map("t:v".__add__)), engines)
@example("t:v/", "a")
@example("*:v/a*", "ab")
def test_a_pattern_that_only_an_engine_can_match_is_said_to_need_it(pattern: str, engine: str) -> None:
    if not matches(pattern, "t:v") and matches(pattern, f"t:v/{engine}"):
        assert needs_engine(pattern, "t:v")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("chat:openai.com/gpt-4o", True),
        ("chat:openai.com/", True),
        ("chat:openai.com/*", True),
        ("*:openai.com/gpt-4*", True),
        ("chat:openai.com", False),
        ("chat:anthropic.com/claude", False),
        ("files:openai.com/x", False),
        ("=chat:openai.com/gpt-4o", True),
        ("=chat:openai.com", True),
        ("=chat:openai.co", False),
        ("=files:openai.com/x", False),
        ("", False),
    ],
)
def test_only_patterns_with_an_engine_need_the_engine(pattern: str, expected: bool) -> None:
    assert needs_engine(pattern, "chat:openai.com") is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", True),
        ("*", True),
        ("chat*", True),
        ("chat:", True),
        ("chat:*", True),
        ("chat:open*", True),
        ("chat:openai.com", True),
        ("chat:openai.com/gpt-4o", True),
        ("*:openai.com", True),
        ("*:openai.com/gpt-4*", True),
        ("*:", True),
        ("=chat:openai.com/gpt-4o", True),
        ("=chat:openai.com", True),
        ("=chat:anthropic.com", False),
        ("chat:anthropic.com", False),
        ("*:anthropic.com", False),
        ("chat:openai.com.example", False),
        ("chat:openai", False),
        ("aisbreaker:network", False),
    ],
)
def test_any_secret_for_a_vendor_covers_the_vendor(pattern: str, expected: bool) -> None:
    assert covers_vendor(pattern, "openai.com") is expected


@given(st.sampled_from(VALID), st.sampled_from(["chat", "files"]), engines)
def test_a_pattern_that_matches_something_of_a_vendor_covers_it(pattern: str, task: str, engine: str) -> None:
    if matches(pattern, f"{task}:openai.com") or matches(pattern, f"{task}:openai.com/{engine}"):
        assert covers_vendor(pattern, "openai.com")
