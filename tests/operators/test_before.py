"""What is expected of a row beside those before it: its chain is under the laws, and is what SQL gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest

import operators as op
from engine import Pipeline
from engine.merge import Merge
from engine.plan import rank
from engine.replay import batches, partitions
from operators.delta import BEGINNING, FLOAT, INT, STRING, Delta, Schema, empty
from operators.expectation import Expectation, chain, expected, met
from operators.operator import DefinitionError, Maintained, Operator
from tests.laws import laws
from tests.laws.history import generate
from tests.laws.laws import Case
from tests.laws.oracle import answer

GIVEN: Schema = {"name": STRING, "n": INT, "x": FLOAT}


@dataclass(frozen=True, eq=False)
class Meets(Operator):
    """The rows that meet an expectation: its chain, its condition, and hidden columns dropped."""

    expectation: Expectation

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return self.expectation.chain[0].keys

    @property
    def definition(self) -> dict[str, Any]:
        return {"expectation": self.expectation.definition}

    @property
    def steps(self) -> list[Operator]:
        return [*self.expectation.chain, op.where(met([self.expectation])), op.project(*GIVEN)]

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return dict(inputs[0])

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        rows = relations[0]
        for step in self.steps:
            rows = step.recompute([rows])
        return rows

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        schema, made = inputs[0], list[tuple[Maintained, Schema]]()
        for step in self.steps:
            made.append((step.start([schema]), schema := step.schema([schema])))
        return Chained(made)


class Chained(Maintained):
    def __init__(self, steps: list[tuple[Maintained, Schema]]) -> None:
        self.steps = steps

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = deltas[0]
        for step, schema in self.steps:
            out = step.apply([out], horizon) if len(out) else empty(schema)
        return out

    def snapshot(self) -> Any:
        return [step.snapshot() for step, _ in self.steps]

    def restore(self, state: Any) -> None:
        for (step, _), one in zip(self.steps, state, strict=True):
            step.restore(one)

    @property
    def size(self) -> tuple[int, int]:
        keys, held = zip(*(step.size for step, _ in self.steps), strict=True)
        return sum(keys), sum(held)


LAST = "lag({}) OVER (PARTITION BY name ORDER BY _at, _pos)"
BEFORE = "b.name IS NOT DISTINCT FROM a.name AND (b._at, b._pos) < (a._at, a._pos)"
SQL = [
    (op.unique("name"), f"SELECT * FROM r0 a WHERE NOT EXISTS (FROM r0 b WHERE {BEFORE})"),
    (
        op.unique("name", within="3us"),
        f"SELECT * FROM r0 a WHERE NOT EXISTS (FROM r0 b WHERE {BEFORE} AND a._at - b._at <= 3)",
    ),
    (op.step("n", 1, by="name"), f"SELECT * FROM r0 QUALIFY coalesce(abs(n - {LAST.format('n')}) <= 1, true)"),
    (op.step("x", 1.5, by="name"), f"SELECT * FROM r0 QUALIFY coalesce(abs(x - {LAST.format('x')}) <= 1.5, true)"),
    (op.increasing("n", by="name"), f"SELECT * FROM r0 QUALIFY coalesce(n >= {LAST.format('n')}, true)"),
    (op.increasing("x", by="name", strictly=True), f"SELECT * FROM r0 QUALIFY coalesce(x > {LAST.format('x')}, true)"),
]
LAWS = [
    laws.undone,
    laws.restart_does_not_show,
    laws.arrival_does_not_show,
    laws.refreshes_do_not_show,
    laws.horizon_does_not_show,
]


@pytest.mark.parametrize(("expectation", "sql"), SQL, ids=[e.name for e, _ in SQL])
@pytest.mark.parametrize("seed", range(2))
def test_the_rows_that_meet_it_keep_the_laws_and_are_what_sql_gives(
    expectation: Expectation, sql: str, seed: int
) -> None:
    case, rng = Case(Meets(expectation), [GIVEN]), np.random.default_rng(seed)
    history = generate(rng, case.schemas, 200)
    laws.one_definition(case, history, rng, lambda case, inputs: answer(case, inputs, sql))
    for law in LAWS:
        law(case, history, rng)


def test_what_several_ask_for_is_kept_once() -> None:
    asked = [op.step("n", 1, by="name"), op.increasing("n", by="name"), op.increasing("x", by="name"), op.not_null("n")]
    assert len(expected(asked, GIVEN, "v")) == 4
    assert [s.definition["columns"] for s in chain(asked)] == [{"_last(n; name)": "n"}, {"_last(x; name)": "x"}]


def test_a_late_row_moves_others() -> None:
    p = Pipeline("p")
    schema = {"id": int, "at": pl.Datetime, "name": str, "n": int}
    aside = [op.step("n", 1, by="name", severity="quarantine"), op.increasing("n", by="name", severity="quarantine")]
    s = p.source("s", key="id", at="at", lateness="1h", schema=schema, expect=aside)
    p.view("v", s, op.project("id"))
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
    rows = [(1, 0, 1), (2, 20, 4), (3, 30, 3), (4, 10, 3)]  # number, second, value: the last comes late
    for n, (v, gone) in enumerate(
        [
            ([1], []),
            ([1], [(2, "step(n, 1)")]),
            ([1], [(2, "step(n, 1)"), (3, "increasing(n)")]),
            ([1, 2], [(4, "step(n, 1)"), (3, "increasing(n)")]),
        ],
        1,
    ):
        given = {
            "id": [r[0] for r in rows[:n]],
            "at": [noon + timedelta(seconds=r[1]) for r in rows[:n]],
            "name": ["a"] * n,
            "n": [r[2] for r in rows[:n]],
        }
        for batch_rows in (1, 100):
            got = p.replay({"s": pl.DataFrame(given)}, batch_rows)
            assert got["v"]["id"].to_list() == v
            assert got["s.quarantine"].columns == [*schema, "reason"]
            assert got["s.quarantine"].select("id", "reason").rows() == gone


@pytest.mark.parametrize("batch_rows", [1, 100])
def test_a_row_that_fails_as_before_counts_once(batch_rows: int) -> None:
    p = Pipeline("p")
    schema = {"id": int, "at": pl.Datetime, "name": str, "n": int}
    expect = [op.step("n", 1, by="name"), op.between("n", 0, 8)]
    p.source("s", key="id", at="at", lateness="1h", schema=schema, expect=expect)
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)
    rows = [(0, 1), (20, 9), (10, 5), (15, 9)]  # second, value: late rows come before the one that fails
    given = {
        "id": range(4),
        "at": [noon + timedelta(seconds=s) for s, _ in rows],
        "name": ["a"] * 4,
        "n": [n for _, n in rows],
    }
    told = list(batches(p, Merge(partitions(p, {"s": pl.DataFrame(given)}), rank(p), batch_rows)))
    steps, bounds = (np.sum([b.failures["s"][i] for b in told], axis=0).tolist() for i in (0, 1))
    assert steps == [3, 1], "the row at 20 fails beside that at 0 and beside that at 10, and not beside that at 15"
    assert bounds == [2, 0], "it is the same beside any"


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: op.step("n", -1, by="name"), "step: the most of 'n' is -1; expected a number, 0 or more"),
    (lambda: op.step("n", True, by="name"), "step: the most of 'n' is True"),
    (lambda: op.step("", 1, by="name"), "step: the column is ''; expected its name"),
    (lambda: expected([op.step("name", 1, by="n")], GIVEN, "v"), "'name' has type String; expected Int64 or Float64"),
    (lambda: expected([op.step("m", 1, by="n")], GIVEN, "v"), "step(m, 1): previous: _last(m; n): no column"),
    (lambda: expected([op.increasing("n", by="x")], GIVEN, "v"), "increasing(n): previous: by: 'x' has type Float64"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[w[1][:50] for w in WRONG])
def test_a_mistake_is_refused_with_a_text(wrong: Callable[[], object], text: str) -> None:
    with pytest.raises(DefinitionError) as error:
        wrong()
    assert text in str(error.value)
