"""Header fields, as far as a message's framing (RFC 9112, 6) depends on them."""

RawHeaders = list[tuple[bytes, bytes]]

_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

OTHER, LENGTH, CODING, CONNECTION, ILLEGAL = range(5)
"""What a field is to the framing."""

_KNOWN = {b"content-length": LENGTH, b"transfer-encoding": CODING, b"connection": CONNECTION}


def is_token(name: bytes) -> bool:
    """Say whether these bytes are a token (RFC 9110, 5.6.2), as methods and field names are."""
    return bool(name) and not name.translate(None, _TOKEN)


class _Roles(dict[bytes, int]):
    """What each field name is to the framing; those of ordinary length are remembered, up to 1,000."""

    def __missing__(self, name: bytes) -> int:
        kind = _KNOWN.get(name.lower(), OTHER) if is_token(name) else ILLEGAL
        if len(name) < 64 and len(self) < 1000:
            self[name] = kind
        return kind


ROLES = _Roles()


def split_list(value: bytes) -> list[bytes]:
    """Return the members of a list of tokens, in lower case."""
    return [token.strip().lower() for token in value.split(b",")]
