"""Changes of a view as messages of a topic: the newest row of each key, or that the key is gone.

The key of a message is a JSON object of the key columns (and `view`, where a topic holds several), its value one of
all columns and the event time `at`; a key that is gone is a tombstone, which has no value. So a compacted topic holds
the view. What came and went within a batch is left out, and of each key there is one message in a batch: (view, key,
version) names a message for ever, where the version is the number of the batch.

The partition is that of Kafka's own clients: murmur2 of the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numba import njit

from engine.encode import encode
from operators.delta import Delta, Ints, Schema, consolidated


@dataclass(frozen=True)
class Messages:
    """keys, values: of each message; a value of None is a tombstone. rows: the rows of the delta that they are."""

    keys: list[bytes]
    values: list[bytes | None]
    rows: Delta

    def __len__(self) -> int:
        return len(self.keys)


def messages(delta: Delta, key: Sequence[str], schema: Schema, view: str | None = None) -> Messages:
    """The messages that follow from a delta of a view whose rows are told apart by `key`.

    view: a name that the keys tell, too, where a topic holds several views.

    >>> from operators.delta import INT
    >>> n = np.array
    >>> d = Delta({"id": n([7, 8, 7]), "n": n([1, 1, 2])}, n([-1, -1, 1]), n([5, 6, 5]), n([0, 1, 2]), n([3, 3, 3]))
    >>> made = messages(d, ["id"], {"id": INT, "n": INT})
    >>> made.keys, made.values
    ([b'{"id":8}', b'{"id":7}'], [None, b'{"id":7,"n":2,"at":"1970-01-01T00:00:00.000005Z"}'])
    """
    net = consolidated(delta)
    keys = _lines(encode(net, {k: schema[k] for k in key}))
    if view is not None:
        told = b',"view":' + orjson.dumps(view) + b"}"
        keys = [k[:-1] + told for k in keys]
    weights = net.weight.tolist()
    last = {k: i for i, k in enumerate(keys) if weights[i] < 0} | {k: i for i, k in enumerate(keys) if weights[i] > 0}
    if len(last) < len(keys):
        keep = np.array(sorted(last.values()), np.int64)
        net, keys = net.take(keep), [keys[i] for i in keep.tolist()]
    values: list[bytes | None] = list(_lines(encode(net, schema, at=None if "at" in schema else "at")))
    for i in np.flatnonzero(net.weight < 0).tolist():
        values[i] = None
    return Messages(keys, values, net)


def _lines(block: bytes) -> list[bytes]:
    return block.split(b"\n")[:-1]


def partitions(keys: Sequence[bytes], count: int) -> Ints:
    """The partition of each key among so many: that of Kafka's Java client, and of those that do as it does.

    >>> partitions([b"a", b"foobar", b"a-little-bit-long-string"], 1 << 30).tolist()
    [584102524, 283409342, 87760288]
    """
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    out = np.empty(len(keys), np.int64)
    _murmur2(np.frombuffer(b"".join(keys) or b"\0", np.uint8), np.cumsum(lengths), lengths, count, out)
    return out


@njit(cache=True, nogil=True)
def _murmur2(block, ends, lengths, count, out) -> None:  # type: ignore[no-untyped-def]
    """Austin Appleby's MurmurHash2 with Kafka's seed, its sign cleared, modulo the number of partitions."""
    mask, m = np.uint64(0xFFFFFFFF), np.uint64(0x5BD1E995)
    for i in range(len(ends)):
        n, at = lengths[i], ends[i] - lengths[i]
        h = np.uint64(0x9747B28C) ^ np.uint64(n)
        for _ in range(n // 4):
            k = np.uint64(block[at]) | np.uint64(block[at + 1]) << np.uint64(8)
            k |= np.uint64(block[at + 2]) << np.uint64(16) | np.uint64(block[at + 3]) << np.uint64(24)
            k = (k * m) & mask
            k ^= k >> np.uint64(24)
            h = ((h * m) & mask) ^ ((k * m) & mask)
            at += 4
        left = n % 4
        if left == 3:
            h ^= np.uint64(block[at + 2]) << np.uint64(16)
        if left >= 2:
            h ^= np.uint64(block[at + 1]) << np.uint64(8)
        if left >= 1:
            h = ((h ^ np.uint64(block[at])) * m) & mask
        h ^= h >> np.uint64(13)
        h = (h * m) & mask
        h ^= h >> np.uint64(15)
        out[i] = np.int64(h & np.uint64(0x7FFFFFFF)) % count
