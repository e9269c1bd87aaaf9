"""
Patterns of serviceIds: they say which services a token's secret is for.

A serviceId is `task:vendor[/engine]`, such as `chat:openai.com/gpt-4o`.
"""

import re

__all__ = ["LONGEST_PATTERN", "TASK", "covers_vendor", "matches", "names_engines", "needs_engine", "validate_pattern"]

LONGEST_PATTERN = 256
"""Longest pattern in a token, in characters."""

TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Form of a task's name, and of a vendor's."""
_VENDOR = TASK
_PATTERN = re.compile(
    rf"""
    \*?                                                  # nothing, or any service
    | (?: \* | {TASK.pattern} ) : \*?                   # any vendor
    | (?: \* | {TASK.pattern} ) : {_VENDOR.pattern} (?: \* | / [!-)+-~]* \*? )?
    | {TASK.pattern} \*                                 # any task with this beginning
    | = {TASK.pattern} : {_VENDOR.pattern} (?: / [!-)+-~]+ )?    # this serviceId alone
    """,
    re.VERBOSE,
)


def validate_pattern(text: str) -> None:
    """
    Check a pattern, the `serviceId` beside a secret in a token.

    Args:
        text: `""` (everything), `task:vendor`, `task:vendor/engine`, or a beginning of these that ends in `:` or `/`. Each
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
    Return whether a pattern covers a serviceId.

    An empty pattern covers everything. Another covers an equal serviceId, and one that it is a prefix of, if it ends at a
    boundary: its last or the next character is `:` or `/`. A trailing `*` stands for any rest, a leading `*:` for any task.
    After a leading `=`, only an equal serviceId is covered.
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
    Return whether the engine decides if a pattern matches.

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
    Return whether a pattern that matches a request leaves out any engine.

    Args:
        pattern: as for `matches`.
        service_id: `task:vendor` of the request.
    """
    return not matches(pattern, service_id + "/")


def covers_vendor(pattern: str, vendor: str) -> bool:
    """
    Return whether a pattern covers anything of a vendor, whatever the task and the engine.

    A token with such a pattern may list the vendor's models (see `RouteMatch.listing`).
    """
    if pattern.startswith("="):
        pattern = pattern[1:]
    task, colon, rest = pattern.partition(":")
    if not colon:
        return not task or task.endswith("*") or TASK.fullmatch(task) is not None
    return matches(rest, vendor) or rest.startswith(vendor + "/")
