"""Heads of HTTP/1.1 messages, without I/O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.http1 import heads
from aisbreaker_mw.http1.heads import MalformedHead, by_name, lower_names, read_fields, read_length, read_options, write_head


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"Host: a", (b"host", b"a")),
        (b"X:\t a  b \t", (b"x", b"a  b")),
        (b"X-Empty:", (b"x-empty", b"")),
        (b"X-Empty: \t ", (b"x-empty", b"")),
        (b"X-High:\xff\x80", (b"x-high", b"\xff\x80")),
        (b"X-Tab: a\tb", (b"x-tab", b"a\tb")),
        (b"!#$%&'*+-.^_`|~09azAZ: :", (b"!#$%&'*+-.^_`|~09azaz", b":")),
    ],
)
def test_field_line(line: bytes, field: tuple[bytes, bytes]) -> None:
    for _ in range(2):  # the second time it is remembered
        assert read_fields([line]) == [field]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Host", id="no colon"),
        pytest.param(b": a", id="no name"),
        pytest.param(b"Host : a", id="space before the colon"),
        pytest.param(b" Host: a", id="obs-fold"),
        pytest.param(b"\tHost: a", id="obs-fold with a tab"),
        pytest.param(b"Ho st: a", id="space in the name"),
        pytest.param(b"H\xc3\xa4: a", id="name beyond ASCII"),
        pytest.param(b"H(: a", id="delimiter in the name"),
        pytest.param(b"Host: a\0", id="NUL"),
        pytest.param(b"Host: a\rb", id="bare CR"),
        pytest.param(b"Host: a\nX: b", id="bare LF"),
        pytest.param(b"Host: a\x7f", id="DEL"),
        pytest.param(b"Host: \x0b", id="a control that looks like a blank"),
    ],
)
def test_no_field_line(line: bytes) -> None:
    for _ in range(2):
        with pytest.raises(MalformedHead) as raised:
            read_fields([b"A: b", line])
        assert line.strip() == b"" or line.decode("latin-1") not in str(raised.value)


@given(st.lists(st.tuples(st.from_regex(rb"[!#-'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True), st.binary(max_size=20))))
def test_what_is_written_is_read(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        head = write_head(b"GET / HTTP/1.1", fields)
    except MalformedHead:
        assert any(set(value) & {0, 10, 13} for _, value in fields)
        return
    first, *lines = head[:-4].split(b"\r\n")
    assert first == b"GET / HTTP/1.1"
    assert len(lines) == len(fields)
    try:
        read = read_fields(lines)
    except MalformedHead:
        assert any(byte < 32 or byte == 127 for _, value in fields for byte in value)
        return
    assert read == [(name.lower(), value.strip(b" \t")) for name, value in fields]


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"api-key",
            b"authorization",
            b"cookie",
            b"location",
            b"ocp-apim-subscription-key",
            b"proxy-authorization",
            b"referer",
        ),
        *(b"sec-websocket-protocol", b"set-cookie", b"x-amz-security-token", b"x-api-key", b"x-goog-api-key", b"xi-api-key"),
    ],
)
def test_secrets_are_not_remembered(name: bytes) -> None:
    line = name.title() + b": s3cr3t-heads"
    assert read_fields([line, b"X-Plain: s3cr3t"]) == [(name, b"s3cr3t-heads"), (b"x-plain", b"s3cr3t")]
    assert b"X-Plain: s3cr3t" in heads._FIELDS
    assert not any(b"s3cr3t-heads" in kept for kept in heads._FIELDS)


def test_what_is_remembered_is_bounded() -> None:
    for number in range(2 * heads._MOST):
        read_fields([b"X-Number: %d" % number])
        assert len(heads._FIELDS) <= heads._MOST
    for line in (b"X-Request-Id: 1", b"Date: today", b"OpenAI-Processing-Ms: 1"):
        read_fields([line])
        assert line not in heads._FIELDS
    long = b"X-Long: " + b"a" * heads._LONGEST
    read_fields([long])
    assert long not in heads._FIELDS


def test_values_by_name() -> None:
    fields = [(b"a", b"1"), (b"connection", b"x"), (b"a", b"2"), (b"connection", b"y, close")]
    assert by_name(fields) == {b"a": b"2", b"connection": b"x,y, close"}
    for name in (b"content-length", b"transfer-encoding"):
        with pytest.raises(MalformedHead):
            by_name([(name, b"1"), (b"a", b""), (name, b"1")])
    with pytest.raises(MalformedHead):
        by_name([(b"a", b"1"), (b"a", b"1")], (b"a",))


def test_names_in_lower_case() -> None:
    fields = [(b"a", b"B"), (b"x-1", b"")]
    assert lower_names(fields) is fields
    assert lower_names([(b"A-b", b"C")]) == [(b"a-b", b"C")]
    assert lower_names([]) == []
    with pytest.raises(MalformedHead):
        lower_names([(b"a", b""), (b"b ", b"")])


@pytest.mark.parametrize("fields", [[(b"a", b"b\r\nc: d")], [(b"a", b"\n")], [(b"a", b"\r")], [(b"a", b"\0")], [(b"", b"a")]])
def test_a_field_that_cannot_be_written(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedHead):
        write_head(b"HTTP/1.1 200 OK", [(b"x", b"y"), *fields])


@pytest.mark.parametrize("value", [b"", b"+1", b"-1", b"1 ", b"0x1", b"1,1", b"\xb2", b"1" * 20])
def test_no_length(value: bytes) -> None:
    with pytest.raises(MalformedHead):
        read_length(value)


def test_length_and_options() -> None:
    assert read_length(b"007") == 7
    assert read_options(b"Close, x ,\tY,") == [b"close", b"x", b"y", b""]
