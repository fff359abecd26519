"""Messages as the records of a batch of Kafka's message format 2, packed in one pass.

What `engine/unpack.py` reads is written here: each record is a row of variable-length integers (zigzag varints), its
key, its value and its headers. Checksums and compression are the client library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.delta import Ints

Bytes = npt.NDArray[np.uint8]
Headers = list[tuple[str, bytes]]

OVERHEAD = 35
"""Bytes that a record has at most beside its key, its value and its headers."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Messages in one piece. block: their keys, values and headers, each kind one after another.

    spans: where the key, the value and the headers of each begin, and how long they are, shape (n, 6); a length of -1
    is a null. Many messages may have the same headers.
    """

    block: Bytes
    spans: Ints

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def sizes(self) -> Ints:
        """Bytes that each record takes at most."""
        sizes: Ints = np.maximum(self.spans[:, 1::2], 0).sum(1) + OVERHEAD
        return sizes

    def fill(self, begin: int, number: int, out: Bytes) -> tuple[int, int]:
        """Pack the messages from `begin` on, as many as `out` takes: where it stopped, and how many bytes they are.

        number: that of the first within its batch.
        """
        stopped, size = _pack(self.block, self.spans, begin, number, out)
        return int(stopped), int(size)


def packing(keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers]) -> Packing:
    r"""Messages, ready to be packed.

    >>> made = packing([b"k", b"k"], [b"{}", None], [[("op", b"u")]] * 2)
    >>> out = np.empty(100, np.uint8)
    >>> made.fill(0, 0, out)
    (2, 28)
    >>> out[:28].tobytes()
    b'\x1c\x00\x00\x00\x02k\x04{}\x02\x04op\x02u\x18\x00\x00\x02\x02k\x01\x02\x04op\x02u'
    """
    pairs: dict[int, bytes] = {}
    heads: dict[int, int] = {}
    blocks: list[bytes] = []
    for one in headers:
        if id(one) not in heads:
            heads[id(one)] = len(blocks)
            blocks.append(b"".join([_varint(len(one)), *(pairs.get(id(p)) or _encoded(p, pairs) for p in one)]))
    which = np.fromiter((heads[id(one)] for one in headers), np.int64, len(headers))
    spans = np.empty((len(keys), 6), np.int64)
    end = 0
    pieces = []
    for column, parts in ((0, keys), (2, values)):
        lengths = np.fromiter((-1 if p is None else len(p) for p in parts), np.int64, len(parts))
        ends = np.cumsum(np.maximum(lengths, 0)) + end
        spans[:, column], spans[:, column + 1] = ends - np.maximum(lengths, 0), lengths
        end = int(ends[-1]) if len(ends) else end
        pieces.append(b"".join([p for p in parts if p is not None]))
    lengths = np.fromiter(map(len, blocks), np.int64, len(blocks))
    begins = np.cumsum(lengths) - lengths + end
    spans[:, 4], spans[:, 5] = begins[which], lengths[which]
    return Packing(np.frombuffer(b"".join([*pieces, *blocks]) or b"\0", np.uint8), spans)


def _encoded(header: tuple[str, bytes], known: dict[int, bytes]) -> bytes:
    """A header, which is known from now on: most of a message's are those of others, too."""
    told, value = header[0].encode(), header[1]
    known[id(header)] = found = _varint(len(told)) + told + _varint(len(value)) + value
    return found


def _varint(n: int) -> bytes:
    out = bytearray()
    n <<= 1
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


@njit(cache=True, nogil=True, inline="always")
def _put(value, out, at):  # type: ignore[no-untyped-def]
    """Write a number of 0 or more as a zigzag varint; where it ends."""
    v = np.uint64(value) << np.uint64(1)
    while v > np.uint64(127):
        out[at] = np.uint8(v & np.uint64(127) | np.uint64(128))
        v >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(v)
    return at + 1


@njit(cache=True, nogil=True, inline="always")
def _width(value):  # type: ignore[no-untyped-def]
    """Bytes of a number of 0 or more as a zigzag varint."""
    v, n = np.uint64(value) << np.uint64(1), 1
    while v > np.uint64(127):
        v >>= np.uint64(7)
        n += 1
    return n


@njit(cache=True, nogil=True)
def _pack(block, spans, begin, number, out):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(begin, len(spans)):
        size = 2 + _width(number) + spans[i, 5]
        for k in range(1, 4, 2):
            size += 1 if spans[i, k] < 0 else _width(spans[i, k]) + spans[i, k]
        if at + _width(size) + size > len(out):
            return i, at
        at = _put(size, out, at)
        out[at] = out[at + 1] = 0  # attributes, and the time after the first
        at = _put(number, out, at + 2)
        for k in range(0, 4, 2):
            if spans[i, k + 1] < 0:
                out[at] = 1
                at += 1
                continue
            at = _put(spans[i, k + 1], out, at)
            for j in range(spans[i, k], spans[i, k] + spans[i, k + 1]):
                out[at] = block[j]
                at += 1
        for j in range(spans[i, 4], spans[i, 4] + spans[i, 5]):
            out[at] = block[j]
            at += 1
        number += 1
    return len(spans), at
