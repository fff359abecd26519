"""AGGREGATE against a slow twin and SQL, over values that the laws do not reach."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import config

from operators.aggregate import Aggregate, aggregate
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Delta, Schema, to_column
from operators.operator import DefinitionError
from operators.reduction import Reduction, count, maximum, mean, minimum, total
from tests.laws import laws
from tests.laws.history import ANY, IN_ORDER, Change, History, Kind, decode
from tests.laws.laws import Case, Row, Stream, run
from tests.laws.oracle import oracle

JIT = not config.DISABLE_JIT
CALM = settings(
    max_examples=80 if JIT else 6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
HISTORIES = st.binary(min_size=60, max_size=600)
MIXED: Schema = {"key": STRING, "x": FLOAT, "n": INT, "yes": BOOL, "when": TIME}
CASES = [
    Case(
        aggregate(
            by="key", rows=count(), known=count("x"), sum=total("x"), mean=mean("n"), top=maximum("x"), low=minimum("n")
        ),
        [MIXED],
    ),
    Case(
        aggregate(by=["yes", "key"], named=count("key"), all=minimum("yes"), last=maximum("when"), n=total("n")),
        [MIXED],
    ),
    Case(aggregate(by="when", share=mean("yes"), sum=total("x")), [MIXED]),
]
STRANGE = {4.0: 1e290, 1e15: -1e290, -1e15: 1e-9, 2.5: 1e30, 0.3: -1e30}
every_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def reduced(reduction: Reduction, values: list[Any], is_float: bool) -> Any:
    """What a reduction gives for these values (nulls among them)."""
    known = [v for v in values if v is not None]
    if reduction.column is None:
        return len(values)
    if reduction.kind == "count":
        return len(known)
    if not known:
        return None
    if reduction.kind == "minimum":
        return min(known)
    if reduction.kind == "maximum":
        return max(known)
    if reduction.kind == "total":
        return math.fsum(known) if is_float else sum(known)
    return math.fsum(map(float, known)) / len(known)


def twin(case: Case, live: Sequence[Change]) -> list[Row]:
    """The groups of these rows."""
    op, schema = case.operator, case.schemas[0]
    assert isinstance(op, Aggregate)
    names = list(schema)
    groups: dict[tuple[Any, ...], list[Change]] = {}
    for c in live:
        groups.setdefault(tuple(c.values[names.index(b)] for b in op.by), []).append(c)
    out = []
    for key, members in groups.items():
        made = []
        for _, r in op.reductions:
            values = [c.values[names.index(r.column)] if r.column else None for c in members]
            made.append(reduced(r, values, r.column is not None and schema[r.column] == FLOAT))
        out.append((*max((c.at, c.pos) for c in members), (*key, *made)))
    return sorted(out, key=laws.order)


def strange(history: History) -> History:
    """The same history with floats whose sums need more bits than a running sum holds."""

    def value(v: Any) -> Any:
        return STRANGE.get(v, v) if isinstance(v, float) else v

    return History(history.schemas, [c._replace(values=tuple(map(value, c.values))) for c in history.changes])


def lived(case: Case, history: History, rng: np.random.Generator) -> Stream:
    """Run over a history, cut at random, with a moving horizon and restarts."""
    steps = history.steps(laws.random_cuts(history, rng))
    maintained, stream = case.start(), Stream(case.out)
    for step, horizon in zip(steps, history.bounds(steps), strict=True):
        if rng.random() < 0.2:
            state = pickle.dumps(maintained.snapshot())
            maintained = case.start()
            maintained.restore(pickle.loads(state))
        run(case, [step], [horizon], maintained, stream)
    return stream


@every_case
@given(data=HISTORIES, kind=st.sampled_from([ANY, Kind(late=False), Kind(retractions=False), IN_ORDER]))
@CALM
def test_a_history_ends_in_what_its_rows_say(case: Case, data: bytes, kind: Kind) -> None:
    history, rng = decode(data, case.schemas, kind), np.random.default_rng(list(data))
    found = lived(case, history, rng).accumulated()
    assert found == twin(case, history.live())
    assert found == oracle(case, history.relations())
    laws.cuts_do_not_show(case, history, rng)
    laws.undone(case, history, rng)


@given(data=HISTORIES)
@CALM
def test_a_total_is_exact_for_any_floats(data: bytes) -> None:
    case = Case(aggregate(by="key", sum=total("x"), mean=mean("x"), top=maximum("x")), [MIXED])
    history, rng = strange(decode(data, case.schemas)), np.random.default_rng(list(data))
    assert lived(case, history, rng).accumulated() == twin(case, history.live())
    laws.cuts_do_not_show(case, history, rng)
    laws.undone(case, history, rng)
    laws.horizon_does_not_show(case, history, rng)


SMALL: Schema = {"key": STRING, "x": FLOAT}


def change(at: Sequence[int], x: Sequence[Any], weight: Sequence[int], seq: Sequence[int], key: str = "a") -> Delta:
    columns = {"key": to_column(list(key) * (len(at) // len(key)), STRING), "x": to_column(x, FLOAT)}
    return Delta(columns, np.array(weight), np.array(at), np.array(at), np.array(seq))


def test_a_delta_changes_a_key_once_at_its_last_seq() -> None:
    kept = aggregate(by="key", n=count()).start([SMALL])
    kept.apply([change([1], [1.0], [1], [1])])
    out = kept.apply([change([2, 3, 9, 2], [1.0, 1.0, 1.0, 1.0], [1, 1, 1, -1], [2, 3, 4, 5])])
    assert out.weight.tolist() == [-1, 1]
    assert out.columns["n"].tolist() == [1, 3]
    assert out.at.tolist() == [1, 9]
    assert out.seq.tolist() == [5, 5]


def test_a_change_that_does_not_show_is_not_emitted() -> None:
    kept = aggregate(by="key", top=maximum("x")).start([SMALL])
    kept.apply([change([5], [9.0], [1], [1])])
    assert len(kept.apply([change([2], [1.0], [1], [2])])) == 0
    out = kept.apply([change([5], [9.0], [-1], [3])])
    assert (out.columns["top"].tolist(), out.at.tolist(), out.weight.tolist()) == ([9.0, 1.0], [5, 2], [-1, 1])


def test_infinities_come_and_go() -> None:
    kept = aggregate(by="key", sum=total("x")).start([SMALL])
    found = []
    inf = math.inf
    for i, (at, x, weight) in enumerate(
        [(1, 0.1, 1), (2, inf, 1), (3, 0.2, 1), (4, -inf, 1), (2, inf, -1), (4, -inf, -1)], start=1
    ):
        found.append(kept.apply([change([at], [x], [weight], [i])]).columns["sum"][-1])
    assert found[:3] == [0.1, inf, inf]
    assert math.isnan(found[3])
    assert found[4:] == [-inf, 0.1 + 0.2]


def test_rows_that_cannot_be_taken_back_are_folded() -> None:
    kept = aggregate(by="key", n=count(), sum=total("x"), low=minimum("x")).start([SMALL])
    n = 20_000 if JIT else 1_000
    for i in range(0, n, 100):
        at = np.arange(i, i + 100)
        out = kept.apply([change(at, (at + 0.1).tolist(), [1] * 100, at)], i - 50)
    assert out.columns["n"][-1] == n
    assert out.columns["sum"][-1] == math.fsum(i + 0.1 for i in range(n))
    assert out.columns["low"][-1] == 0.1
    keys, held = kept.size
    assert keys == 1
    assert held < 50_000


def test_an_extreme_is_found_again_among_rows_kept_and_folded() -> None:
    kept = aggregate(by="key", low=minimum("x"), top=maximum("x")).start([SMALL])
    kept.apply([change([1, 2, 3], [5.0, 7.0, 6.0], [1] * 3, [1, 2, 3])])
    for i in range(4, 40):
        kept.apply([change([i], [6.0], [1], [i])], 3)
    kept.apply([change([50, 51], [9.0, 1.0], [1, 1], [50, 51])], 20)
    out = kept.apply([change([50, 51], [9.0, 1.0], [-1, -1], [52, 53])], 20)
    assert (out.columns["low"].tolist(), out.columns["top"].tolist()) == ([1.0, 5.0], [9.0, 7.0])
    assert out.at.tolist() == [51, 39]


def test_a_row_that_goes_over_to_another_key_leaves_before_it_comes() -> None:
    case = Case(aggregate(by="key", n=count()), [SMALL])
    first = change([1], [1.0], [1], [1])
    second = change([1, 1, 2], [1.0, 1.0, 1.0], [-1, 1, 1], [2, 2, 3], key="aba")
    assert run(case, [[first], [second]]).accumulated() == [(1, 1, ("b", 1)), (2, 2, ("a", 1))]


def test_taking_back_a_row_that_is_not_there_is_refused() -> None:
    made = aggregate(by="key", n=count())
    with pytest.raises(ValueError, match="weight -1 at 1, position 1 does not fit"):
        made.start([SMALL]).apply([change([1], [1.0], [-1], [1])])


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: aggregate(by="key"), "aggregate: nothing to compute; expected a reduction"),
        (
            lambda: aggregate(by="key", n=count(size="1h")),
            r"aggregate: n has the size '1h', but .*use window\(by=\.\.\., size=\.\.\.\)",
        ),
        (lambda: aggregate(by="key", key=count()).schema([MIXED]), "aggregate: the column 'key' is there already"),
        (lambda: aggregate(by="x", n=count()).schema([MIXED]), "aggregate by: 'x' has type Float64"),
        (
            lambda: aggregate(by="key", n=total("when")).schema([MIXED]),
            "aggregate n: total of 'when', which has type Datetime",
        ),
        (lambda: aggregate(by="key", n=total("m")).schema([MIXED]), "aggregate n: no column 'm'"),
    ],
)
def test_what_cannot_be_is_said_clearly(build: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        build()
