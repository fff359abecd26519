"""The laws can fail: each of these wrong operators is caught by the law that it breaks, and the right one passes all.

The toy counts for each row the rows of its key up to itself. It keeps all rows and counts again after every change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
import pytest

from operators.delta import BEGINNING, INT, STRING, Delta, Schema, in_order
from operators.operator import Maintained, Operator
from tests.laws import laws
from tests.laws.history import Change, generate, to_delta
from tests.laws.laws import Case, rows

GIVEN: Schema = {"key": STRING, "n": INT}
OUT: Schema = {"key": STRING, "count": INT}


class Right(Maintained):
    """Keeps all rows, and after every change counts anew."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], tuple[Any, ...]] = {}

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out: list[Change] = []
        for seq, changes in groupby(rows(deltas[0], GIVEN), key=lambda r: r.seq):
            before = self.counts()
            for r in changes:
                self.take(r.at, r.pos, r.weight, r.values)
            after = self.counts()
            out += [Change(seq, 0, -1, *k, before[k]) for k in before if before[k] != after.get(k)]
            out += [Change(seq, 0, 1, *k, after[k]) for k in after if after[k] != before.get(k)]
        return in_order(to_delta(out, OUT))

    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        if weight > 0:
            self.kept[at, pos] = values
        else:
            del self.kept[at, pos]

    def counts(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        seen: dict[Any, int] = {}
        found = {}
        for k, (key, _) in sorted(self.kept.items()):
            seen[key] = seen.get(key, 0) + 1
            found[k] = (key, seen[key])
        return found

    def snapshot(self) -> Any:
        return dict(self.kept)

    def restore(self, state: Any) -> None:
        self.kept = state

    @property
    def size(self) -> tuple[int, int]:
        return len({key for key, _ in self.kept.values()}), 64 * len(self.kept)


class ForgetsRetractions(Right):
    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        if weight > 0:
            super().take(at, pos, weight, values)


class TakesADeltaAsOneChange(Right):
    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        last = deltas[0].seq[-1:].repeat(len(deltas[0]))
        d = deltas[0]
        return super().apply([Delta(d.columns, d.weight, d.at, d.pos, last)], horizon)


class CountsDeltas(Right):
    applied = 0

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        self.applied += 1
        return super().apply(deltas, horizon)

    def counts(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        return {k: (key, n + (self.applied > 3)) for k, (key, n) in super().counts().items()}


class KeepsKeys(Right):
    def __init__(self) -> None:
        super().__init__()
        self.keys: set[Any] = set()

    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        self.keys.add(values[0])
        super().take(at, pos, weight, values)

    @property
    def size(self) -> tuple[int, int]:
        return len(self.keys), 0


class KeepsMemory(Right):
    bytes = 0

    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        self.bytes += 1000
        super().take(at, pos, weight, values)

    @property
    def size(self) -> tuple[int, int]:
        return super().size[0], self.bytes


class RemembersWhatWasTakenBack(Right):
    def __init__(self) -> None:
        super().__init__()
        self.gone: set[Any] = set()

    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        super().take(at, pos, weight, values)
        if weight < 0 and not self.kept:
            self.gone.add(values[0])

    def counts(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        return {k: (key, n + (key in self.gone)) for k, (key, n) in super().counts().items()}


class CountsInOrderOfArrival(Right):
    def counts(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        found, seen = {}, dict.fromkeys((key for key, _ in self.kept.values()), 0)
        for k, (key, _) in self.kept.items():
            seen[key] += 1
            found[k] = (key, seen[key])
        return found


class IgnoresLateRows(Right):
    newest = BEGINNING

    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        d = deltas[0]
        running = np.maximum.accumulate(np.append(self.newest, d.at))[:-1]
        self.newest = max(self.newest, int(d.at.max()))
        return super().apply([d.take((d.at >= running) | (d.weight < 0))], horizon)

    def take(self, at: int, pos: int, weight: int, values: tuple[Any, ...]) -> None:
        if weight > 0 or (at, pos) in self.kept:
            super().take(at, pos, weight, values)


class ForgetsTooMuch(Right):
    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        self.kept = {k: v for k, v in self.kept.items() if k[0] >= horizon}
        return out


class ForgetsToSnapshot(Right):
    def snapshot(self) -> Any:
        return dict(list(self.kept.items())[1:])


class RepeatsItself(Right):
    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        back = [
            Change(r.seq, 0, w, r.at, r.pos, r.values)
            for r in rows(out, OUT)
            for w in ([1, -1, 1] if r.weight > 0 else [-1])
        ]
        return to_delta(back, OUT)


class LooksFurtherBack(Right):
    """It counts from the beginning, and says that it looks back by no more than this."""

    reach = 2


class LosesTheOrder(Right):
    def apply(self, deltas: Sequence[Delta], horizon: int = BEGINNING) -> Delta:
        out = super().apply(deltas, horizon)
        return out.take(np.arange(len(out))[::-1])


@dataclass(frozen=True, eq=False)
class Toy(Operator):
    made: Callable[[bool], Maintained]

    @property
    def reach(self) -> int | None:
        return getattr(self.made, "reach", None)

    @property
    def definition(self) -> dict[str, Any]:
        return {"toy": getattr(self.made, "__name__", "")}

    def schema(self, inputs: Sequence[Schema]) -> Schema:
        return OUT

    def recompute(self, relations: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
        ordered = relations[0].sort("_at", "_pos")
        return ordered.select("key", pl.int_range(1, pl.len() + 1).over("key").alias("count"), "_at", "_pos")

    def start(self, inputs: Sequence[Schema]) -> Maintained:
        return self.made()


def _sql(case: Case, inputs: Sequence[pl.DataFrame], compare: str = "<=") -> list[laws.Row]:
    import duckdb

    from tests.laws.oracle import _values

    found = duckdb.execute(
        f"WITH r AS ({_values(inputs[0], GIVEN)}) SELECT a._at, a._pos, a.key, (SELECT count(*) FROM r b WHERE b.key "
        f"IS NOT DISTINCT FROM a.key AND (b._at, b._pos) {compare} (a._at, a._pos)) FROM r a"
    ).fetchall()
    return sorted(((at, pos, (key, n)) for at, pos, key, n in found), key=laws.order)


def one_definition_with_sql(case: Case, history: Any, rng: np.random.Generator) -> None:
    laws.one_definition(case, history, rng, _sql)


def one_definition_with_other_sql(case: Case, history: Any, rng: np.random.Generator) -> None:
    laws.one_definition(case, history, rng, lambda c, i: _sql(c, i, "<"))


ALL = [
    one_definition_with_sql,
    laws.cuts_do_not_show,
    laws.undone,
    laws.restart_does_not_show,
    laws.arrival_does_not_show,
    laws.horizon_does_not_show,
    laws.refreshes_do_not_show,
]
BROKEN = [
    (ForgetsRetractions, laws.one_definition, "not what recompute gives|while .* is there"),
    (Right, one_definition_with_other_sql, "not give what SQL gives"),
    (LooksFurtherBack, laws.reach_is_enough, "made of others than its reach 2 says"),
    (TakesADeltaAsOneChange, laws.cuts_do_not_show, "other rows were served"),
    (CountsDeltas, laws.cuts_do_not_show, "another than row by row"),
    (KeepsKeys, laws.undone, "keys are held"),
    (KeepsMemory, laws.undone, "memory held grows"),
    (RemembersWhatWasTakenBack, laws.undone, "same history gives another output"),
    (ForgetsRetractions, laws.undone, "rows are left|while .* is there"),
    (CountsInOrderOfArrival, laws.one_definition, "not what recompute gives"),
    (CountsInOrderOfArrival, laws.arrival_does_not_show, "order of arrival"),
    (IgnoresLateRows, laws.one_definition, "not what recompute gives"),
    (ForgetsTooMuch, laws.horizon_does_not_show, "changes the output|not there"),
    (ForgetsTooMuch, laws.refreshes_do_not_show, "gives another change"),
    (CountsDeltas, laws.refreshes_do_not_show, "gives another change|there are other rows"),
    (ForgetsToSnapshot, laws.restart_does_not_show, "restart|not there"),
    (RepeatsItself, laws.one_definition, "brought again by one change"),
    (LosesTheOrder, laws.one_definition, "out of order|not there|while"),
]


def failures(toy: Callable[..., Maintained], law: Callable[..., None]) -> list[str]:
    """What the law says about the toy, over 40 histories."""
    said = []
    case = Case(Toy(toy), [GIVEN])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        history = generate(rng, case.schemas, int(rng.integers(20, 250)))
        try:
            law(case, history, rng)
        except (AssertionError, KeyError) as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("law", ALL, ids=lambda law: law.__name__)
def test_the_right_toy_keeps_every_law(law: Callable[..., None]) -> None:
    assert failures(Right, law) == []


@pytest.mark.parametrize(("toy", "law", "text"), BROKEN, ids=[f"{t.__name__}-{law.__name__}" for t, law, _ in BROKEN])
def test_a_broken_toy_is_caught(toy: Callable[..., Maintained], law: Callable[..., None], text: str) -> None:
    import re

    said = failures(toy, law)
    assert len(said) >= 3, "the law hardly notices"
    assert any(re.search(text, s) for s in said), f"caught for another reason: {said[0]}"
