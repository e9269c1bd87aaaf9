"""The one field of a body, form or query that names the engine."""

import re
from collections.abc import Iterable
from typing import Any

from ..exceptions import InvalidRequest
from .second_models import plain

__all__ = ["LONGEST_ENGINE", "check_engine", "could_name_engine", "only_engine"]

LONGEST_ENGINE = 256
"""Longest engine, in characters."""

_ENGINE = re.compile(r"[!-~]*")


def could_name_engine(name: str, field: str) -> bool:
    """
    Return whether some upstream could read a field as the engine's.

    Some readers are lenient (see `plain`), and some take alternatives that nobody checked from the plural (OpenRouter's
    `models`).

    Args:
        name: name of the field that came.
        field: name of the engine's field.
    """
    return plain(name) in (plain(field), plain(field) + "s")


def only_engine(members: Iterable[tuple[str, Any]], field: str) -> str:
    """
    Return the engine, "" where no field names one.

    Args:
        members: names and values, duplicates included.
        field: name of the engine's field.

    Raises:
        InvalidRequest: two fields name an engine, one only resembles the engine's field, or the engine is malformed.
    """
    engine: object = None
    seen = False
    for name, value in members:
        if not could_name_engine(name, field):
            continue
        if name != field:
            raise InvalidRequest("The request names its model in a way that can't be checked.", param=field)
        if seen:
            raise InvalidRequest("The request names its model twice.", param=field)
        seen, engine = True, value
    if engine is None:
        return ""
    return check_engine(engine, field)


def check_engine(engine: object, field: str) -> str:
    """
    Return an engine if it is well-formed.

    Raises:
        InvalidRequest: it is not.
    """
    if not isinstance(engine, str) or len(engine) > LONGEST_ENGINE or not _ENGINE.fullmatch(engine):
        raise InvalidRequest(f"The model must be a string of at most {LONGEST_ENGINE} printable ASCII characters.", param=field)
    return engine
