"""Master keys: made, read, or stretched from a keyphrase; their identifiers; and the box keys derived from them."""

from collections.abc import Iterable
from hashlib import blake2b
from secrets import token_bytes

from nacl import pwhash

from ..exceptions import ConfigurationError
from .base64url import b64url_decode, b64url_encode

KEY_BYTES = 32
MIN_KEYPHRASE_CHARACTERS = 20

# RFC 9106, 4: the second recommended option, 3 passes over 64 MiB. The salt is fixed, so that every replica derives the same
# key from the same phrase. The minimum length of the phrase makes up for it.
ARGON2_PASSES = 3
ARGON2_MEMORY = 64 * 1024 * 1024
ARGON2_SALT = b"aisbreaker-salt1"


def generate_key() -> str:
    """Return a fresh master key: 32 random bytes as 43 characters of base64url."""
    return b64url_encode(token_bytes(KEY_BYTES))


def parse_key(text: str, *, name: str) -> bytes:
    """
    Return the 32 bytes of a master key that `generate_key` wrote.

    Args:
        text: the key.
        name: name of the setting that holds it, for the error.

    Raises:
        ConfigurationError: it is no such key. The message holds `name`, never the key.
    """
    try:
        key = b64url_decode(text.rstrip("="))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{name}: takes a key made by `aisbreaker keygen` (32 bytes, base64url)")
    return key


def stretch_keyphrase(phrase: str, *, name: str) -> bytes:
    """
    Return the master key derived from a keyphrase (Argon2id, RFC 9106). Takes about a tenth of a second and 64 MiB.

    Args:
        phrase: the keyphrase.
        name: name of the setting that holds it, for the error.

    Raises:
        ConfigurationError: the phrase has fewer than 20 characters. The message holds `name`, never the phrase.
    """
    if len(phrase) < MIN_KEYPHRASE_CHARACTERS:
        raise ConfigurationError(f"{name}: takes at least {MIN_KEYPHRASE_CHARACTERS} characters")
    # Python reads bytes of the environment that are no UTF-8 as surrogates (PEP 383). They become the same bytes again.
    data = phrase.encode("utf-8", "surrogateescape")
    return pwhash.argon2id.kdf(KEY_BYTES, data, ARGON2_SALT, ARGON2_PASSES, ARGON2_MEMORY)


def key_id(key: bytes) -> str:
    """Return the `kid` of a master key: 8 characters of a hash keyed with it, which reveal nothing about the key."""
    return b64url_encode(blake2b(key=key, person=b"aisbreaker-kid", digest_size=6).digest())


class Keyring:
    """
    The master keys of a server. The first one seals, all of them open.

    Args:
        key: key that seals and opens, 32 bytes.
        retired: former keys that only open, 32 bytes each.

    Raises:
        ValueError: a key does not have 32 bytes.
    """

    def __init__(self, key: bytes, retired: Iterable[bytes] = ()) -> None:
        keys = [key, *retired]
        if any(len(each) != KEY_BYTES for each in keys):
            raise ValueError("a master key is 32 bytes")
        self.kid = key_id(key)
        """The `kid` of the key that seals."""
        self._keys = {key_id(each): each for each in keys}

    def __repr__(self) -> str:
        return f"Keyring(kid={self.kid!r}, retired={len(self._keys) - 1})"

    def __contains__(self, kid: str) -> bool:
        return kid in self._keys

    @property
    def places_key(self) -> bytes:
        """
        The key under which clients are assigned to places on a shared quota storage, 32 bytes, from the key that seals.

        Replicas with the same master key share their counts.
        """
        return blake2b(key=self._keys[self.kid], person=b"aisbreaker-quota", digest_size=KEY_BYTES).digest()

    def box_key(self, kid: str, header: bytes, host: str) -> bytes:
        """
        Return the SecretBox key for one token header and host, 32 bytes.

        SecretBox has no associated data. The key is derived from the header and the host, so a change of either fails the MAC.

        Args:
            kid: identifier of a key of this ring.
            header: header segment as it stands in the token.
            host: host that the token is bound to, lower case, without port.

        Raises:
            KeyError: the ring has no key `kid`.
        """
        message = header + b"\0" + host.encode("utf-8")
        return blake2b(message, key=self._keys[kid], person=b"aisbreaker-token", digest_size=KEY_BYTES).digest()
