"""The nearest examples are those that a full sort finds, and depend on which examples are held and on nothing else."""

from __future__ import annotations

import math
import pickle
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import neighbours
from engine.neighbours import DAMPING, FAR, GREATEST, Neighbours
from operators.delta import BOOL, FLOAT, INT, NULL, STRING, TIME, Columns, Schema, to_column
from operators.operator import DefinitionError

SCHEMA: Schema = {"a": FLOAT, "s": STRING, "b": BOOL, "i": INT, "t": TIME}
Row = tuple[Any, ...]
Held = dict[int, tuple[Row, Any, int]]
"""The examples held: by id, features, label and at."""

LABELS = {"number": FLOAT, "binary": BOOL, "class": STRING}


def columns(rows: list[Row], schema: Schema = SCHEMA) -> Columns:
    return {n: to_column([r[j] for r in rows], t) for j, (n, t) in enumerate(schema.items())}


def add(near: Neighbours, held: Held, ids: list[int], kind: str) -> None:
    rows = [held[i] for i in ids]
    labels = to_column([y for _, y, _ in rows], LABELS[kind])
    near.add(np.array(ids), columns([x for x, _, _ in rows]), labels, np.array([at for _, _, at in rows]))


# The slow twin


def spread_parts(values: list[Any]) -> tuple[int, Fraction]:
    """n, and n**2 times the variance, of the values that are not null."""
    known = [Fraction(v) for v in values if v is not None and v == v]
    return len(known), len(known) * sum((v * v for v in known), Fraction(0)) - sum(known, Fraction(0)) ** 2


def nearest(held: Held, question: Row, k: int) -> list[tuple[float, int]]:
    """(squared distance, id) of the k nearest, by a sort of all."""
    found = []
    for i, (x, _, _) in sorted(held.items()):
        square = 0.0
        for j in (0, 3, 4, 1, 2):  # numbers first
            u, v = x[j], question[j]
            if u is None or v is None:
                square += float((u is None) != (v is None))
            elif j in (1, 2):
                square += float(u != v)
            else:
                n, squares = spread_parts([z[j] for z, _, _ in held.values()])
                scale = n / math.sqrt(squares) if squares else 0.0
                square += min(((u - v) * scale) ** 2, FAR)
        found.append((square, i))
    return sorted(found)[:k]


def weights_of(found: list[tuple[float, int]]) -> list[float]:
    far = found[-1][0]
    return [math.exp(-2 * d / far) if far else 1.0 for d, _ in found]


def answer(held: Held, question: Row, k: int, kind: str) -> Any:
    found = nearest(held, question, k)
    if not found:
        return None
    w, y = np.array(weights_of(found)), [held[i][1] for _, i in found]
    if kind == "binary":
        average = (sum(label for _, label, _ in held.values()) + 1) / (len(held) + 2)
        return (sum(w * y) + average) / (sum(w) + 1)
    if kind == "class":
        total = {c: sum(v for v, u in zip(w, y, strict=True) if u == c) for c in y}
        return min(c for c in total if total[c] > max(total.values()) - 1e-12)
    z = np.zeros((len(found), 3))
    for m, j in enumerate((0, 3, 4)):
        n, squares = spread_parts([x[j] for x, _, _ in held.values()])
        for row, (_, i) in zip(z, found, strict=True):
            u, v = held[i][0][j], question[j]
            row[m] = 0.0 if u is None or v is None or not squares else (u - v) * n / math.sqrt(squares)
    centre, mean = w @ z / w.sum(), w @ y / w.sum()
    gram = (z - centre).T @ np.diag(w) @ (z - centre) + DAMPING * w.sum() * np.eye(3)
    value = mean - centre @ np.linalg.solve(gram, (z - centre).T @ (w * (y - mean)))
    return value if abs(value - mean) <= max(y) - min(y) else mean


SMALL = st.one_of(st.none(), st.integers(-3, 3))
ROWS = st.tuples(
    st.one_of(st.none(), st.integers(-4, 4).map(lambda v: v / 2)),
    st.sampled_from([None, "", "r", "s"]),
    st.sampled_from([None, True, False]),
    SMALL,
    SMALL,
)
LABEL = {"number": st.integers(-9, 9).map(float), "binary": st.booleans(), "class": st.sampled_from(["p", "q", "r"])}


@st.composite
def histories(draw: st.DrawFn, rows: Any = ROWS) -> tuple[str, list[Any], list[Row]]:
    """What is done, one step after another, and questions asked at the end."""
    kind = draw(st.sampled_from(["number", "binary", "class"]))
    steps: list[Any] = []
    held: dict[int, int] = {}
    free = st.integers(0, 40).filter(lambda i: i not in held)
    for _ in range(draw(st.integers(0, 8))):
        what = draw(st.sampled_from(["add", "add", "add", "remove", "expire", "again"]))
        if what == "add":
            ids = sorted(draw(st.sets(free, min_size=1, max_size=5)))
            some = {i: (draw(rows), draw(LABEL[kind]), draw(st.integers(0, 9))) for i in ids}
            held.update({i: at for i, (_, _, at) in some.items()})
            steps.append((what, some))
        elif what == "remove" and held:
            steps.append((what, draw(st.lists(st.sampled_from(sorted(held)), unique=True, min_size=1))))
            for i in steps[-1][1]:
                del held[i]
        elif what == "expire":
            steps.append((what, draw(st.integers(0, 9))))
            for i in [i for i, at in held.items() if at < steps[-1][1]]:
                del held[i]
        elif what == "again":
            steps.append((what, None))
    return kind, steps, draw(st.lists(rows, min_size=1, max_size=3))


def after(kind: Any, steps: list[Any], k: int) -> tuple[Neighbours, Held]:
    near, held = Neighbours(SCHEMA, kind, k), {}
    for what, given_ in steps:
        if what == "add":
            held |= given_
            add(near, held, sorted(given_), kind)
        elif what == "remove":
            near.remove(np.array(given_))
            held = {i: e for i, e in held.items() if i not in given_}
        elif what == "expire":
            near.expire(given_)
            held = {i: e for i, e in held.items() if e[2] >= given_}
        else:
            state = pickle.dumps(near.snapshot())
            near = Neighbours(SCHEMA, kind, k)
            near.restore(pickle.loads(state))
    assert len(near) == len(held)
    return near, held


@pytest.mark.parametrize("spare", [0, 1000])
@settings(deadline=None)
@given(history=histories(), k=st.integers(1, 6))
def test_the_nearest_are_those_of_a_full_sort(history: Any, k: int, spare: int) -> None:
    kind, steps, questions = history
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_SPARE", spare)
        near, held = after(kind, steps, k)
    ids, weights, found = near.nearest(columns(questions))
    said = near.predict(columns(questions)).tolist()
    for q, question in enumerate(questions):
        expected = nearest(held, question, k)
        n = len(expected)
        assert found[q] == n
        assert ids[q].tolist() == [i for _, i in expected] + [NULL] * (k - n)
        assert weights[q].tolist() == pytest.approx((weights_of(expected) if n else []) + [0.0] * (k - n))
        a = answer(held, question, k, kind)
        assert said[q] == (a if kind == "class" else pytest.approx(math.nan if a is None else a, nan_ok=True))


WIDE = st.one_of(st.none(), st.floats(allow_nan=False), st.floats(-1, 1))
WILD = st.tuples(WIDE, st.sampled_from(["r", "s"]), st.none(), st.integers(-(2**62), 2**62), SMALL)


@settings(deadline=None)
@given(history=histories(WILD), k=st.integers(1, 6))
def test_what_was_added_and_removed_leaves_no_trace(history: Any, k: int) -> None:
    kind, steps, questions = history
    near, held = after(kind, steps, k)
    fresh = Neighbours(SCHEMA, kind, k)
    if held:
        add(fresh, held, sorted(held), kind)
    asked = columns(questions)
    for a, b in zip(near.nearest(asked), fresh.nearest(asked), strict=True):
        assert a.tobytes() == b.tobytes()
    said = [repr(v) for v in near.predict(asked).tolist()]
    assert said == [repr(v) for v in fresh.predict(asked).tolist()]
    assert said == [repr(near.predict(columns([q])).tolist()[0]) for q in questions]


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(), st.floats(-1, 1), st.integers(10**15, 10**15 + 99).map(float)), max_size=8))
def test_spreads_are_exact(values: list[float]) -> None:
    near = Neighbours({"a": FLOAT}, "number", 1)
    near.add(np.arange(len(values)), {"a": np.array(values)}, np.zeros(len(values)), np.arange(len(values)))
    held = [min(max(v, -GREATEST), GREATEST) for v in values]
    n, squares = spread_parts(held)
    most = sum((Fraction(v) ** 2 for v in held if v == v), Fraction(0))
    if not squares:
        assert near._scales()[0] == 0.0
    elif squares > Fraction(1, 2**80) * n * most and most > Fraction(1, 10**255):
        assert near._scales()[0] == pytest.approx(n / math.sqrt(squares), rel=1e-12)


def test_a_constant_says_nothing_and_an_unseen_string_is_like_no_other() -> None:
    near = Neighbours({"a": FLOAT, "s": STRING}, "number", 2)
    near.add(
        np.arange(3), {"a": np.full(3, 0.1), "s": to_column(["x", "y", None], STRING)}, np.arange(3.0), np.arange(3)
    )
    ids, weights, _ = near.nearest({"a": np.array([0.7, 1e300]), "s": to_column(["z", "y"], STRING)})
    assert ids.tolist() == [[0, 1], [1, 0]]
    assert weights[0].tolist() == [math.exp(-2), math.exp(-2)]


def test_columns_of_nulls() -> None:
    near = Neighbours({"a": FLOAT, "s": STRING}, "number", 3)
    nothing = {"a": np.full(2, np.nan), "s": to_column([None, None], STRING)}
    near.add(np.array([4, 7]), nothing, np.array([1.0, 3.0]), np.zeros(2, np.int64))
    assert near.nearest(nothing)[0].tolist() == [[4, 7, NULL]] * 2
    assert near.predict(nothing).tolist() == [2.0, 2.0]
    assert near.predict({"a": np.array([5.0]), "s": to_column(["x"], STRING)}).tolist() == [2.0]


def test_a_straight_line_is_found_and_one_that_runs_away_is_not_followed() -> None:
    r = np.random.default_rng(0)
    x = r.normal(size=2000)
    near = Neighbours({"x": FLOAT}, "number", 20)
    near.add(np.arange(2000), {"x": x}, 3 * x + 1, np.arange(2000))
    assert near.predict({"x": np.array([0.0, 0.5])}) == pytest.approx([1.0, 2.5], abs=0.02)
    furthest = np.sort(x)[-20:]
    assert 3 * furthest.min() + 1 <= near.predict({"x": np.array([1e3])})[0] <= 3 * furthest.max() + 1
    assert near.nearest({"x": np.array([1e200])})[0].tolist() == [list(range(20))]  # all are a million spreads away
    assert math.isfinite(near.predict({"x": np.array([1e200])})[0])


def test_classes_may_be_integers() -> None:
    near = Neighbours({"x": FLOAT}, "class", 4)
    assert near.predict({"x": np.zeros(1)}).tolist() == [None]
    near.add(np.arange(4), {"x": np.zeros(4)}, np.array([9, 5, 9, 5]), np.arange(4))
    assert near.predict({"x": np.zeros(2)}).tolist() == [5, 5]
    near.expire(4)
    said = near.predict({"x": np.zeros(1)})
    assert (said.dtype, said.tolist()) == (np.int64, [NULL])


def test_memory_of_what_was_removed_is_given_back() -> None:
    near = Neighbours({"x": FLOAT, "s": STRING}, "number", 4)
    for i in range(0, 40_000, 1000):
        ids = np.arange(i, i + 1000)
        near.add(ids, {"x": ids * 1.0, "s": to_column([f"s{n}" for n in ids], STRING)}, ids * 1.0, ids)
        near.expire(i - 1000)
    assert len(near) == 2000
    assert near.nbytes < 2000 * 400
    assert near.nearest({"x": np.array([39_500.0]), "s": to_column([None], STRING)})[0].tolist() == [
        [39_500, 39_499, 39_501, 39_498]
    ]


def test_ids_that_cannot_be_are_refused_and_nothing_changes() -> None:
    near = Neighbours({"x": FLOAT}, "number", 4)

    def give(*ids: int) -> None:
        n = len(ids)
        near.add(np.array(ids), {"x": np.array(ids) * 1.0}, np.zeros(n), np.zeros(n, np.int64))

    give(2, 4, 6)
    with pytest.raises(ValueError, match=r"ids are \[9, 8\]: expected each greater than the one before"):
        give(9, 8)
    with pytest.raises(ValueError, match=r"the ids \[4\] are held already: expected new ones, or remove them first"):
        give(3, 4)
    for wrong in ([3], [2, 7], [2, 2], [-1]):
        with pytest.raises(ValueError, match=r"ids to remove are .*: expected ids that are held, each once"):
            near.remove(np.array(wrong))
    near.remove(np.array([6, 2]))
    with pytest.raises(ValueError, match=r"ids to remove are \[2\]"):
        near.remove(np.array([2]))
    give(2)
    assert near.nearest({"x": np.zeros(1)})[0].tolist() == [[2, 4, NULL, NULL]]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"features": {}}, "there are no features: expected one or more"),
        ({"kind": "text"}, "kind is 'text': expected 'number', 'binary' or 'class'"),
        ({"k": 0}, "k is 0: expected 1 or more"),
        ({"k": True}, "k is True: expected 1 or more"),
        ({"index": "hnsw"}, "index is 'hnsw': expected 'exact' or 'approximate'"),
    ],
)
def test_what_cannot_be_is_refused(given_: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=f"^neighbours: {said}"):
        Neighbours(**{"features": {"a": FLOAT}, "kind": "number", "k": 3, **given_})


# The approximate index


def test_a_missing_usearch_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(DefinitionError, match=r"needs usearch.*pip install 'freshet\[approximate\]'"):
        Neighbours({"a": FLOAT}, "number", 3, "approximate")


def recall(near: Neighbours, exact: Neighbours, asked: Columns, k: int) -> float:
    pairs = zip(near.nearest(asked)[0], exact.nearest(asked)[0], strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / k for a, b in pairs]))


def test_an_approximate_index_finds_nearly_all_and_none_that_is_gone() -> None:
    r = np.random.default_rng(3)
    schema: Schema = {**{f"c{j}": FLOAT for j in range(6)}, "s": STRING, "b": BOOL}
    n, k = 3000, 16

    def some(m: int) -> Columns:
        numbers = {f"c{j}": r.normal(size=m) * 10.0**j + 1e4 for j in range(6)}
        numbers["c0"][r.random(m) < 0.1] = np.nan
        return {
            **numbers,
            "s": r.choice(np.array(["x", "y", "z"], object), m),
            "b": r.integers(0, 2, m).astype(np.int8),
        }

    held, asked = some(n), some(50)
    models = [Neighbours(schema, "number", k, index) for index in ("approximate", "exact")]  # type: ignore[arg-type]
    for near in models:
        for i in range(0, n, 500):
            part = slice(i, i + 500)
            near.add(
                np.arange(n)[part], {f: c[part] for f, c in held.items()}, np.arange(n)[part] * 1.0, np.arange(n)[part]
            )
    near, exact = models
    assert recall(near, exact, asked, k) >= 0.9
    for each in models:
        each.remove(np.arange(500, n, 2))
        each.expire(400)
    left = set(range(400, 500)) | set(range(501, n, 2))
    assert set(near.nearest(asked)[0].ravel().tolist()) <= left
    assert recall(near, exact, asked, k) >= 0.9
    again = Neighbours(schema, "number", k, "approximate")
    again.restore(pickle.loads(pickle.dumps(near.snapshot())))
    for a, b in zip(again.nearest(asked), near.nearest(asked), strict=True):
        assert a.tobytes() == b.tobytes()
    assert again.predict(asked).tobytes() == near.predict(asked).tobytes()
    near.expire(n)
    assert near.nearest(asked)[2].tolist() == [0] * 50
    assert np.isnan(near.predict(asked)).all()
    assert near.predict({f: c[:0] for f, c in asked.items()}).tolist() == []
