"""Record batches as a Kafka broker sends them, to columns in one pass: offsets, times, keys and values.

The format is that of message version 2 (Kafka 0.11 and later): each record is a row of variable-length integers (zigzag
varints), its key, its value and its headers. What the client library would read record by record is read here by a
kernel, for a batch at once; checksums and compression are the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from engine.scan import Records
from operators.delta import Ints

Bytes = npt.NDArray[np.uint8]


class UnpackError(ValueError):
    """A record batch that is not what the format says."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Records of a partition as they were sent.

    block: the bytes. offset, time: of each record, time in milliseconds since 1970. keys, values: where each begins and
    ends in the block, shape (n, 2); an end of -1 is a null.
    """

    block: bytes
    offset: Ints
    time: Ints
    keys: Ints
    values: Ints

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, i: int) -> bytes | None:
        """The key of a record."""
        begin, end = self.keys[i].tolist()
        return None if end < 0 else self.block[begin:end]

    def value(self, i: int) -> bytes | None:
        """The value of a record."""
        begin, end = self.values[i].tolist()
        return None if end < 0 else self.block[begin:end]

    def between(self, least: int, limit: int | None) -> Packed:
        """The records from one offset to before another."""
        if not len(self) or (self.offset[0] >= least and (limit is None or self.offset[-1] < limit)):
            return self
        a, b = np.searchsorted(self.offset, [least, 1 << 62 if limit is None else limit]).tolist()
        return Packed(self.block, self.offset[a:b], self.time[a:b], self.keys[a:b], self.values[a:b])


def unpack(block: bytes, count: int, base: int, first: int, appended: int, least: int) -> Packed:
    r"""The records of a batch whose offset is `least` or more.

    block: the records after the header of the batch, not compressed. count: how many they are. base: the offset of the
    first. first: the time to which those of the records are added. appended: the time of all of them, or -1 when each
    has its own. Raises `UnpackError`.

    >>> record = bytes([18, 0, 4, 0, 2]) + b"k" + bytes([4]) + b"{}" + bytes([0])
    >>> packed = unpack(record, 1, 7, 1000, -1, 0)
    >>> packed.offset.tolist(), packed.time.tolist(), packed.key(0), packed.value(0)
    ([7], [1002], b'k', b'{}')
    """
    offset, time = np.empty(count, np.int64), np.empty(count, np.int64)
    keys, values = np.empty((count, 2), np.int64), np.empty((count, 2), np.int64)
    if not _unpack(np.frombuffer(block, np.uint8), base, first, appended, offset, time, keys, values):
        raise UnpackError(f"the record batch at offset {base} is damaged: its records are not what its header says")
    skip = int(np.searchsorted(offset, least))
    return Packed(block, offset[skip:], time[skip:], keys[skip:], values[skip:])


def values(packed: Sequence[Packed]) -> tuple[Records, npt.NDArray[np.bool_]]:
    """The values of records, one after another, and which of them are null: no bytes."""
    blocks = [np.frombuffer(p.block, np.uint8) for p in packed]
    spans = np.concatenate([np.empty((0, 2), np.int64), *(p.values for p in packed)])
    null = spans[:, 1] < 0
    lengths = np.where(null, 0, spans[:, 1] - spans[:, 0])
    end = np.cumsum(lengths + 1) - 1
    begin = end - lengths
    out = np.empty(int(end[-1]) + 1 if len(end) else 1, np.uint8)
    out[-1] = 10
    done = 0
    for block, p in zip(blocks, packed, strict=True):
        n = len(p)
        _copy(block, p.values[:, 0], lengths[done : done + n], begin[done : done + n], out)
        done += n
    return Records(out.tobytes(), begin, end), null


@njit(cache=True, nogil=True)
def _varint(block: Bytes, at: int):  # type: ignore[no-untyped-def]
    """A zigzag varint and where it ends; an end of -1 when there is none."""
    value, shift = np.uint64(0), 0
    while at < len(block) and shift < 70:
        byte = np.uint64(block[at])
        at += 1
        value |= (byte & np.uint64(127)) << np.uint64(shift)
        if byte < 128:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += 7
    return np.int64(0), -1


@njit(cache=True, nogil=True)
def _span(block: Bytes, at: int, spans: Ints, i: int):  # type: ignore[no-untyped-def]
    """Note where the next bytes begin and end; where what follows begins, or -1."""
    length, at = _varint(block, at)
    if at < 0 or length > len(block) - at:
        return -1
    spans[i, 0] = at
    spans[i, 1] = at + length if length >= 0 else -1
    return at + max(length, 0)


@njit(cache=True, nogil=True)
def _unpack(block, base, first, appended, offset, time, keys, values):  # type: ignore[no-untyped-def]
    """Whether the records are as many as expected, and nothing else."""
    at, skipped = 0, np.empty((1, 2), np.int64)
    for i in range(len(offset)):
        length, at = _varint(block, at)
        if at < 0 or length < 1 or length > len(block) - at:
            return False
        end = at + length
        delta, at = _varint(block, at + 1)  # behind the attributes
        if at < 0:
            return False
        time[i] = first + delta if appended < 0 else appended
        delta, at = _varint(block, at)
        if at < 0:
            return False
        offset[i] = base + delta
        at = _span(block, at, keys, i)
        if at < 0:
            return False
        at = _span(block, at, values, i)
        if at < 0:
            return False
        headers, at = _varint(block, at)
        for _ in range(max(headers, 0) * 2):
            if at < 0 or at > end:
                return False
            at = _span(block, at, skipped, 0)
        if at != end:
            return False
    return at == len(block)


@njit(cache=True, nogil=True)
def _copy(block, begin, length, to, out):  # type: ignore[no-untyped-def]
    for i in range(len(begin)):
        a, b = begin[i], to[i]
        for k in range(length[i]):
            out[b + k] = block[a + k]
        out[b + length[i]] = 10
