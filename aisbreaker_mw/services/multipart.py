"""Finds the engine's field in a multipart form (RFC 7578)."""

import logging
import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from ..exceptions import InvalidRequest
from ..http1.grammar import TOKEN
from .engine_field import LONGEST_ENGINE, could_name_engine
from .second_models import FieldKind, field_kind

__all__ = ["MAX_FIELDS", "engine_members", "parse_header"]

MAX_FIELDS = 1000
"""Most fields of a form."""

_SILENT = logging.Logger("multipart")  # the parser's own logger quotes the body
_SILENT.disabled = True

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046, 5.1.1
_PARAMETER = re.compile(rf';[ \t]*(?:({TOKEN})=({TOKEN}|"(?:[^"\\]|\\.)*"))?[ \t]*')  # RFC 9110, 5.6.6


def engine_members(body: bytes | bytearray, boundary: str, field: str) -> list[tuple[str, str]]:
    """
    Return name and value of each part of a form that some upstream could read as the engine's.

    A part that could name another model comes with an empty value.

    Args:
        body: the whole form.
        boundary: `boundary` of its Content-Type, "" without one.
        field: name of the engine's field.

    Raises:
        InvalidRequest: the form can be read in no way or in several, or such a part is not plain text.
    """
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("The form's boundary is missing or malformed.")
    form = _Form(field)
    delimiter = boundary.encode("ascii")
    try:
        form.read(body, delimiter)
    except FormParserError:
        raise InvalidRequest("The form can't be read.") from None
    # RFC 2046, 5.1.1: "The boundary delimiter MUST NOT appear inside any of the encapsulated parts". Where it does (after a
    # bare LF, before the first or after the last part), another reader could see other parts.
    if not form.ended or body.count(b"--" + delimiter) != form.parts + 1:
        raise InvalidRequest("The form can't be read.")
    return form.members


class _Form:
    """Collects the engine's field from the events of a multipart parser."""

    def __init__(self, field: str) -> None:
        self.members: list[tuple[str, str]] = []
        self.parts = 0
        self.ended = False
        self._field = field
        self._headers: list[tuple[bytes, bytes]] = []
        self._name = b""
        self._value = b""
        self._data: bytearray | None = None
        self._part = ""

    def read(self, body: bytes | bytearray, boundary: bytes) -> None:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )
        parser.logger = _SILENT
        parser.write(body)  # type: ignore[arg-type]  # only read; a bytearray will do
        parser.finalize()

    def _part_begin(self) -> None:
        self.parts += 1
        if self.parts > MAX_FIELDS:
            raise InvalidRequest("The form has too many fields.")
        self._headers.clear()
        self._data = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name = bytes(data[start:end]).lower()
        self._value = b""

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = bytes(data[start:end])

    def _header_end(self) -> None:
        self._headers.append((self._name, self._value))

    def _headers_finished(self) -> None:
        headers = {name: value.decode("latin-1") for name, value in self._headers}
        disposition, parameters = parse_header(headers.get(b"content-disposition", ""))
        name = parameters.get("name", "")
        # RFC 7578, 4.2 and 4.6: no `name*`, and no field that changes the others' charset
        strange = len(headers) != len(self._headers) or "name*" in parameters or name == "_charset_"
        if disposition != "form-data" or not name or strange or "\\" in name or "%" in name:
            raise InvalidRequest("The form has a part that can't be read.")
        self._part = name
        if not could_name_engine(name, self._field):
            if field_kind(name, self._field) is not FieldKind.DATA:
                self.members.append((name, ""))
            return
        media_type, of_type = parse_header(headers.get(b"content-type", "text/plain"))
        if (
            "filename" in parameters
            or "filename*" in parameters
            or media_type != "text/plain"
            or of_type.get("charset", "utf-8").lower() not in ("utf-8", "us-ascii")
            or headers.get(b"content-transfer-encoding", "8bit").strip().lower() not in ("7bit", "8bit", "binary")
        ):
            raise InvalidRequest("The form names its model in a way that can't be checked.", param=self._field)
        self._data = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start : min(end, start + LONGEST_ENGINE + 1)]

    def _part_end(self) -> None:
        if self._data is not None:
            self.members.append((self._part, self._data.decode("latin-1")))

    def _end(self) -> None:
        self.ended = True


def parse_header(value: str) -> tuple[str, dict[str, str]]:
    """
    Split a header such as Content-Type into its value and its parameters.

    The value and the parameters' names are in lower case. A quoted string keeps its backslashes: a name with one is refused.

    Raises:
        InvalidRequest: the header is malformed, or has a parameter twice.
    """
    main, separator, rest = value.partition(";")
    parameters: dict[str, str] = {}
    at, rest = 0, separator + rest
    while at < len(rest):
        found = _PARAMETER.match(rest, at)
        if found is None or (found[1] or "").lower() in parameters:
            raise InvalidRequest("A Content-Type or Content-Disposition header is malformed.")
        if found[1]:
            text = found[2]
            parameters[found[1].lower()] = text[1:-1] if text[0] == '"' else text
        at = found.end()
    return main.strip(" \t").lower(), parameters
