"""Outlines of JSON: the same structure, short strings."""

import json
from typing import Any

import pytest

from aisbreaker_mw.services.json_outline import LONG_STRING, MAX_OUTLINE_BYTES, outline


def outlined(text: str) -> Any:
    return json.loads(outline(text.encode()))


@pytest.mark.parametrize("inside", ["x" * 10_000, "é" * 10_000, '\\n\\"\\\\' * 5_000, "\\u00e9" * 3_000, "漢" * 1_000_000])
def test_an_outline_has_the_same_structure_and_short_strings(inside: str) -> None:
    text = f'{{"a":"{inside}","b":["{inside}",1,{{"{inside}" : "kept"}}],"model":"m","":"{inside[:60]}"}}'
    plain, short = json.loads(text), outlined(text)
    assert len(outline(text.encode())) < 2 * LONG_STRING + len(inside.encode())
    assert list(short) == list(plain)
    assert (short["model"], short[""], short["b"][1:]) == ("m", plain[""], plain["b"][1:])
    assert 256 < len(short["a"]) < LONG_STRING


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"' + "x" * 10_000,
        '{"a":"' + "x" * 10_000 + "\n" + '"}',
        '{"a":"' + "x" * 10_000 + '\\x"}',
        '{"a":"' + "x" * 10_000 + '\\u12g4"}',
        '{"a":"' + "x" * 10_000 + '\\"}',
    ],
    ids=["open", "control", "escape", "code", "escaped end"],
)
def test_what_is_left_out_was_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be valid JSON$"):
        outline(text.encode())


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc0\xae", b"\xe6\xbc"])
def test_what_is_left_out_was_utf8(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"^must be UTF-8$"):
        outline(b'{"a":"' + b"x" * (1 << 20) + bad + b'"}')
    assert outline(b'{"a":"' + b"x" * ((1 << 20) - 7) + "é".encode() * 10 + b'"}')


@pytest.mark.parametrize("part", [b'"",', b"[],", b'{"a":1},', b"1,"])
def test_an_outline_is_bounded(part: bytes) -> None:
    from aisbreaker_mw.exceptions import PayloadTooLarge

    with pytest.raises(PayloadTooLarge, match="too many parts"):
        outline(b'{"x":[' + part * (MAX_OUTLINE_BYTES // len(part) + 1) + b"0]}")
