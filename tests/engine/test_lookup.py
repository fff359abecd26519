"""Of each key its newest row: laws of what can be looked up, beside a twin that keeps every row in a dict."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.lookup import Newest
from operators.delta import BOOL, FLOAT, INT, STRING, Delta, to_column

SCHEMA = {"card": STRING, "day": INT, "vip": BOOL, "x": FLOAT}
KEYS: list[tuple[str, ...]] = [("card",), ("card", "day"), ("vip",)]
Row = tuple[int, int, tuple[Any, ...]]
Change = tuple[int, int, Row]
"""Weight, the horizon of the batch that it is in at the earliest, and the row: at, position, values."""

ALL = -(2**63)


def values_of(n: int) -> tuple[Any, ...]:
    return ("abc"[n % 3] if n % 7 else None, n % 2, (True, False, None)[n % 3], n / 4)


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """Rows that come, are corrected (-old, +new of the same at and position) and go, while the horizon rises."""
    live: dict[tuple[int, int], Row] = {}
    changes: list[Change] = []
    horizon = ALL
    for pos, n in enumerate(draw(st.lists(st.integers(0, 2**16), max_size=60))):
        first = max(horizon, 0)
        movable = sorted(k for k in live if k[0] >= horizon)
        what = n % 5
        if what == 4 and n % 3 == 0:
            horizon = first + n % 4
        elif what < 3 or not movable:
            row = (first + n // 5 % 4, pos, values_of(n // 20))
            live[row[:2]] = row
            changes.append((1, horizon, row))
        else:
            old = live.pop(movable[n // 5 % len(movable)])
            changes.append((-1, horizon, old))
            if what == 4:
                new = (*old[:2], values_of(n // 20))
                live[new[:2]] = new
                changes.append((1, horizon, new))
    return changes


def delta_of(changes: Sequence[Change]) -> Delta:
    rows = [row for _, _, row in changes]
    columns = {n: to_column([r[2][i] for r in rows], t) for i, (n, t) in enumerate(SCHEMA.items())}
    weight, at, pos = (
        np.array(v, np.int64) for v in ([c[0] for c in changes], [r[0] for r in rows], [r[1] for r in rows])
    )
    return Delta(columns, weight, at, pos, np.arange(len(rows)))


def plain(value: Any) -> Any:
    """A value as a column holds it."""
    return (-(2**7) if value is None else int(value)) if value in (None, True, False) else value


def raw(name: str, value: Any) -> Any:
    return plain(value) if SCHEMA[name] == BOOL else value


def twin(changes: Sequence[Change], key: Sequence[str]) -> dict[Any, Row]:
    """The newest live row of each key, by the definition."""
    live: dict[tuple[int, int], Row] = {}
    for weight, _, row in changes:
        if weight > 0:
            live[row[:2]] = row
        else:
            del live[row[:2]]
    found: dict[Any, Row] = {}
    for row in sorted(live.values(), key=lambda r: r[:2]):
        mine = tuple(raw(n, v) for n, v in zip(SCHEMA, row[2], strict=True) if n in key)
        found[mine if len(key) > 1 else mine[0]] = row
    return found


def holds(kept: Newest, keys: Sequence[Any]) -> dict[Any, Row]:
    """What is found of these keys."""
    rows, there = kept.take(keys)
    frame = rows.frame(SCHEMA)
    found = [(int(a), int(p), v) for a, p, v in zip(rows.at.tolist(), rows.pos.tolist(), frame.rows(), strict=True)]
    return dict(zip([k for k, t in zip(keys, there, strict=True) if t], found, strict=True))


def every(key: Sequence[str]) -> list[Any]:
    """Every key that a history can have, and some that it cannot."""
    several = {"card": ["a", "b", "c", None, "z"], "day": [0, 1, 5], "vip": [0, 1, -(2**7)]}
    if len(key) == 1:
        return several[key[0]]
    return [(a, b) for a in several[key[0]] for b in several[key[1]]]


def fed(changes: Sequence[Change], cuts: Sequence[int], key: Sequence[str], restart: Sequence[int] = ()) -> Newest:
    """What keeps them, told in the batches between the cuts, saved and restored before some of these."""
    kept = Newest(key, SCHEMA)
    edges = sorted({0, len(changes), *(c % (len(changes) + 1) for c in cuts)})
    for i, (a, b) in enumerate(pairwise(edges)):
        if i in restart:
            saved = pickle.dumps(kept.snapshot(), protocol=5)
            kept = Newest(key, SCHEMA)
            kept.restore(pickle.loads(saved))
        kept.apply(delta_of(changes[a:b]), min(h for _, h, _ in changes[a:b]))
        assert holds(kept, every(key)) == twin(changes[:b], key)
        assert len(kept) == len(twin(changes[:b], key)) <= kept.rows <= sum(w for w, _, _ in changes[:b])
    return kept


@settings(deadline=None)
@given(histories(), st.lists(st.integers(0, 100)), st.sets(st.integers(0, 20)), st.sampled_from(KEYS))
def test_it_is_the_newest_live_row_however_it_was_told(
    changes: list[Change], cuts: list[int], restart: set[int], key: tuple[str, ...]
) -> None:
    fed(changes, cuts, key, sorted(restart))
    fed(changes, range(len(changes)), key)


@settings(deadline=None)
@given(histories(), st.lists(st.integers(0, 100)), st.sampled_from(KEYS))
def test_what_is_taken_back_leaves_nothing(changes: list[Change], cuts: list[int], key: tuple[str, ...]) -> None:
    still = [(1, ALL, row) for row in twin(changes, ("card", "day", "vip", "x")).values()]
    kept = fed([(w, ALL, row) for w, _, row in changes], cuts, key)
    live: dict[tuple[int, int], Row] = {}
    for weight, _, row in changes:
        live.pop(row[:2], None)
        if weight > 0:
            live[row[:2]] = row
    kept.apply(delta_of([(-1, ALL, row) for row in live.values()]), ALL)
    assert (len(kept), kept.rows, holds(kept, every(key))) == (0, 0, {})
    state = kept.snapshot()
    assert all(v in (None, 0) for column in [*state["rows"].values(), *state["own"][:2]] for v in column.tolist())
    assert [k for k in state["slots"][0] if k is not None] == []
    assert len(still) <= len(live)


def test_a_row_behind_one_that_stays_is_forgotten() -> None:
    kept = Newest(("card",), SCHEMA)
    for i in range(1000):
        kept.apply(delta_of([(1, i - 3, (i, i, ("a", i, True, 1.0)))]), i - 3)
    assert holds(kept, ["a"]) == {"a": (999, 999, ("a", 999, True, 1.0))}
    assert kept.rows <= 16, "a row for the key, and twice what may still be corrected"
    assert len(kept.snapshot()["rows"]["card"]) <= 24
    kept.apply(delta_of([(-1, 990, (i, i, ("a", i, True, 1.0))) for i in range(999, 995, -1)]), 990)
    assert holds(kept, ["a"])["a"][0] == 995, "what may still be the newest was kept"


def test_a_row_that_is_not_there_cannot_be_taken_back() -> None:
    kept = Newest(("card",), SCHEMA)
    kept.apply(delta_of([(1, ALL, (5, 5, ("a", 1, True, 1.0)))]), ALL)
    for at, pos, card in ((5, 6, "a"), (4, 5, "a"), (5, 5, "b")):
        with pytest.raises(ValueError, match="taken back that is not there"):
            pickle.loads(pickle.dumps(kept)).apply(delta_of([(-1, ALL, (at, pos, (card, 1, True, 1.0)))]), ALL)


def test_rows_of_positions_are_forgotten() -> None:
    kept = Newest(("card",), SCHEMA)
    rows: list[Row] = [(i, i, ("ab"[i % 2], i, True, 1.0)) for i in range(8)]
    kept.apply(delta_of([(1, ALL, row) for row in rows]), ALL)
    kept.forget(np.array([7, 5, 3, 1, 6, 99]))
    assert holds(kept, ["a", "b"]) == {"a": rows[4]}
    state = kept.snapshot()
    assert "b" not in state["slots"][0]
    assert "b" not in state["rows"]["card"].tolist()
