"""
Patterns of serviceIds: what a token's secrets are for.

A serviceId is `task:vendor[/engine]`, such as `chat:openai.com/gpt-4o`.
"""

import re

__all__ = ["LONGEST_PATTERN", "TASK", "covers_vendor", "matches", "names_engines", "needs_engine", "validate_pattern"]

LONGEST_PATTERN = 256
"""Characters of a pattern in a token, at most."""

TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A task's name, and a vendor's."""
_VENDOR = TASK
_PATTERN = re.compile(
    rf"""
    \*?                                                  # nothing, or any service
    | (?: \* | {TASK.pattern} ) : \*?                   # any vendor
    | (?: \* | {TASK.pattern} ) : {_VENDOR.pattern} (?: \* | / [!-)+-~]* \*? )?
    | {TASK.pattern} \*                                 # any task with this beginning
    | = {TASK.pattern} : {_VENDOR.pattern} (?: / [!-)+-~]+ )?    # this one alone
    """,
    re.VERBOSE,
)


def validate_pattern(text: str) -> None:
    """
    Check what may stand as a `serviceId` in a token.

    Args:
        text: `""` (everything), `task:vendor`, `task:vendor/engine`, a beginning of these that ends in `:` or `/`; each
            may end in `*`, and the task may be `*`. Or `=` and a serviceId. Printable ASCII, at most `LONGEST_PATTERN`
            characters.

    Raises:
        ValueError: with a fixed text that does not repeat the pattern.
    """
    if len(text) > LONGEST_PATTERN:
        raise ValueError(f"must have at most {LONGEST_PATTERN} characters")
    if not _PATTERN.fullmatch(text):
        raise ValueError(
            "must be a serviceId: task:vendor, task:vendor/engine, either with a trailing * or a leading =, *:vendor, or empty"
        )


def matches(pattern: str, service_id: str) -> bool:
    """
    Tell whether a token's pattern covers a serviceId.

    It does if it is empty, equal, or a prefix that ends at a boundary: its last or the next character is `:` or `/`.
    A trailing `*` stands for any rest, a leading `*:` for any task. After a leading `=` it must be equal.
    """
    if pattern.startswith("="):
        return service_id == pattern[1:]
    if pattern.startswith("*:"):
        pattern, service_id = pattern[2:], service_id.partition(":")[2]
    if pattern.endswith("*"):
        return service_id.startswith(pattern[:-1])
    if not service_id.startswith(pattern):
        return False
    return len(pattern) in (0, len(service_id)) or pattern[-1] in ":/" or service_id[len(pattern)] in ":/"


def needs_engine(pattern: str, service_id: str) -> bool:
    """
    Tell whether the engine decides if a pattern matches.

    Args:
        pattern: as for `matches`.
        service_id: `task:vendor`.
    """
    if pattern.startswith("="):
        return pattern[1:] == service_id or pattern.startswith(service_id + "/", 1)
    if pattern.startswith("*:"):
        pattern, service_id = pattern[2:], service_id.partition(":")[2]
    return pattern.startswith(service_id + "/")


def names_engines(pattern: str, service_id: str) -> bool:
    """
    Tell whether a pattern that matches a request doesn't cover every engine.

    Args:
        pattern: as for `matches`.
        service_id: `task:vendor` of the request.
    """
    return not matches(pattern, service_id + "/")


def covers_vendor(pattern: str, vendor: str) -> bool:
    """
    Tell whether a pattern covers anything of a vendor, whatever the task and the engine.

    This is what listing the vendor's models takes (see `RouteMatch.listing`).
    """
    if pattern.startswith("="):
        pattern = pattern[1:]
    task, colon, rest = pattern.partition(":")
    if not colon:
        return not task or task.endswith("*") or TASK.fullmatch(task) is not None
    return matches(rest, vendor) or rest.startswith(vendor + "/")
