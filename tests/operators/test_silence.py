"""Silence: what the laws do not say. The laws themselves run over it in tests/laws."""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.delta import BEGINNING, INT, NULL, STRING, TIME, Delta, Schema, concat, empty, to_column
from operators.operator import CLOCK, DefinitionError, Maintained
from operators.silence import silence
from tests.laws import laws
from tests.laws.history import HOUR, Change, decode
from tests.laws.laws import Case

SCHEMA: Schema = {"k": STRING, "x": INT}


def beats(*ats: int, key: str | None = "a", weight: int = 1, seq: int = 1) -> Delta:
    """Rows of a key at these times; the position is that of the time."""
    n, at = len(ats), np.array(ats, np.int64)
    columns = {"k": to_column([key] * n, STRING), "x": np.zeros(n, np.int64)}
    return Delta(columns, np.full(n, weight), at, at, seq + np.arange(n))


def clock(*nows: int, seq: int = 1) -> Delta:
    """A clock that goes from the first of these times to the second, or begins with the one."""
    at = np.array(nows, np.int64)
    return Delta({"now": at}, np.array([-1, 1])[-len(nows) :], at, 0 * at, np.full(len(nows), seq))


def out(kept: Maintained, rows: Delta | None = None, now: Delta | None = None, horizon: int = BEGINNING) -> list[Any]:
    """(weight, key, since, until) of what comes out."""
    found = kept.apply([empty(SCHEMA) if rows is None else rows, empty(CLOCK) if now is None else now], horizon)
    until = [None if t == NULL else t for t in found.columns["until"].tolist()]
    return list(
        zip(found.weight.tolist(), found.columns["k"].tolist(), found.columns["since"].tolist(), until, strict=True)
    )


def twin(rows: list[Change], after: dict[str | None, int], default: int) -> list[laws.Row]:
    """Each row against the next of its key, and the last against the clock."""
    now = max((c.values[0] for c in rows if c.source == 1 and c.values[0] is not None), default=None)
    by_key, made = defaultdict(list), []
    for r in sorted((c for c in rows if c.source == 0), key=lambda r: (r.at, r.pos)):
        by_key[r.values[0]].append(r)
    for key, group in by_key.items():
        d = after.get(key, default)
        for r, following in zip(group, [*group[1:], None], strict=True):
            until = None if following is None else following.at
            ended = now if until is None else until
            if ended is not None and ended - r.at > d:
                made.append((r.at + d, r.pos, (key, r.at, until)))
    return sorted(made, key=laws.order)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.binary(min_size=60, max_size=600))
def test_it_is_its_twin(data: bytes) -> None:
    case = Case(silence(by="k", after={"a": "1us", "b": "30m"}, default="2h"), [SCHEMA, CLOCK])
    history = decode(data, case.schemas)
    steps = history.steps(laws.random_cuts(history, np.random.default_rng(zlib.crc32(data))))
    found = laws.run(case, steps, history.bounds(steps)).accumulated()
    assert found == twin(history.live(), {"a": 1, "b": HOUR // 2}, 2 * HOUR)


def test_it_fires_once_and_again_after_the_key_came_back() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    assert out(kept, beats(100, 105), clock(110)) == []
    assert out(kept, None, clock(110, 115, seq=3)) == []  # as long as it may be silent
    assert out(kept, None, clock(115, 116, seq=4)) == [(1, "a", 105, None)]
    assert out(kept, None, clock(116, 500, seq=5)) == []
    assert out(kept, beats(510, seq=6)) == [(-1, "a", 105, None), (1, "a", 105, 510)]
    assert out(kept, None, clock(500, 525, seq=7)) == [(1, "a", 510, None)]


def test_a_late_row_takes_a_silence_back_or_splits_it() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    assert out(kept, beats(100, 120), clock(125, seq=2)) == [(1, "a", 100, 120)]
    assert out(kept, beats(110, seq=3)) == [(-1, "a", 100, 120)]
    assert out(kept, beats(200, seq=4)) == [(1, "a", 120, 200)]
    assert out(kept, beats(150, seq=5)) == [(1, "a", 150, 200), (-1, "a", 120, 200), (1, "a", 120, 150)]
    assert out(kept, None, clock(125, 211, seq=6)) == [(1, "a", 200, None)]
    assert out(kept, beats(205, seq=7)) == [(-1, "a", 200, None)]


def test_a_silence_that_began_and_ended_within_one_delta_is_not_lost() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    assert out(kept, beats(100, 150, 155), clock(155, seq=3)) == [(1, "a", 100, 150)]


def test_a_row_and_the_clock_of_one_change_are_one_change() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    out(kept, beats(100), clock(100))
    assert out(kept, beats(200, seq=5), clock(100, 200, seq=5)) == [(1, "a", 100, 200)]


def test_an_update_that_does_not_move_a_row_changes_nothing() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    out(kept, beats(100, 150), clock(200, seq=2))
    new = beats(100, seq=5)
    new.columns["x"] = new.columns["x"] + 1
    assert out(kept, concat([beats(100, weight=-1, seq=5), new])) == []


def test_a_key_that_is_taken_back_is_not_silent() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    out(kept, beats(100), clock(200))
    assert out(kept, beats(100, weight=-1, seq=5)) == [(-1, "a", 100, None)]
    assert kept.size[0] == 0
    assert out(kept, beats(195, key="b", seq=6), clock(200, 900, seq=7)) == [(1, "b", 195, None)]


def test_a_silence_ends_however_long_ago_it_began() -> None:
    kept = silence(by="k", after="10us").start([SCHEMA, CLOCK])
    out(kept, beats(*range(100)), clock(100, seq=100))
    assert out(kept, None, clock(100, 10**9, seq=200), horizon=10**9) == [(1, "a", 99, None)]
    for n in range(50):
        assert out(kept, beats(10**9 + n, key=f"b{n % 3}", seq=300 + n), horizon=10**9 + n) == []
    assert kept.size[0] == 4
    runs = kept.entries.runs[:4]  # type: ignore[attr-defined]
    assert (runs[:, 3] - runs[:, 2]).max() <= 8
    assert out(kept, beats(10**9 + 50, seq=400), horizon=10**9 + 50) == [(-1, "a", 99, None), (1, "a", 99, 10**9 + 50)]


def test_a_row_from_the_beginning_begins_no_silence() -> None:
    op = silence(by="k", after="10us")
    kept = op.start([SCHEMA, CLOCK])
    assert out(kept, beats(BEGINNING), clock(500)) == []
    assert out(kept, beats(600, seq=3), clock(500, 700, seq=4)) == [(1, "a", 600, None)]
    rows = pl.LazyFrame({"k": ["a"], "x": [0], "_at": [BEGINNING], "_pos": [1]})
    now = pl.LazyFrame({"now": [500], "_at": [500], "_pos": [0]}, {"now": TIME, "_at": INT, "_pos": INT})
    assert op.recompute([rows, now]).collect().is_empty()


def test_many_keys_fall_silent_each_at_its_time() -> None:
    kept = silence(by="k", after="100us").start([SCHEMA, CLOCK])
    rng, now, last = np.random.default_rng(1), 0, dict[str, int]()
    out(kept, None, clock(0))
    found: list[tuple[str, int]] = []
    for step in range(1, 300):
        key, at = f"k{rng.integers(20)}", 5 * step
        if step < 150 or key != "k3":
            last[key] = at
            out(kept, beats(at, key=key, seq=2 * step))
        for weight, k, since, until in out(kept, None, clock(now, at, seq=2 * step + 1)):
            assert (weight, until, last[k], since) == (1, None, since, at - 105), "it is told when it begins"
            found.append((k, since))
        now = at
    assert "k3" in dict(found)
    assert len(found) > 30


def test_parameters_that_make_no_sense_are_refused() -> None:
    schemas = [SCHEMA, CLOCK]
    with pytest.raises(DefinitionError, match=r"silence: by: no column 'kk'; did you mean 'k'\?"):
        silence(by="kk", after="1h").schema(schemas)
    with pytest.raises(DefinitionError, match=r"silence: after is 'ever': expected"):
        silence(by="k", after="ever")
    with pytest.raises(DefinitionError, match=r"silence: after of 'a' is 'ever': expected"):
        silence(by="k", after={"a": "ever"}, default="1h")
    with pytest.raises(DefinitionError, match=r"silence: after says it for some keys; expected default="):
        silence(by="k", after={"a": "1h"})
    with pytest.raises(DefinitionError, match=r"silence: after is '1h', the same for every key, so leave out default"):
        silence(by="k", after="1h", default="1h")
    with pytest.raises(DefinitionError, match=r"silence: after has the key 3; expected the value of k \(String\)"):
        silence(by="k", after={3: "1h"}, default="1h").schema(schemas)
    with pytest.raises(
        DefinitionError, match=r"after has the key 'a'; expected the value of k \(String\), x \(Int64\)"
    ):
        silence(by=["k", "x"], after={"a": "1h"}, default="1h").schema(schemas)
    with pytest.raises(DefinitionError, match=r"silence: the column 'since' is there already"):
        silence(by="since", after="1h").schema([{"since": STRING}, CLOCK])
