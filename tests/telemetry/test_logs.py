"""Log lines: always one, nothing secret from the libraries below."""

import json
import logging
import logging.config
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisbreaker_mw.telemetry.logs import JSONFormatter, LogFields, TextFormatter, describe_crash, hush_libraries, log_config
from aisbreaker_mw.telemetry.writer import QueuedHandler

# Characters that end a line for somebody (str.splitlines), that move a terminal's cursor, or that are no UTF-8.
ODD = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0\x1b[2J\x07\x08\t\x7f\x9b\udcff"
HARMLESS = "ä € 😀"


def record(message: Any, *args: Any, **values: Any) -> logging.LogRecord:
    made = logging.LogRecord("aisbreaker_mw.test", logging.WARNING, __file__, 1, message, args, values.pop("exc_info", None))
    made.created, made.msecs = 1_700_000_000.123456, 123.456
    return made


def is_one_line(text: str) -> bool:
    controls = {chr(code) for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
    return len(text.splitlines()) == 1 and not controls & set(text)


def raised(text: str) -> Any:
    try:
        raise RuntimeError(text)
    except RuntimeError:
        return sys.exc_info()


# Fields


def test_fields_are_names_and_values() -> None:
    fields = LogFields(method="POST", status=200, client=None, ms=1.5, complete=True, service_id="chat:openai.com/gpt-4o")
    assert str(fields) == "method=POST status=200 ms=1.5 complete=True service_id=chat:openai.com/gpt-4o"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "a=plain"),
        ("", 'a=""'),
        ("two words", 'a="two words"'),
        ('quo"te', r'a="quo\"te"'),
        ("back\\slash", "a=back\\slash"),
        ("x b=forged", 'a="x b=forged"'),
        ("\n", r'a="\n"'),
        ("\x1b[2J", r'a="\u001b[2J"'),
        ("\x7f", r'a="\u007f"'),
        ("\x85", r'a="\u0085"'),
        ("\u2028\u2029", r'a="\u2028\u2029"'),
        ("\udcff", r'a="\udcff"'),
        ("ä", r'a="\u00e4"'),
    ],
    ids=lambda value: ascii(value),
)
def test_values_are_escaped(value: str, text: str) -> None:
    assert str(LogFields(a=value)) == text


@given(
    st.dictionaries(
        st.from_regex("[a-z_]+", fullmatch=True),
        st.text(st.characters(exclude_categories=())) | st.sampled_from(list(ODD)),
        min_size=1,
    )
)
def test_no_value_breaks_out_of_its_field(values: dict[str, str]) -> None:
    text = str(LogFields(values))
    assert text.isascii()
    assert text.isprintable()
    rest = text
    for name, value in values.items():
        assert rest.startswith(f"{name}=")
        rest = rest[len(name) + 1 :]
        if rest.startswith('"'):
            read, end = json.JSONDecoder().raw_decode(rest)
        else:
            end = len(rest.partition(" ")[0])
            read = rest[:end]
        assert read == value
        rest = rest[end + 1 :]
    assert rest == ""


# Lines


def test_a_line_of_text() -> None:
    assert TextFormatter().format(record("hello %s", "you")) == "2023-11-14T22:13:20.123Z WARNING aisbreaker_mw.test hello you"
    assert TextFormatter().format(record(LogFields(a=1))).endswith(" aisbreaker_mw.test a=1")


def test_a_line_of_json() -> None:
    assert json.loads(JSONFormatter().format(record(LogFields(a=1, b=None, c="x")))) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "WARNING",
        "logger": "aisbreaker_mw.test",
        "a": 1,
        "c": "x",
    }
    assert json.loads(JSONFormatter().format(record("hello %s", "you")))["message"] == "hello you"
    assert json.loads(JSONFormatter().format(record(LogFields(a=ValueError))))["a"] == "<class 'ValueError'>"


@pytest.mark.parametrize("formatter", [TextFormatter(), JSONFormatter()], ids=["text", "json"])
@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_it_is_one_line_whatever_it_holds(formatter: logging.Formatter, odd: str) -> None:
    forged = f"x{odd}2023-11-14T22:13:20.123Z ERROR forged"
    for line in (
        formatter.format(record(forged)),
        formatter.format(record("%s", forged)),
        formatter.format(record(LogFields(a=forged))),
        formatter.format(record("crash", exc_info=raised(forged))),
    ):
        assert is_one_line(line)
        assert "forged" in line


@given(st.text(st.characters(exclude_categories=())))
def test_json_tells_any_message_exactly(message: str) -> None:
    for made in (record("%s", message), record(LogFields(message=message))):
        line = JSONFormatter().format(made)
        assert is_one_line(line)
        assert json.loads(line)["message"] == message


@given(st.text(st.characters(exclude_categories=())))
def test_text_is_one_line(message: str) -> None:
    assert is_one_line(TextFormatter().format(record("%s", message)))


def test_other_languages_are_readable() -> None:
    assert HARMLESS in TextFormatter().format(record(HARMLESS))
    assert HARMLESS in JSONFormatter().format(record(HARMLESS))


def test_a_traceback_is_told() -> None:
    assert "RuntimeError: it broke" in TextFormatter().format(record("crash", exc_info=raised("it broke")))
    assert (
        "RuntimeError: it broke"
        in json.loads(JSONFormatter().format(record("crash", exc_info=raised("it broke"))))["traceback"]
    )


def test_a_crash_is_described_without_its_text() -> None:
    def inner() -> None:
        raise ValueError("sk-SENTINEL")

    try:
        inner()
    except ValueError as error:
        described = describe_crash(error)
    assert described.startswith("builtins.ValueError at inner:")
    assert " < test_a_crash_is_described_without_its_text:" in described
    assert "SENTINEL" not in described


# Libraries

TALKATIVE = [
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "hpack.hpack",
    "hpack.table",
    "uvicorn.access",
    "uvicorn.asgi",
    "websockets.client",
    "websockets.server",
]


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Collects what reaches the root logger, everything being set to DEBUG after the libraries were hushed."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(f"{record.name} {record.getMessage()}")

    hush_libraries()
    collector = Collector(1)
    loggers = [logging.getLogger(), *map(logging.getLogger, [*TALKATIVE, "another.library"])]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    loggers[0].addHandler(collector)
    for logger in loggers:
        logger.setLevel(1)
        logger.propagate = True
    yield collected
    loggers[0].removeHandler(collector)
    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.mark.parametrize("name", TALKATIVE)
def test_libraries_stay_silent_below_warning(heard: list[str], name: str) -> None:
    logger = logging.getLogger(name)
    for level in (5, logging.DEBUG, logging.INFO):
        logger.log(level, "GET https://host/path?key=sk-SENTINEL")
    assert heard == []
    logger.warning("something is wrong")
    assert heard == [f"{name} something is wrong"]


def test_other_loggers_are_left_alone(heard: list[str]) -> None:
    logging.getLogger("another.library").debug("hello")
    assert heard == ["another.library hello"]


def test_a_request_of_httpx_is_not_told(heard: list[str]) -> None:
    import httpx

    with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client:
        client.get("https://host.example/?key=sk-SENTINEL")
    assert heard == []


def test_hushing_twice_is_hushing_once() -> None:
    hush_libraries()
    before = {name: len(logging.getLogger(name).filters) for name in TALKATIVE}
    hush_libraries()
    assert {name: len(logging.getLogger(name).filters) for name in TALKATIVE} == before
    assert min(before.values()) >= 1  # a vendor's SDK in the same process adds filters of its own


@pytest.mark.parametrize(("form", "formatter"), [("text", TextFormatter), ("json", JSONFormatter)])
def test_the_servers_configuration(form: str, formatter: type[logging.Formatter]) -> None:
    config = log_config("DEBUG", form)
    assert config["formatters"]["line"]["()"] is formatter
    assert config["loggers"]["aisbreaker_mw"] == {"level": "DEBUG"}
    assert config["root"]["level"] == "WARNING"
    assert config["disable_existing_loggers"] is False
    assert config["handlers"]["stderr"]["()"] is QueuedHandler
    assert pickle.loads(pickle.dumps(config)) == config
    logging.config.DictConfigurator(config)  # type: ignore[attr-defined]
