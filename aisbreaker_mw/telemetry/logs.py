"""Log lines: one per request, as text or JSON, without secrets."""

import json
import logging
import time
import traceback
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

import orjson

from .writer import QueuedHandler

ACCESS_LOGGER = "aisbreaker_mw.access"
"""Name of the logger of the line per request."""

# Loggers of our libraries that tell headers, URLs or scopes at low levels.
_TALKATIVE = (
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "httpx",
    "hpack.hpack",
    "hpack.table",
    "h2",
    "uvicorn.access",
    "uvicorn.asgi",
    "websockets.client",
    "websockets.server",
)


class LogFields(dict[str, Any]):
    """Message of a structured log line. Its text is `name=value ...`, with control characters escaped. None is left out."""

    def __str__(self) -> str:
        return " ".join(f"{name}={_escaped(value)}" for name, value in self.items() if value is not None)


def _escaped(value: Any) -> str:
    text = str(value)
    if text and text.isascii() and text.isprintable() and " " not in text and '"' not in text:
        return text
    return json.dumps(text)


def new_request_id() -> str:
    """Return a fresh name for a request, for its log line and its response."""
    return "req_" + token_hex(12)


class TextFormatter(logging.Formatter):
    """Formats `time level logger message` on one line, even where the message or a traceback has line ends."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).translate(_CONTROLS)


# Control characters, and the other characters that end a line (Unicode Standard, 5.8).
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class JSONFormatter(logging.Formatter):
    """Formats one JSON object a line: `time`, `level`, `logger`, then the fields of the message, or `message`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, Mapping):
            fields.update((name, value) for name, value in record.msg.items() if value is not None)
        else:
            fields["message"] = record.getMessage()
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        try:
            line = orjson.dumps(fields, default=str).decode("utf-8")
        except TypeError:  # a lone surrogate, from bytes that are not UTF-8 (PEP 383)
            line = json.dumps(fields, default=str)
        return line.translate(_CONTROLS)


def _refuse_details(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _refuse_websockets(record: logging.LogRecord) -> bool:
    # uvicorn logs a WebSocket's target with its query when it starts and, below INFO, its headers and messages.
    return record.levelno >= logging.WARNING or (record.levelno >= logging.INFO and '"WebSocket ' not in str(record.msg))


def hush_libraries() -> None:
    """Keep our libraries from logging headers, URLs and query strings, whatever level they are set to."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_refuse_details)
    logging.getLogger("uvicorn.error").addFilter(_refuse_websockets)


def log_config(level: str, form: str) -> dict[str, Any]:
    """
    Return the `logging.config.dictConfig` of the standalone server. Everything goes to stderr, and waits for no reader.

    Args:
        level: name of a level of the logging module, such as `INFO`.
        form: `text` or `json`.
    """
    formatter = JSONFormatter if form == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": {"()": QueuedHandler, "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {"aisbreaker_mw": {"level": level}, "uvicorn.error": {"level": "WARNING"}},
    }


def describe_crash(error: BaseException) -> str:
    """Return the type of an exception and where it came from, without its text, which may quote anything."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__module__}.{type(error).__qualname__} at {where}"
