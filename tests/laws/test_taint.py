"""Marks, over every operator in the catalogue: what is seen is what the operator gives without them, and what is marked
is what a slow twin finds by looking at all rows that are there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from engine.taint import ASIDE, SUSPECT, Marked, live, marked
from operators.aggregate import Aggregate
from operators.delta import AT, BOOL, POS, STRING, Delta, Schema, empty
from operators.join_asof import JoinAsof
from operators.join_label import JoinLabel
from operators.operator import DefinitionError, Maintained, Operator
from operators.previous import Previous
from operators.runs import Runs
from operators.window import Window
from tests.laws.history import Change, History, decode, is_messages
from tests.laws.laws import Case, Stream, order, random_cuts, relation, same
from tests.laws.test_laws import CASES, HISTORIES, IDS

MARKS: Schema = {SUSPECT: BOOL, ASIDE: BOOL}

REFUSED = {"Silence", "Unanswered", "Union"}
"""Operators that cannot be used where rows are marked."""

DECLARED = [c for c in CASES if getattr(c.operator, "aside", None) is None and type(c.operator).__name__ not in REFUSED]
"""What users can declare: it is marks that make an aggregate of rows of which some are aside."""


class Row(NamedTuple):
    """A row of an input: its columns by name, whether it is suspect and whether it was put aside."""

    at: int
    pos: int
    values: dict[str, Any]
    suspect: bool
    aside: bool


def rows_of(frame: pl.DataFrame, schema: Schema) -> list[Row]:
    made = []
    for at, pos, values in relation(frame, schema):
        named = dict(zip(schema, values, strict=True))
        made.append(Row(at, pos, named, named.pop(SUSPECT, 0) == 1, named.pop(ASIDE, 0) == 1))
    return sorted(made, key=lambda r: (r.at, r.pos))


def key(row: Row, names: Sequence[str]) -> list[Any]:
    return [row.values[n] for n in names]


def own(op: Operator, left: list[Row], right: Sequence[Row] = ()) -> dict[tuple[int, int], bool]:
    """As the row itself."""
    return {r[:2]: r.suspect for r in left if not r.aside}


def seen(op: Operator, left: list[Row]) -> dict[tuple[int, int], bool]:
    """As any row that the greatest window of a row sees, also one that is aside."""
    made, by = cast(Any, op), cast(Any, op).by
    sizes = [made.microseconds(n, r) for n, r in made.reductions]
    size = None if None in sizes else max(sizes)

    def near(r: Row, s: Row) -> bool:
        return key(r, by) == key(s, by) and s[:2] <= r[:2] and (size is None or r.at - s.at < size)

    return {r[:2]: any(s.suspect for s in left if near(r, s)) for r in left if not r.aside}


def any_of_key(op: Operator, left: list[Row]) -> dict[tuple[int, int], bool]:
    """As any row of the key, also one that is aside."""
    by, last = cast(Any, op).by, dict[str, Row]()
    for r in left:
        if not r.aside:
            last[repr(key(r, by))] = r
    return {r[:2]: any(s.suspect for s in left if key(s, by) == key(r, by)) for r in last.values()}


def found(op: Operator, left: list[Row], right: list[Row]) -> dict[tuple[int, int], bool]:
    """As the row itself, or as what it finds among all rows; a label only where one is found that is not aside."""
    made = cast(Any, op)

    def near(r: Row, s: Row) -> bool:
        mine = key(r, made.on)
        if None in mine or mine != key(s, made.right_on):
            return False
        if isinstance(op, JoinLabel):
            return r.at <= s.at <= r.at + made.wait
        return s.at <= r.at and (made.tolerance is None or r.at - s.at <= made.tolerance)

    marks = {}
    for r in left:
        met = [s for s in right if near(r, s)]
        if r.aside or (isinstance(op, JoinLabel) and all(s.aside for s in met)):
            continue
        first = met[:1] if isinstance(op, JoinLabel) else met[-1:]
        marks[r[:2]] = r.suspect or any(s.suspect for s in first)
    return marks


def before(op: Operator, left: list[Row]) -> dict[tuple[int, int], bool]:
    """As the row itself, or the one before it among all rows."""
    made, marks = cast(Any, op), {}
    for i, r in enumerate(left):
        last = [s for s in left[:i] if key(s, made.by) == key(r, made.by)][-1:]
        near = [s for s in last if made.within is None or r.at - s.at <= made.within]
        if not r.aside:
            marks[r[:2]] = r.suspect or any(s.suspect for s in near)
    return marks


def in_run(op: Operator, left: list[Row]) -> dict[tuple[int, int], bool]:
    """As any row of its run, or one that is aside just before one of these."""
    made, marks = cast(Any, op), {}
    for i, r in enumerate(left):
        found, run = r.suspect, None not in key(r, made.of)
        for s in reversed([s for s in left[:i] if key(s, made.by) == key(r, made.by)]):
            if s.aside:
                found = True
                continue
            if not run or key(s, made.of) != key(r, made.of):
                break
            found |= s.suspect
        if not r.aside:
            marks[r[:2]] = found
    return marks


TWINS: dict[type[Operator], Callable[..., dict[tuple[int, int], bool]]] = {
    Window: seen,
    Aggregate: any_of_key,
    JoinAsof: found,
    JoinLabel: found,
    Previous: before,
    Runs: in_run,
}


class Chain:
    """The steps of a marked operator, one behind another. whole: whether rows can be aside."""

    def __init__(self, case: Case, whole: bool) -> None:
        marks = MARKS if whole else {SUSPECT: BOOL}
        self.schemas = [dict(s) if i and is_messages(s) else {**s, **marks} for i, s in enumerate(case.schemas)]
        self.inputs = {"whole": self.schemas[-1], "rows": without(self.schemas[-1], ASIDE)}
        right = None
        if len(case.schemas) > 1 and not is_messages(case.schemas[1]):
            right = Marked("rows", self.inputs["rows"], "whole" if whole else "rows", self.inputs["whole"])
        self.steps, self.out = list[tuple[Operator, list[Schema], Schema]](), self.schemas[0]
        for step in marked(case.operator, self.out, right):
            self.add(step)
        for step in live(self.out):
            self.add(step)

    def add(self, step: Operator) -> None:
        schemas = [self.out, *(self.inputs.get(o.name, self.schemas[-1]) for o in step.others)]
        self.out = step.schema(schemas)
        self.steps.append((step, schemas, self.out))

    def start(self) -> list[Maintained]:
        return [step.start(schemas) for step, schemas, _ in self.steps]

    def apply(self, maintained: Sequence[Maintained], deltas: Sequence[Delta], horizon: int) -> Delta:
        delta, right = deltas[0], deltas[-1]
        rows = right.take(right.columns[ASIDE] != 1) if ASIDE in right.columns else right
        others = {"rows": rows.with_columns({n: c for n, c in rows.columns.items() if n != ASIDE})}
        for (step, _, out), kept in zip(self.steps, maintained, strict=True):
            given = [delta, *(others.get(o.name, right) for o in step.others)]
            delta = kept.apply(given, horizon) if any(map(len, given)) else empty(out)
            horizon = step.horizon(horizon)
        return delta


@cache
def chain_of(case: Case, whole: bool) -> Chain:
    return Chain(case, whole)


def without(schema: Schema, *names: str) -> Schema:
    return {n: t for n, t in schema.items() if n not in names}


def judged(history: History) -> History:
    """The history without nulls in what is said of rows: a row that is aside is suspect."""
    made, changes = list[Change](), history.changes
    for c in changes:
        names = list(history.schemas[c.source])
        values = list(c.values)
        if ASIDE in names:
            aside, suspect = names.index(ASIDE), names.index(SUSPECT)
            values[aside] = int(values[aside] == 1)
            values[suspect] = int(values[suspect] == 1 or values[aside])
        elif SUSPECT in names:
            values[names.index(SUSPECT)] = int(values[names.index(SUSPECT)] == 1)
        made.append(c._replace(values=tuple(values)))
    idle = {(c[:4], c.pos, c.values) for c in made if c.weight > 0}
    idle &= {(c._replace(weight=1)[:4], c.pos, c.values) for c in made if c.weight < 0}
    return History(history.schemas, [c for c in made if (c._replace(weight=1)[:4], c.pos, c.values) not in idle])


@pytest.mark.parametrize("whole", [False, True], ids=["marked", "aside"])
@pytest.mark.parametrize("case", DECLARED, ids=[i for c, i in zip(CASES, IDS, strict=True) if c in DECLARED])
@settings(max_examples=settings().max_examples // 2)
@given(data=HISTORIES)
def test_what_is_seen_stays_and_what_is_marked_is_what_a_twin_finds(case: Case, whole: bool, data: bytes) -> None:
    chain, rng = chain_of(case, whole), np.random.default_rng(zlib.crc32(data))
    history = judged(decode(data, chain.schemas))
    steps, stream = history.steps(random_cuts(history, rng)), Stream(chain.out)
    maintained = chain.start()
    for step, horizon in zip(steps, history.bounds(steps), strict=True):
        stream.add(chain.apply(maintained, step, horizon))
    frames = history.relations()
    lived = [f.filter(~pl.col(ASIDE)) if ASIDE in f.columns else f for f in frames]
    plain = [f.select(*s, AT, POS).lazy() for f, s in zip(lived, case.schemas, strict=True)]
    names = list(chain.out)
    places, mark = [names.index(n) for n in case.out], names.index(SUSPECT)
    seen = [(at, pos, tuple(v[i] for i in places)) for at, pos, v in stream.accumulated()]
    same(sorted(seen, key=order), relation(case.operator.recompute(plain).collect(), case.out), f"{case}: is seen")
    left, *right = (rows_of(f, s) for f, s in zip(frames, chain.schemas, strict=True))
    want = TWINS.get(type(case.operator), own)(case.operator, left, *right)
    marks = {(at, pos): v[mark] == 1 for at, pos, v in stream.accumulated()}
    same(marks, {row: want[row] for row in marks}, f"{case}: is marked")
    assert set(chain.out) == {*case.out, SUSPECT}


class Silent(Operator):
    """An operator that says nothing of marks."""

    @property
    def definition(self) -> dict[str, Any]:
        return {}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return dict(inputs[0])

    recompute = start = NotImplemented


def test_an_operator_that_says_nothing_of_marks_is_refused() -> None:
    for silent in (Silent(), *(c.operator for c in CASES if type(c.operator).__name__ in REFUSED)):
        told = rf"op\.{silent.name} does not say what becomes of suspect rows; use it where none are"
        with pytest.raises(DefinitionError, match=told):
            marked(silent, {"k": STRING, SUSPECT: BOOL}, None)
