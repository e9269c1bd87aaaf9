"""The records of the memory storage: their layout, and when they are dropped."""

from array import array

from .model import MAX_WINDOWS, PLAN_STEP, Bucket

# A record is a run of integers: a head, then three per window. All records are in one array, so the garbage collector has
# nothing to visit. A client takes some 340 bytes, most of them for its key. Times are milliseconds of the monotonic clock.
#
# A request adds the same number to all windows of a record. So the differences between their counts stay the same until one of
# them ends, and the window nearest its limit, the leader, stays the nearest. Hence one number counts for all windows: the room.
# A request subtracts its cost from the room. The current count of a window is the window's base less the room. Whenever all
# windows are looked at, the room is set to what the leader has left. While the leader is known, a request reads and lowers the
# room alone, however many windows there are.
#
# A previous count of the leader that is not zero fades. Then the leader has more left than the room says, and it leads only
# until another window has less.
#
# The head:
# 0. the room,
# 1. the time until which the leader is known (the upper bits; 0 if it is not), whether its previous count fades, and its
#    number,
# 2. the plan of the bucket that the leader was found for, because other limits may have another leader; its lower bits are the
#    number of windows,
# 3. the time from which the record may be dropped (the upper bits), and the number of its policy.
# A window: its end (0 if nothing is counted yet), its previous count, its base.
HEAD = 4
WINDOW = 3
LEADER = MAX_WINDOWS - 1
FADING = MAX_WINDOWS
UNTIL_SHIFT = 5
NO_TIME = (1 << UNTIL_SHIFT) - 1
EXPIRY_SHIFT = 10
POLICY = (1 << EXPIRY_SHIFT) - 1

INSPECTION = 32
"""Records inspected in one go. Inspecting them in the order of their creation reads memory in order."""

SEARCH = 256
"""Records inspected in one go while a policy has no place for a new key."""

SEARCH_PAUSE = 1000
"""Milliseconds from one search through all records to the next."""

BLANK = 0
"""The record of every key that has none: the first one, always zero."""


class RecordTable:
    """
    All records, by their keys.

    Args:
        max_clients: most keys, per policy, with a record of their own.
    """

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._max_records = max_clients + max_clients // 8 + 1
        # The key None makes CPython store the hashes in the dictionary itself. A dictionary of strings alone reads them from
        # the keys. Among a million keys these are never in the processor's caches, which makes it a third slower.
        self.records: dict[str | None, int] = {None: BLANK}
        """The index in `data` at which the record of a key begins."""
        self.data = array("q", bytes(8 * (HEAD + WINDOW * MAX_WINDOWS)))
        """All records, the blank one first."""
        self._free: dict[int, list[int]] = {}
        """Dropped records for reuse, by number of windows."""
        self._policies: dict[str, int] = {}
        """Numbers of the policies."""
        self._sizes: list[int] = []
        """Records per policy."""
        self.due = 0
        """Records that the next inspection looks at."""
        # Whether a key found no place since the last inspection, how many records the search has seen, and when it may begin.
        self._crowded = False
        self._searched = 0
        self._next_search = 0
        # All records in the order of inspection, the next position, and the key of each record. Every full garbage collection
        # would visit a list of the keys: a tenth of a second for a million.
        self._ring = array("I")  # half the size of "q", and enough for 32 GB of records
        self._hand = 0
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        """Return the number of records, with those that have ended and are not dropped yet."""
        return len(self._ring)

    def _overflow_key(self, bucket: Bucket) -> str | None:
        """Return the key of the overflow record that counts a new key, or None if it gets a record of its own."""
        policy = self._policies.get(bucket.policy)
        size = 0 if policy is None else self._sizes[policy]
        if size < self._max_clients:
            return None
        # Records of other policies may lie before those that have ended, and requests that share a window make the inspection
        # no faster. So look for room in greater steps.
        self._crowded = True
        self.due = max(self.due, INSPECTION)
        lengths = ",".join([str(length) for _, length in bucket.windows])
        key = f"overflow/{bucket.policy}/{lengths}/{bucket.slot}"
        if key in self.records or size < self._max_records:
            return key
        return f"overflow/{bucket.policy}/{lengths}"

    def find_overflow(self, bucket: Bucket) -> int:
        """Return the overflow record that counts a key without a record, or blank if it does not exist yet."""
        key = self._overflow_key(bucket)
        return BLANK if key is None else self.records.get(key, BLANK)

    def create_for(self, bucket: Bucket) -> int:
        """Return the record that counts a bucket. Makes it if there is none."""
        return self.create(self._overflow_key(bucket) or bucket.key, bucket.policy, len(bucket.windows))

    def create(self, key: str, policy: str, size: int) -> int:
        """Return the record of a key. Makes it if there is none."""
        if record := self.records.get(key):
            return record
        # There are a handful of policies. If there were more than a record can number, the rest would share a number.
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
        """Look at the records that are due, and drop those whose windows have all ended."""
        due, self.due = self.due, 0
        ring = self._ring
        data = self.data
        hand = self._hand
        count = len(ring)
        if self._crowded:
            self._crowded = False
            if now >= self._next_search:
                due = max(due, SEARCH)
                self._searched += due
                if self._searched >= count:
                    self._searched = 0
                    self._next_search = now + SEARCH_PAUSE
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
            # The last record takes the place of the dropped one, and is the next to be looked at.
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
