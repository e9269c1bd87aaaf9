"""Places of the records on a shared storage: few enough that no flood of clients or tokens fills the storage."""

from hashlib import blake2b
from typing import NamedTuple

from ..memo import Memo
from .model import Bucket

RECORDS = 16
"""Records in one place."""

SERVER_SLOTS = frozenset({"srv", "mint"})
"""Slots that hold all records of their policies. The records of the other policies are spread by their slots."""

_CACHE_SIZE = 65_536
"""Most buckets whose places are remembered."""


class Place(NamedTuple):
    """
    The place of a bucket.

    Attributes:
        key: key of the hash that holds the records of the place.
        fields: field of the bucket's own record; of the record that new buckets of the same slot share where the place is full;
            and of the record that all new buckets share where that one found no room either.
    """

    key: str
    fields: tuple[bytes, bytes, bytes]


class Places:
    """
    Assigns buckets to places.

    A place is one hash with room for 16 records. A policy has `max_clients / 16` places, so it has at most about `max_clients`
    records however many clients and tokens come. The script counts a bucket in a record of its own while its place has room.
    In a full place, the new buckets of a slot (the new clients of a token) share a record. Two such records are kept beyond
    the 16; after that, all new buckets of the place share one.

    Place and field come from a keyed hash of the bucket's key. So nobody can choose addresses that fill the place of another
    client, and the storage holds no address.

    Args:
        prefix: prefix of every key.
        max_clients: most records per policy.
        spread: number of slots of a Redis Cluster over which the slots of tokens are spread. The places are divided among them.
        secret: key of the hash, at most 64 bytes.
    """

    def __init__(self, prefix: str, max_clients: int, spread: int, secret: bytes) -> None:
        self._prefix = prefix
        self._spread = spread
        self._secret = secret
        self.records = min(RECORDS, max_clients)
        """Records in one place."""
        self._places = max(1, max_clients // RECORDS)
        self._remembered: Memo[str, Place] = Memo(_CACHE_SIZE)

    def find(self, bucket: Bucket) -> Place:
        """Return the place of a bucket with windows."""
        place = self._remembered[bucket.key]
        if place is None:
            place = self._find(bucket)
            self._remembered.remember(bucket.key, place)
        return place

    def _find(self, bucket: Bucket) -> Place:
        slot, places = bucket.slot, self._places
        if slot not in SERVER_SLOTS:
            slot = f"tok{int.from_bytes(self._hash(slot)) % self._spread}"
            places = max(1, places // self._spread)
        own = self._hash(bucket.key)
        # Buckets with windows of other lengths have another shared record, because a record keeps the windows of its last
        # request only.
        lengths = ",".join([str(length) for _, length in bucket.windows])
        shared = f"overflow/{bucket.policy}/{lengths}"
        number = int.from_bytes(own) % places
        fields = (own, self._hash(f"{shared}/{bucket.slot}"), self._hash(shared))
        return Place(f"{self._prefix}:{{{slot}}}:{bucket.policy}:{number}", fields)

    def _hash(self, text: str) -> bytes:
        return blake2b(text.encode(), key=self._secret, person=b"aisbreaker-place", digest_size=16).digest()
