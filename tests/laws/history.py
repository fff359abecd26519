"""Histories: changes of some inputs in order of knowledge, made from bytes.

A history is decoded from a string of bytes, so that Hypothesis (which shrinks bytes) and a seeded numpy generator
share one interpreter. Domains are small: keys and event times collide, rows are corrected, taken back and come again.

An input with a Boolean column `deleted` carries messages (versions of keyed rows): they are only ever inserted. Some of
their texts say that they are as before, which is meant where `deleted` is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from operators.delta import BEGINNING, BOOL, FLOAT, INT, STRING, Delta, Schema, accumulate, empty, to_column
from operators.message import UNAVAILABLE

Values = tuple[Any, ...]
Step = list[Delta]

INTS = (1, 2, 3, 0, -1, 2, None, 7, 2**53 + 1)
FLOATS = (1.0, 2.5, -0.25, 0.0, None, 4.0)
DECIMALS = (*FLOATS, 0.1, 0.2, 0.3, -0.3, 1e15, -1e15)
"""Floats whose sums are exact, and such as round."""
STRINGS = ("a", "b", "a", "c", None, "")
TEXTS = (*STRINGS, UNAVAILABLE, UNAVAILABLE)
"""The texts of messages."""
BOOLS = (1, 0, None)
HOUR = 3_600_000_000


class Change(NamedTuple):
    """One row that enters (+1) or leaves (-1) an input. Values are Python values; times and `at` are microseconds."""

    seq: int
    source: int
    weight: int
    at: int
    pos: int
    values: Values


@dataclass
class History:
    """Changes in order of knowledge, for inputs of these schemas."""

    schemas: Sequence[Schema]
    changes: list[Change] = field(default_factory=list)

    def __repr__(self) -> str:
        lines = "".join(f"\n    {c!r}," for c in self.changes)
        return f"History of {[list(s) for s in self.schemas]}:{lines}"

    @property
    def seqs(self) -> list[int]:
        """The numbers of its changes, each once."""
        return sorted({c.seq for c in self.changes})

    def steps(self, cuts: Sequence[int] = ()) -> list[Step]:
        """One delta per input for each stretch of changes; a new stretch begins at each of these `seq`s."""
        bounds = sorted({*cuts} & set(self.seqs))
        return [s for part in self._parts(bounds) if any(map(len, s := self.deltas(part)))]

    def _parts(self, bounds: list[int]) -> list[list[Change]]:
        parts: list[list[Change]] = [[] for _ in range(len(bounds) + 1)]
        for c in self.changes:
            parts[int(np.searchsorted(bounds, c.seq, side="right"))].append(c)
        return parts

    def deltas(self, changes: Sequence[Change]) -> Step:
        """These changes as one delta per input."""
        return [to_delta([c for c in changes if c.source == i], s) for i, s in enumerate(self.schemas)]

    def live(self) -> list[Change]:
        """The inserts that have not been taken back."""
        rows: dict[tuple[int, int, int], Change] = {}
        for c in self.changes:
            if c.weight > 0:
                assert rows.setdefault((c.source, c.at, c.pos), c) is c, f"{c} is there already"
            else:
                gone = rows.pop((c.source, c.at, c.pos))
                assert gone.values == c.values, f"{c} does not take back what is there: {gone}"
        return list(rows.values())

    def relations(self) -> list[pl.DataFrame]:
        """What has accumulated at each input: frames with `_at` and `_pos`."""
        return [accumulate([d], s) for d, s in zip(self.deltas(self.changes), self.schemas, strict=True)]

    def bounds(self, steps: Sequence[Step]) -> list[int]:
        """For each step the greatest horizon that is true: no row with a smaller `at` comes in it or later."""
        least = [min(int(d.at.min()) for d in s if len(d)) for s in steps]
        return np.minimum.accumulate(least[::-1])[::-1].tolist() if least else []


def to_delta(changes: Sequence[Change], schema: Schema) -> Delta:
    """Changes of one input as a delta."""
    if not changes:
        return empty(schema)
    columns = {}
    for i, (name, dtype) in enumerate(schema.items()):
        values = [c.values[i] for c in changes]
        if dtype == BOOL:
            columns[name] = to_column([None if v is None else bool(v) for v in values], dtype)
        elif dtype in (INT, FLOAT, STRING):
            columns[name] = to_column(values, dtype)
        else:
            columns[name] = to_column(values, INT)
    weight, at, pos, seq = (
        np.array([getattr(c, n) for c in changes], np.int64) for n in ("weight", "at", "pos", "seq")
    )
    return Delta(columns, weight, at, pos, seq)


class _Bytes:
    """Choices read from bytes; 0 when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def __call__(self, choices: int) -> int:
        return next(self._data, 0) % choices


@dataclass(frozen=True)
class Kind:
    """What a history may contain.

    units: the steps of event time, in microseconds, of which one is chosen. late: rows may come out of order of `at`.
    retractions: rows may be corrected and taken back. together: several rows may become known at once.

    Without late rows the inputs are in order together; of the same `at` a further input comes before the first one, as
    the engine merges them: what is looked up is known before what looks it up.
    """

    units: tuple[int, ...] = (1, HOUR // 2)
    late: bool = True
    retractions: bool = True
    together: bool = True


ANY = Kind()
IN_ORDER = Kind(late=False, retractions=False)


def is_messages(schema: Schema) -> bool:
    """Whether an input of this schema carries messages, which are never taken back."""
    return schema.get("deleted") == BOOL


class _Maker:
    def __init__(self, data: bytes, schemas: Sequence[Schema], kind: Kind) -> None:
        self.pick = _Bytes(data)
        self.schemas = schemas
        self.kind = kind
        self.unit = kind.units[self.pick(len(kind.units))]
        self.floats = DECIMALS if self.pick(2) else FLOATS
        self.now = 1000 * self.unit
        self.newest = (self.now, -len(schemas))
        self.last_pos = [(i + 1) << 56 for i in range(len(schemas))]
        self.live: list[dict[tuple[int, int], Values]] = [{} for _ in schemas]
        self.gone: list[list[tuple[int, int]]] = [[] for _ in schemas]
        self.touched: set[tuple[int, int, int]] = set()
        self.changes: list[Change] = []
        self.seq = 0

    def values(self, schema: Schema) -> Values:
        return tuple(self.value(n, t, is_messages(schema)) for n, t in schema.items())

    def value(self, name: str, dtype: pl.DataType, message: bool) -> Any:
        if name == "deleted" and dtype == BOOL:
            return (0, 1, None, 0, None)[self.pick(5)]
        if dtype == INT:
            return INTS[self.pick(len(INTS))]
        if dtype == FLOAT:
            return self.floats[self.pick(len(self.floats))]
        if dtype == STRING:
            texts = TEXTS if message else STRINGS
            return texts[self.pick(len(texts))]
        if dtype == BOOL:
            return BOOLS[self.pick(len(BOOLS))]
        k = self.pick(8)
        return None if k == 7 else self.now + k * self.unit

    def at(self, source: int, late: bool) -> int:
        self.now += (0, 0, 1, 2, 0, 1, 5)[self.pick(7)] * self.unit
        if late:
            if is_messages(self.schemas[source]) and self.pick(6) == 1:
                return BEGINNING
            return self.now - self.pick(16) * self.unit - (self.pick(5) == 1)
        if not self.kind.late and (self.now, -source) < self.newest:
            self.now += self.unit
        self.newest = self.now, -source
        return self.now

    def emit(self, source: int, weight: int, at: int, pos: int, values: Values) -> None:
        self.touched.add((source, at, pos))
        self.changes.append(Change(self.seq, source, weight, at, pos, values))
        if weight > 0:
            self.live[source][at, pos] = values
        else:
            del self.live[source][at, pos]
            self.gone[source].append((at, pos))

    def insert(self, source: int, late: bool) -> None:
        self.last_pos[source] += 1
        self.emit(source, 1, self.at(source, late), self.last_pos[source], self.values(self.schemas[source]))

    def change(self) -> None:
        """One change: usually of one row, sometimes of several that become known together."""
        self.seq += 1
        self.touched = set()
        rows = 1 + self.pick(3) if self.kind.together and self.pick(6) == 1 else 1
        source = self.pick(len(self.schemas))
        for _ in range(rows):
            self.row(source)
            if self.pick(3) == 1:
                source = self.pick(len(self.schemas))

    def row(self, source: int) -> None:
        what = self.pick(12)
        late = self.kind.late and what % 3 == 2
        live = [] if is_messages(self.schemas[source]) or not self.kind.retractions else sorted(self.live[source])
        live = [r for r in live if (source, *r) not in self.touched]
        if what < 6 or not live:
            self.insert(source, late)
            return
        at, pos = live[self.pick(len(live))]
        old = self.live[source][at, pos]
        schema = self.schemas[source]
        if what == 11 and (
            back := [r for r in self.gone[source] if r not in self.live[source] and (source, *r) not in self.touched]
        ):
            self.emit(source, 1, *back[self.pick(len(back))], self.values(schema))
            return
        self.emit(source, -1, at, pos, old)
        if what <= 7:
            return
        if what <= 9:  # other values, or some of them
            fresh = self.values(schema)
            mask = self.pick(256) | self.pick(2)
            new = tuple(f if mask >> i & 1 else o for i, (f, o) in enumerate(zip(fresh, old, strict=True)))
            if new != old:
                self.emit(source, 1, at, pos, new)
        else:  # at another time, or as a row that came later
            self.last_pos[source] += 1
            moved = self.at(source, late) if what == 10 else at
            self.emit(source, 1, moved, self.last_pos[source], old if self.pick(2) else self.values(schema))


def decode(data: bytes, schemas: Sequence[Schema], kind: Kind = ANY) -> History:
    """The history that these bytes mean; every string of bytes means one. A byte 0 where a change begins ends it."""
    made = _Maker(data, schemas, kind)
    while made.pick(256):
        made.change()
    return History(schemas, made.changes)


def generate(rng: np.random.Generator, schemas: Sequence[Schema], size: int, kind: Kind = ANY) -> History:
    """A history of about `size / 8` changes."""
    data = rng.integers(1, 256, size, np.uint8).tobytes()
    return decode(data, schemas, kind)


def shuffled(history: History, rng: np.random.Generator) -> History:
    """The net inserts of a history in another order of arrival, with some of the retractions still in it."""
    final = history.live()
    kept = {(c.source, c.at, c.pos) for c in final}
    passing: dict[tuple[int, int, int], tuple[Change, Change]] = {}
    inserted: dict[tuple[int, int, int], Change] = {}
    for c in history.changes:
        row = (c.source, c.at, c.pos)
        if c.weight > 0:
            inserted[row] = c
        elif row not in kept:
            passing[row] = inserted[row], c
    events = [(float(rng.random()), c) for c in final]
    for plus, minus in passing.values():
        first, second = sorted(rng.random(2).tolist())
        events += [(first, plus), (second, minus)]
    events.sort(key=lambda e: e[0])
    return History(history.schemas, [c._replace(seq=n) for n, (_, c) in enumerate(events, 1)])
