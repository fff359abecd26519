"""Dedupe: what the laws do not say. The laws themselves run over it in tests/laws."""

from __future__ import annotations

import zlib
from collections import defaultdict

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.dedupe import dedupe
from operators.delta import INT, STRING, Delta, Schema, to_column
from operators.operator import DefinitionError
from tests.laws import laws
from tests.laws.history import Change, decode, generate
from tests.laws.laws import Case

SCHEMA: Schema = {"k": STRING, "x": INT}


def delta(*rows: tuple[int, int, str | None], weight: int = 1, seq: int = 1) -> list[Delta]:
    """Rows (at, pos, key)."""
    n = len(rows)
    columns = {"k": to_column([r[2] for r in rows], STRING), "x": to_column([r[1] for r in rows], INT)}
    at, pos = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    return [Delta(columns, np.full(n, weight), at, pos, seq + np.arange(n))]


def out(d: Delta) -> list[tuple[int, int]]:
    return list(zip(d.weight.tolist(), d.at.tolist(), strict=True))


def twin(rows: list[Change], within: int | None) -> list[laws.Row]:
    """Each row against every other of its key."""
    by_key = defaultdict(list)
    for r in rows:
        by_key[r.values[0]].append(r)
    return sorted(
        (
            (r.at, r.pos, r.values)
            for group in by_key.values()
            for r in group
            if not any((o.at, o.pos) < (r.at, r.pos) and (within is None or o.at >= r.at - within) for o in group)
        ),
        key=laws.order,
    )


@pytest.mark.parametrize("within", [None, 0, 2, 3_600_000_000])
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.binary(min_size=60, max_size=600))
def test_it_is_its_twin(within: int | None, data: bytes) -> None:
    case = Case(dedupe(by="k", within=None if within is None else f"{within}us"), [SCHEMA])
    history = decode(data, case.schemas)
    steps = history.steps(laws.random_cuts(history, np.random.default_rng(zlib.crc32(data))))
    assert laws.run(case, steps, history.bounds(steps)).accumulated() == twin(history.live(), within)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_row_number_1(seed: int) -> None:
    case = Case(dedupe(by="k"), [SCHEMA])
    history = generate(np.random.default_rng(seed), case.schemas, 2000)
    con = duckdb.connect()
    con.execute("CREATE TABLE r (k VARCHAR, x BIGINT, _at BIGINT, _pos BIGINT)")
    con.executemany("INSERT INTO r VALUES (?, ?, ?, ?)", history.relations()[0].rows())
    sql = "SELECT _at, _pos, k, x FROM r QUALIFY row_number() OVER (PARTITION BY k ORDER BY _at, _pos) = 1"
    expected = sorted(((at, pos, (k, x)) for at, pos, k, x in con.execute(sql).fetchall()), key=laws.order)
    assert len(expected) > 1
    assert laws.run(case, history.steps()).accumulated() == expected


def test_a_late_row_takes_the_place_of_the_first_and_gives_it_back() -> None:
    kept = dedupe(by="k").start([SCHEMA])
    assert out(kept.apply(delta((20, 1, "a"), (30, 2, "a")))) == [(1, 20)]
    assert out(kept.apply(delta((10, 3, "a"), seq=5))) == [(1, 10), (-1, 20)]
    assert out(kept.apply(delta((10, 3, "a"), weight=-1, seq=6))) == [(-1, 10), (1, 20)]
    assert out(kept.apply(delta((20, 1, "a"), weight=-1, seq=7))) == [(-1, 20), (1, 30)]


def test_within_a_burst_only_the_first_is_kept_and_a_late_row_changes_one_other() -> None:
    kept = dedupe(by="k", within="10us").start([SCHEMA])
    assert out(kept.apply(delta(*((at, at, "a") for at in (20, 30, 40, 50, 61))))) == [(1, 20), (1, 61)]
    assert out(kept.apply(delta((55, 55, "a"), seq=9))) == [(-1, 61)]
    assert out(kept.apply(delta((12, 12, "a"), seq=10))) == [(1, 12), (-1, 20)]


def test_an_update_of_the_first_row_does_not_flash_the_second() -> None:
    kept = dedupe(by="k").start([SCHEMA])
    kept.apply(delta((20, 1, "a"), (30, 2, "a")))
    gone, come = delta((20, 1, "a"), weight=-1, seq=5)[0], delta((21, 3, "a"), seq=5)[0]
    both = Delta(
        {n: np.concatenate([gone.columns[n], come.columns[n]]) for n in SCHEMA},
        *(np.concatenate([getattr(gone, n), getattr(come, n)]) for n in ("weight", "at", "pos", "seq")),
    )
    assert out(kept.apply([both])) == [(-1, 20), (1, 21)]


def test_null_is_a_key_like_any_other() -> None:
    kept = dedupe(by="k").start([SCHEMA])
    assert out(kept.apply(delta((1, 1, None), (2, 2, None), (3, 3, "a")))) == [(1, 1), (1, 3)]


def test_with_within_keys_are_forgotten_and_without_it_one_row_of_each_is_kept() -> None:
    for within, keys in (("5us", 1), (None, 51)):
        kept = dedupe(by="k", within=within).start([SCHEMA])
        for n in range(500):
            kept.apply(delta((n, n, f"k{n % 50}"), seq=n), n)
        for n in range(20):
            kept.apply(delta((10**6 + n, 10**6 + n, "z"), seq=10**6 + n), 10**6 + n)
        assert kept.size[0] == keys
        assert len(kept.rows) <= 1  # type: ignore[attr-defined]
        assert out(kept.apply(delta((10**7, 10**7, "k1"), seq=10**7))) == ([(1, 10**7)] if within else [])


def test_taking_back_a_row_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a row with at=5, pos=1 was taken back that is not there"):
        dedupe(by="k").start([SCHEMA]).apply(delta((5, 1, "a"), weight=-1))


def test_parameters_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"dedupe: by: no column 'kk'; did you mean 'k'\?"):
        dedupe(by="kk").schema([SCHEMA])
    with pytest.raises(DefinitionError, match=r"dedupe: within is 'ever': expected"):
        dedupe(by="k", within="ever")
