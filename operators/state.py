"""Keyed state, shared by all operators that meet rows by key: what snapshot, expiry, size and sharding are written on.

A key has a dense number, its *slot*; what an operator knows of a key lies in numpy columns at that slot (`Slots`).
Whole rows that may still have to be emitted again lie in `Rows`, in order of arrival, until the horizon passes them.
`Keyed` is the maintained operator on top: it finds the slots, and cuts a delta into *waves*.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from operators.delta import BEGINNING, Array, Columns, Delta, Ints, Schema, concat, in_order, numpy_type
from operators.operator import Maintained

_NEVER = np.int64(np.iinfo(np.int64).min)


def keys_of(columns: Columns, names: Sequence[str]) -> list[Any]:
    """The key of each row: the value of one column, or a tuple of several. Null is a key like any other."""
    if len(names) == 1:
        keys: list[Any] = columns[names[0]].tolist()
        return keys
    return list(zip(*(columns[n].tolist() for n in names), strict=True))


def shard(key: Any, shards: int) -> int:
    """The shard of a key: the same in every process and on every day."""
    text: str = key if isinstance(key, str) else repr(key)
    return zlib.crc32(text.encode()) % shards


def grown(a: Array, n: int) -> Array:
    """The array with room for at least n rows, at least doubled when it has to grow; new rows are zero."""
    if n <= len(a):
        return a
    out = np.zeros((max(n, 2 * len(a), 16), *a.shape[1:]), a.dtype)
    out[: len(a)] = a
    return out


class _Numbers(dict[Any, int]):
    """Key to slot; an unknown key gets a freed slot or the next one."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.keys_at: list[Any] = []

    def __missing__(self, key: Any) -> int:
        if self.free:
            slot = self.free.pop()
            self.keys_at[slot] = key
        else:
            slot = len(self.keys_at)
            self.keys_at.append(key)
        self[key] = slot
        return slot


class Slots:
    """Keys and their slots.

    >>> slots = Slots()
    >>> slots.of(["a", "b", "a"]).tolist()
    [0, 1, 0]
    >>> slots.release(np.array([0]))
    >>> slots.of(["c", "b"]).tolist(), slots.keys([0])
    ([0, 1], ['c'])
    """

    def __init__(self) -> None:
        self._numbers = _Numbers()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def capacity(self) -> int:
        """One more than the greatest slot ever given out."""
        return len(self._numbers.keys_at)

    def of(self, keys: Sequence[Any]) -> Ints:
        """The slot of each key; new keys get one."""
        return np.fromiter(map(self._numbers.__getitem__, keys), np.int64, len(keys))

    def known(self, keys: Sequence[Any]) -> Ints:
        """The slot of each key, -1 for those that have none; none is given out."""
        slot_of = self._numbers.get
        return np.fromiter((slot_of(k, -1) for k in keys), np.int64, len(keys))

    def keys(self, slots: Iterable[int]) -> list[Any]:
        """The key at each slot."""
        return [self._numbers.keys_at[s] for s in slots]

    def release(self, slots: Iterable[int]) -> None:
        """Forget the keys at these slots; the slots are used again. Their columns must be as new."""
        numbers = self._numbers
        for s in slots:
            del numbers[numbers.keys_at[s]]
            numbers.keys_at[s] = None
            numbers.free.append(int(s))

    def snapshot(self) -> Any:
        return list(self._numbers.keys_at), list(self._numbers.free)

    def restore(self, state: Any) -> None:
        keys_at, free = state
        freed = set(free)
        numbers = self._numbers
        numbers.update((k, s) for s, k in enumerate(keys_at) if s not in freed)
        numbers.keys_at, numbers.free = keys_at, free

    @property
    def nbytes(self) -> int:
        return sys.getsizeof(self._numbers) + 72 * len(self._numbers)


class Rows:
    """Rows that may have to be emitted again, numbered in order of arrival; the numbers stay when old rows go.

    A row leaves when it was removed or lies before the horizon, and every row that came earlier has left.
    """

    def __init__(self, schema: Schema) -> None:
        self.columns: Columns = {n: np.empty(0, numpy_type(t)) for n, t in schema.items()}
        self.at = np.empty(0, np.int64)
        self.pos = np.empty(0, np.int64)
        self.first = 0
        self.head = self.tail = 0

    def __len__(self) -> int:
        return self.tail - self.head

    def add(self, delta: Delta) -> Ints:
        """Keep all rows of the delta; returns their numbers."""
        n = len(delta)
        if self.tail + n > len(self.at):
            self._make_room(n)
        a, b = self.tail, self.tail + n
        for name, column in self.columns.items():
            column[a:b] = delta.columns[name]
        self.at[a:b], self.pos[a:b] = delta.at, delta.pos
        self.tail = b
        return np.arange(self.first + a - self.head, self.first + b - self.head)

    def take(self, numbers: Ints, weight: Ints, seq: Ints) -> Delta:
        """The rows of these numbers as a delta of the given weights, known at the given `seq`."""
        i = numbers - (self.first - self.head)
        return Delta({n: c[i] for n, c in self.columns.items()}, weight, self.at[i], self.pos[i], seq)

    def remove(self, numbers: Ints) -> None:
        """Rows that nobody will ask for any more: nothing of them is left."""
        i = numbers - (self.first - self.head)
        self.at[i] = _NEVER
        for column in self.columns.values():
            column[i] = None if column.dtype == object else 0

    def expire(self, horizon: int) -> None:
        """Let rows before the horizon go, as far as they are the oldest."""
        live = self.at[self.head : self.tail] >= horizon
        gone = int(live.argmax()) if live.any() else len(live)
        self.first += gone
        self.head += gone
        if self.head == self.tail:
            self.head = self.tail = 0

    def _make_room(self, n: int) -> None:
        a, b, live = self.head, self.tail, self.tail - self.head
        room = len(self.at) if live + n <= len(self.at) // 2 else max(2 * (live + n), 64)

        def moved(old: Array) -> Array:
            new = np.empty(room, old.dtype)
            new[:live] = old[a:b]
            return new

        self.columns = {name: moved(c) for name, c in self.columns.items()}
        self.at, self.pos = moved(self.at), moved(self.pos)
        self.head, self.tail = 0, live

    def snapshot(self) -> Any:
        a, b = self.head, self.tail
        return (
            self.first,
            {n: c[a:b].copy() for n, c in self.columns.items()},
            self.at[a:b].copy(),
            self.pos[a:b].copy(),
        )

    def restore(self, state: Any) -> None:
        self.first, self.columns, self.at, self.pos = state
        self.head, self.tail = 0, len(self.at)

    @property
    def nbytes(self) -> int:
        per_row = 16 + sum(64 if c.dtype == object else c.itemsize for c in self.columns.values())
        return len(self.at) * per_row


@njit(cache=True)
def _waves(slot, side, at, pos, weight, seq, alone, top_at, top_pos, wave, stamp, cuts):  # type: ignore[no-untyped-def]
    """Where waves begin: fills `cuts` with row numbers, returns (how many, the last stamp used).

    top_at, top_pos: per slot the greatest row of input 0 in the present wave (valid when wave[slot] == stamp).
    """
    n, found, g = slot.shape[0], 0, 0
    stamp += 1
    while g < n:
        z = g
        conflict = False
        while z < n and seq[z] == seq[g]:
            s = slot[z]
            if wave[s] == stamp and not conflict:
                if weight[z] < 0:
                    conflict = True
                elif side[z] > 0:
                    conflict = at[z] <= top_at[s]
                elif not alone:
                    conflict = at[z] < top_at[s] or (at[z] == top_at[s] and pos[z] <= top_pos[s])
            z += 1
        if conflict:
            cuts[found] = g
            found += 1
            stamp += 1
        for i in range(g, z):
            s = slot[i]
            if side[i] == 0:
                if wave[s] != stamp or at[i] > top_at[s] or (at[i] == top_at[s] and pos[i] > top_pos[s]):
                    top_at[s] = at[i]
                    top_pos[s] = pos[i]
                wave[s] = stamp
        g = z
    return found, stamp


class Keyed(Maintained):
    """A maintained operator whose rows meet by key.

    A subclass gives `step`, which may treat the delta as one change, or `changes`, which goes through the waves itself.
    What a delta served on the way must not be lost, though: a row is emitted as it was known when it came, also when a
    later row of the same delta corrects it. So a delta is cut into as few waves as possible such that no row reaches
    back behind a row of its key in its own wave.
    """

    alone = False
    """True when rows of input 0 do not change the result of each other (joins)."""

    waves = True
    """False when a delta is one change: its output says what holds after it, and nothing was served on the way."""

    def __init__(self, keys: Sequence[Sequence[str]], out: Schema) -> None:
        self.key_names = [tuple(k) for k in keys]
        self.slots = Slots()
        self.out = out
        self._top_at = self._top_pos = self._wave = np.zeros(0, np.int64)
        self._stamp = 0

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        """`apply` of one wave: the deltas, and for each the slot of every row. Output in any order."""
        raise NotImplementedError

    def changes(self, deltas: Sequence[Delta], slots: Sequence[Ints], edges: Sequence[Ints], horizon: int) -> Delta:
        """`apply` of all waves, one after another. edges: for each delta the rows where waves begin, and its length."""
        outs = []
        for w in range(len(edges[0]) - 1):
            wave = [slice(e[w], e[w + 1]) for e in edges]
            some = [d if len(d) == s.stop - s.start else d.take(s) for d, s in zip(deltas, wave, strict=True)]
            outs.append(in_order(self.step(some, [k[s] for k, s in zip(slots, wave, strict=True)], horizon)))
        return concat(outs)

    def arrays(self) -> dict[str, Any]:
        """State beside the slots, for the snapshot."""
        return {}

    def load(self, arrays: dict[str, Any]) -> None:
        """Take over what `arrays` gave."""

    def reserve(self, slots: int) -> None:
        """Make room for this many slots."""

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        slots = [self.slots.of(keys_of(d.columns, k)) for d, k in zip(deltas, self.key_names, strict=True)]
        self.reserve(self.slots.capacity)
        begins = self.begins(deltas, slots)
        edges = [np.concatenate([[0], np.searchsorted(d.seq, begins), [len(d)]]) for d in deltas]
        return self.changes(deltas, slots, edges, horizon)

    def begins(self, deltas: Sequence[Delta], slots: Sequence[Ints]) -> Ints:
        """The `seq` at which each wave but the first begins."""
        whole = np.empty(0, np.int64)
        n = sum(map(len, slots))
        if n <= 1 or not self.waves:
            return whole
        many = len(deltas) > 1

        def joined(parts: Sequence[Array]) -> Array:
            return np.concatenate(parts) if many else parts[0]

        seq = joined([d.seq for d in deltas])
        rows = [joined(slots), joined([np.full(len(s), i, np.int8) for i, s in enumerate(slots)])]
        rows += [joined([getattr(d, name) for d in deltas]) for name in ("at", "pos", "weight")]
        if many:
            order = np.argsort(seq, kind="stable")
            seq, rows = seq[order], [r[order] for r in rows]
        if (capacity := self.slots.capacity) > len(self._wave):
            self._top_at, self._top_pos, self._wave = (
                grown(a, capacity) for a in (self._top_at, self._top_pos, self._wave)
            )
        cuts = np.empty(n, np.int64)
        slot, side, at, pos, weight = rows
        found, self._stamp = _waves(
            slot, side, at, pos, weight, seq, self.alone, self._top_at, self._top_pos, self._wave, self._stamp, cuts
        )
        if not found:
            return whole
        return seq[cuts[:found]]

    def snapshot(self) -> Any:
        return {"slots": self.slots.snapshot(), **self.arrays()}

    def restore(self, state: Any) -> None:
        self.slots.restore(state["slots"])
        self.reserve(self.slots.capacity)
        self.load({k: v for k, v in state.items() if k != "slots"})


def nbytes(arrays: Iterable[Any]) -> int:
    """Bytes held by the numpy arrays among these."""
    return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))


def lexsort(*by: npt.NDArray[Any]) -> Ints:
    """The order that sorts by the first array, then the second, ..."""
    return np.lexsort(by[::-1])
