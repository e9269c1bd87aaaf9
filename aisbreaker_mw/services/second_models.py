"""
Finds every model that a request body names beside its engine.

A body can name a model in many places: a fallback, a tool that runs a model of its own, a moderation. Each place that is
known gives a name to check. A string under a key like `model` anywhere else can't be checked, so it refuses the request of a
key that names engines. The caller's own words and data are not searched: messages, metadata, schemas and the like.

Objects come as tuples of their members, as `engines` parses them, so that a repeated key hides nothing.
"""

import re
from collections.abc import Callable, Iterable, Sized
from enum import Enum, auto
from typing import Any, NamedTuple

__all__ = ["FieldKind", "NamedModels", "field_kind", "find_models", "plain"]


class NamedModels(NamedTuple):
    """
    The models that a request names.

    Attributes:
        engine: the engine, "" where the request names none outside its path.
        others: further models, in places where vendors read one.
        unchecked: whether some key like `model` stands in a place that nobody knows.
    """

    engine: str
    others: frozenset[str] = frozenset()
    unchecked: bool = False


class FieldKind(Enum):
    """Meaning of a form's or query's field."""

    ENGINE = auto()
    OTHER = auto()
    """Could name a model, in a way that can't be checked."""
    DATA = auto()


class _Place(Enum):
    """Part of a body, by what its keys mean there."""

    BODY = auto()
    """The request itself, or one wrapped in it (Gemini's batches)."""
    TOOLS = auto()
    FALLBACKS = auto()
    """A list of models, or of objects with a `model`."""
    SETTINGS = auto()
    """An object whose own `model` is known."""
    NAMES = auto()
    """Every string is a model's name."""
    ELSEWHERE = auto()
    MODEL = auto()
    """Below a key like `model`: every string could be a model's name."""
    PROMPT = auto()
    """A stored prompt's reference, with its variables."""
    TURNS = auto()
    """Messages. Some vendors take the definition of a tool in the middle of a conversation."""
    BLOCKS = auto()
    CHANGE = auto()


_USER_DATA = frozenset(
    {
        "chat_history",
        "content",
        "contents",
        "documents",
        "inputs",
        "instructions",
        "labels",
        "metadata",
        "prediction",
        "promptVariables",
        "requestMetadata",
        "system",
        "systemInstruction",
        "system_instruction",
        "tool_results",
    }
)
"""Members of a body that hold the caller's words and data, spelled exactly so."""
_SCHEMAS = frozenset(
    {
        "format",
        "guided_json",
        "inputSchema",
        "input_examples",
        "input_schema",
        "jsonSchema",
        "json_schema",
        "outputSchema",
        "output_schema",
        "parameter_definitions",
        "parametersJsonSchema",
        "parameters_json_schema",
        "responseFormat",
        "responseJsonSchema",
        "responseSchema",
        "response_format",
        "response_json_schema",
        "response_schema",
        "schema",
        "userMetadata",
        "user_metadata",
    }
)
"""Members that hold a schema, an example of a tool's arguments, or marks of the caller's, wherever they stand."""
_FALLBACKS = {"fallback": _Place.FALLBACKS, "fallbacks": _Place.FALLBACKS}
_INSIDE: dict[_Place, dict[str, _Place]] = {
    _Place.BODY: {
        **_FALLBACKS,
        "additionalmodelrequestfields": _Place.BODY,  # Bedrock: members of the vendor's own body
        "agent": _Place.NAMES,  # Gemini's interactions take it instead of `model`
        "batch": _Place.BODY,
        "functions": _Place.TOOLS,
        "generatecontentrequest": _Place.BODY,
        "input": _Place.TURNS,
        "inputconfig": _Place.BODY,
        "messages": _Place.TURNS,
        "moderation": _Place.SETTINGS,
        "preset": _Place.NAMES,  # OpenRouter, Perplexity
        "prompt": _Place.PROMPT,
        "request": _Place.BODY,
        "requests": _Place.BODY,
        "route": _Place.NAMES,  # OpenRouter
        "tools": _Place.TOOLS,
    },
    _Place.TOOLS: _FALLBACKS,
    _Place.SETTINGS: _FALLBACKS,
    _Place.ELSEWHERE: _FALLBACKS,
    _Place.PROMPT: _FALLBACKS,
    _Place.TURNS: {"content": _Place.BLOCKS, "tools": _Place.TOOLS},  # OpenAI's item `additional_tools`
    _Place.BLOCKS: {"tool": _Place.CHANGE, "toolchanges": _Place.BLOCKS},  # Anthropic's `tool_addition`, `compaction`
    _Place.CHANGE: {"definition": _Place.TOOLS},
}
"""What the members of an object in a place are, by their key's plain form."""
_CONVERSATION = frozenset({_Place.TURNS, _Place.BLOCKS, _Place.CHANGE})
"""Places in which only the listed members are looked at."""
_KNOWN = frozenset({_Place.BODY, _Place.TOOLS, _Place.SETTINGS})
"""Places in which a vendor reads a member `model`."""
_STRINGS = frozenset({_Place.NAMES, _Place.FALLBACKS})
"""Places in which a string is a model's name."""
_PARAMETERS = frozenset({"parameters", "response"})
_VARIABLES = frozenset({"variables"})
_CONTAINERS = (tuple, list)
_SOME = (str, tuple, list)
"""Values that can be or hold a name."""
_HARMLESS = frozenset({"additionalmodelresponsefieldpaths"})  # Bedrock: paths in the response
_WORD = re.compile(r"model|deployment")
_NAMED = re.compile(r"(?:model|deployment)s?(?:id|name|arn)?s?$")
_NOT_PLAIN = bytes(code for code in range(128) if not chr(code).isalnum())
_FIELD_HEAD = re.compile(r"[\[.]")


def plain(key: str) -> str:
    """
    Return a key as the most lenient reader could take it: lower case, letters and digits alone.

    Some readers fold case (Go's encoding/json), trim (PHP), or end a string at a NUL.
    """
    return key.casefold().encode("ascii", "ignore").translate(None, _NOT_PLAIN).decode("ascii")


def field_kind(name: str, field: str) -> FieldKind:
    """
    Tell what a form's or query's field is.

    Args:
        name: name of the field; brackets or dots may nest it, as in `tools[0][model]`.
        field: name of the engine's field.
    """
    if name == field:
        return FieldKind.ENGINE
    place = _INSIDE[_Place.BODY].get(plain(_FIELD_HEAD.split(name, maxsplit=1)[0]))
    conversation = place in (_Place.TURNS, _Place.PROMPT)
    return FieldKind.OTHER if (place and not conversation) or _WORD.search(plain(name)) else FieldKind.DATA


def find_models(
    members: Iterable[tuple[str, Any]], is_engine: Callable[[str], bool], most_members: int
) -> tuple[frozenset[str], bool]:
    """
    Return the models that a JSON body names beside its engine, and whether a key like `model` can't be checked.

    Args:
        members: members of the body, in order; objects are tuples of such pairs.
        is_engine: tells whether a top-level key is the engine's, which is not looked at here.
        most_members: most members and elements to look at, those of messages aside.

    Raises:
        OverflowError: there are more.
    """
    search = _Search(most_members)
    search.run(tuple(member for member in members if not is_engine(member[0])))
    return frozenset(search.names), search.unchecked


class _Search:
    """Walks one body, with a stack of its own: the depth of Python's is the caller's."""

    def __init__(self, most_members: int) -> None:
        self.names: set[str] = set()
        self.unchecked = False
        self._left = most_members
        self._stack: list[tuple[Any, _Place]] = []
        self._words: dict[str, str] = {}

    def run(self, members: tuple[tuple[str, Any], ...]) -> None:
        """Look at a body, and at everything in it that could name a model."""
        stack = self._stack
        stack.append((members, _Place.BODY))
        while stack:
            value, place = stack.pop()
            if isinstance(value, str):
                if place is _Place.MODEL:
                    self.unchecked = True
                elif place in _STRINGS:
                    self.names.add(value)
            elif place in _CONVERSATION:
                self._turn(value, place)
            elif isinstance(value, tuple):
                self._count(value)
                self._object(value, place)
            else:
                found = [(each, place) for each in value if isinstance(each, _SOME)]
                self._count(found)
                stack.extend(found)

    def _count(self, members: Sized) -> None:
        self._left -= len(members)
        if self._left < 0:
            raise OverflowError

    def _word(self, key: str) -> str:
        word = self._words.get(key)
        if word is None:
            word = self._words[key] = plain(key)
        return word

    def _turn(self, value: Any, place: _Place) -> None:
        """Look at a part of a conversation, of which a few members count."""
        if isinstance(value, list):
            self._stack.extend((each, place) for each in value if isinstance(each, _CONTAINERS))
            return
        inside = _INSIDE[place]
        for key, each in value:
            if isinstance(each, _CONTAINERS) and (below := inside.get(self._word(key))):
                self._stack.append((each, below))

    def _object(self, members: tuple[tuple[str, Any], ...], place: _Place) -> None:
        if place is _Place.FALLBACKS:
            place = _Place.SETTINGS if any(key == "model" for key, _ in members) else _Place.MODEL
        elif place is _Place.NAMES:
            place = _Place.ELSEWHERE
        if place is _Place.MODEL:
            self._stack.extend((value, place) for _, value in members if isinstance(value, _SOME))
            return
        inside, data = _INSIDE[place], self._data(members, place)
        default = _Place.TOOLS if place is _Place.TOOLS else _Place.ELSEWHERE
        for key, value in members:
            if not isinstance(value, _SOME) or key in _SCHEMAS or key in data:
                continue
            word = self._word(key)
            below = inside.get(word)
            if below is not None:
                self._stack.append((value, below))
            elif _WORD.search(word) and word not in _HARMLESS:
                self._model(key, value, place)
            elif not isinstance(value, str):
                self._stack.append((value, default))

    def _data(self, members: tuple[tuple[str, Any], ...], place: _Place) -> frozenset[str]:
        """Return the keys of members that hold the caller's own words or data, in which `model` is any word."""
        if place is _Place.TOOLS:
            # A function's parameters and response are schemas. OpenRouter's own tools have settings there, a model too.
            function = all(value == "function" for key, value in members if self._word(key) == "type")
            return _PARAMETERS if function else frozenset()
        return _USER_DATA if place is _Place.BODY else _VARIABLES if place is _Place.PROMPT else frozenset()

    def _model(self, key: str, value: Any, place: _Place) -> None:
        """Look at a member whose key is like `model`."""
        if isinstance(value, str):
            if key == "model" and place in _KNOWN:
                self.names.add(value)
            else:
                self.unchecked = True
        elif isinstance(value, list) or _NAMED.search(self._word(key)):
            self._stack.append((value, _Place.MODEL))
        else:  # `modelArmorConfig` and the like: its own keys tell
            self._stack.append((value, _Place.ELSEWHERE))
