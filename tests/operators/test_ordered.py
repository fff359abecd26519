"""Previous and runs: what the laws do not say. The laws themselves run over them in tests/laws."""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.delta import BEGINNING, FLOAT, INT, NULL, STRING, Delta, Schema, concat, to_column
from operators.operator import DefinitionError, Maintained, Operator
from operators.previous import previous
from operators.runs import runs
from tests.laws import laws
from tests.laws.history import Change, decode
from tests.laws.laws import Case

SCHEMA: Schema = {"k": STRING, "x": INT}


def delta(*rows: tuple[int, int | None], key: str | None = "a", weight: int = 1, seq: int = 1) -> Delta:
    """Rows (at, x) of a key; the position is that of the time."""
    n = len(rows)
    columns = {"k": to_column([key] * n, STRING), "x": to_column([r[1] for r in rows], INT)}
    at = np.array([r[0] for r in rows], np.int64)
    return Delta(columns, np.full(n, weight), at, at, seq + np.arange(n))


def out(kept: Maintained, d: Delta, *names: str, horizon: int = BEGINNING) -> list[Any]:
    """(weight, at, columns) of what comes out."""
    found = kept.apply([d], horizon)
    return list(zip(found.weight.tolist(), found.at.tolist(), *(found.columns[n].tolist() for n in names), strict=True))


def by_key(rows: list[Change]) -> list[list[Change]]:
    """The rows of each key, in order."""
    found = defaultdict(list)
    for r in sorted(rows, key=lambda r: (r.at, r.pos)):
        found[r.values[0]].append(r)
    return list(found.values())


def twin_of_previous(rows: list[Change]) -> list[laws.Row]:
    """Each row with x of the one before it, no more than 2 microseconds ago, and when that was."""
    made = []
    for group in by_key(rows):
        for before, r in zip([None, *group], group, strict=False):
            near = before if before is not None and before.at >= r.at - 2 else None
            made.append((r.at, r.pos, (*r.values, near and near.values[1], near and near.at)))
    return sorted(made, key=laws.order)


def twin_of_runs(rows: list[Change]) -> list[laws.Row]:
    """Each row with how many in a row had its x, and the time of the first."""
    made = []
    for group in by_key(rows):
        last, run, since = None, 0, None
        for r in group:
            x = r.values[1]
            run, since = (0, None) if x is None else (run + 1, since) if x == last else (1, r.at)
            last = x
            made.append((r.at, r.pos, (*r.values, run, since)))
    return sorted(made, key=laws.order)


@pytest.mark.parametrize(
    ("operator", "twin"),
    [
        (previous(by="k", before="x", at="seen", within="2us"), twin_of_previous),
        (runs(by="k", of="x", run="run", since="since"), twin_of_runs),
        (runs(by="k", of=["x", "k"], run="run", since="since"), None),
    ],
)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.binary(min_size=60, max_size=600))
def test_it_is_its_twin(operator: Operator, twin: Any, data: bytes) -> None:
    case = Case(operator, [SCHEMA])
    history = decode(data, case.schemas)
    live = history.live()
    expected = twin(live) if twin else [
        (at, pos, (k, x, 0 if k is None else run, None if k is None else since))
        for at, pos, (k, x, run, since) in twin_of_runs(live)
    ]  # fmt: skip
    steps = history.steps(laws.random_cuts(history, np.random.default_rng(zlib.crc32(data))))
    assert laws.run(case, steps, history.bounds(steps)).accumulated() == expected


def test_the_time_since_the_row_before_is_known_and_corrected() -> None:
    kept = previous(by="k", last="x", at="seen").start([SCHEMA])
    assert out(kept, delta((10, 1), (30, 2)), "last", "seen") == [(1, 10, NULL, NULL), (1, 30, 1, 10)]
    assert out(kept, delta((20, 9), seq=5), "last", "seen") == [(1, 20, 1, 10), (-1, 30, 1, 10), (1, 30, 9, 20)]
    assert out(kept, delta((10, 1), weight=-1, seq=6), "last") == [(-1, 10, NULL), (-1, 20, 1), (1, 20, NULL)]


def test_a_change_that_does_not_show_corrects_nothing() -> None:
    kept = previous(by="k", last="x").start([SCHEMA])
    out(kept, delta((10, 1), (30, 2)))
    assert out(kept, delta((20, 1), seq=5), "last") == [(1, 20, 1)]
    stuck = runs(by="k", of="x", run="n").start([SCHEMA])
    out(stuck, delta((10, 1), (20, 2), (30, 3)))
    assert out(stuck, delta((15, 1), seq=5), "n") == [(1, 15, 2)]


def test_an_update_of_a_row_is_one_change_of_the_row_behind_it() -> None:
    kept = previous(by="k", last="x").start([SCHEMA])
    out(kept, delta((10, 1), (30, 2)))
    update = concat([delta((10, 1), weight=-1, seq=5), delta((10, 7), seq=5)])
    assert out(kept, update, "last") == [(-1, 10, NULL), (1, 10, NULL), (-1, 30, 1), (1, 30, 7)]


def test_a_row_taken_back_in_the_middle_of_a_run_corrects_all_behind_it_to_its_end() -> None:
    kept = runs(by="k", of="x", run="n", since="since").start([SCHEMA])
    out(kept, delta((10, 5), (20, 5), (30, 6), (40, 5), (50, 5), (60, 7)))
    assert out(kept, delta((30, 6), weight=-1, seq=9), "n", "since") == [
        (-1, 30, 1, 30), (-1, 40, 1, 40), (1, 40, 3, 10), (-1, 50, 2, 40), (1, 50, 4, 10),
    ]  # fmt: skip


def test_a_null_ends_a_run_and_is_in_none() -> None:
    kept = runs(by="k", of="x", run="n", since="since").start([SCHEMA])
    assert out(kept, delta((10, 5), (20, None), (30, None), (40, 5)), "n", "since") == [
        (1, 10, 1, 10), (1, 20, 0, NULL), (1, 30, 0, NULL), (1, 40, 1, 40),
    ]  # fmt: skip


def test_floats_are_the_same_when_they_are_equal() -> None:
    kept = runs(by="k", of="x", run="n").start([{"k": STRING, "x": FLOAT}])
    rows = delta((1, 0), (2, 0), (3, 0), (4, 0))
    rows.columns["x"] = np.array([0.0, -0.0, np.nan, 0.1])
    assert kept.apply([rows]).columns["n"].tolist() == [1, 2, 0, 1]


def test_a_row_from_the_beginning_has_no_time() -> None:
    kept = previous(by="k", last="x", at="seen").start([SCHEMA])
    assert out(kept, delta((BEGINNING, 4), (5, 1)), "last", "seen")[1] == (1, 5, 4, NULL)
    stuck = runs(by="k", of="x", run="n", since="since").start([SCHEMA])
    assert out(stuck, delta((BEGINNING, 4), (5, 4)), "n", "since")[1] == (1, 5, 2, NULL)


@pytest.mark.parametrize(
    ("operator", "keys"),
    [
        (previous(by="k", last="x", within="5us"), 1),
        (previous(by="k", last="x"), 51),
        (runs(by="k", of="x", run="n"), 51),
        (runs(by="k", of=["x", "k"], run="n"), 51),
    ],
)
def test_one_row_of_each_key_is_kept_at_most(operator: Operator, keys: int) -> None:
    kept: Any = operator.start([SCHEMA])
    sizes = []
    for n in range(600):
        kept.apply([delta((n, n), key=f"k{n % 50}", seq=n)], n)
        sizes.append(kept.size[1])
    for n in range(20):
        kept.apply([delta((10**6 + n, n), key="z", seq=10**6 + n)], 10**6 + n)
    assert kept.size[0] == keys
    assert sizes[-1] <= 1.5 * sizes[250], "the memory held grows with the rows"


def test_a_run_goes_on_behind_the_horizon() -> None:
    kept = runs(by="k", of="x", run="n", since="since").start([SCHEMA])
    for n in range(100):
        last = out(kept, delta((n, 7), seq=n), "n", "since", horizon=n)
    assert last == [(1, 99, 100, 0)]
    entries = kept.entries.runs  # type: ignore[attr-defined]
    assert (entries[:, 3] - entries[:, 2]).max() <= 2


@pytest.mark.parametrize("operator", [previous(by="k", last="x"), runs(by="k", of="x", run="n")])
def test_taking_back_a_row_that_is_not_there_is_refused(operator: Operator) -> None:
    with pytest.raises(ValueError, match=r"a row with at=5, pos=5 was taken back that is not there"):
        operator.start([SCHEMA]).apply([delta((5, 1), weight=-1)])


def test_parameters_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"previous: by: no column 'kk'; did you mean 'k'\?"):
        previous(by="kk", last="x").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"previous: last: no column 'y'"):
        previous(by="k", last="y").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"previous: the column 'x' is there already"):
        previous(by="k", x="x").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"previous: at and a column are both 'last'"):
        previous(by="k", last="x", at="last").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"previous: nothing to add; expected a column such as"):
        previous(by="k")
    with pytest.raises(DefinitionError, match=r"previous: last is 3; expected the name of a column"):
        previous(by="k", last=3)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"previous: within is 'ever': expected"):
        previous(by="k", last="x", within="ever")
    with pytest.raises(DefinitionError, match=r"runs: of: no column 'y'"):
        runs(by="k", of="y", run="n").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"runs: nothing to add; expected run='name'"):
        runs(by="k", of="x")
    with pytest.raises(DefinitionError, match=r"runs: run and since are both 'n'"):
        runs(by="k", of="x", run="n", since="n")
