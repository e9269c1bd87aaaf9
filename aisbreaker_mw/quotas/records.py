"""The records of the memory storage: where they lie, and when they go."""

from array import array

from .model import MAX_WINDOWS, PLAN_STEP, Bucket

# A record is a run of integers: a head, then three per window. All records lie in one array: the garbage collector has nothing
# to visit, and a client costs some 340 bytes, most of it for its key. Times are milliseconds of the monotonic clock.
#
# A request adds the same to all windows of a record. So until one of them ends, their counts keep their distances, and the
# window nearest its limit, the leader, stays the nearest. Hence one number counts for all of them, the room: a request takes
# its cost from it, and the current count of a window is the window's base less the room. Whenever all windows are looked at,
# the room is made what the leader has left. A request that comes while the leader is known reads the room and lowers it,
# however many windows there are.
#
# If the leader's previous count is not zero, it fades: the leader has more left than the room says, and leads only until
# another window has less.
#
# The head:
# 0. the room,
# 1. until when the leader is known (the upper bits; 0: it is not), whether its previous count fades, which window it is,
# 2. the plan of the bucket whose leader it is, as other limits have another one; its lower bits are the number of windows,
# 3. when the record may be dropped (the upper bits), the number of its policy.
# A window: its end (0: nothing was counted yet), its previous count, its base.
HEAD = 4
WINDOW = 3
LEADER = MAX_WINDOWS - 1
FADING = MAX_WINDOWS
UNTIL_SHIFT = 5
NO_TIME = (1 << UNTIL_SHIFT) - 1
EXPIRY_SHIFT = 10
POLICY = (1 << EXPIRY_SHIFT) - 1

INSPECTION = 32
"""Records that are looked at in one go: one after the other in memory, as they were made."""

BLANK = 0
"""The record that stands for every key without one: the first, always zero."""


class RecordTable:
    """
    All records, by their keys.

    Args:
        max_clients: keys with a record of their own, per policy.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._max_records = max_clients + max_clients // 8 + 1
        # The key that is no string makes it a dictionary whose entries hold their keys' hashes. One of strings alone looks
        # for them in the keys, which among a million are never in the processor's caches: a third slower.
        self.records: dict[str | None, int] = {None: BLANK}
        """Where the record of a key begins."""
        self.data = array("q", bytes(8 * (HEAD + WINDOW * MAX_WINDOWS)))
        """All records, the blank one first."""
        self._free: dict[int, list[int]] = {}
        """Dropped records for reuse, by their number of windows."""
        self._policies: dict[str, int] = {}
        """Numbers of the policies."""
        self._sizes: list[int] = []
        """Records per policy."""
        self.due = 0
        """Records to be looked at by the next inspection."""
        # All records in the order of inspection, where it goes on, and the key of each. (A list of the keys would do, and be
        # visited by every full garbage collection: a tenth of a second at a million.)
        self._ring = array("I")  # half the bytes of a "q", and enough for 32 GB of records
        self._hand = 0
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        """Count the records, those that ran out and are not dropped yet included."""
        return len(self._ring)

    def _overflow_key(self, bucket: Bucket) -> str | None:
        """Name the record that counts a new key, None where it gets one of its own."""
        policy = self._policies.get(bucket.policy)
        size = 0 if policy is None else self._sizes[policy]
        if size < self._max_clients:
            return None
        lengths = ",".join([str(length) for _, length in bucket.windows])
        key = f"overflow/{bucket.policy}/{lengths}/{bucket.slot}"
        if key in self.records or size < self._max_records:
            return key
        return f"overflow/{bucket.policy}/{lengths}"

    def find_overflow(self, bucket: Bucket) -> int:
        """Find the record that counts a key without one of its own, blank where it is still to be made."""
        key = self._overflow_key(bucket)
        return BLANK if key is None else self.records.get(key, BLANK)

    def create_for(self, bucket: Bucket) -> int:
        """Make the record that counts the bucket, unless it is there."""
        return self.create(self._overflow_key(bucket) or bucket.key, bucket.policy, len(bucket.windows))

    def create(self, key: str, policy: str, size: int) -> int:
        """Make a record, unless it is there."""
        if record := self.records.get(key):
            return record
        # There is a handful of policies. Should there ever be more than a record can tell, the rest counts as one.
        number = self._policies.setdefault(policy, min(len(self._policies), POLICY))
        if number == len(self._sizes):
            self._sizes.append(0)
        self._sizes[number] += 1
        free = self._free.get(size)
        if free:
            record = free.pop()
        else:
            record = len(self.data)
            self.data.frombytes(bytes(8 * (HEAD + WINDOW * size)))
        self.data[record + 2] = size
        self.data[record + 3] = number
        self.records[key] = record
        self._ring.append(record)
        self._keys[record] = key
        return record

    def inspect(self, now: int) -> None:
        """Look at the records that are due and drop those whose windows have all run out."""
        due, self.due = self.due, 0
        ring = self._ring
        data = self.data
        hand = self._hand
        count = len(ring)
        alive = now + 1 << EXPIRY_SHIFT
        for _ in range(due):
            if hand >= count:
                hand = 0
                if not count:
                    break
            record = ring[hand]
            if data[record + 3] >= alive:
                hand += 1
                continue
            self._drop(record)
            # The last one takes the place of the dropped one, and is looked at next.
            last = ring.pop()
            count -= 1
            if hand < count:
                ring[hand] = last
        self._hand = hand

    def _drop(self, record: int) -> None:
        del self.records[self._keys.pop(record)]
        size = self.data[record + 2] % PLAN_STEP
        self._sizes[self.data[record + 3] & POLICY] -= 1
        for i in range(record, record + HEAD + WINDOW * size):
            self.data[i] = 0
        self._free.setdefault(size, []).append(record)
