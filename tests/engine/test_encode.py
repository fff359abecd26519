"""Rows written column by column are byte for byte what orjson writes of each row."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.encode import FEW, encode
from operators.delta import BEGINNING, BOOL, FLOAT, INT, NULL, NULL_BOOL, STRING, TIME, Delta, Schema, empty

FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
NASTY = [
    "",
    ",",
    '"',
    '\\"',
    "\\",
    '\\",',
    "[1]",
    "null",
    "a\nb",
    "\x00",
    "\u2028",
    "é",
    "😀",
    "}",
    "\\\\",
    '","',
    "\x7f",
]
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    STRING: st.none() | st.sampled_from(NASTY) | st.lists(st.sampled_from(NASTY)).map("".join) | st.text(max_size=6),
    FLOAT: st.floats() | st.sampled_from([0.0, -0.0, 1e308, 5e-324, 1e16, 123456789.0, 0.1 + 0.2, np.inf, -np.inf]),
    INT: st.integers(NULL, -(NULL + 1)) | st.integers(-200, 200) | st.sampled_from([NULL, NULL + 1, -(NULL + 1)]),
    BOOL: st.sampled_from([0, 1, NULL_BOOL]),
    TIME: st.integers(FIRST, LAST)
    | st.integers(-2, 2)
    | st.integers(0, 50_000).map(lambda d: d * 86_400_000_000)
    | st.sampled_from([NULL, BEGINNING, FIRST, FIRST - 1, LAST, LAST + 1, 951_782_400_000_000, -(NULL + 1)]),
}
NUMPY = {STRING: object, FLOAT: np.float64, INT: np.int64, BOOL: np.int8, TIME: np.int64}


def iso(at: int) -> str | None:
    if at < FIRST or at > LAST:
        return None
    t = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=at)
    return t.replace(tzinfo=None).isoformat() + "Z"


def plain(value: Any, dtype: Any) -> Any:
    if dtype == TIME:
        return iso(int(value))
    if dtype == BOOL:
        return None if value == NULL_BOOL else bool(value)
    if dtype == INT:
        return None if value == NULL else int(value)
    return value if dtype == STRING else float(value)


def slowly(delta: Delta, schema: Schema, at: str | None, weight: bool) -> bytes:
    lines = []
    for i in range(len(delta)):
        row = {name: plain(delta.columns[name][i], dtype) for name, dtype in schema.items()}
        if at is not None:
            row.setdefault(at, iso(int(delta.at[i])))
        if weight:
            row.setdefault("weight", int(delta.weight[i]))
        lines.append(orjson.dumps(row))
    return b"\n".join(lines) + b"\n" if lines else b""


@st.composite
def frames(draw: st.DrawFn) -> tuple[Delta, Schema]:
    names = draw(st.lists(st.sampled_from(["a", "b", 'c"', "dé", "e,", "weight", "at", "\\"]), unique=True, max_size=6))
    schema = {name: draw(st.sampled_from(list(VALUES))) for name in names}
    n = draw(st.integers(0, 2 * FEW + 3))
    columns = {}
    for name, dtype in schema.items():
        values = draw(st.lists(VALUES[dtype], min_size=n, max_size=n))
        columns[name] = np.array(values, NUMPY[dtype])
    weight = np.array(draw(st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n)), np.int64)
    at = np.array(draw(st.lists(VALUES[TIME], min_size=n, max_size=n)), np.int64)
    return Delta(columns, weight, at, np.arange(n), np.arange(n)), schema


@given(frames(), st.sampled_from([None, "at"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_way(frame: tuple[Delta, Schema], at: str | None, weight: bool) -> None:
    delta, schema = frame
    assert encode(delta, schema, at=at, weight=weight) == slowly(delta, schema, at, weight)


def test_many_rows_of_every_type_and_a_strided_column() -> None:
    rng = np.random.default_rng(3)
    n = 500
    schema = {"i": INT, "f": FLOAT, "s": STRING, "b": BOOL, "t": TIME}
    columns = {
        "i": rng.integers(NULL, -(NULL + 1), n),
        "f": rng.integers(NULL, -(NULL + 1), 2 * n).view(np.float64)[::2],
        "s": np.array([NASTY[i % len(NASTY)] * (i % 3) for i in range(n)], object),
        "b": rng.choice([0, 1, NULL_BOOL], n).astype(np.int8),
        "t": rng.integers(FIRST, LAST, n),
    }
    delta = Delta(columns, rng.choice([1, -1], n), columns["t"][::-1], np.arange(n), np.arange(n))
    assert encode(delta, schema, at="at", weight=True) == slowly(delta, schema, "at", True)


def test_every_day_of_four_centuries() -> None:
    days = np.arange(-719_162, -719_162 + 146_097 + 366) * 86_400_000_000
    some = days[:: max(1, len(days) // 3000)]
    for t in (some, np.array([FIRST, LAST, FIRST + 59 * 86_400_000_000, 0])):
        n = len(t)
        delta = Delta({"t": t}, np.ones(n, np.int64), t, np.arange(n), np.arange(n))
        assert encode(delta, {"t": TIME}) == slowly(delta, {"t": TIME}, None, False)


@pytest.mark.parametrize("n", [1, FEW, 40])
def test_text_that_is_no_unicode_is_refused(n: int) -> None:
    delta = Delta({"s": np.array(["\ud800"] * n, object)}, *(np.zeros(n, np.int64) for _ in range(4)))
    with pytest.raises(TypeError, match="surrogates not allowed"):
        encode(delta, {"s": STRING})


def test_no_rows() -> None:
    assert encode(empty({"a": INT}), {"a": INT}) == b""
