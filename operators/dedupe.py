"""DEDUPE: the first row of each key.

    dedupe(by)(R)         = the rows of R that have no row of their key before them, in the order of (at, pos)
    dedupe(by, within)(R) = the rows r of R that have no row of their key before them with at >= r.at - within

What blocks a row is another *row*, kept or not. So with `within` a burst of rows, each within the duration of the one
before, keeps its first row only, however long it lasts. The greedy rule (only kept rows block) would let one late row
turn a whole chain of kept rows into dropped ones and the reverse; here a change touches one other row, the next.

A row that comes late and is first takes the place of the one that was (-later +earlier); when the first is taken back
the next one comes. Null is a key like any other. Without `within` every key is remembered for ever: give it to bound
the state. Of the rows before the horizon only the last of each key is remembered, with `within` only for so long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from numba import njit

from operators.delta import AT, BEGINNING, FLOAT, INT, POS, STRING, Delta, Ints, Schema, concat
from operators.operator import Maintained, Operator, as_names, fit_as_key, microseconds
from operators.state import Keyed, Rows
from operators.timeline import Sweep, Timelines, appended, back, cut, first, put, tidy


@dataclass(frozen=True, eq=False)
class Dedupe(Operator):
    """Keeps the first row of each key.

    SQL: `SELECT * FROM r QUALIFY row_number() OVER (PARTITION BY id ORDER BY at, pos) = 1`; with `within`:
    `... WHERE lag(at) OVER (PARTITION BY id ORDER BY at, pos) >= at - within` is not true.

    >>> from operators.delta import to_column
    >>> kept = dedupe(by="id").start([{"id": STRING}])
    >>> def row(seq, weight, at):
    ...     one = np.array([1])
    ...     return [Delta({"id": to_column(["a"], STRING)}, one * weight, one * at, one, one * seq)]
    >>> kept.apply(row(1, 1, 20)).at.tolist(), kept.apply(row(2, 1, 30)).at.tolist()
    ([20], [])
    >>> out = kept.apply(row(3, -1, 20))  # the first is taken back: the next one is first now
    >>> list(zip(out.weight.tolist(), out.at.tolist()))
    [(-1, 20), (1, 30)]
    """

    by: tuple[str, ...]
    within: int | None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def reach(self) -> int | None:
        return self.within

    @property
    def definition(self) -> dict[str, Any]:
        return {"by": list(self.by), "within": self.within}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        fit_as_key(self.by, inputs[0], f"{self.name}: by")
        return dict(inputs[0])

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        before = pl.col(AT).shift(1).over(self.by)
        blocked = before.is_not_null()
        if self.within is not None:
            blocked &= before >= pl.max_horizontal(AT, BEGINNING + self.within) - self.within
        return relations[0].sort(AT, POS).filter(~blocked)

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        self.schema(inputs)
        return _Firsts(self.by, inputs[0], -1 if self.within is None else self.within)

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "x": INT, "y": FLOAT}
        return [
            (dedupe(by="k"), [schema]),
            (dedupe(by="k", within="1h"), [schema]),
            (dedupe(by=["k", "x"], within="3us"), [schema]),
        ]


@njit(cache=True)
def _is_first(slab, runs, slot, k, reach):  # type: ignore[no-untyped-def]
    return 1 if k == runs[slot, 2] or (reach >= 0 and slab[k - 1, 0] < back(slab[k, 0], reach)) else 0


@njit(cache=True)
def _firsts(reach, number, slab, runs, free, slot, at, pos, weight, seq):  # type: ignore[no-untyped-def]
    """Apply changes, those of one `seq` as one. Entries are (at, pos, number, whether it is kept).

    Returns the slab; for each row whether it is kept (or was, when taken back); the numbers taken back; changes of
    other rows (number, weight, seq); and the row that was taken back but is not there, or -1.
    """
    n = slot.shape[0]
    kept = np.zeros(n, np.bool_)
    gone, goners = np.empty(16, np.int64), 0
    fixes, fixed = np.empty((16, 3), np.int64), 0
    a = 0
    while a < n:
        z, fresh = a, number
        while z < n and seq[z] == seq[a]:
            s = slot[z]
            if weight[z] > 0:
                slab = put(slab, runs, free, s, at[z], pos[z], number, 0)
                number += 1
            else:
                k = first(slab, runs[s, 2], runs[s, 3], at[z], pos[z])
                if k == runs[s, 3] or slab[k, 0] != at[z] or slab[k, 1] != pos[z]:
                    return slab, kept, gone[:0], fixes[:0], z
                kept[z] = slab[k, 3] == 1
                gone = appended(gone, goners, slab[k, 2])
                goners += 1
                cut(slab, runs, s, k)
            z += 1
        for i in range(z - 1, a - 1, -1):
            s = slot[i]
            k = first(slab, runs[s, 2], runs[s, 3], at[i], pos[i])
            if weight[i] > 0:
                slab[k, 3] = _is_first(slab, runs, s, k, reach)
                kept[i] = slab[k, 3] == 1
                k += 1
            if k < runs[s, 3] and slab[k, 2] < fresh:
                now = _is_first(slab, runs, s, k, reach)
                if now != slab[k, 3]:
                    if fixed == fixes.shape[0]:
                        more = np.empty((2 * fixed, 3), np.int64)
                        more[:fixed] = fixes
                        fixes = more
                    fixes[fixed, 0], fixes[fixed, 1], fixes[fixed, 2] = slab[k, 2], 2 * now - 1, seq[i]
                    fixed += 1
                    slab[k, 3] = now
        a = z
    return slab, kept, gone[:goners], fixes[:fixed], -1


@njit(cache=True)
def _forget(reach, horizon, slots, held, slab, runs, free):  # type: ignore[no-untyped-def]
    """Forget, at these slots as far as they are held, entries that block no row to come.

    Those are all before the horizon but the last, and that one when it is out of reach. Returns the slab and the
    slots now empty.
    """
    empty, e = np.empty(16, np.int64), 0
    floor = back(horizon, reach) if reach >= 0 else BEGINNING
    for t in range(slots.shape[0]):
        s = slots[t]
        if held[s] == 0:
            continue
        head, tail = runs[s, 2], runs[s, 3]
        while head < tail and slab[head, 0] < horizon:
            followed = head + 1 < tail and slab[head + 1, 0] < horizon
            if not followed and slab[head, 0] >= floor:
                break
            head += 1
        runs[s, 2] = head
        slab = tidy(slab, runs, free, s)
        if runs[s, 1] == 0:
            held[s] = 0
            empty = appended(empty, e, s)
            e += 1
    return slab, empty[:e]


class _Firsts(Keyed):
    alone = True  # changes of one seq are applied one after another, which needs no waves

    def __init__(self, by: Sequence[str], schema: Schema, reach: int) -> None:
        super().__init__([by], schema)
        self.reach = reach
        self.entries = Timelines()
        self.rows = Rows(schema)
        self.number = 0
        self.newest = BEGINNING
        self.sweep = Sweep()

    def reserve(self, slots: int) -> None:
        self.entries.reserve(slots)
        self.sweep.reserve(slots)

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        delta, slot = deltas[0], slots[0]
        entries = self.entries
        new = delta.weight > 0
        self.sweep.touch(slot, ~new)
        number = self.rows.first + len(self.rows)
        self.rows.add(delta if new.all() else delta.take(new))
        entries.slab, kept, gone, fixes, bad = _firsts(
            self.reach, number, entries.slab, entries.runs, entries.free, slot, delta.at, delta.pos, delta.weight,
            delta.seq,
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(
                f"a row with at={int(delta.at[bad])}, pos={int(delta.pos[bad])} was taken back that is not there: "
                "expected a row that was inserted, not taken back since, and not before the horizon"
            )
        out = delta if kept.all() else delta.take(kept)
        if len(fixes):
            out = concat([out, self.rows.take(fixes[:, 0], fixes[:, 1].copy(), fixes[:, 2].copy())])
        if len(gone):
            self.rows.remove(gone)
        return out

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        entries = self.entries
        slots = self.sweep.slots(self.slots.capacity, horizon)
        entries.slab, empty = _forget(
            self.reach, horizon, slots, self.sweep.held, entries.slab, entries.runs, entries.free
        )
        if horizon > BEGINNING:
            self.rows.expire(horizon)
        if len(empty):
            self.slots.release(empty.tolist())
            if not len(self.slots):
                self.entries.clear()
                self.rows = Rows(self.out)
                self.reserve(self.slots.capacity)
        return out

    def arrays(self) -> dict[str, Any]:
        return {
            "entries": self.entries.snapshot(),
            "rows": self.rows.snapshot(),
            "sweep": self.sweep.snapshot(),
        }

    def load(self, arrays: dict[str, Any]) -> None:
        self.entries.restore(arrays["entries"])
        self.rows.restore(arrays["rows"])
        self.sweep.restore(arrays["sweep"])

    @property
    def size(self) -> tuple[int, int]:
        return len(self.slots), sum(p.nbytes for p in (self.entries, self.rows, self.slots, self.sweep))


def dedupe(*, by: str | Sequence[str], within: str | timedelta | None = None) -> Dedupe:
    """Keep the first row of each key, in the order of (at, pos).

    by: the key columns. within: a row is dropped only when another row of its key, kept or not, came at most this
    long before it, such as "1h"; keys are then forgotten after that time. Without it they are remembered for ever.

    Raises `DefinitionError` when a column is unknown. SQL: `row_number() OVER (PARTITION BY by ORDER BY at, pos) = 1`.
    """
    limit = None if within is None else microseconds(within, "dedupe: within")
    return Dedupe(as_names(by, "dedupe: by"), limit)
