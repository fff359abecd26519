"""SILENCE: the keys that stopped, since when, and until when.

    silence(by=k, after=d)(R, C) = with now the greatest `now` in the clock C, for each row r of R that is followed by
        silence, the row (k = r.k, since = r.at, until), at r.at + d, with the position of r:
        - the next row r' of its key comes more than d later: until = r'.at
        - it is the last row of its key, and r.at + d < now: until is null

The next row is that in the order of (at, pos). So a silence is one row, which comes once; when the key is heard again
the row gets its `until` (-old +new), and a next silence is a next row. A row that comes late, into the silence, takes
it back or splits it. One that began and ended between two deltas is not lost. `d` may be another for each key.

The pipeline gives the clock: the watermark of the rows, see `engine.clock`. With a row that was there from the
beginning no silence begins. Null is a key like any other. Of the rows before the horizon the last of each key is
remembered; each key is until its rows are taken back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numba import njit

from operators.delta import (
    AT,
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    POS,
    STRING,
    TIME,
    Columns,
    Delta,
    Ints,
    Schema,
    without_idle,
)
from operators.operator import (
    CLOCK,
    DefinitionError,
    Maintained,
    Operator,
    as_names,
    fit_as_key,
    known,
    microseconds,
    new_columns,
)
from operators.ordered import Ordered, amend, enter, tell
from operators.state import grown, nbytes
from operators.timeline import MOST, ahead, first

NOT_SILENT = MOST
"""What a row shows that no silence follows; another one shows `until`."""

_PYTHON: dict[pl.DataType, type] = {INT: int, STRING: str, BOOL: bool}


@dataclass(frozen=True, eq=False)
class Silence(Operator):
    """One row for each time that a key was silent for longer than `after`, or is.

    after: by key; for other keys default. Microseconds.

    SQL: `SELECT k, at AS since, lead(at) OVER (PARTITION BY k ORDER BY at, pos) AS until FROM r QUALIFY until - at > d
    OR (until IS NULL AND at + d < (SELECT max(now) FROM clock))`

    >>> from operators.delta import empty, to_column
    >>> phone, one = {"phone": STRING}, np.array([1])
    >>> kept = silence(by="phone", after="10us").start([phone, CLOCK])
    >>> def beat(seq, at, weight=1):
    ...     row = Delta({"phone": to_column(["a"], STRING)}, one * weight, one * at, one, one * seq)
    ...     return shown(kept.apply([row, empty(CLOCK)]))
    >>> def clock(seq, now):
    ...     return shown(kept.apply([empty(phone), Delta({"now": one * now}, one, one * now, one, one * seq)]))
    >>> def shown(out):
    ...     until = [None if t == NULL else t for t in out.columns["until"].tolist()]
    ...     return list(zip(out.weight.tolist(), out.at.tolist(), out.columns["since"].tolist(), until))
    >>> beat(1, 100), clock(2, 110), clock(3, 111)
    ([], [], [(1, 110, 100, None)])
    >>> beat(4, 130)  # heard again: that is when it ended
    [(-1, 110, 100, None), (1, 110, 100, 130)]
    >>> beat(5, 105)  # comes late: it was silent since then only
    [(1, 115, 105, 130), (-1, 110, 100, 130)]
    >>> beat(5, 105, -1)  # and is taken back
    [(-1, 115, 105, 130), (1, 110, 100, 130)]
    """

    timed: ClassVar[bool] = True

    by: tuple[str, ...]
    after: tuple[tuple[Any, int], ...]
    default: int

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return self.by, ()

    def key(self, key: tuple[str, ...]) -> tuple[str, ...]:
        return (*self.by, "since")

    @property
    def definition(self) -> dict[str, Any]:
        return {"by": list(self.by), "after": [[k, d] for k, d in self.after], "default": self.default}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        given, clock = inputs
        fit_as_key(self.by, given, "silence: by")
        known(list(CLOCK), clock, "silence: the clock")
        types = [_PYTHON.get(given[n]) for n in self.by]
        for key, _ in self.after:
            values = key if len(self.by) > 1 else (key,)
            if not isinstance(values, tuple) or [type(v) for v in values] != types:
                expected = ", ".join(f"{n} ({given[n]})" for n in self.by)
                raise DefinitionError(
                    f"silence: after has the key {key!r}; expected the value of {expected}: text, an integer or a "
                    "Boolean; a tuple of the values when there are several columns"
                )
        return new_columns({n: given[n] for n in self.by}, {"since": TIME, "until": TIME}, "silence")

    def horizon(self, bound: int, inserts: bool = False) -> int:
        return BEGINNING  # a silence ends with the next row of its key, however long ago it began

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        rows, clock = relations
        types = rows.select(self.by).collect_schema()
        keys = [k if len(self.by) > 1 else (k,) for k, _ in self.after]
        each = pl.DataFrame(
            {n: pl.Series([k[i] for k in keys], dtype=types[n]) for i, n in enumerate(self.by)}
            | {"_after": pl.Series([d for _, d in self.after], dtype=INT)}
        )
        at, until, limit = pl.col(AT), pl.col("until"), pl.col(AT) + pl.col("_after")
        return (
            rows.sort(AT, POS)
            .with_columns(until=at.shift(-1).over(self.by))
            .filter(at > BEGINNING)
            .join(each.lazy(), on=self.by, how="left")
            .join(clock.select(pl.col("now").cast(INT).max()), how="cross")
            .with_columns(pl.col("_after").fill_null(self.default))
            .filter((limit < until) | (until.is_null() & (limit < pl.col("now"))))
            .select(*self.by, at.cast(TIME).alias("since"), until.cast(TIME), limit.alias(AT), POS)
        )

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return _Silences(self, inputs[0], self.schema(inputs))

    @classmethod
    def samples(cls) -> list[tuple[Operator, list[Schema]]]:
        """Instances with their input schemas, for the laws."""
        schema: Schema = {"k": STRING, "yes": BOOL, "x": FLOAT}
        return [
            (silence(by="k", after="1h"), [schema, CLOCK]),
            (silence(by=["k", "yes"], after="3us"), [schema, CLOCK]),
            (silence(by="k", after={"a": "30m", "b": "2us"}, default="2h"), [schema, CLOCK]),
            (silence(by=["k", "yes"], after={("a", True): "1us"}, default="1h"), [schema, CLOCK]),
        ]


def silence(
    *,
    by: str | Sequence[str],
    after: str | timedelta | Mapping[Any, str | timedelta],
    default: str | timedelta | None = None,
) -> Silence:
    """The keys that stopped: a row for each time that nothing came of a key for longer than `after`.

    by: the key columns. after: how long, such as "1h"; or that of each key, {"a": "1h", ...} (of a key of several
    columns by the tuple of its values), and default that of all others. The result has the columns of the key, `since`,
    the event time of the last row before the silence, and `until`, that of the row that ended it, null while it lasts:
    `op.where(pl.col("until").is_null())` behind it leaves the keys that are silent now.

    Whether a key is silent is judged by the watermark of the rows, not by a clock on the wall: neither a partition that
    is slow nor a feed that stops as a whole makes keys silent. A silence is known once the watermark is more than
    `after` past the last row.

    Raises `DefinitionError` when a column is unknown, or after is no duration. SQL: see `Silence`.
    """
    names = as_names(by, "silence: by")
    if not isinstance(after, Mapping):
        if default is not None:
            raise DefinitionError(f"silence: after is {after!r}, the same for every key, so leave out default")
        return Silence(names, (), microseconds(after, "silence: after"))
    if default is None:
        raise DefinitionError("silence: after says it for some keys; expected default='1h' or so, for all others")
    each = [(key, microseconds(d, f"silence: after of {key!r}")) for key, d in after.items()]
    return Silence(names, tuple(sorted(each, key=repr)), microseconds(default, "silence: default"))


@njit(cache=True)
def _shows(slab, runs, slot, k, after, now):  # type: ignore[no-untyped-def]
    """Until when the row in place k of its key was followed by silence: null when it still is."""
    limit = ahead(slab[k, 0], after)
    if slab[k, 0] == BEGINNING:
        return NOT_SILENT
    if k + 1 < runs[slot, 3]:
        return slab[k + 1, 0] if limit < slab[k + 1, 0] else NOT_SILENT
    return NULL if limit < now else NOT_SILENT


@njit(cache=True)
def _follow(  # type: ignore[no-untyped-def]
    after, due, capacity, now, earliest, moves,
    slab, runs, free, shown, number, slot, at, pos, weight, seq, order, results,
):  # fmt: skip
    """Take in changes, and moves (seq, now) of the clock; those of one `seq` are one.

    after, due: by slot how long is no silence, and when one begins. earliest: when the next begins, or earlier. Returns
    the slab, the time that it is, `earliest`, the fixes, and what does not fit.
    """
    n, m = slot.shape[0], moves.shape[0]
    fixes, f = np.empty((16, 4), np.int64), 0
    a = t = 0
    while a < n or t < m:
        one = seq[a] if a < n and (t == m or seq[a] <= moves[t, 0]) else moves[t, 0]
        z, before = a, now
        while z < n and seq[z] == one:
            z += 1
        if t < m and moves[t, 0] == one:
            now = moves[t, 1]
            t += 1
        slab, bad = enter(slab, runs, free, shown, slot, at, pos, weight, number, results, a, z)
        if bad >= 0:
            return slab, now, earliest, fixes[:0], bad
        for i in range(a, z):
            s = slot[i]
            head, tail = runs[s, 2], runs[s, 3]
            place = first(slab, head, tail, at[i], pos[i])
            for k in range(max(place - 1, head), min(place + 1, tail)):
                until = _shows(slab, runs, s, k, after[s], now)
                fixes, f, _ = amend(shown, slab[k, 2], (until,), fixes, f, one)
            due[s] = ahead(slab[tail - 1, 0], after[s]) if tail > head else MOST
            if now <= due[s] < earliest:
                earliest = due[s]
        tell(shown, weight, number, results, a, z)
        a = z
        if earliest < now or now < before:
            earliest, low, high = MOST, min(before, now), max(before, now)
            for s in range(capacity):
                if low <= due[s] < high:
                    k = runs[s, 3] - 1
                    until = _shows(slab, runs, s, k, after[s], now)
                    fixes, f, _ = amend(shown, slab[k, 2], (until,), fixes, f, one)
                if now <= due[s] < earliest:
                    earliest = due[s]
    return slab, now, earliest, fixes[:f], -1


class _Silences(Ordered):
    """times: what the clock says, ascending. after, due: by slot; see `_follow`."""

    def __init__(self, operator: Silence, schema: Schema, out: Schema) -> None:
        super().__init__(operator.by, {n: schema[n] for n in operator.by}, out, 1, more={"_after": INT})
        self.each, self.default = dict(operator.after), operator.default
        self.times: list[int] = []
        self.now, self.earliest = BEGINNING, MOST
        self.after = self.due = np.zeros(0, np.int64)

    def reserve(self, slots: int) -> None:
        super().reserve(slots)
        n = len(self.due)
        self.after, self.due = grown(self.after, slots), grown(self.due, slots)
        self.due[n:] = MOST

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        rows, clock = deltas
        self.moves = self._moved(clock)
        return super().apply([rows], horizon)

    def _moved(self, clock: Delta) -> Ints:
        """(seq, now) of each change after which it is another time. A clock has few rows."""
        said, times = list[tuple[int, int]](), self.times
        for time, weight, seq in zip(
            clock.columns["now"].tolist(), clock.weight.tolist(), clock.seq.tolist(), strict=True
        ):
            if time != NULL and weight > 0:
                insort(times, time)
            elif time != NULL:
                del times[bisect_left(times, time)]
            now = times[-1] if times else BEGINNING
            said = [*said, (seq, now)] if not said or said[-1][0] != seq else [*said[:-1], (seq, now)]
        return np.array(said, np.int64).reshape(-1, 2)

    def step(self, deltas: Sequence[Delta], slots: Sequence[Ints], horizon: int) -> Delta:
        slot = slots[0]
        new = np.unique(slot[self.due[slot] == MOST])
        self.after[new] = [self.each.get(key, self.default) for key in self.slots.keys(new.tolist())]
        return without_idle(super().step(deltas, slots, horizon))

    def further(self, delta: Delta, slot: Ints) -> Columns:
        return {"_after": self.after[slot]}

    def follow(self, rows: tuple[Any, ...]) -> tuple[Ints, int]:
        self.entries.slab, self.now, self.earliest, fixes, bad = _follow(
            self.after, self.due, self.slots.capacity, self.now, self.earliest, self.moves, *rows
        )
        return fixes, bad

    def columns_of(self, words: Ints) -> Columns:
        return {"until": words[:, 0].copy()}

    def showing(self, rows: Delta, number: Ints, words: Ints) -> Delta:
        silent = words[:, 0] != NOT_SILENT
        rows, until = rows.take(silent), words[silent, 0]
        at = rows.at + self.cells.columns["_after"][number[silent]]
        return Delta({**rows.columns, "since": rows.at, "until": until}, rows.weight, at, rows.pos, rows.seq)

    def arrays(self) -> dict[str, Any]:
        n = self.slots.capacity
        clock = list(self.times), self.now, self.earliest
        return {**super().arrays(), "clock": clock, "after": self.after[:n].copy(), "due": self.due[:n].copy()}

    def load(self, arrays: dict[str, Any]) -> None:
        super().load(arrays)
        self.times, self.now, self.earliest = arrays["clock"]
        n = self.slots.capacity
        self.after[:n], self.due[:n] = arrays["after"], arrays["due"]

    @property
    def size(self) -> tuple[int, int]:
        keys, size = super().size
        return keys, size + nbytes([self.after, self.due])
