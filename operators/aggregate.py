"""AGGREGATE: one row for each key, of reductions over all its rows.

    aggregate(by=k, n=reduction)(R) = for each key k in R the row (k, n = reduction of { r in R : r.k = k }), with the
        `at` and position of the last row of the key by (at, pos)

A delta is one change: each key it touches gives its old row back and brings its new one, once, and only when they
differ (the new row of a key differs also in `at` and position); both are known at the greatest `seq` of the key's
changes. When a row went from one key to another in the delta, all its output is known at its last `seq`.

Whether a key is there is decided on the number of its rows. A total of floats is kept as a running sum of 159 bits,
from which rows are taken off again: while no bits are lost it is the exact sum, rounded once, whatever came and went.
When bits were lost (1e300 and 0.1 met in one key), or an infinity was there, it is summed again over the rows of the
key, exactly too. An extreme that is taken back is found again among the rows of the key; nothing else takes time in
proportion to them, but a row that comes late or leaves moves the rows behind it in memory.

With `aside=c` rows for which c is true were put aside: they are no rows of their key, and the result says in a column c
of its own whether the key has any. Only how many there are is kept of them.

So the rows of a key are kept, sorted, as long as they may be taken back; those before the horizon are folded into a
few numbers (unless that loses bits). When no row is late or taken back none is kept, and where bits were lost a total
is off by at most 2**-150 times the sum of the absolute values. Keys stay as long as they have rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from operators.delta import AT as AT_COLUMN
from operators.delta import BEGINNING, BOOL, FLOAT, INT, NULL, STRING, TIME, Delta, Ints, Schema
from operators.delta import POS as POS_COLUMN
from operators.exact import add, exact_sum, rounded
from operators.kernel import pointer
from operators.operator import DefinitionError, Maintained, Operator, as_names, fit_as_key, known, new_columns
from operators.reduction import (
    CHANNEL,
    COUNT,
    EXTREME,
    FLOAT_NULL,
    KIND,
    MASK,
    MEAN,
    MINIMUM,
    PLACE,
    ROWS,
    TOTAL,
    Plan,
    Reduction,
    count,
    finished,
    gathered,
    maximum,
    mean,
    minimum,
    rank,
    reductions_of,
    total,
)
from operators.segments import AT, END, FIELDS, HEAD, MARK, POS, TAIL, Segments, erase, first, make_room, tidy
from operators.state import Keyed, grown, lexsort


@dataclass(frozen=True, eq=False)
class Aggregate(Operator):
    """Reduces all rows of a key to one.

    by: the columns of the key, which come first in the result. reductions: names of the other columns and what they
    hold. aside: a Boolean column that says which rows were put aside; it comes last in the result.

    SQL: `SELECT by, count(*), avg(x) FROM r GROUP BY by`

    >>> from operators.delta import to_column
    >>> spent = aggregate(by="card", n=count(), most=maximum("amount")).start([{"card": STRING, "amount": INT}])
    >>> def change(weight, at, amount):
    ...     columns = {"card": to_column(["a"], STRING), "amount": to_column([amount], INT)}
    ...     one = np.array([at])
    ...     out = spent.apply([Delta(columns, np.array([weight]), one, one, one)])
    ...     n, most = out.columns["n"].tolist(), out.columns["most"].tolist()
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), n, most))
    >>> change(1, 10, 5)
    [(1, 10, 1, 5)]
    >>> change(1, 20, 3)
    [(-1, 10, 1, 5), (1, 20, 2, 5)]
    >>> change(-1, 10, 5)  # taken back: the greatest is another
    [(-1, 20, 2, 5), (1, 20, 1, 3)]
    >>> change(-1, 20, 3)
    [(-1, 20, 1, 3)]
    """

    by: tuple[str, ...]
    reductions: tuple[tuple[str, Reduction], ...]
    aside: str | None = None

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    def key(self, key: tuple[str, ...]) -> tuple[str, ...]:
        return self.by

    @property
    def definition(self) -> dict[str, Any]:
        aside = {} if self.aside is None else {"aside": self.aside}
        return {"by": list(self.by), "reductions": {n: r.definition for n, r in self.reductions}, **aside}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        fit_as_key(self.by, given, "aggregate by")
        made = {n: r.type_in(given, f"aggregate {n}") for n, r in self.reductions}
        if self.aside is not None:
            known([self.aside], given, "aggregate aside")
            if given[self.aside] != BOOL:
                raise DefinitionError(f"aggregate aside: {self.aside!r} has type {given[self.aside]}; expected Boolean")
            made = new_columns(made, {self.aside: BOOL}, "aggregate")
        return new_columns({n: given[n] for n in self.by}, made, "aggregate")

    def horizon(self, bound: int, inserts: bool = False) -> int:
        return BEGINNING  # the row of a key is taken back with its next change, however old it is

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        rows = relations[0]
        given = rows.collect_schema()
        aside = pl.lit(False) if self.aside is None else pl.col(self.aside).fill_null(False)
        frame = rows.filter(~aside)
        types = {n: given[r.column] if r.column else None for n, r in self.reductions}
        last = pl.struct(AT_COLUMN, POS_COLUMN).sort_by(AT_COLUMN, POS_COLUMN).last()
        made = (
            frame.group_by(self.by)
            .agg(
                *(gathered(r, types[n], r.column or AT_COLUMN).alias(n) for n, r in self.reductions),
                last.alias("_last"),
            )
            .with_columns(finished(r, types[n], n) for n, r in self.reductions)
            .unnest("_last")
        )
        if self.aside is None:
            return made
        having = rows.filter(aside).select(self.by).unique().with_columns(pl.lit(True).alias(self.aside))
        return made.join(having, on=self.by, how="left", nulls_equal=True).with_columns(
            pl.col(self.aside).fill_null(False)
        )

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Aggregated(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        return [
            (aggregate(by="name", n=count(), sum=total("x"), mean=mean("x")), [{"name": STRING, "x": FLOAT}]),
            (
                aggregate(
                    by=["name", "yes"],
                    known=count("x"),
                    least=minimum("x"),
                    most=maximum("n"),
                    sum=total("n"),
                    mean=mean("n"),
                    since=minimum("t"),
                ),
                [{"name": STRING, "yes": BOOL, "n": INT, "x": FLOAT, "t": TIME}],
            ),
            (
                Aggregate(("name",), (("rows", count()), ("sum", total("x")), ("most", maximum("x"))), "yes"),
                [{"name": STRING, "yes": BOOL, "x": FLOAT}],
            ),
        ]


def aggregate(*, by: str | Sequence[str], **reductions: Reduction) -> Aggregate:
    """One row for each key: reductions over all its rows. The result has the columns of `by` and one per reduction.

    by: the columns of the key; a null is a key like any other. The result row of a key has the `at` and position of the
    key's last row by (at, pos).

    Raises `DefinitionError` for something that is not a reduction, for a reduction with a size and, once the columns
    are known, for unknown columns, wrong types and names that are taken. SQL: `GROUP BY by`.
    """
    made = Aggregate(as_names(by, "aggregate by"), reductions_of(reductions, "aggregate"))
    for n, r in made.reductions:
        if r.size is not None:
            raise DefinitionError(
                f"aggregate: {n} has the size {r.size!r}, but an aggregate is over all rows of a key; leave it out, "
                "or use window(by=..., size=...), which gives a row for each row"
            )
    return made


# The words of a row: at, pos, and per channel the value. The words of a key: its fields; the number of its rows; which
# of the keys touched it is; whether rows were folded, at and pos of the last one; and per channel the running sum,
# the number of values that are not null, whether the sum lost bits, whether an extreme was taken back, least and
# greatest, and the like of the rows that were folded.

VALUES = 2
LIVE, TURN, FOLDED, LAST_AT, LAST_POS, CHANNELS = range(FIELDS, FIELDS + 6)
HI, MID, LO, N, LOST, STALE, LEAST, MOST = range(8)
OLD_HI, OLD_MID, OLD_LO, OLD_N, OLD_LEAST, OLD_MOST, PER_CHANNEL = range(8, 15)


@njit(cache=True, forceinline=True)
def _better(word, than, n, mask, sign):  # type: ignore[no-untyped-def]
    """The greater (sign 1) or lesser (-1) of two words, of which the second is one only when n is not 0."""
    return word if n == 0 or rank(word, mask, sign) > rank(than, mask, sign) else than


@njit(cache=True, forceinline=True)
def _added(key_floats, k, w, x):  # type: ignore[no-untyped-def]
    """The running sum in words w, w + 1 and w + 2 of a key with a value added, and whether bits were lost."""
    return add(key_floats[k, w], key_floats[k, w + 1], key_floats[k, w + 2], x)


@njit(cache=True)
def _add_to(key_floats, k, w, x):  # type: ignore[no-untyped-def]
    """Add a value to such a running sum; returns whether bits were lost."""
    key_floats[k, w], key_floats[k, w + 1], key_floats[k, w + 2], lost = _added(key_floats, k, w, x)
    return lost


@njit(cache=True)
def _fold(rows, keys, k, horizon, channels):  # type: ignore[no-untyped-def]
    """Fold the rows before the horizon, the first ones, into the numbers of the key, as far as no bits are lost."""
    floats, key_floats = rows.view(np.float64), keys.view(np.float64)
    h, tail = keys[k, HEAD], keys[k, TAIL]
    while h < tail and rows[h, 0] < horizon:
        for c in range(channels.shape[0]):
            if channels[c, MASK]:
                b, x = CHANNELS + PER_CHANNEL * c, floats[h, VALUES + c]
                if x == x and _added(key_floats, k, b + OLD_HI, x)[3]:
                    return
        for c in range(channels.shape[0]):
            b, mask, word = CHANNELS + PER_CHANNEL * c, channels[c, MASK], rows[h, VALUES + c]
            if mask:
                x = floats[h, VALUES + c]
                if x != x:
                    continue
                _add_to(key_floats, k, b + OLD_HI, x)
            elif word == NULL:
                continue
            else:
                keys[k, b + OLD_HI] += word
            keys[k, b + OLD_LEAST] = _better(word, keys[k, b + OLD_LEAST], keys[k, b + OLD_N], mask, -1)
            keys[k, b + OLD_MOST] = _better(word, keys[k, b + OLD_MOST], keys[k, b + OLD_N], mask, 1)
            keys[k, b + OLD_N] += 1
        keys[k, FOLDED] += 1
        keys[k, LAST_AT], keys[k, LAST_POS] = rows[h, 0], rows[h, 1]
        h += 1
        keys[k, HEAD] = h


@njit(cache=True)
def _place(rows, keys, free, k, at, pos, horizon, channels):  # type: ignore[no-untyped-def]
    """Make a line free for a row; returns all lines and which it is, or -1 when the row is there already."""
    if keys[k, TAIL] == keys[k, END]:
        _fold(rows, keys, k, horizon, channels)
        rows = make_room(rows, keys, free, k, 1)
    tail = keys[k, TAIL]
    i = tail
    if keys[k, HEAD] < tail and (rows[tail - 1, 0] > at or (rows[tail - 1, 0] == at and rows[tail - 1, 1] >= pos)):
        i = first(rows, keys[k, HEAD], tail, at, pos)
        if rows[i, 0] == at and rows[i, 1] == pos:
            return rows, -1
        for j in range(tail, i, -1):
            for w in range(rows.shape[1]):
                rows[j, w] = rows[j - 1, w]
    keys[k, TAIL] = tail + 1
    rows[i, 0], rows[i, 1] = at, pos
    return rows, i


@njit(cache=True)
def _enter(keys, k, words, i, channels):  # type: ignore[no-untyped-def]
    """A row enters the numbers of its key."""
    key_floats, floats = keys.view(np.float64), words.view(np.float64)
    for c in range(channels.shape[0]):
        b, mask, word = CHANNELS + PER_CHANNEL * c, channels[c, MASK], words[i, c]
        if mask:
            x = floats[i, c]
            if x != x:
                continue
            if _add_to(key_floats, k, b + HI, x):
                keys[k, b + LOST] = 1
        elif word == NULL:
            continue
        else:
            keys[k, b + HI] += word
        keys[k, b + LEAST] = _better(word, keys[k, b + LEAST], keys[k, b + N], mask, -1)
        keys[k, b + MOST] = _better(word, keys[k, b + MOST], keys[k, b + N], mask, 1)
        keys[k, b + N] += 1


@njit(cache=True)
def _leave(rows, keys, k, i, channels):  # type: ignore[no-untyped-def]
    """Line i leaves the numbers of its key, and its rows."""
    key_floats, floats = keys.view(np.float64), rows.view(np.float64)
    for c in range(channels.shape[0]):
        b, mask, word = CHANNELS + PER_CHANNEL * c, channels[c, MASK], rows[i, VALUES + c]
        if mask:
            x = floats[i, VALUES + c]
            if x != x:
                continue
            if _add_to(key_floats, k, b + HI, -x):
                keys[k, b + LOST] = 1
        elif word == NULL:
            continue
        else:
            keys[k, b + HI] -= word
        keys[k, b + N] -= 1
        if channels[c, EXTREME] and (word == keys[k, b + LEAST] or word == keys[k, b + MOST]):
            keys[k, b + STALE] = 1
    for j in range(i, keys[k, TAIL] - 1):
        for w in range(rows.shape[1]):
            rows[j, w] = rows[j + 1, w]
    keys[k, TAIL] -= 1


@njit(cache=True)
def _settle(rows, keys, k, channels):  # type: ignore[no-untyped-def]
    """Find again extremes that were taken back, and sums that lost bits where none need be lost any more."""
    key_floats, floats = keys.view(np.float64), rows.view(np.float64)
    for c in range(channels.shape[0]):
        b, mask, v = CHANNELS + PER_CHANNEL * c, channels[c, MASK], VALUES + c
        if keys[k, b + STALE]:
            keys[k, b + STALE] = 0
            n, least, most = keys[k, b + OLD_N], keys[k, b + OLD_LEAST], keys[k, b + OLD_MOST]
            for i in range(keys[k, HEAD], keys[k, TAIL]):
                word = rows[i, v]
                if word != (FLOAT_NULL if mask else NULL):
                    least = _better(word, least, n, mask, -1)
                    most = _better(word, most, n, mask, 1)
                    n += 1
            keys[k, b + LEAST], keys[k, b + MOST] = least, most
        if keys[k, b + LOST]:
            hi, mid, lo = key_floats[k, b + OLD_HI], key_floats[k, b + OLD_MID], key_floats[k, b + OLD_LO]
            i, lost = keys[k, HEAD], False
            while i < keys[k, TAIL] and not lost:
                if floats[i, v] == floats[i, v]:
                    hi, mid, lo, lost = add(hi, mid, lo, floats[i, v])
                i += 1
            if not lost:
                key_floats[k, b + HI], key_floats[k, b + MID], key_floats[k, b + LO] = hi, mid, lo
                keys[k, b + LOST] = 0


@njit(cache=True)
def _results(rows, keys, k, what, channels, out, o):  # type: ignore[no-untyped-def]
    """The reductions of a key into out[o]."""
    key_floats, floats, out_floats = keys.view(np.float64), rows.view(np.float64), out.view(np.float64)
    for r in range(what.shape[0]):
        kind, c, place = what[r, KIND], what[r, CHANNEL], what[r, PLACE]
        b = CHANNELS + PER_CHANNEL * c
        if kind == ROWS:
            out[o, place] = keys[k, LIVE]
        elif kind == COUNT:
            out[o, place] = keys[k, b + N]
        elif keys[k, b + N] == 0:
            out[o, place] = FLOAT_NULL if channels[c, MASK] else NULL
        elif kind != TOTAL and kind != MEAN:
            out[o, place] = keys[k, b + LEAST] if kind == MINIMUM else keys[k, b + MOST]
        elif channels[c, MASK] == 0:
            out[o, place] = keys[k, b + HI]
        else:
            f = b + OLD_HI if keys[k, b + LOST] else b + HI
            hi, mid, lo = key_floats[k, f], key_floats[k, f + 1], key_floats[k, f + 2]
            if keys[k, b + LOST]:
                x = exact_sum(pointer(floats), floats.shape[1], VALUES + c, keys[k, HEAD], keys[k, TAIL], hi, mid, lo)
            else:
                x = rounded(hi, mid, lo)
            if kind == MEAN:
                x = x / keys[k, b + N]
            if x == x:
                out_floats[o, place] = x
            else:
                out[o, place] = FLOAT_NULL


@njit(cache=True)
def _last(rows, keys, k):  # type: ignore[no-untyped-def]
    """At and pos of the last row of a key that keeps its rows."""
    tail = keys[k, TAIL]
    if tail > keys[k, HEAD]:
        return rows[tail - 1, 0], rows[tail - 1, 1]
    return keys[k, LAST_AT], keys[k, LAST_POS]


CAUSE, WEIGHT, WHEN, WHERE, SEQ, BESIDE = range(6)
"""Of an output: a row of the delta that has its key; weight, at, pos, seq, and whether rows of the key are aside."""


@njit(cache=True)
def _change(  # type: ignore[no-untyped-def]
    rows, keys, free, slot, at, pos, words, weight, seq, aside, asides, what, channels, horizon, stamp
):  # fmt: skip
    """Take a delta in. aside: which rows are put aside, asides: per slot how many are; both empty when none can be.

    Returns lines, results, what each is about, slots of which nothing is left, and a row of the delta that does not
    fit, or -1.
    """
    n, R, missing = slot.shape[0], what.shape[0], -1
    touched, latest, t = np.empty(n, np.int64), np.empty(n, np.int64), 0
    before, old = np.empty((n, 4), np.int64), np.empty((n, R), np.int64)
    for i in range(n):
        k = slot[i]
        if keys[k, MARK] != stamp:
            keys[k, MARK], keys[k, TURN], touched[t] = stamp, t, i
            before[t, 0], before[t, 1], before[t, 2] = keys[k, LIVE], keys[k, AT], keys[k, POS]
            before[t, 3] = asides.shape[0] > 0 and asides[k] > 0
            if keys[k, LIVE]:
                _results(rows, keys, k, what, channels, old, t)
            t += 1
        latest[keys[k, TURN]] = seq[i]
        if aside.shape[0] > 0 and aside[i]:
            asides[k] += weight[i]
        elif weight[i] > 0:
            rows, line = _place(rows, keys, free, k, at[i], pos[i], horizon, channels)
            if line < 0:
                missing = i
                continue
            for c in range(channels.shape[0]):
                rows[line, VALUES + c] = words[i, c]
            keys[k, AT], keys[k, POS] = _last(rows, keys, k)
            _enter(keys, k, words, i, channels)
            keys[k, LIVE] += 1
        else:
            line = first(rows, keys[k, HEAD], keys[k, TAIL], at[i], pos[i])
            if line == keys[k, TAIL] or rows[line, 0] != at[i] or rows[line, 1] != pos[i]:
                missing = i
                continue
            _leave(rows, keys, k, line, channels)
            keys[k, AT], keys[k, POS] = _last(rows, keys, k)
            keys[k, LIVE] -= 1
    out, about, o = np.empty((2 * t, R), np.int64), np.empty((2 * t, 6), np.int64), 0
    cleared, gone = np.empty(t, np.int64), 0
    for u in range(t):
        k = slot[touched[u]]
        _settle(rows, keys, k, channels)
        live, there = keys[k, LIVE], before[u, 0] > 0
        for w in range(R):
            out[o, w] = old[u, w]
        about[o, CAUSE], about[o, WEIGHT], about[o, SEQ] = touched[u], -1, latest[u]
        about[o, WHEN], about[o, WHERE], about[o, BESIDE] = before[u, 1], before[u, 2], before[u, 3]
        beside = asides.shape[0] > 0 and asides[k] > 0
        new = o + 1 if there else o
        changed = live > 0
        if live > 0:
            _results(rows, keys, k, what, channels, out, new)
            if there:
                changed = keys[k, AT] != before[u, 1] or keys[k, POS] != before[u, 2] or beside != before[u, 3]
                for w in range(R):
                    if out[o, w] != out[new, w]:
                        changed = True
            about[new, CAUSE], about[new, WEIGHT], about[new, SEQ] = touched[u], 1, latest[u]
            about[new, WHEN], about[new, WHERE], about[new, BESIDE] = keys[k, AT], keys[k, POS], beside
        else:
            erase(rows, keys, free, k)
            if not beside:
                cleared[gone] = k
                gone += 1
        if there and (changed or live == 0):
            o += 1
        if changed:
            o += 1
    return rows, out[:o], about[:o], cleared[:gone], missing


@njit(cache=True)
def _sweep(rows, keys, free, slots, hand, n, horizon, channels):  # type: ignore[no-untyped-def]
    """Let n keys of all slots, from `hand` on, fold their old rows; returns lines."""
    for i in range(hand, hand + n):
        k = i if i < slots else i - slots
        if keys[k, END]:
            _fold(rows, keys, k, horizon, channels)
            rows, _ = tidy(rows, keys, free, k)
    return rows


class _Aggregated(Keyed):
    waves = False

    def __init__(self, operator: Aggregate, schema: Schema, out: Schema) -> None:
        super().__init__(operator.keys, out)
        self.by, self.aside = operator.by, operator.aside
        self.asides = np.zeros(0, np.int64)
        self.plan = Plan(operator.reductions, schema, [0] * len(operator.reductions), [True])
        channels = len(self.plan.channels)
        self.segments = Segments(CHANNELS + PER_CHANNEL * channels, VALUES + channels)
        self.stamp = 0
        self.hand = 0

    def reserve(self, slots: int) -> None:
        self.segments.reserve(slots)
        if self.aside is not None:
            self.asides = grown(self.asides, slots)

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        delta, slot = deltas[0], slots[0]
        s, plan = self.segments, self.plan
        retracts = bool((delta.weight < 0).any())
        words = plan.words(delta.columns, len(delta))
        aside: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        if self.aside is not None:
            aside = delta.columns[self.aside] == 1
        self.stamp += 1
        s.rows, results, about, cleared, missing = _change(
            s.rows, s.keys, s.free, slot, delta.at, delta.pos, words, delta.weight, delta.seq, aside, self.asides,
            plan.what, plan.channels, horizon, self.stamp,
        )  # fmt: skip
        if missing >= 0:
            raise ValueError(
                f"aggregate: a change of weight {delta.weight[missing]} at {delta.at[missing]}, position "
                f"{delta.pos[missing]} does not fit; expected to insert a row that is not there, or to take back one "
                "that is and is not older than the horizon"
            )
        if len(cleared):
            self.slots.release(cleared.tolist())
        self._sweep(len(delta), horizon)
        if retracts:
            if _went_over(delta, slot):
                about[:, SEQ] = delta.seq[-1]
            order = lexsort(about[:, SEQ], about[:, WEIGHT])
            about, results = np.take(about, order, axis=0), np.take(results, order, axis=0)
        keys = {n: delta.columns[n][about[:, CAUSE]] for n in self.by}
        weight, at, pos, seq = (about[:, w].copy() for w in (WEIGHT, WHEN, WHERE, SEQ))
        beside = {} if self.aside is None else {self.aside: about[:, BESIDE].astype(np.int8)}
        return Delta({**keys, **plan.columns(results), **beside}, weight, at, pos, seq)

    def _sweep(self, n: int, horizon: int) -> None:
        if capacity := self.slots.capacity:
            some = min(n + 1, capacity)
            s = self.segments
            s.rows = _sweep(s.rows, s.keys, s.free, capacity, self.hand, some, horizon, self.plan.channels)
            self.hand = (self.hand + some) % capacity

    def arrays(self) -> dict[str, Any]:
        kept = {"segments": self.segments.snapshot(self.slots.capacity), "numbers": (self.stamp, self.hand)}
        return kept if self.aside is None else {**kept, "asides": self.asides[: self.slots.capacity].copy()}

    def load(self, arrays: dict[str, Any]) -> None:
        self.asides = arrays.get("asides", self.asides)
        self.segments.restore(arrays["segments"])
        self.stamp, self.hand = arrays["numbers"]

    @property
    def size(self) -> tuple[int, int]:
        return len(self.slots), self.segments.nbytes + self.slots.nbytes + self.asides.nbytes


def _went_over(delta: Delta, slot: Ints) -> bool:
    """Whether a row of one (at, pos) left a key and entered another."""
    order = lexsort(delta.at, delta.pos)
    at, pos, slot = delta.at[order], delta.pos[order], slot[order]
    return bool(((at[1:] == at[:-1]) & (pos[1:] == pos[:-1]) & (slot[1:] != slot[:-1])).any())
