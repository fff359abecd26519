"""WINDOW: for each row, reductions over the rows of its key up to it and no older than a size.

    window(by=k, size=s, n=reduction)(R) = the rows of R, each with n = reduction of
        { r' in R : r'.k = r.k and r.at - s < r'.at and (r'.at, r'.pos) <= (r.at, r.pos) }

A row sees itself and what precedes it; rows of one `at` are ordered by position. A row that comes late, is taken back
or is changed corrects the rows behind it that saw it or see it now: the old output is retracted, the new one inserted,
both known at the `seq` of the last change before the corrected row.

An output is a function of the rows that are there, never of how they came: what is retracted is computed again from
the rows, and is bit for bit what was emitted. A total of floats is the exact sum of the window, rounded once, for any
values. For `size="forever"` rows before the horizon are known as a running sum only, of 159 bits: the total is exact
while no running sum of the key in order of (at, pos) needs more, and then off by at most 2**-150 times the sum of
the absolute values, and still a function of the rows. Once 1e300 and 0.1 met in one key, its windows are summed row by
row, which costs time.

Rows of a key lie in one segment, sorted (`operators.segments`), each with the running sums of its key: a window of any
size is a range of rows, its total the difference of two running sums, its extremes a walk over at most 126 rows and
one entry per block of 64. A row that comes in order takes constant time, whatever the sizes (on average; when the
extreme itself leaves in every step, the walk); a late one takes time in proportion to the rows behind it. Nothing is
subtracted when a row leaves a window, so to forget rows is only to manage memory: rows that no window can reach behind
the horizon are forgotten when a segment is full or as a hand goes round the keys, a few in each call; so are keys,
unless a size is "forever".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numba import njit

from operators.delta import AT as AT_COLUMN
from operators.delta import BEGINNING, BOOL, FLOAT, INT, NULL, STRING, Delta, Ints, Schema
from operators.delta import POS as POS_COLUMN
from operators.exact import add, exact_sum, minus, rounded
from operators.kernel import pointer
from operators.operator import DefinitionError, Maintained, Operator, as_names, microseconds, new_columns
from operators.reduction import (
    ALL,
    CHANNEL,
    COUNT,
    EXTREME,
    FLOAT_NULL,
    KIND,
    MASK,
    MAXIMUM,
    MEAN,
    MINIMUM,
    PLACE,
    RESTART,
    ROWS,
    WINDOW,
    Plan,
    Reduction,
    check_keys,
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
from operators.segments import (
    AT,
    END,
    FIELDS,
    HEAD,
    MARK,
    ORIGIN,
    POS,
    START,
    TAIL,
    TOP,
    Segments,
    erase,
    first,
    make_room,
    taller,
    tidy,
)
from operators.state import Keyed, Rows, lexsort, nbytes

FOREVER = "forever"


@dataclass(frozen=True, eq=False)
class Window(Operator):
    """Adds to each row reductions over the rows of its key that precede it, and itself.

    by: the columns of the key. size: how far back a reduction looks that has no size of its own: a duration such as
    "1h", or "forever". reductions: names of the new columns and what they hold.

    SQL: `SELECT *, mean(x) OVER (PARTITION BY by ORDER BY at, pos ...)`; where rows share an `at` no SQL frame says the
    same, but a join does:

        SELECT a.*, avg(b.x) FROM r a JOIN r b ON a.by IS NOT DISTINCT FROM b.by
            AND b.at > a.at - size AND (b.at, b.pos) <= (a.at, a.pos) GROUP BY a.*

    >>> from operators.delta import to_column
    >>> pairs = window(by="card", size="1h", n=count(), spent=total("amount")).start([{"card": STRING, "amount": INT}])
    >>> def change(weight, at, amount):
    ...     columns = {"card": to_column(["a"], STRING), "amount": to_column([amount], INT)}
    ...     one = np.array([at])
    ...     out = pairs.apply([Delta(columns, np.array([weight]), one, one, one)])
    ...     n, spent = out.columns["n"].tolist(), out.columns["spent"].tolist()
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), n, spent))
    >>> change(1, 10, 5)
    [(1, 10, 1, 5)]
    >>> change(1, 20, 3)
    [(1, 20, 2, 8)]
    >>> change(-1, 10, 5)  # taken back: the row at 20 no longer sees it
    [(-1, 10, 1, 5), (-1, 20, 2, 8), (1, 20, 1, 3)]
    """

    by: tuple[str, ...]
    size: str | timedelta | None
    reductions: tuple[tuple[str, Reduction], ...]

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return (self.by,)

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "by": list(self.by),
            "reductions": {n: {**r.definition, "size": self.microseconds(n, r)} for n, r in self.reductions},
        }

    def microseconds(self, name: str, reduction: Reduction) -> int | None:
        """How far back a reduction looks; None when it has no bound. Raises `DefinitionError`."""
        size = self.size if reduction.size is None else reduction.size
        if size is None:
            raise DefinitionError(f"window: {name} has no size; expected a duration such as '1h', or 'forever'")
        if size == FOREVER:
            return None
        n = microseconds(size, f"window: the size of {name}")
        if n == 0:
            raise DefinitionError(f"window: the size of {name} is {size!r}: expected more than 0")
        return n

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given = inputs[0]
        check_keys(self.by, given, "window")
        return new_columns(given, {n: r.type_in(given, f"window {n}") for n, r in self.reductions}, "window")

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        frame = relations[0]
        given = frame.collect_schema()
        types = {n: given[r.column] if r.column else None for n, r in self.reductions}
        key = [pl.col(n).alias(f"_by{i}") for i, n in enumerate(self.by)]
        values = [pl.col(r.column or AT_COLUMN).alias(f"_value{i}") for i, (_, r) in enumerate(self.reductions)]
        seen = frame.select(*key, pl.col(AT_COLUMN).alias("_seen_at"), pl.col(POS_COLUMN).alias("_seen_pos"), *values)
        at, seen_at = pl.col(AT_COLUMN), pl.col("_seen_at")
        pairs = (
            frame.select(*key, AT_COLUMN, POS_COLUMN)
            .join(seen, on=[f"_by{i}" for i in range(len(self.by))], nulls_equal=True)
            .filter((seen_at < at) | ((seen_at == at) & (pl.col("_seen_pos") <= pl.col(POS_COLUMN))))
        )
        made = []
        for i, (n, r) in enumerate(self.reductions):
            size = self.microseconds(n, r)
            inside = None
            if size is not None:
                inside = seen_at > pl.when(at > BEGINNING + size).then(at - size).otherwise(NULL)
            made.append(gathered(r, types[n], f"_value{i}", inside).alias(n))
        results = (
            pairs.group_by(AT_COLUMN, POS_COLUMN)
            .agg(made)
            .with_columns(finished(r, types[n], n) for n, r in self.reductions)
        )
        return frame.join(results, on=[AT_COLUMN, POS_COLUMN]).select(
            *(n for n in given if n not in (AT_COLUMN, POS_COLUMN)),
            *(n for n, _ in self.reductions),
            AT_COLUMN,
            POS_COLUMN,
        )

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Windows(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        return [
            (
                window(
                    by="name", size="1h", n=count(), known=count("x"), sum=total("x"), mean=mean("x"), most=maximum("x")
                ),
                [{"name": STRING, "x": FLOAT}],
            ),
            (
                window(
                    by=["name", "yes"],
                    size="forever",
                    rows=count(),
                    low=minimum("n"),
                    mean=mean("n"),
                    recent=total("n", size="3us"),
                    low_x=minimum("x", size="2h"),
                    yes_n=total("yes", size="1h"),
                    ever=total("x"),
                ),
                [{"name": STRING, "yes": BOOL, "n": INT, "x": FLOAT}],
            ),
        ]


def window(*, by: str | Sequence[str], size: str | timedelta | None = None, **reductions: Reduction) -> Window:
    """For each row, reductions over the rows of its key with `at` in (at - size, at] that do not come after it.

    by: the columns of the key; a null is a key like any other. size: a duration ("30s", "1h30m", a timedelta) or
    "forever"; a reduction may have its own, `n=count(size="7d")`, and all sizes share what is kept. The result has the
    columns that come in and one for each reduction.

    Raises `DefinitionError` for a size that is missing, 0 or no duration, for something that is not a reduction and,
    once the columns are known, for unknown columns, wrong types and names that are taken. SQL: see `Window`.
    """
    made = Window(as_names(by, "window by"), size, reductions_of(reductions, "window"))
    for n, r in made.reductions:
        made.microseconds(n, r)
    return made


# The words of a row: at, pos, the number of its columns, and per channel the value, the running sum (hi, mid, lo) and
# the number of values that are not null. The words of a key: its fields; per channel the running sum and number before
# its first row, one more than the number of the last row at which the running sum lost bits, the least and
# greatest of forgotten rows and of all rows; per window the number of the first row that the last row sees and, per
# channel, of its least and its greatest.

ID, VALUES, PER_VALUE = 2, 3, 5
HI, MID, LO, N = 1, 2, 3, 4
LOST, GONE_LEAST, GONE_MOST, LEAST, MOST = range(5, 10)
PER_CHANNEL = 9
ENDLESS = -1
FAR = 2**62


@njit(cache=True, forceinline=True)
def _base(c):  # type: ignore[no-untyped-def]
    """Where a channel's words of a key begin; HI, LO and N count from there as they do in a row."""
    return FIELDS + PER_CHANNEL * c - 1


@njit(cache=True, forceinline=True)
def _seat(channels, w):  # type: ignore[no-untyped-def]
    return FIELDS + PER_CHANNEL * channels + w * (1 + 2 * channels)


@njit(cache=True, forceinline=True)
def _below(at, size):  # type: ignore[no-untyped-def]
    """The greatest `at` that a row does not see."""
    return at - size if at > BEGINNING + size else NULL


class _Table(NamedTuple):
    """All that the results of a line are made of, as pointers: line i begins at i * width, key k at k * key_width."""

    rows: Any
    floats: Any
    width: Any
    keys: Any
    key_floats: Any
    key_width: Any
    blocks: Any
    block_width: Any
    sizes: Any
    windows: Any
    what: Any
    reductions: Any
    channels: Any
    many: Any


@njit(cache=True, forceinline=True)
def _table(rows, keys, blocks, sizes, what, channels):  # type: ignore[no-untyped-def]
    return _Table(
        pointer(rows), pointer(rows.view(np.float64)), rows.shape[1],
        pointer(keys), pointer(keys.view(np.float64)), keys.shape[1],
        pointer(blocks), blocks.shape[1],
        pointer(sizes), sizes.shape[0], pointer(what), what.shape[0], pointer(channels), channels.shape[0],
    )  # fmt: skip


@njit(cache=True, forceinline=True)
def _channel(t, c, word):  # type: ignore[no-untyped-def]
    return t.channels[c * 4 + word]


@njit(cache=True)
def _extreme(t, v, b, mask, sign, s, e):  # type: ignore[no-untyped-def]
    """The line of the greatest (sign 1) or least (-1) value of lines s to e, the latest of equals."""
    best = e
    top = rank(t.rows[e * t.width + v], mask, sign)
    i = e - 1
    while i >= s:
        if (i & 63) == 63 and i - 63 >= s:
            j = t.blocks[(i >> 6) * t.block_width + b]
            i -= 64
        else:
            j = i
            i -= 1
        r = rank(t.rows[j * t.width + v], mask, sign)
        if r > top:
            top = r
            best = j
    return best


@njit(cache=True, forceinline=True)
def _enter_block(t, i, head):  # type: ignore[no-untyped-def]
    """Line i becomes the last of its block."""
    for c in range(t.many):
        if _channel(t, c, EXTREME):
            b, v, mask = (i >> 6) * t.block_width + 2 * c, VALUES + PER_VALUE * c, _channel(t, c, MASK)
            if i == head or (i & 63) == 0:
                t.blocks[b] = i
                t.blocks[b + 1] = i
            else:
                word = t.rows[i * t.width + v]
                if rank(word, mask, -1) >= rank(t.rows[t.blocks[b] * t.width + v], mask, -1):
                    t.blocks[b] = i
                if rank(word, mask, 1) >= rank(t.rows[t.blocks[b + 1] * t.width + v], mask, 1):
                    t.blocks[b + 1] = i


@njit(cache=True, forceinline=True)
def _run_on(t, q, i):  # type: ignore[no-untyped-def]
    """The running sums of line i of the key at q, from those before it."""
    within = i > t.keys[q + HEAD]
    for c in range(t.many):
        v, b = i * t.width + VALUES + PER_VALUE * c, q + _base(c)
        before = v - t.width
        n = t.rows[before + N] if within else t.keys[b + N]
        if _channel(t, c, MASK):
            hi = t.floats[before + HI] if within else t.key_floats[b + HI]
            mid = t.floats[before + MID] if within else t.key_floats[b + MID]
            lo = t.floats[before + LO] if within else t.key_floats[b + LO]
            x = t.floats[v]
            if x == x:
                hi, mid, lo, lost = add(hi, mid, lo, x)
                n += 1
                if lost:
                    t.keys[b + LOST] = i - t.keys[q + ORIGIN] + 1
            t.floats[v + HI] = hi
            t.floats[v + MID] = mid
            t.floats[v + LO] = lo
        else:
            whole = t.rows[before + HI] if within else t.keys[b + HI]
            y = t.rows[v]
            if y != NULL:
                whole += y
                n += 1
            t.rows[v + HI] = whole
        t.rows[v + N] = n


@njit(cache=True)
def _run_from(t, k, start, end):  # type: ignore[no-untyped-def]
    for i in range(start, end):
        _run_on(t, k * t.key_width, i)


@njit(cache=True)
def _forget(rows, keys, k, keep, channels):  # type: ignore[no-untyped-def]
    """Drop rows at or before `keep`; they stay in the sums, and in the extremes of all time."""
    head, tail, origin = keys[k, HEAD], keys[k, TAIL], keys[k, ORIGIN]
    h = head
    while h < tail and rows[h, 0] <= keep:
        for c in range(channels.shape[0]):
            if channels[c, ALL]:
                v, b, mask = VALUES + PER_VALUE * c, _base(c), channels[c, MASK]
                if h == origin or rank(rows[h, v], mask, -1) > rank(keys[k, b + GONE_LEAST], mask, -1):
                    keys[k, b + GONE_LEAST] = rows[h, v]
                if h == origin or rank(rows[h, v], mask, 1) > rank(keys[k, b + GONE_MOST], mask, 1):
                    keys[k, b + GONE_MOST] = rows[h, v]
        h += 1
    if h > head:
        for c in range(channels.shape[0]):
            v, b = VALUES + PER_VALUE * c, _base(c)
            keys[k, b + HI] = rows[h - 1, v + HI]
            keys[k, b + MID] = rows[h - 1, v + MID]
            keys[k, b + LO] = rows[h - 1, v + LO]
            keys[k, b + N] = rows[h - 1, v + N]
        keys[k, HEAD] = h


@njit(cache=True)
def _covering(blocks, rows):  # type: ignore[no-untyped-def]
    """The blocks, with one for each 64 lines."""
    return taller(blocks, (rows.shape[0] >> 6) + 1) if blocks.shape[1] else blocks


@njit(cache=True)
def _moved(rows, keys, blocks, k, sizes, what, channels):  # type: ignore[no-untyped-def]
    """After the rows of a key moved: mark their blocks, and start running sums again that lost bits; returns blocks."""
    blocks = _covering(blocks, rows)
    t = _table(rows, keys, blocks, sizes, what, channels)
    head, tail = keys[k, HEAD], keys[k, TAIL]
    if blocks.shape[1] and keys[k, END] - head >= 64:
        for i in range(head, tail):
            _enter_block(t, i, head)
    again = False
    for c in range(channels.shape[0]):
        b = _base(c)
        if channels[c, RESTART] and keys[k, b + LOST] > 0:
            keys[k, b + HI] = keys[k, b + MID] = keys[k, b + LO] = keys[k, b + LOST] = 0
            again = True
    if again:
        _run_from(t, k, head, tail)
    return blocks


@njit(cache=True)
def _reseat(t, rows, keys, k, e):  # type: ignore[no-untyped-def]
    """Make a key ready to be asked for the results of line e, which may be its tail, and those after it."""
    C, head, origin = t.many, keys[k, HEAD], keys[k, ORIGIN]
    last = e if e < keys[k, TAIL] else e - 1
    for w in range(t.windows):
        seat = _seat(C, w)
        left = head
        if t.sizes[w] != ENDLESS and last >= head:
            left = first(rows, head, last, _below(rows[last, 0], t.sizes[w]) + 1, NULL)
        keys[k, seat] = left - origin
        for x in range(2 * C):
            keys[k, seat + 1 + x] = -1
    for c in range(C):
        if _channel(t, c, ALL):
            v, b, mask = VALUES + PER_VALUE * c, _base(c), _channel(t, c, MASK)
            for side in range(2):
                sign = 2 * side - 1
                word = keys[k, b + GONE_LEAST + side]
                if e > head:
                    found = rows[_extreme(t, v, 2 * c + side, mask, sign, head, e - 1), v]
                    if head == origin or rank(found, mask, sign) > rank(word, mask, sign):
                        word = found
                keys[k, b + LEAST + side] = word


@njit(cache=True, forceinline=True)
def _results(t, q, e, out, out_floats, o):  # type: ignore[no-untyped-def]
    """The results of line e of the key at q to out[o] and on; this was last done for the line before, or `_reseat`."""
    keys, head, origin, line = t.keys, t.keys[q + HEAD], t.keys[q + ORIGIN], e * t.width
    for c in range(t.many):
        if _channel(t, c, ALL):
            b, mask = q + _base(c), _channel(t, c, MASK)
            word = t.rows[line + VALUES + PER_VALUE * c]
            if e == origin or rank(word, mask, -1) > rank(keys[b + LEAST], mask, -1):
                keys[b + LEAST] = word
            if e == origin or rank(word, mask, 1) > rank(keys[b + MOST], mask, 1):
                keys[b + MOST] = word
    w, c, s, seat, n, v, b, before = -1, -1, head, q, 0, 0, 0, 0
    endless, summed = False, False
    x = 0.0
    for r in range(t.reductions):
        kind, place = t.what[4 * r + KIND], o + t.what[4 * r + PLACE]
        if t.what[4 * r + WINDOW] != w:
            w, c = t.what[4 * r + WINDOW], -1
            seat = q + _seat(t.many, w)
            endless = t.sizes[w] == ENDLESS
            s = head
            if not endless:
                s = max(keys[seat] + origin, head)
                below = _below(t.rows[line], t.sizes[w])
                while t.rows[s * t.width] <= below:
                    s += 1
                keys[seat] = s - origin
        if kind == ROWS:
            out[place] = e - (origin if endless else s) + 1
            continue
        if t.what[4 * r + CHANNEL] != c:
            c = t.what[4 * r + CHANNEL]
            v, b, summed = VALUES + PER_VALUE * c, q + _base(c), False
            before = (s - 1) * t.width + v
            n = t.rows[line + v + N]
            if not endless:
                n -= t.rows[before + N] if s > head else keys[b + N]
        if kind == COUNT:
            out[place] = n
        elif kind in (MINIMUM, MAXIMUM):
            side = 0 if kind == MINIMUM else 1
            if endless:
                out[place] = keys[b + LEAST + side]
            else:
                sign, mask, here = 2 * side - 1, _channel(t, c, MASK), seat + 1 + 2 * c + side
                best = keys[here] + origin
                if best < s:
                    best = _extreme(t, v, 2 * c + side, mask, sign, s, e)
                    keys[here] = best - origin
                elif rank(t.rows[line + v], mask, sign) >= rank(t.rows[best * t.width + v], mask, sign):
                    best = e
                    keys[here] = e - origin
                out[place] = t.rows[best * t.width + v]
        elif _channel(t, c, MASK) == 0:
            whole = t.rows[line + v + HI]
            if not endless:
                whole -= t.rows[before + HI] if s > head else keys[b + HI]
            out[place] = whole if n > 0 else NULL
        else:
            if not summed:
                summed = True
                hi, mid, lo = t.floats[line + v + HI], t.floats[line + v + MID], t.floats[line + v + LO]
                if endless:
                    x = rounded(hi, mid, lo)
                elif keys[b + LOST] > s - origin:
                    x = exact_sum(t.floats, t.width, v, s, e + 1, 0.0, 0.0, 0.0)
                elif s > head:
                    x = minus(hi, mid, lo, t.floats[before + HI], t.floats[before + MID], t.floats[before + LO])
                else:
                    x = minus(hi, mid, lo, t.key_floats[b + HI], t.key_floats[b + MID], t.key_floats[b + LO])
            y = x / n if kind == MEAN and n > 0 else x
            if n > 0 and y == y:
                out_floats[place] = y
            else:
                out[place] = FLOAT_NULL


@njit(cache=True)
def _results_from(t, rows, keys, k, start, n, out):  # type: ignore[no-untyped-def]
    """The results of n lines from `start` on into out[:n], from nothing but the rows."""
    if n:
        to, to_floats = pointer(out), pointer(out.view(np.float64))
        _reseat(t, rows, keys, k, start)
        for i in range(n):
            _results(t, k * t.key_width, start + i, to, to_floats, i * t.reductions)


@njit(cache=True)
def _plan(keys, slot, at, pos, weight, a, b, stamp, slow):  # type: ignore[no-untyped-def]
    """Mark keys that get, in rows a to b, one that is not an insert behind their last; returns how many those get."""
    some = False
    for i in range(a, b):
        k = slot[i]
        mark = keys[k, MARK]
        if mark == stamp:
            continue
        after = mark == 0 or at[i] > keys[k, AT] or (at[i] == keys[k, AT] and pos[i] > keys[k, POS])
        if weight[i] > 0 and after:
            keys[k, AT] = at[i]
            keys[k, POS] = pos[i]
            if mark == 0:
                keys[k, MARK] = 1
        else:
            keys[k, MARK] = stamp
            some = True
    n = 0
    if some:
        for i in range(a, b):
            if keys[slot[i], MARK] == stamp:
                slow[n] = i
                n += 1
    return n


@njit(cache=True)
def _append(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about, i, b, o
):  # fmt: skip
    """Rows i to b that come in order, except those of marked keys; their results go to out[o] and on.

    Returns the next row and result; the row is not b when there must be `_spare` lines more.
    """
    t = _table(rows, keys, blocks, sizes, what, channels)
    to, to_floats, told = pointer(out), pointer(out.view(np.float64)), pointer(about)
    slots, ats, poss, seqs, numbers, given = (
        pointer(slot), pointer(at), pointer(pos), pointer(seq), pointer(ids), pointer(words)
    )  # fmt: skip
    blocked, lines = blocks.shape[1] > 0, rows.shape[0]
    while i < b:
        k = slots[i]
        q = k * t.key_width
        if t.keys[q + MARK] == stamp:
            i += 1
            continue
        if t.keys[q + TAIL] == t.keys[q + END]:
            if free[TOP] + _spare(t.keys[q + END] - t.keys[q + START]) > lines:
                return i, o
            _forget(rows, keys, k, keep, channels)
            make_room(rows, keys, free, k, np.int64(1))
            _moved(rows, keys, blocks, k, sizes, what, channels)
        e = t.keys[q + TAIL]
        line = e * t.width
        t.rows[line], t.rows[line + 1], t.rows[line + ID] = ats[i], poss[i], numbers[i]
        for c in range(t.many):
            t.rows[line + VALUES + PER_VALUE * c] = given[i * t.many + c]
        _run_on(t, q, e)
        t.keys[q + TAIL] = e + 1
        if blocked and t.keys[q + END] - t.keys[q + HEAD] >= 64:
            _enter_block(t, e, t.keys[q + HEAD])
        _results(t, q, e, to, to_floats, o * t.reductions)
        told[4 * o + SOURCE], told[4 * o + WEIGHT], told[4 * o + SEQ] = i, 1, seqs[i]
        o += 1
        i += 1
    return i, o


@njit(cache=True, forceinline=True)
def _spare(segment):  # type: ignore[no-untyped-def]
    """At most so many lines are taken when a segment of this size is full."""
    return 2 * segment + 128


@njit(cache=True)
def _append_all(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about, a, b, o
):  # fmt: skip
    """Rows a to b that come in order, except those of marked keys; their results go to `out` from o on.

    Returns lines, blocks, results, what each is about, and how many there are.
    """
    out, about = taller(out, o + b - a), taller(about, o + b - a)
    while True:
        a, o = _append(
            rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, stamp, out, about,
            a, b, o,
        )  # fmt: skip
        if a == b:
            return rows, blocks, out, about, o
        k = slot[a]
        rows = taller(rows, free[TOP] + _spare(keys[k, END] - keys[k, START]))
        blocks = _covering(blocks, rows)


@njit(cache=True)
def _differ(a, i, b, j):  # type: ignore[no-untyped-def]
    w = 0
    while w < a.shape[1] and a[i, w] == b[j, w]:
        w += 1
    return w < a.shape[1]


SOURCE, WHOSE, WEIGHT, SEQ = range(4)
"""Of an output: the row of the delta, or -1; the number of its columns otherwise; weight; seq."""


@njit(cache=True)
def _emit(out, about, o, results, i, source, whose, weight, seq):  # type: ignore[no-untyped-def]
    out, about = taller(out, o + 1), taller(about, o + 1)
    for w in range(out.shape[1]):
        out[o, w] = results[i, w]
    about[o, SOURCE], about[o, WHOSE], about[o, WEIGHT], about[o, SEQ] = source, whose, weight, seq
    return out, about, o + 1


@njit(cache=True)
def _rewrite(  # type: ignore[no-untyped-def]
    rows, keys, blocks, free, slot, at, pos, seq, ids, words, sizes, what, channels, keep, out, about, o, weight, order,
    reach,
):  # fmt: skip
    """Rows that come late, leave or change: `order`, sorted by key, at, pos and weight.

    reach: the largest size, or ENDLESS. Returns lines, blocks, results, what each is about, how many there are, the
    numbers of columns nobody needs any more, the slots of which nothing is left, and a row of the delta that takes
    back what is not there, or -1.
    """
    R, C, width = what.shape[0], channels.shape[0], rows.shape[1]
    old, new = np.empty((16, R), np.int64), np.empty((16, R), np.int64)
    stash, origin_of = np.empty((16, width), np.int64), np.empty((16, 2), np.int64)
    gone, gone_n = np.empty(order.shape[0], np.int64), 0
    cleared, cleared_n = np.empty(order.shape[0], np.int64), 0
    missing = -1
    none, off, on = np.int64(0), np.int64(-1), np.int64(1)  # literals would be compiled one by one
    g = 0
    while g < order.shape[0]:
        f, z = order[g], g
        k = slot[f]
        while z < order.shape[0] and slot[order[z]] == k:
            z += 1
        last = order[z - 1]
        if keys[k, END] - keys[k, TAIL] < z - g:
            _forget(rows, keys, k, keep, channels)
            rows = make_room(rows, keys, free, k, z - g)
            blocks = _moved(rows, keys, blocks, k, sizes, what, channels)
        t = _table(rows, keys, blocks, sizes, what, channels)
        head, tail = keys[k, HEAD], keys[k, TAIL]
        j = first(rows, head, tail, at[f], pos[f])
        m = tail - j
        # Rows from `stop` on lie out of reach of every change.
        stop = tail
        if reach != ENDLESS and at[last] < FAR - reach:
            stop = first(rows, j, tail, at[last] + reach, NULL)
        seen = stop - j
        old = taller(old, seen)
        _results_from(t, rows, keys, k, j, seen, old)
        stash, origin_of = taller(stash, m), taller(origin_of, m + z - g)
        for i in range(m):
            for w in range(width):
                stash[i, w] = rows[j + i, w]
        # Merge: old rows as they are, less those taken back, and new ones among them.
        x, u, latest = 0, j, seq[f]
        while g < z or x < m:
            if g < z and (
                x == m or at[order[g]] < stash[x, 0] or (at[order[g]] == stash[x, 0] and pos[order[g]] <= stash[x, 1])
            ):
                i = order[g]
                leave, enter = -1, -1
                while g < z and at[order[g]] == at[i] and pos[order[g]] == pos[i]:
                    if weight[order[g]] < 0:
                        leave = order[g]
                    else:
                        enter = order[g]
                    latest = seq[order[g]]
                    g += 1
                there = x < m and stash[x, 0] == at[i] and stash[x, 1] == pos[i]
                if leave >= 0 and there:
                    out, about, o = _emit(out, about, o, old, x, leave, none, off, seq[leave])
                    gone[gone_n] = stash[x, ID]
                    gone_n += 1
                    x += 1
                elif leave >= 0 and enter >= 0:
                    gone[gone_n] = ids[enter]
                    gone_n += 1
                    enter = -1
                elif leave >= 0 or there:
                    missing = i
                    enter = -1
                if enter >= 0:
                    rows[u, 0], rows[u, 1], rows[u, ID] = at[enter], pos[enter], ids[enter]
                    for c in range(C):
                        rows[u, VALUES + PER_VALUE * c] = words[enter, c]
                    origin_of[u - j, 0], origin_of[u - j, 1] = -1 - enter, seq[enter]
                    u += 1
            else:
                for w in range(width):
                    rows[u, w] = stash[x, w]
                origin_of[u - j, 0], origin_of[u - j, 1] = x, latest
                x += 1
                u += 1
        keys[k, TAIL] = tail = u
        origin = keys[k, ORIGIN]
        if tail == head and (head == origin or reach != ENDLESS):
            erase(rows, keys, free, k)
            cleared[cleared_n] = k
            cleared_n += 1
            continue
        keys[k, MARK] = 1 if tail > head else 0
        if tail > head:
            keys[k, AT], keys[k, POS] = rows[tail - 1, 0], rows[tail - 1, 1]
        for c in range(C):
            b = _base(c)
            keys[k, b + LOST] = min(keys[k, b + LOST], j - origin)
        _run_from(t, k, j, tail)
        if blocks.shape[1] and keys[k, END] - head >= 64:
            for i in range(max(head, j & ~63), tail):
                _enter_block(t, i, head)
        stop = tail
        if reach != ENDLESS and at[last] < FAR - reach:
            stop = first(rows, j, tail, at[last] + reach, NULL)
        seen = stop - j
        new = taller(new, seen)
        _results_from(t, rows, keys, k, j, seen, new)
        if stop < tail or not seen:
            _reseat(t, rows, keys, k, tail)
        for i in range(seen):
            x, known = origin_of[i, 0], origin_of[i, 1]
            if x < 0:
                out, about, o = _emit(out, about, o, new, i, -1 - x, none, on, known)
            elif _differ(old, x, new, i):
                out, about, o = _emit(out, about, o, old, x, off, stash[x, ID], off, known)
                out, about, o = _emit(out, about, o, new, i, off, stash[x, ID], on, known)
    return rows, blocks, out, about, o, gone[:gone_n], cleared[:cleared_n], missing


@njit(cache=True)
def _sweep(rows, keys, blocks, free, slots, hand, n, keep, endless, sizes, what, channels):  # type: ignore[no-untyped-def]
    """Let n keys of all slots, from `hand` on, forget; returns lines, blocks, and slots of which nothing is left."""
    cleared, found = np.empty(n, np.int64), 0
    for i in range(hand, hand + n):
        k = i if i < slots else i - slots
        if keys[k, TAIL] == keys[k, HEAD] and (endless or keys[k, TAIL] == keys[k, ORIGIN]):
            continue
        _forget(rows, keys, k, keep, channels)
        if keys[k, TAIL] == keys[k, HEAD] and not endless:
            erase(rows, keys, free, k)
            cleared[found] = k
            found += 1
        else:
            rows, moved = tidy(rows, keys, free, k)
            if moved:
                blocks = _moved(rows, keys, blocks, k, sizes, what, channels)
    return rows, blocks, cleared[:found]


class _Windows(Keyed):
    def __init__(self, operator: Window, schema: Schema, out: Schema) -> None:
        super().__init__(operator.keys, out)
        sizes = [operator.microseconds(n, r) for n, r in operator.reductions]
        distinct = sorted(set(sizes), key=lambda s: (s is None, s or 0))
        self.plan = Plan(operator.reductions, schema, [distinct.index(s) for s in sizes], [s is None for s in distinct])
        self.sizes = np.array([ENDLESS if s is None else s for s in distinct], np.int64)
        self.tables = self.sizes, self.plan.what, self.plan.channels
        self.endless = None in distinct
        self.longest = max([s for s in distinct if s is not None], default=1)
        self.reach = ENDLESS if self.endless else self.longest
        channels, windows = len(self.plan.channels), len(distinct)
        self.segments = Segments(
            FIELDS + PER_CHANNEL * channels + windows * (1 + 2 * channels), VALUES + PER_VALUE * channels
        )
        self.blocks = np.zeros((0, 2 * channels if self.plan.channels[:, EXTREME].any() else 0), np.int64)
        self.payload = Rows(schema)
        self.payload_asked = 0
        self.stamp = 1
        self.hand = 0
        self.cleared: list[Ints] = []

    def reserve(self, slots: int) -> None:
        self.segments.reserve(slots)

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        held = len(self.slots)
        out = super().apply(deltas, horizon)
        self._forget(len(deltas[0]), len(self.slots) - held, horizon)
        return out

    def changes(self, deltas: Sequence[Delta], slots: Sequence[Ints], edges: Sequence[Ints], horizon: int) -> Delta:
        delta, slot, plan = deltas[0], slots[0], self.plan
        n, s, keep = len(delta), self.segments, self._keep(horizon)
        rows = slot, delta.at, delta.pos, delta.seq, self._kept(delta), plan.words(delta.columns, n)
        results, about, o = np.empty((n, len(plan.what)), np.int64), np.empty((n, 4), np.int64), 0
        slow, gone = np.empty(n, np.int64), []
        for a, b in pairwise(edges[0].tolist()):
            self.stamp += 1
            behind = _plan(s.keys, slot, delta.at, delta.pos, delta.weight, a, b, self.stamp, slow)
            s.rows, self.blocks, results, about, o = _append_all(
                s.rows, s.keys, self.blocks, s.free, *rows, *self.tables, keep, self.stamp, results, about, a, b, o
            )
            if behind:
                few = slow[:behind]
                if behind > 1:
                    few = few[lexsort(slot[few], delta.at[few], delta.pos[few], delta.weight[few])]
                s.rows, self.blocks, results, about, o, left, cleared, missing = _rewrite(
                    s.rows, s.keys, self.blocks, s.free, *rows, *self.tables, keep, results, about, o,
                    delta.weight, few, self.reach,
                )  # fmt: skip
                if missing >= 0:
                    raise ValueError(
                        f"window: a change of weight {delta.weight[missing]} at {delta.at[missing]}, position "
                        f"{delta.pos[missing]} does not fit; expected to insert a row that is not there, or to take "
                        "back one that is and is not older than the horizon"
                    )
                self.cleared.append(cleared)
                gone.append(left)
        if not gone:
            return delta.with_columns({**delta.columns, **plan.columns(results)})
        out = self._put_together(delta, about[:o], results[:o])
        self.payload.remove(np.concatenate(gone))
        return out

    def _put_together(self, delta: Delta, about: Ints, results: Ints) -> Delta:
        """The output of results, in order of `seq`; a row may have left one key and entered another."""
        sequence = np.argsort(2 * about[:, SEQ] + (about[:, WEIGHT] > 0), kind="stable")
        about, results = np.take(about, sequence, axis=0), np.take(results, sequence, axis=0)
        out = delta.take(np.maximum(about[:, SOURCE], 0))
        out.weight, out.seq = about[:, WEIGHT].copy(), about[:, SEQ].copy()
        again = np.flatnonzero(about[:, SOURCE] < 0)
        if len(again):
            kept = self.payload.take(about[again, WHOSE], out.weight[again], out.seq[again])
            out.at[again], out.pos[again] = kept.at, kept.pos
            for name, column in kept.columns.items():
                out.columns[name][again] = column
        return out.with_columns({**out.columns, **self.plan.columns(results)})

    def _keep(self, horizon: int) -> int:
        """Rows at or before this cannot be seen, corrected or taken back any more."""
        return horizon - self.longest if horizon > BEGINNING + self.longest else NULL

    def _kept(self, delta: Delta) -> Ints:
        """Keep the columns of the rows that are inserted; returns their numbers."""
        inserts = delta.weight > 0
        if inserts.all():
            return self.payload.add(delta)
        ids = np.full(len(delta), -1, np.int64)
        ids[inserts] = self.payload.add(delta.take(inserts))
        return ids

    def _forget(self, n: int, new: int, horizon: int) -> None:
        s, keep = self.segments, self._keep(horizon)
        self.payload_asked += n  # looking through the rows kept takes time: not in every call
        if 4 * self.payload_asked >= len(self.payload):
            self.payload.expire(horizon)
            self.payload_asked = 0
        if keep > NULL and (capacity := self.slots.capacity):
            some = min(n // 4 + 2 * new + 1, capacity)  # the hand goes faster than keys come: memory stays flat
            s.rows, self.blocks, cleared = _sweep(
                s.rows, s.keys, self.blocks, s.free, capacity, self.hand, some, keep, self.endless, *self.tables
            )
            self.hand = (self.hand + some) % capacity
            self.cleared.append(cleared)
        if self.cleared:
            slots = np.unique(np.concatenate(self.cleared))
            self.slots.release(slots[s.keys[slots, TAIL] == s.keys[slots, ORIGIN]].tolist())
            self.cleared = []

    def arrays(self) -> dict[str, Any]:
        return {
            "segments": self.segments.snapshot(self.slots.capacity),
            "blocks": self.blocks.copy(),
            "payload": self.payload.snapshot(),
            "numbers": (self.payload_asked, self.stamp, self.hand),
        }

    def load(self, arrays: dict[str, Any]) -> None:
        self.segments.restore(arrays["segments"])
        self.blocks = arrays["blocks"]
        self.payload.restore(arrays["payload"])
        self.payload_asked, self.stamp, self.hand = arrays["numbers"]

    @property
    def size(self) -> tuple[int, int]:
        held = self.segments.nbytes + nbytes([self.blocks]) + self.slots.nbytes + self.payload.nbytes
        return len(self.slots), held
