"""WINDOW against a slow twin, SQL and exact arithmetic, over values and sizes that the laws do not reach."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import config

from operators.delta import (
    BEGINNING,
    BOOL,
    FLOAT,
    INT,
    NULL,
    STRING,
    TIME,
    Delta,
    Schema,
    empty,
    to_column,
)
from operators.exact import add, exact_sum, minus, rounded
from operators.operator import DefinitionError
from operators.reduction import Reduction, count, maximum, mean, minimum, total
from operators.window import Window, window
from tests.laws import laws
from tests.laws.history import ANY, IN_ORDER, Change, History, Kind, decode
from tests.laws.laws import Case, Row, Stream, run
from tests.laws.oracle import oracle

JIT = not config.DISABLE_JIT
CALM = settings(
    max_examples=60 if JIT else 5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
HISTORIES = st.binary(min_size=60, max_size=600)
MINUTE = 60_000_000

MIXED: Schema = {"key": STRING, "x": FLOAT, "n": INT, "yes": BOOL, "when": TIME}
CASES = [
    Case(window(by="key", size="forever", rows=count(), sum=total("x"), mean=mean("x"), top=maximum("x")), [MIXED]),
    Case(window(by="key", size="2us", sum=total("x"), low=minimum("n"), since=minimum("when")), [MIXED]),
    Case(
        window(
            by=["key", "yes"],
            rows=count(size="1us"),
            known=count("x", size="1h"),
            spent=total("x", size="1h"),
            whole=total("n", size="2h30m"),
            shares=mean("yes", size="forever"),
            any=maximum("yes", size="3us"),
            named=count("key", size="1h"),
            low=minimum("x", size="forever"),
            last=maximum("when", size="forever"),
            mean=mean("n", size="3h"),
        ),
        [MIXED],
    ),
]
WILD = [
    Case(window(by="key", rows=count(size="3us"), sum=total("x", size="3us"), mean=mean("x", size="2h")), [MIXED]),
    Case(window(by="key", size="20us", sum=total("x"), low=minimum("x"), top=maximum("x")), [MIXED]),
]
STRANGE = {4.0: 1e290, 1e15: -1e290, -1e15: 1e-9, 2.5: 1e30, 0.3: -1e30}

every_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
every_wild = pytest.mark.parametrize("case", WILD, ids=range(len(WILD)))


def fsum(values: Sequence[float]) -> float | None:
    """The exact sum, rounded once; None where there is none."""
    if not values:
        return None
    if all(map(math.isfinite, values)):
        return math.fsum(values)
    found = sum(values)
    return None if math.isnan(found) else found


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
        return fsum(known) if is_float else sum(known)
    exact = fsum([float(v) for v in known])
    return None if exact is None else exact / len(known)


def twin(case: Case, live: Sequence[Change]) -> list[Row]:
    """The windows of these rows, one row after another."""
    op, schema = case.operator, case.schemas[0]
    assert isinstance(op, Window)
    names = list(schema)
    out = []
    for row in live:
        key = [row.values[names.index(b)] for b in op.by]
        made = []
        for name, r in op.reductions:
            size = op.microseconds(name, r)
            seen = sorted(
                (
                    o
                    for o in live
                    if [o.values[names.index(b)] for b in op.by] == key
                    and (o.at, o.pos) <= (row.at, row.pos)
                    and (size is None or o.at > row.at - size)
                ),
                key=lambda o: (o.at, o.pos),
            )
            values = [o.values[names.index(r.column)] if r.column else None for o in seen]
            made.append(reduced(r, values, r.column is not None and schema[r.column] == FLOAT))
        out.append((row.at, row.pos, (*row.values, *made)))
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
@given(data=HISTORIES)
@CALM
def test_a_history_ends_in_what_its_rows_say(case: Case, data: bytes) -> None:
    history, rng = decode(data, case.schemas), np.random.default_rng(list(data))
    found = lived(case, history, rng).accumulated()
    assert found == twin(case, history.live())
    assert found == oracle(case, history.relations())


@every_wild
@given(data=HISTORIES, kind=st.sampled_from([ANY, Kind(late=False), Kind(retractions=False), IN_ORDER]))
@CALM
def test_a_total_is_exact_for_any_floats(case: Case, data: bytes, kind: Kind) -> None:
    history, rng = strange(decode(data, case.schemas, kind)), np.random.default_rng(list(data))
    assert lived(case, history, rng).accumulated() == twin(case, history.live())
    laws.cuts_do_not_show(case, history, rng)
    laws.undone(case, history, rng)
    laws.horizon_does_not_show(case, history, rng)


@given(data=HISTORIES)
@CALM
def test_an_endless_total_is_a_function_of_the_rows_and_nearly_exact_for_any_floats(data: bytes) -> None:
    case = Case(window(by="key", size="forever", sum=total("x"), recent=total("x", size="3us")), [MIXED])
    history, rng = strange(decode(data, case.schemas)), np.random.default_rng(list(data))
    names = list(MIXED)
    live = history.live()
    found = lived(case, history, rng).accumulated()
    for (at, pos, values), (_, _, expected) in zip(found, twin(case, live), strict=True):
        *_, sum_, recent = values
        key = values[0]
        seen = [
            abs(c.values[names.index("x")] or 0.0) for c in live if c.values[0] == key and (c.at, c.pos) <= (at, pos)
        ]
        assert recent == expected[-1]
        assert (sum_ is None) == (expected[-2] is None)
        assert sum_ is None or abs(Fraction(sum_) - Fraction(expected[-2])) <= Fraction(2) ** -52 * abs(
            Fraction(expected[-2])
        ) + Fraction(2) ** -150 * sum(map(Fraction, seen))
    laws.cuts_do_not_show(case, history, rng)
    laws.arrival_does_not_show(case, history, rng)
    laws.horizon_does_not_show(case, history, rng)
    laws.undone(case, history, rng)


FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e290, max_value=1e290),
    st.sampled_from([0.1, -0.1, 0.2, 1e15, -1e15, 2.0**53, 1.0, -1.0, 2.0**-53, 1e290, -1e290, 5e-324]),
)


@given(values=st.lists(FLOATS, max_size=20))
@settings(CALM, max_examples=500 if JIT else 100)
def test_sums_are_rounded_once(values: list[float]) -> None:
    array = np.array(values, np.float64).reshape(-1, 1)
    assert exact_sum(array.reshape(-1), 1, 0, 0, len(values), 0.0, 0.0, 0.0) == math.fsum(values)
    sums = [(0.0, 0.0, 0.0)]
    losses = [False]
    for v in values:
        *running, lost = add(*sums[-1], v)
        sums.append(tuple(running))
        losses.append(bool(lost))
        if not any(losses):
            assert sum(map(Fraction, running)) == sum(map(Fraction, values[: len(sums) - 1]))
            assert rounded(*running) == math.fsum(values[: len(sums) - 1])
    for start in range(len(values)):
        for end in range(start + 1, len(values) + 1):
            if not any(losses[start + 1 : end + 1]):
                assert minus(*sums[end], *sums[start]) == math.fsum(values[start:end])


def test_a_running_sum_tells_that_bits_are_lost() -> None:
    hi, mid, lo, lost = add(1e300, 0.0, 0.0, 1.0)
    assert not lost
    assert add(hi, mid, lo, 1e-300)[3] is not None
    assert add(*add(hi, mid, lo, 1e150)[:3], 1e-300)[3]
    assert add(0.0, 0.0, 0.0, math.inf)[3]


def rows(at: Sequence[int], x: Sequence[Any], *, weight: int = 1, first: int = 0, key: str = "a") -> Delta:
    n = len(at)
    numbers = np.arange(first, first + n)
    columns = {"key": to_column([key] * n, STRING), "x": to_column(x, FLOAT)}
    return Delta(columns, np.full(n, weight), np.array(at, np.int64), numbers, numbers)


SMALL: Schema = {"key": STRING, "x": FLOAT}


def test_infinities_come_and_go() -> None:
    case = Case(window(by="key", ever=total("x", size="forever"), now=total("x", size="2us")), [SMALL])
    stream = run(case, [[rows([1, 2, 3, 4, 5, 6], [1.0, math.inf, 2.0, 0.1, -math.inf, 0.2])]])
    values = [v[2:] for _, _, v in stream.accumulated()]
    inf = math.inf
    assert values == [(1.0, 1.0), (inf, inf), (inf, inf), (inf, 2.1), (None, -inf), (None, -inf)]


def test_integers_wrap() -> None:
    schema: Schema = {"key": STRING, "n": INT}
    case = Case(window(by="key", size="2us", n2=total("n"), low=minimum("n"), top=maximum("n")), [schema])
    most = 2**63 - 1
    one = np.arange(5)
    values = [most, 1, None, -most, most]
    delta = Delta(
        {"key": to_column(["a"] * 5, STRING), "n": to_column(values, INT)}, np.ones(5, np.int64), one, one, one
    )
    found = [v[2:] for _, _, v in run(case, [[delta]]).accumulated()]
    assert found == [(most, most, most), (None, 1, most), (1, 1, 1), (-most, -most, -most), (0, -most, most)]
    assert (most + 1) - 2**64 == NULL  # the sum that wrapped is the one that stands for null


def test_windows_of_many_rows() -> None:
    """In order and late, over windows longer than a block, with extremes that leave in each step."""
    case = Case(
        window(
            by="key",
            size="150us",
            sum=total("x"),
            low=minimum("x"),
            top=maximum("x"),
            ever=maximum("x", size="forever"),
        ),
        [SMALL],
    )
    n = 700 if JIT else 200
    rng = np.random.default_rng(7)
    for values in (np.arange(n, 0, -1.0), np.arange(n, dtype=float), rng.integers(0, 50, n) / 10):
        x = [None if rng.random() < 0.1 else float(v) for v in values]
        at = np.arange(n)
        late = rng.random(n) < 0.05
        steps = [[rows(at[i : i + 50], x[i : i + 50], first=i).take(~late[i : i + 50])] for i in range(0, n, 50)]
        everything = rows(at, x)
        steps += [[d] for d in [everything.take(late)] if len(d)]
        for k, step in enumerate(steps):
            step[0].seq = np.arange(len(step[0])) + 1000 * k
        changes = [Change(0, 0, 1, i, i, ("a", v)) for i, v in enumerate(x)]
        expected = {p: v for _, p, v in twin(case, [c for c in changes if c.at >= n - 300])}
        for _, pos, v in run(case, steps).accumulated():
            ever = max((y for y in x[: pos + 1] if y is not None), default=None)
            assert v[-1] == ever
            if pos >= n - 150 or n <= 300:
                assert v[:-1] == expected[pos][:-1]


def stream_of(n: int, keys: int, start: int = 0) -> Delta:
    """n rows, one a second, each `keys`-th of a new key."""
    numbers = np.arange(start, start + n)
    columns = {"key": to_column([f"k{i // keys}" for i in numbers.tolist()], STRING), "x": np.ones(n)}
    return Delta(columns, np.ones(n, np.int64), numbers * 1_000_000, numbers, numbers)


@pytest.mark.parametrize("step", [1, 200])
def test_memory_stays_flat_on_an_endless_stream_of_new_keys(step: int) -> None:
    kept = window(by="key", size="5m", n=count(), sum=total("x"), top=maximum("x")).start([SMALL])
    sizes = []
    total_rows = 20_000 if JIT else 8_000
    for i in range(0, total_rows, step):
        kept.apply([stream_of(step, 2, i)], (i - 60) * 1_000_000)
        sizes.append(kept.size)
    half = len(sizes) // 2
    assert max(keys for keys, _ in sizes) < 2_000
    assert max(held for _, held in sizes[half:]) <= 1.1 * max(held for _, held in sizes[:half])
    assert kept.size[0] >= 150


def test_an_endless_window_keeps_rows_only_as_far_as_they_can_be_corrected() -> None:
    kept = window(by="key", size="forever", sum=total("x")).start([SMALL])
    n = 20_000 if JIT else 2_000
    held = []
    for i in range(0, n, 100):
        out = kept.apply([stream_of(100, n, i)], (i - 60) * 1_000_000)
        held.append(kept.size[1])
    assert out.columns["sum"][-1] == n
    assert kept.size[0] == 1
    assert held[-1] == held[len(held) // 2]  # no byte more for the second half of the rows
    assert held[-1] < 16 * held[0]


def test_many_keys_are_restored() -> None:
    n = 50_000 if JIT else 500
    kept = window(by="key", size="1h", n=count(), sum=total("x")).start([SMALL])
    kept.apply([stream_of(n, 1)])
    again = window(by="key", size="1h", n=count(), sum=total("x")).start([SMALL])
    again.restore(pickle.loads(pickle.dumps(kept.snapshot())))
    more = stream_of(n, 1)
    more = Delta(more.columns, more.weight, more.at + 1, more.pos + n, more.seq + n)
    a, b = kept.apply([more]), again.apply([more])
    assert again.size[0] == n
    assert a.columns["n"].tolist() == b.columns["n"].tolist() == [2] * n


def test_a_row_that_goes_and_comes_in_one_delta_keeps_its_key() -> None:
    kept = window(by="key", size="1h", n=count()).start([SMALL])
    kept.apply([rows([5], [1.0])])
    columns = {"key": to_column(["a"] * 2, STRING), "x": to_column([1.0, 2.0], FLOAT)}
    both = Delta(columns, np.array([-1, 1]), np.array([5, 6]), np.array([0, 1]), np.array([1, 2]))
    out = kept.apply([both])
    assert out.columns["n"].tolist() == [1, 1]
    assert kept.apply([rows([7], [1.0], first=3)]).columns["n"].tolist() == [2]
    assert kept.size[0] == 1


def test_taking_back_a_row_that_is_not_there_is_refused() -> None:
    made = window(by="key", size="1h", n=count())
    kept = made.start([SMALL])
    kept.apply([rows([5], [1.0])])
    with pytest.raises(ValueError, match="weight -1 at 4, position 1 does not fit"):
        kept.apply([rows([4], [1.0], weight=-1, first=1)])
    assert len(made.start([SMALL]).apply([empty(SMALL)])) == 0


def test_rows_from_the_beginning_are_seen_by_endless_windows_only() -> None:
    case = Case(window(by="key", ever=count(size="forever"), now=count(size="1h")), [SMALL])
    found = run(case, [[rows([BEGINNING, BEGINNING, 10], [1.0, 1.0, 1.0])]]).accumulated()
    assert [v[2:] for _, _, v in found] == [(1, 1), (2, 2), (3, 1)]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: window(by="key", size="1h"), r"window: nothing to compute; expected a reduction such as n=count\(\)"),
        (lambda: window(by="key", size="1h", n=3), r"window: n is 3; expected a reduction: count\(\), total\('x'\)"),
        (lambda: window(by="key", n=count()), "window: n has no size; expected a duration such as '1h', or 'forever'"),
        (
            lambda: window(by="key", size="an hour", n=count()),
            "window: the size of n is 'an hour': expected a timedelta",
        ),
        (lambda: window(by="key", size="0s", n=count()), "window: the size of n is '0s': expected more than 0"),
        (lambda: window(by=[], size="1h", n=count()), r"window by is \[\]: expected one column name"),
        (lambda: Reduction("total"), r"total has no column: expected a name such as total\('x'\)"),
        (lambda: Reduction("median", "x"), "a reduction has kind 'median': expected one of count, total, mean"),
        (lambda: count(3), "count of 3: expected the name of a column"),
        (lambda: window(by="kei", size="1h", n=count()).schema([MIXED]), "window by: no column 'kei'.*'key'"),
        (
            lambda: window(by="x", size="1h", n=count()).schema([MIXED]),
            "window by: 'x' has type Float64; expected",
        ),
        (lambda: window(by="key", size="1h", m=total("z")).schema([MIXED]), "window m: no column 'z'"),
        (
            lambda: window(by="key", size="1h", m=total("key")).schema([MIXED]),
            "window m: total of 'key', which has type String; expected Int64, Float64 or Boolean",
        ),
        (
            lambda: window(by="key", size="1h", m=mean("when")).schema([MIXED]),
            "mean of 'when', which has type Datetime",
        ),
        (
            lambda: window(by="key", size="1h", m=maximum("key")).schema([MIXED]),
            "maximum of 'key', which has type String; expected Int64, Float64, Boolean or Datetime",
        ),
        (lambda: window(by="key", size="1h", x=count()).schema([MIXED]), "window: the column 'x' is there already"),
    ],
)
def test_what_cannot_be_is_said_clearly(build: Any, text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        build()


def test_types_of_results() -> None:
    made = window(
        by="key",
        size="1h",
        a=count("key"),
        b=total("yes"),
        c=total("x"),
        d=mean("n"),
        e=maximum("yes"),
        f=minimum("when"),
    )
    assert made.schema([MIXED]) == {**MIXED, "a": INT, "b": INT, "c": FLOAT, "d": FLOAT, "e": BOOL, "f": TIME}
    assert made.definition["reductions"]["a"] == {"kind": "count", "column": "key", "size": 60 * MINUTE}
