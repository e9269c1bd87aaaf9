"""Reading the engine out of bodies that mean one thing only, and strict JSON."""

import gzip
import json
import logging
import re
import time
import traceback
import zlib
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.exceptions import InvalidRequest, PayloadTooLarge
from aisbreaker_mw.services.engine_field import LONGEST_ENGINE
from aisbreaker_mw.services.engines import read_models, read_query_models
from aisbreaker_mw.services.strict_json import strict_json

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=B"
SENTINEL = "sk-very-secret"


def read(body: bytes, content_type: str = JSON, encoding: str = "", kind: str = "json:model", limit: int = 1 << 16) -> str:
    return read_models(kind, body, content_type, encoding, limit=limit).engine


# JSON


@pytest.mark.parametrize(
    ("body", "engine"),
    [
        (b'{"model":"gpt-4o"}', "gpt-4o"),
        (b' \n{ "messages": [], "model" : "gpt-4o" }\r\n\t', "gpt-4o"),
        (b'{"model":"gpt-\\u0034o"}', "gpt-4o"),
        (b'{"mod\\u0065l":"gpt-4o"}', "gpt-4o"),
        (b'{"model":"meta-llama/Llama-3.1-8B:fastest"}', "meta-llama/Llama-3.1-8B:fastest"),
        (b'{"tools":[{"model":"a"}],"x":{"model":"b","model":"c"},"model":"gpt-4o"}', "gpt-4o"),
        (b'{"messages":[{"role":"user","role":"user"}],"model":"m"}', "m"),
        (b'{"messages":[{"content":"\\"model\\":\\"x\\""}],"model":"m"}', "m"),
        (b'{"x":"\xc3\xa9\\ud83d\\ude00","model":"m"}', "m"),
        (b'{"x":1e400,"y":' + b"1" * 400 + b',"model":"m"}', "m"),
        (b'{"model":null}', ""),
        (b'{"model":""}', ""),
        (b"{}", ""),
        (b"", ""),
        (b'{"x":' + b"[" * 200 + b"]" * 200 + b',"model":"m"}', "m"),
        (b'{"x":"' + b"[" * 5000 + b'","y":[' + b"[]," * 5000 + b'0],"model":"m"}', "m"),
    ],
    ids=lambda value: repr(value[:50]) if isinstance(value, bytes) else None,
)
def test_the_top_levels_model_is_the_engine(body: bytes, engine: str) -> None:
    assert read(body) == engine


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"model":"a","Model":"b"}',
        b'{"Model":"a"}',
        b'{"MODEL":null}',
        b'{"model":"a","models":["b"]}',
        b'{"model":7}',
        b'{"model":["a"]}',
        b'{"model":{"id":"a"}}',
        b'{"model":true}',
        b'{"model":"a b"}',
        b'{"model":" a"}',
        b'{"model":"a\\n"}',
        b'{"model":"a\\u0000"}',
        b'{"model":"\\u00e9"}',
        b'{"model":"\\ud800"}',
        b'{"model":"' + b"m" * (LONGEST_ENGINE + 1) + b'"}',
        b'["model"]',
        b'"model"',
        b"7",
        b'{"model":"a"}{"model":"b"}',
        b'{"model":"a"} x',
        b'{"model":"a",}',
        b"{'model':'a'}",
        b'{"model":"a","x":NaN}',
        b'{"model":"a","x":-Infinity}',
        b'{"model":"a","x":01}',
        b'{"model":"a","x":"\n"}',
        b'{"model":"a"',
        b'{"model":"a","x":"',
        b"model=a",
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        b'{"model":"a","x":"\xff"}',
        b'{"model":"a","x":"\xed\xa0\x80"}',
        b'{"x":' + b"[" * 300 + b"]" * 300 + b',"model":"m"}',
        b'{"x":' + b'{"x":' * 100_000,
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:50]),
)
def test_json_that_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body, limit=1 << 20)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=LONGEST_ENGINE)


@given(st.dictionaries(st.text().filter(lambda key: "model" not in key.casefold()), values), names, st.booleans())
def test_the_engine_is_found_among_anything(members: dict[str, Any], engine: str, escaped: bool) -> None:
    body = json.dumps({**members, "model": engine, "tail": members}, ensure_ascii=escaped)
    try:
        data = body.encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 can't have
        return
    assert read(data, limit=1 << 24) == engine


@given(
    st.binary(max_size=60) | st.text('{}[]":,model\\ ', max_size=40).map(str.encode), st.sampled_from([JSON, FORM, MULTIPART])
)
def test_anything_else_is_refused_and_never_crashes(body: bytes, content_type: str) -> None:
    try:
        engine = read(body, content_type)
    except InvalidRequest:
        return
    assert engine.isascii()
    assert engine.isprintable()


@pytest.mark.parametrize(
    "body",
    [b"[]" * 300 + b'"' + b'\\"' * 100_000, b'{"' + b"[" * 1_000_000, b"[]" * 500_000 + b'"', b'"\\' * 500_000],
    ids=["escaped quotes", "open string", "wide", "backslashes"],
)
def test_hostile_json_takes_linear_time(body: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest):
        read(body, limit=1 << 24)
    assert time.process_time() - began < 5


# Content types


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", "json:model"),
        ("Application/JSON; charset=UTF-8", "json:model"),
        ('application/json;charset="utf-8"', "form:model"),
        ("application/json ; charset=us-ascii ;", "json:model"),
        ("application/vnd.api+json", "json:model"),
        ("", "json:model"),
    ],
)
def test_a_json_content_type_is_read_as_json(content_type: str, kind: str) -> None:
    assert read(b'{"model":"m"}', content_type, kind=kind) == "m"


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("", "form:model"),
        ("text/plain", "json:model"),
        ("application/octet-stream", "json:model"),
        ("application/json; charset=utf-16", "json:model"),
        ("application/json; charset=utf-8; charset=utf-7", "json:model"),
        ("application/json; charset", "json:model"),
        ("application/json, text/plain", "json:model"),
        ("multipart/form-data", "json:model"),
        ("multipart/form-data; boundary=", "json:model"),
        ('multipart/form-data; boundary=""', "json:model"),
        ("multipart/form-data; boundary=" + "B" * 71, "json:model"),
        ("multipart/form-data; boundary=B; boundary=C", "json:model"),
        ("multipart/mixed; boundary=B", "json:model"),
    ],
)
def test_another_content_type_is_refused(content_type: str, kind: str) -> None:
    with pytest.raises(InvalidRequest):
        read(b'{"model":"m"}', content_type, kind=kind)


def test_the_key_comes_from_the_catalogue() -> None:
    assert read(b'{"model":"m","version":"owner/name:1"}', kind="json:version") == "owner/name:1"


# Forms


@pytest.mark.parametrize(
    ("body", "engine"),
    [
        (b"model=whisper-1", "whisper-1"),
        (b"a=b&model=whisper%2D1&c", "whisper-1"),
        (b"mod%65l=m", "m"),
        (b"model=", ""),
        (b"a=b", ""),
        (b"a=%C3%A9&a=b&model=m", "m"),
    ],
)
def test_the_engine_of_an_urlencoded_form(body: bytes, engine: str) -> None:
    assert read(body, FORM) == engine
    assert read_query_models("query:model", body).engine == engine


@pytest.mark.parametrize(
    "body",
    [
        b"model=a&model=b",
        b"model=a&Model=b",
        b"model=a&models=b",
        b"model=a&model[]=b",
        b"model=a&mod%65l=b",
        b"model=a&+model=b",
        b"a=b;model=c",
        b"model=a+b",
        b"model=%FF",
        b"model=\xff",
        b"model=%0A",
        b"&".join([b"a=b"] * 2000),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_an_urlencoded_form_that_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body, FORM)
    with pytest.raises(InvalidRequest):
        read_query_models("query:model", body)


def part(name: str, value: str = "", *headers: str, disposition: str | None = None) -> str:
    disposition = disposition or f'form-data; name="{name}"'
    return "--B\r\n" + "\r\n".join([f"Content-Disposition: {disposition}", *headers]) + f"\r\n\r\n{value}\r\n"


END = "--B--\r\n"
FILE = part("file", "RIFF\0\r\n--", "Content-Type: audio/wav", disposition='form-data; name="file"; filename="a;b.wav"')


@pytest.mark.parametrize(
    ("body", "engine"),
    [
        (part("model", "whisper-1") + END, "whisper-1"),
        (FILE + part("model", "whisper-1") + END, "whisper-1"),
        (part("model", "whisper-1") + FILE + END, "whisper-1"),
        (part("a", "1") + part("a", "2") + part("model", "m") + END, "m"),
        (part("model", "m", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit") + END, "m"),
        (part("model", "m", disposition="form-data; name=model") + END, "m"),
        (part("model", "m", disposition='Form-Data;NAME="model"') + END, "m"),
        (FILE + END, ""),
        (part("model", "") + END, ""),
        (part("a", 'name="model"\r\n\r\nx') + part("model", "m") + END, "m"),
        (part("x", "y", disposition="form-data; name=\"x\"; filename*=utf-8''a") + part("model", "m") + END, "m"),
        (part("model", "m") + "--B--", "m"),
    ],
    ids=lambda value: repr(value[:70]) if len(value) > 20 else value,
)
def test_the_engine_of_a_multipart_form(body: str, engine: str) -> None:
    assert read(body.encode("latin-1"), MULTIPART, kind="form:model") == engine


@pytest.mark.parametrize(
    "body",
    [
        part("model", "a") + part("model", "b") + END,
        part("model", "a") + part("Model", "b") + END,
        part("model", "a") + part("models", "b") + END,
        part("model", "a") + part("model[]", "b") + END,
        part("model", "a") + part(" model", "b") + END,
        part("model", "a b") + END,
        part("model", "m" * 300) + END,
        part("model", "a\r\n") + END,
        part("model", "a", disposition='form-data; name="model"; name="x"') + END,
        part("model", "a", disposition='form-data; name="model"; filename="m.txt"') + END,
        part("model", "a", disposition="form-data; name*=utf-8''model") + END,
        part("x", "a", disposition="form-data; name=\"x\"; name*=utf-8''model") + END,
        part("x", "a", disposition='form-data; name="mo\\del"') + END,
        part("x", "a", disposition='form-data; name="mod%65l"') + END,
        part("x", "a", disposition='form-data; name="x') + END,
        part("x", "a", disposition="form-data") + END,
        part("x", "a", disposition='attachment; name="x"') + END,
        part("x", "a", 'Content-Disposition: form-data; name="model"') + END,
        part("model", "bQ==", "Content-Transfer-Encoding: base64") + END,
        part("model", "m", "Content-Type: application/json") + END,
        part("model", "m", "Content-Type: text/plain; charset=utf-16") + END,
        part("_charset_", "utf-7") + part("model", "m") + END,
        part("model", "a"),
        part("model", "a") + "--B-",
        part("model", "a").removesuffix("\r\n"),
        END + part("model", "a") + END,
        part("model", "a") + END + part("model", "b") + END,
        "preamble\r\n" + part("model", "a") + END,
        "\r\n--B x\r\n" + part("model", "a") + END,
        part("model", "a").replace("\r\n", "\n") + "--B--\n",
        part("x", 'y\n--B\nContent-Disposition: form-data; name="model"\n\nb') + part("model", "a") + END,
        part("x", "y\r\n--Bx") + part("model", "a") + END,
        "".join(part("x") for _ in range(1100)) + END,
        "--B\r\n\r\nx\r\n" + END,
        "--B\r\nnonsense\r\n\r\nx\r\n" + END,
        "nonsense",
    ],
    ids=lambda body: repr(body[:90]),
)
def test_a_multipart_form_that_can_be_read_in_two_ways_is_refused(body: str) -> None:
    with pytest.raises(InvalidRequest):
        read(body.encode("latin-1"), MULTIPART, kind="form:model")


@pytest.mark.parametrize("filename", ["a.wav", 'a"b\\c.wav', "é 音.wav", "model"])
def test_the_engine_of_a_form_as_httpx_writes_it(filename: str) -> None:
    request = httpx.Request(
        "POST", "http://x", data={"model": "whisper-1", "a": ["1", "2"]}, files={"file": (filename, b"\0" * 5000)}
    )
    assert read(request.read(), request.headers["content-type"], kind="form:model") == "whisper-1"


# Encodings and limits


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        (" GZIP ", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_compressed_bodies_are_read(encoding: str, encode: Any) -> None:
    assert read(encode(b'{"model":"m"}'), encoding=encoding) == "m"


BODY = gzip.compress(b'{"model":"m"}', mtime=0)  # tests are named by such bodies, which every worker has to call the same


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b'{"model":"m"}'),
        ("gzip", BODY[:-1]),
        ("gzip", BODY[:-5] + b"\0" + BODY[-4:]),
        ("gzip", BODY + BODY),
        ("gzip", BODY + b"\0"),
        ("deflate", b"\x07nonsense"),
        ("deflate", b"x"),
        ("br", b"x"),
        ("zstd", b"x"),
        ("gzip, gzip", gzip.compress(BODY, mtime=0)),
    ],
)
def test_a_body_that_is_not_what_its_encoding_says_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(body, encoding=encoding)


def test_an_encoding_that_cannot_be_read_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match="Content-Encoding: send it uncompressed, or with gzip or deflate"):
        read(b"x", encoding="br")


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate, bytes])
def test_the_limit_counts_what_comes_out(encode: Any) -> None:
    fits = b'{"model":"m"}'.ljust(1000)
    encoding = {gzip.compress: "gzip", bytes: ""}.get(encode, "deflate")
    assert read(encode(fits), encoding=encoding, limit=1000) == "m"
    for size in (1001, 100_000_000):
        with pytest.raises(PayloadTooLarge):
            read(encode(fits.ljust(size)), encoding=encoding, limit=1000)


def test_no_refusal_and_no_log_repeats_the_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for body, content_type in [
        (b'{"%b":1,"%b":2}', JSON),
        (b'{"model":"%b\n"}', JSON),
        (b'{"model":"%b","model":"%b"}', JSON),
        (b"%b", JSON),
        (b"model=%b&model=%b;", FORM),
        (b"%b", MULTIPART),
    ]:
        with pytest.raises(InvalidRequest) as refusal:
            read(body.replace(b"%b", SENTINEL.encode()) + b"}", content_type)
        assert SENTINEL not in "".join(traceback.format_exception(refusal.value))
    assert caplog.records == []


# Strict JSON


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":[1,-2.5,"x",true,null,{}]}', {"a": [1, -2.5, "x", True, None, {}]}),
        (b' "\\ud83d\\ude00" ', "\U0001f600"),
        ('"é"'.encode(), "é"),
        (b"9007199254740993", 9007199254740993),
        (b"[[[[]]]]", [[[[]]]]),
        (b'"[[[[[["', "[[[[[["),
        (b"[[],[],[],[],[]]", [[], [], [], [], []]),
    ],
)
def test_strict_json_is_json(data: bytes, value: object) -> None:
    assert strict_json(data, max_depth=4) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "valid JSON"),
        (b"{", "valid JSON"),
        (b"{} {}", "valid JSON"),
        (b"{}x", "valid JSON"),
        (b'{"a":1,}', "valid JSON"),
        (b"\xef\xbb\xbf{}", "valid JSON"),
        (b"// x\n{}", "valid JSON"),
        (b'"\x01"', "valid JSON"),
        (b'"\xff"', "UTF-8"),
        ("{}".encode("utf-16-le"), "valid JSON"),
        (b'{"a":1,"a":1}', "duplicate keys"),
        (b'{"x":[{"a":1,"\\u0061":2}]}', "duplicate keys"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "NaN"),
        (b"[-Infinity]", "NaN"),
        (b"[1e999]", "out of range"),
        (b"[-1e999]", "out of range"),
        (b"1" * 33, "out of range"),
        (b"1" * 100_000, "out of range"),
        (b'"\\ud800"', "surrogates"),
        (b'{"\\udc00":1}', "surrogates"),
        (b"[[[[[]]]]]", "deep"),
        (b'{"a":{"a":{"a":{"a":{}}}}}', "deep"),
        (b"[" * 1_000_000, "deep"),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_strict_json_refuses_with_a_fixed_text(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"must .*{message}") as refusal:
        strict_json(data, max_depth=4)
    assert type(refusal.value.__cause__) is type(None)
    assert not isinstance(refusal.value, json.JSONDecodeError | UnicodeError)


@given(values)
def test_whatever_json_writes_comes_back(value: Any) -> None:
    try:
        data = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    if not re.search(rb"\d{32}", data):
        assert strict_json(data, max_depth=64) == value
