"""The laws, each a function of an operator and a history that raises `AssertionError` when it does not hold.

`Case` is an operator with the schemas of its inputs. A law runs the operator over the history in some way, and compares
with a from-scratch definition or with another way. `outputs` checks on the way that what comes out is a sound stream.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from operators.delta import (
    AT,
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    POS,
    STRING,
    Delta,
    Schema,
    concat,
    consolidated,
    empty,
    is_null,
    net,
    numpy_type,
)
from operators.operator import Maintained, Operator
from tests.laws.history import Change, History, Step, is_messages, shuffled

Row = tuple[Any, ...]
Oracle = Callable[["Case", Sequence[pl.DataFrame]], list[Row]]


@dataclass(frozen=True, eq=False)
class Case:
    """An operator, the schemas of its inputs, and which of its samples it is."""

    operator: Operator
    schemas: list[Schema]
    sample: int = 0

    @cached_property
    def out(self) -> Schema:
        """The columns of the result."""
        return self.operator.schema(self.schemas)

    @property
    def has_messages(self) -> bool:
        return any(map(is_messages, self.schemas))

    def start(self) -> Maintained:
        return self.operator.start(self.schemas)

    def __repr__(self) -> str:
        return f"{type(self.operator).__name__} {self.operator.definition}"


class Out(NamedTuple):
    """A row that came out."""

    seq: int
    at: int
    pos: int
    weight: int
    values: Row


def rows(delta: Delta, schema: Schema) -> list[Out]:
    """The rows of a delta with Python values: None for null, microseconds for times."""
    columns = []
    for name in schema:
        c = delta.columns[name]
        columns.append([None if missing else v for v, missing in zip(c.tolist(), is_null(c).tolist(), strict=True)])
    values = list(zip(*columns, strict=True))
    return [
        Out(*row, v)
        for *row, v in zip(
            delta.seq.tolist(), delta.at.tolist(), delta.pos.tolist(), delta.weight.tolist(), values, strict=True
        )
    ]


def relation(frame: pl.DataFrame, schema: Schema) -> list[Row]:
    """A relation as (at, pos, values) in order, in the same Python values."""
    times = [n for n, t in schema.items() if t not in (INT, FLOAT, STRING, BOOL)]
    frame = frame.with_columns(pl.col(times).cast(INT)) if times else frame
    frame = frame.with_columns(pl.col(n).cast(pl.Int8) for n, t in schema.items() if t == BOOL)
    frame = frame.with_columns(pl.col(n).fill_nan(None) for n, t in schema.items() if t == FLOAT)
    return sorted(
        ((at, pos, tuple(values)) for at, pos, *values in frame.select(AT, POS, *schema).iter_rows()), key=order
    )


def order(row: Row) -> Row:
    return tuple((v is not None, str(type(v)), v if v is not None else 0) for v in (*row[:2], *row[2]))


class Stream:
    """What came out so far; takes a delta in and checks that it is sound.

    Columns of the right types; in order of `seq`; a retraction takes back a row that is there, value for value; an
    insert brings a row that is not; no change of one `seq` takes back and brings the same row.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.live: dict[tuple[int, int], Row] = {}
        self.served: dict[tuple[int, int], tuple[int, Row]] = {}
        self.deltas: list[list[Out]] = []
        self.last = -(2**62)

    def add(self, delta: Delta) -> None:
        assert list(delta.columns) == list(self.schema), (
            f"columns are {list(delta.columns)}; expected {list(self.schema)}"
        )
        for n, t in self.schema.items():
            assert delta.columns[n].dtype == numpy_type(t), f"column {n!r} has type {delta.columns[n].dtype} for {t}"
            assert len(delta.columns[n]) == len(delta), f"column {n!r} has {len(delta.columns[n])} of {len(delta)} rows"
        out = rows(delta, self.schema)
        gone: set[Row] = set()
        for r in out:
            assert r.seq >= self.last, f"{r} is out of order after seq {self.last}"
            if r.seq > self.last:
                gone.clear()
            self.last = r.seq
            assert r.weight in (1, -1), f"{r} has a weight that is neither 1 nor -1"
            if r.weight < 0:
                there = self.live.pop((r.at, r.pos), None)
                assert there is not None, f"{r} takes back a row that is not there"
                assert there == r.values, f"{r} takes back a row that is {there}"
                gone.add((r.at, r.pos, r.values))
            else:
                assert (r.at, r.pos) not in self.live, f"{r} comes while {self.live[r.at, r.pos]} is there"
                assert (r.at, r.pos, r.values) not in gone, f"{r} was taken back and brought again by one change"
                self.live[r.at, r.pos] = r.values
                self.served.setdefault((r.at, r.pos), (r.seq, r.values))
        self.deltas.append(sorted(out, key=lambda r: (r.seq, r.at, r.pos, r.weight)))

    def accumulated(self) -> list[Row]:
        """The result now, as (at, pos, values) in order."""
        return sorted(((at, pos, v) for (at, pos), v in self.live.items()), key=order)


def run(
    case: Case,
    steps: Sequence[Step],
    horizons: Sequence[int] | None = None,
    maintained: Maintained | None = None,
    stream: Stream | None = None,
) -> Stream:
    """Apply the steps one after another."""
    maintained = maintained or case.start()
    stream = stream or Stream(case.out)
    for step, horizon in zip(steps, horizons or [BEGINNING] * len(steps), strict=True):
        stream.add(maintained.apply(step, horizon))
    return stream


def random_cuts(history: History, rng: np.random.Generator) -> list[int]:
    """Some of the places where a history can be cut."""
    return [s for s in history.seqs if rng.random() < rng.choice([0.1, 0.5])]


def same(found: Any, expected: Any, what: str) -> None:
    """Fails with the first few differences."""
    if found == expected:
        return
    if isinstance(found, list) and isinstance(expected, list):
        missing = [r for r in expected if r not in found][:3]
        extra = [r for r in found if r not in expected][:3]
        raise AssertionError(
            f"{what}\n  not found: {missing}\n  found instead: {extra}\n  of {len(found)} and {len(expected)}"
        )
    raise AssertionError(f"{what}\n  found:    {found}\n  expected: {expected}")


def one_definition(case: Case, history: History, rng: np.random.Generator, oracle: Oracle | None = None) -> None:
    """Law 1: the accumulated output is what the definition makes of the accumulated input, here and in the middle."""
    middle = random_cuts(history, rng)[:1]
    for upto in (*middle, None):
        part = History(history.schemas, [c for c in history.changes if upto is None or c.seq < upto])
        found = run(case, part.steps(random_cuts(part, rng))).accumulated()
        inputs = part.relations()
        expected = relation(case.operator.recompute([f.lazy() for f in inputs]).collect(), case.out)
        same(found, expected, f"{case}: the maintained result is not what recompute gives")
        if oracle is not None:
            same(expected, oracle(case, inputs), f"{case}: recompute does not give what SQL gives")


def reach_is_enough(case: Case, history: History, rng: np.random.Generator) -> None:
    """Rows of the result are what they are when no older rows of the first input are there than `reach` says."""
    if (reach := case.operator.reach) is None:
        return
    first, *others = (frame.lazy() for frame in history.relations())
    whole = case.operator.recompute([first, *others]).collect()
    for at in rng.permutation(whole[AT].unique(maintain_order=True).to_numpy())[:3].tolist():
        near = first.filter(pl.col(AT).is_between(max(at, BEGINNING + reach) - reach, at))
        found = case.operator.recompute([near, *others]).collect().filter(pl.col(AT) == at)
        expected = whole.filter(pl.col(AT) == at)
        what = f"{case}: rows at {at} are made of others than its reach {reach} says"
        same(relation(found, case.out), relation(expected, case.out), what)


def cuts_do_not_show(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 2: how a history is cut into deltas does not show in the result, nor in what was served on the way."""
    by_row = run(case, history.steps(history.seqs))
    for cuts in ([], random_cuts(history, rng), random_cuts(history, rng)):
        other = run(case, history.steps(cuts))
        same(other.accumulated(), by_row.accumulated(), f"{case}: cut at {cuts}, the result is another than row by row")
        if getattr(case.start(), "waves", True):
            same(other.served, by_row.served, f"{case}: cut at {cuts}, other rows were served than row by row")


def undone(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 3: when every row is taken back nothing is left, and what follows is as if nothing had been."""
    assert not case.has_messages
    maintained, stream = case.start(), Stream(case.out)
    cuts = random_cuts(history, rng)
    first: list[list[Out]] = []
    held = []
    for round_ in range(3):
        shift = (history.seqs[-1] + len(history.changes) + 2) * round_ if history.changes else 0
        again = History(history.schemas, [c._replace(seq=c.seq + shift) for c in history.changes])
        start = len(stream.deltas)
        run(case, again.steps([c + shift for c in cuts]), maintained=maintained, stream=stream)
        out = [[r._replace(seq=r.seq - shift) for r in d] for d in stream.deltas[start:]]
        first = first or out
        same(out, first, f"{case}: after everything was taken back the same history gives another output")
        back = taken_back(again, rng)
        run(case, back.steps(random_cuts(back, rng) if round_ else ()), maintained=maintained, stream=stream)
        same(stream.accumulated(), [], f"{case}: rows are left although everything was taken back")
        keys, size = maintained.size
        assert keys == 0, f"{case}: {keys} keys are held although everything was taken back"
        held.append(size)
    assert held[2] <= 2 * held[0] + 4096, f"{case}: the memory held grows although everything was taken back: {held}"


def taken_back(history: History, rng: np.random.Generator) -> History:
    """Retractions of all that is live, in some order."""
    live = history.live()
    last = history.seqs[-1] if live else 0
    order = rng.permutation(len(live)).tolist()
    return History(history.schemas, [live[i]._replace(weight=-1, seq=last + 1 + n) for n, i in enumerate(order)])


def restart_does_not_show(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 4: a snapshot that is pickled and restored in the middle of a history changes no later output."""
    steps = history.steps(random_cuts(history, rng) or history.seqs)
    horizons = history.bounds(steps)
    whole = case.start()
    expected = run(case, steps, horizons, whole)
    maintained, stream = case.start(), Stream(case.out)
    for step, horizon in zip(steps, horizons, strict=True):
        if rng.random() < 0.5:
            state = pickle.dumps(maintained.snapshot())
            maintained = case.start()
            maintained.restore(pickle.loads(state))
        run(case, [step], [horizon], maintained, stream)
    same(stream.deltas, expected.deltas, f"{case}: a restart in the middle changes the output")
    same(maintained.size[0], whole.size[0], f"{case}: after a restart the number of keys is another")


def arrival_does_not_show(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 6: the same rows in another order of arrival give the same result."""
    expected = run(case, history.steps(random_cuts(history, rng))).accumulated()
    other = shuffled(history, rng)
    found = run(case, other.steps(random_cuts(other, rng))).accumulated()
    same(found, expected, f"{case}: the result depends on the order of arrival")


def horizon_does_not_show(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 6: what is forgotten behind the horizon changes no output, and no output lies behind the operator's own."""
    steps = history.steps(random_cuts(history, rng) or history.seqs)
    bounds = history.bounds(steps)
    expected = run(case, steps)
    found = run(case, steps, bounds)
    for out, bound in zip(found.deltas, bounds, strict=True):
        least = case.operator.horizon(bound)
        assert all(r.at >= least for r in out), f"{case}: a row below {least} comes out when none below {bound} came in"
        least = case.operator.horizon(bound, inserts=True)
        assert all(r.at >= least for r in out if r.weight > 0), f"{case}: a row below {least} is added"
    same(found.deltas, expected.deltas, f"{case}: forgetting behind the horizon changes the output")


class Refreshed:
    """A result that is refreshed with the net of all changes as one, each time in some way."""

    def __init__(self, case: Case) -> None:
        self.case, self.maintained, self.stream = case, case.start(), Stream(case.out)
        self.inputs, self.rows = [empty(s) for s in case.schemas], empty(case.out)

    def refresh(self, step: Step, horizon: int, full: bool) -> list[str]:
        """What comes out, in its order. full: all inputs are taken in from scratch."""
        last = max(int(d.seq[-1]) for d in step if len(d))
        self.inputs = [one_change(concat([*pair]), last) for pair in zip(self.inputs, step, strict=True)]
        changes = [one_change(d, last) for d in step]
        if not any(map(len, changes)):
            return []
        if full:
            self.maintained = self.case.start()
            out = self.maintained.apply(self.inputs) if any(map(len, self.inputs)) else empty(self.case.out)
            was = self.rows
            out = concat([Delta(was.columns, -was.weight, was.at, was.pos, was.seq), out])
        else:
            out = self.maintained.apply(changes, horizon)
        out = net(out, last)
        self.rows = consolidated(concat([self.rows, out]))
        self.stream.add(out)
        return [repr(r) for r in rows(out, self.case.out)]


def one_change(delta: Delta, seq: int) -> Delta:
    """The net of a delta, known at `seq`; what leaves comes first."""
    change = consolidated(delta)
    change = change.take(np.argsort(change.weight > 0, kind="stable"))
    change.seq = np.full(len(change), seq)
    return change


def refreshes_do_not_show(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 5: after a refresh, which takes in the net of all changes as one, there is what each change alone gives.

    Whether it takes in what is pending or starts anew from everything, what comes out is the same to the last bit.
    """
    steps = history.steps(random_cuts(history, rng))
    pending, anew, either = Refreshed(case), Refreshed(case), Refreshed(case)
    maintained, by_row = case.start(), Stream(case.out)
    for step, horizon in zip(steps, history.bounds(steps), strict=True):
        expected = pending.refresh(step, horizon, full=False)
        for other, full in ((anew, True), (either, rng.random() < 0.5)):
            same(other.refresh(step, horizon, full), expected, f"{case}: a refresh (full: {full}) gives another change")
        run(case, [step], [horizon], maintained, by_row)
        same(pending.stream.accumulated(), by_row.accumulated(), f"{case}: after a refresh there are other rows")


def deleted(case: Case, history: History, rng: np.random.Generator) -> None:
    """Law 3 where rows of an input are messages, which are never taken back.

    All other rows are taken back, every key is deleted, and the horizon passes everything: no more is held than the
    last message, which a delete may still have to be remembered for.
    """
    maintained, stream = case.start(), Stream(case.out)
    run(case, history.steps(random_cuts(history, rng)), maintained=maintained, stream=stream)
    rows_only = [not is_messages(s) for s in case.schemas]
    back = taken_back(history, rng)
    back.changes = [c for c in back.changes if rows_only[c.source]]
    run(case, back.steps(), maintained=maintained, stream=stream)
    now = max((c.at for c in history.changes), default=0) + 1
    for round_ in range(20):  # what was deleted may be found bit by bit
        ends = deletions(case, history, now + 10 * round_, back.seqs[-1:] or history.seqs[-1:], round_)
        steps = ends.steps(random_cuts(ends, rng))
        run(case, steps, [now + 10 * round_] * len(steps), maintained, stream)
    same(stream.accumulated(), [], f"{case}: rows are left although every key was deleted")
    keys, _ = maintained.size
    assert keys <= 1, f"{case}: {keys} keys are held although all but the last message are deletes before the horizon"


def deletions(case: Case, history: History, at: int, seqs: Sequence[int], round_: int) -> History:
    """A message that deletes each key that was seen; in later rounds of one key only."""
    last = max(seqs, default=0) + 1000 * round_
    made = []
    for i, schema in enumerate(case.schemas):
        if not is_messages(schema):
            continue
        names, key = list(schema), case.operator.keys[i]
        where = [names.index(k) for k in key]
        seen = sorted({tuple(c.values[j] for j in where) for c in history.changes if c.source == i}, key=repr)
        for n, values in enumerate(seen if round_ == 0 else seen[:1]):
            full: list[Any] = [None] * len(names)
            for j, v in zip(where, values, strict=True):
                full[j] = v
            full[names.index("deleted")] = 1
            last += 1
            pos = (i + 1 << 56) + (1 << 40) + 1000 * round_ + n
            made.append(Change(last, i, 1, at, pos, tuple(full)))
    return History(history.schemas, made)
