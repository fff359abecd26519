"""Which Polars expressions are let into a view, with which type, and what the refused ones are told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.delta import BOOL, FLOAT, INT, STRING, TIME
from operators.expression import ExpressionError, check, columns, fingerprint

warnings.simplefilter("ignore", pl.exceptions.PolarsInefficientMapWarning)

SCHEMA: dict[str, pl.DataType] = {
    "i": INT, "j": INT, "f": FLOAT, "g": FLOAT, "s": STRING, "u": STRING, "b": BOOL, "d": BOOL,
    "t": TIME, "w": TIME, "wind_speed": FLOAT,
}  # fmt: skip
N, J, F, G, S, U, B, D, T, W = (pl.col(c) for c in "ijfgsubdtw")
UTC = timezone.utc
ANY: Any = (F, G)
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ROW = pl.struct("i", "f", "s")
WORDS = S.str.split(",")
LIFTED = pl.element().str.len_chars()


def double(x: int) -> int:
    return 2 * x


ACCEPTED: list[tuple[pl.DataType, list[Any]]] = [
    (INT, [
        N, N + 1, 1 + N, N - J, N * J, N // J, N % J, -N, N.neg(), N.abs(), N.sign(), N**2, N.clip(0, 10),
        N.clip(J, 10),
        N.cast(pl.Int8, strict=False), N.cast(pl.UInt32, strict=False), F.cast(pl.Int64, strict=False),
        B.cast(pl.Int64),
        N.fill_null(0), N.fill_null(J), N.fill_null(strategy="zero"), N & J, N | J, N ^ J,
        N.bitwise_count_ones(),
        pl.coalesce("i", "j"), pl.coalesce(N, 0), pl.sum_horizontal("i", "j"), pl.max_horizontal("i", "j", 3),
        pl.min_horizontal("i", "j"), pl.when(B).then(N).otherwise(J), pl.when(N > 1).then(1).otherwise(2),
        pl.when(N > 1).then(1), pl.when(B).then(1).when(D).then(2).otherwise(N), pl.lit(1), pl.lit(1,
        dtype=pl.Int8),
        N.replace({1: 2}), N.replace_strict({1: 2}, default=0), S.str.len_chars(), S.str.len_bytes(),
        S.str.to_integer(),
        S.str.to_integer(strict=False), S.str.count_matches("a"), S.str.find("a"), WORDS.list.len(),
        T.dt.hour(),
        T.dt.day(), T.dt.year(), T.dt.month(), T.dt.weekday(), T.dt.minute(), T.dt.quarter(), T.dt.week(),
        T.dt.epoch("us"),
        T.dt.ordinal_day(), T.dt.timestamp("ms"), (T - W).dt.total_seconds(), (T - NOON).dt.total_hours(),
        T.to_physical(),
        (T.dt.date() - W.dt.date()).dt.total_days(), N.alias("other"), N.name.suffix("x"),
        (N + J).name.keep(),
        N.map_elements(double, return_dtype=pl.Int64), N.map_elements(lambda x: x + 1, return_dtype=pl.Int64),
        N.map_batches(lambda s: s + 1, return_dtype=pl.Int64, is_elementwise=True), ROW.struct.field("i"),
        WORDS.list.eval(LIFTED).list.sum(), WORDS.list.eval(LIFTED.max()).list.get(0, null_on_oob=True),
        ROW.struct.with_fields(pl.field("i") + 1).struct.field("i"), pl.concat_list("i", "j").list.max(),
        N.hash(),
        pl.concat_list("i", "j").list.get(1), WORDS.list.n_unique(), N.rechunk() if hasattr(N,
        "rechunk") else N,
        S.str.json_decode(pl.Struct({"a": pl.Int64})).struct.field("a"), N.cast(pl.Int32,
        strict=False).cast(pl.Int16, strict=False),
        pl.datetime(2024, 1, N.clip(1, 20), time_zone="UTC").dt.day(), N.cast(pl.UInt8, strict=False) + 1,
    ]),
    (FLOAT, [
        F, F + 1, F * G, N / J, F / G, N + F, F**2, F.sqrt(), N.sqrt(), F.log(), F.log(10), F.log1p(),
        F.exp(), F.sin(),
        F.cos(), F.tan(), F.tanh(), F.cbrt(), F.round(2), F.floor(), F.ceil(), F.clip(0.0, 1.0),
        F.fill_nan(0.0),
        F.fill_nan(None), F.fill_null(0.0), F.abs(), -F, F.cast(pl.Float32), N.cast(pl.Float64), F % 2,
        F // 2,
        pl.arctan2("f", "g"), pl.mean_horizontal("f", "g"), pl.sum_horizontal("f", "g"),
        pl.max_horizontal("i", "f"),
        pl.when(F > 1).then(F).otherwise(0), pl.coalesce(F, G, 0.0), pl.lit(1.5), pl.lit(math.pi), np.sin(F),
        np.exp(F),
        np.sin(N), np.log1p(F), np.add(*ANY), F.map_elements(lambda x: x / 3, return_dtype=pl.Float64),
        F.radians(), F.degrees(),
        S.cast(pl.Float64, strict=False), S.str.strip_chars().cast(pl.Float64, strict=False),
        (T - W).dt.total_seconds() / 60,
        T.dt.hour().cast(pl.Float64) * 2 * math.pi / 24, F.replace({1.0: 2.0}), pl.concat_list("f",
        "g").list.mean(),
        ROW.struct.field("f"), F.cast(pl.Float32) * 2, F.truncate(1), N.pow(0.5), F.round_sig_figs(2),
    ]),
    (STRING, [
        S, S + U, S + "x", S.str.to_uppercase(), S.str.to_lowercase(), S.str.strip_chars(), S.str.slice(0,
        2), S.str.head(1),
        S.str.tail(1), S.str.replace("a", "b"), S.str.replace_all("a", U), S.str.reverse(), S.str.zfill(4),
        S.str.pad_start(5),
        S.str.extract(r"(\d+)", 1), S.str.strip_prefix("a"), S.str.strip_suffix("c"), S.fill_null("none"),
        WORDS.list.get(0, null_on_oob=True), WORDS.list.first(), WORDS.list.join("-"),
        WORDS.list.sort().list.last(),
        WORDS.list.reverse().list.join(","), pl.concat_str("s", "u"), pl.concat_str(["s", "u"],
        separator="-"),
        pl.format("{}-{}", "s", "i"), N.cast(pl.String), B.cast(pl.String), F.cast(pl.String),
        T.dt.strftime("%Y-%m-%d"),
        T.dt.to_string("iso"), T.dt.date().cast(pl.String), pl.lit("x"), pl.lit(None, dtype=pl.String),
        pl.coalesce(S, U),
        pl.when(B).then(S).otherwise(pl.lit("other")), pl.when(B).then(pl.lit("x")), N.cut([0, 10]),
        N.cut([0, 10], labels=["a", "b", "c"]), S.cast(pl.Categorical), pl.lit("a").str.to_uppercase(),
        S.cast(pl.Enum(["a"]), strict=False), S.replace({"a": "b"}), S.replace_strict({"a": "b"},
        default="c"),
        S.map_elements(lambda x: x[::-1], return_dtype=pl.String), S.map_elements(str.title,
        return_dtype=pl.String),
        ROW.struct.field("s"), ROW.struct.json_encode(), S.str.split_exact(",", 1).struct.field("field_0"),
        S.str.encode("hex"), S.str.json_path_match("$.a"), S.cast(pl.Binary).bin.encode("base64"),
        S.str.escape_regex(),
        N.map_elements(lambda x: str(x), return_dtype=pl.String), S.str.normalize("NFC"),
        S.str.extract_all("a").list.join(""),
    ]),
    (BOOL, [
        B, ~B, B & D, B | D, B ^ D, N > J, N >= 1, N == 1, N != J, F < G, S == "a", S > U, T > W, T >= NOON,
        N.is_null(),
        N.is_not_null(), F.is_nan(), F.is_finite(), F.is_infinite(), N.is_in([1, 2]), N.is_in({1, 2}),
        S.is_in(["a", "b"]),
        F.is_in([1.0]), N.is_between(0, 3), N.is_between(J, 10), N.eq_missing(J), N.ne_missing(1),
        S.str.contains("a"),
        S.str.contains("a.c", literal=True), S.str.starts_with("a"), S.str.ends_with(U),
        WORDS.list.contains("a"),
        pl.any_horizontal("b", "d"), pl.all_horizontal("b", "d"), pl.when(B).then(D).otherwise(False),
        pl.lit(True),
        B.fill_null(False), pl.coalesce(B, D), N.cast(pl.Boolean), T.dt.is_leap_year(), F.is_not_nan(),
        F.is_close(G),
        T.dt.date().is_in([NOON.date()]), S.str.contains_any(["a", "b"]), (T.dt.weekday() >= 6) & (N > 0),
        B.not_(),
        S.map_elements(lambda x: x > "a", return_dtype=pl.Boolean), N.is_in(pl.concat_list("i", "j")),
        pl.concat_list("b", "d").list.any(), (F > 0).and_(B, N < 3),
    ]),
    (TIME, [
        T, T + timedelta(hours=1), T - timedelta(days=1), T.dt.truncate("1h"), T.dt.round("15m"),
        T.dt.offset_by("1d"),
        T.dt.month_start(), T.dt.month_end(), T.cast(pl.Datetime("ms", "UTC")), T.dt.cast_time_unit("ns"),
        T.dt.convert_time_zone("Europe/Berlin").dt.convert_time_zone("UTC"),
        T.dt.date().cast(pl.Datetime("us", "UTC")),
        T.dt.replace_time_zone(None).dt.replace_time_zone("UTC"), N.cast(pl.Datetime("us", "UTC")),
        T + pl.duration(hours=N),
        S.str.to_datetime("%Y-%m-%d %H:%M", time_zone="UTC", strict=False), pl.lit(NOON), pl.coalesce(T, W),
        T.fill_null(NOON),
        S.str.strptime(pl.Datetime("us", "UTC"), "%Y-%m-%d %H:%M", strict=False),
        pl.when(B).then(T).otherwise(W),
        pl.datetime(2024, 1, N.clip(1, 28), time_zone="UTC"), pl.max_horizontal("t", "w"),
        T.dt.replace(hour=3),
        pl.from_epoch(N, time_unit="s").dt.replace_time_zone("UTC"), T.dt.replace_time_zone("UTC"),
    ]),
]  # fmt: skip

AGGREGATE, WINDOW, DEDUPE = "use op.aggregate", "use op.window", "use op.dedupe"
ONE_ROW = "a view keeps one row per row"
REFUSED: list[tuple[str, list[Callable[[], Any]]]] = [
    (AGGREGATE, [
        lambda: F.sum(), lambda: F.mean(), lambda: F.min(), lambda: F.max(), lambda: F.count(),
        lambda: F.std(),
        lambda: F.var(), lambda: F.median(), lambda: F.quantile(0.5), lambda: F.first(), lambda: F.last(),
        lambda: N.len(),
        lambda: pl.len(), lambda: N.n_unique(), lambda: N.null_count(), lambda: B.any(), lambda: B.all(),
        lambda: F.product(),
        lambda: N.arg_max(), lambda: F.skew(), lambda: F.kurtosis(), lambda: F.entropy(), lambda: F.dot(G),
        lambda: pl.corr("f", "g"), lambda: pl.cov("f", "g"), lambda: N.approx_n_unique(),
        lambda: S.str.join(","),
        lambda: N.bitwise_and(), lambda: N.has_nulls(), lambda: F.nan_max(), lambda: F - F.mean(),
        lambda: N + pl.len(),
        lambda: (F - F.mean()) / F.std(), lambda: F.fill_null(F.mean()), lambda: F.fill_null(strategy="mean"),
        lambda: pl.when(B).then(F.sum()).otherwise(0), lambda: pl.when(F.max() / 2 < F).then(1),
        lambda: ROW.struct.with_fields(pl.field("i").sum()).struct.field("i"),
        lambda: pl.struct(F.max()).struct.field("f"),
        lambda: F.clip(0, F.max()), lambda: pl.coalesce(N, J.max()), lambda: pl.max_horizontal(N, J.max()),
        lambda: np.sin(F.mean()), lambda: N.sum().cast(pl.Float64).alias("z"),
        lambda: F.sum().name.suffix("x"),
        lambda: pl.format("{}", N.max()), lambda: N.value_counts().struct.field("count"),
        lambda: N.unique_counts(),
        lambda: F.max().map_elements(lambda x: x, return_dtype=pl.Float64), lambda: T - T.min(),
        lambda: F.max_by("i"),
    ]),
    ("use op.previous", [
        lambda: N.shift(1), lambda: N.shift(-1), lambda: N.diff(), lambda: N.pct_change(),
        lambda: N - N.shift(1), lambda: pl.when(B).then(N.shift(1)), lambda: pl.struct(N.shift(1)).struct.field("i"),
        lambda: T.diff().dt.total_seconds(),
    ]),
    ("use op.runs", [lambda: N.rle_id()]),
    (WINDOW, [
        lambda: N.cum_sum(), lambda: N.cum_max(), lambda: N.cum_count(), lambda: N.cum_prod(),
        lambda: F.rolling_mean(3),
        lambda: F.rolling_sum_by("t", "1h"), lambda: F.rolling_std(3), lambda: F.sum().rolling("t",
        period="1h"),
        lambda: F.ewm_mean(com=1), lambda: F.interpolate(), lambda: N.forward_fill(),
        lambda: N.backward_fill(),
        lambda: N.fill_null(strategy="forward"), lambda: N.rank(), lambda: N.peak_max(),
        lambda: N.qcut(2), lambda: N.cumulative_eval(pl.element().sum()), lambda: N.rolling_rank(3),
    ]),
    ("use op.window(by=...)", [
        lambda: F.sum().over("s"), lambda: N.over("s"), lambda: F.rank().over("s", "u"),
        lambda: F - F.mean().over("s"),
        lambda: pl.len().over("s"), lambda: N.cum_sum().over("s", order_by="t"),
    ]),
    ("use op.where", [lambda: N.filter(B), lambda: N.drop_nulls(), lambda: F.drop_nans(),
        lambda: N.filter(B).sum() * 0 + N.filter(B)]),
    (DEDUPE, [
        lambda: N.unique(), lambda: N.is_unique(), lambda: N.is_duplicated(), lambda: N.is_first_distinct(),
        lambda: N.is_last_distinct(), lambda: N.arg_unique(), lambda: S.unique(maintain_order=True),
    ]),
    (ONE_ROW, [
        lambda: N.sort(), lambda: N.sort_by("f"), lambda: N.arg_sort(), lambda: N.reverse(),
        lambda: N.head(3),
        lambda: N.tail(3), lambda: N.slice(1, 2), lambda: N.limit(2), lambda: N.gather([0]),
        lambda: N.get(0), lambda: N.top_k(2),
        lambda: N.gather_every(2), lambda: WORDS.list.explode(), lambda: WORDS.explode(),
        lambda: N.append(J), lambda: N.mode(),
        lambda: N.extend_constant(1, 2), lambda: pl.row_index(), lambda: pl.int_range(0, 3),
        lambda: pl.repeat(1, 3),
        lambda: N.is_in(J.implode()), lambda: N.implode(), lambda: N.implode().list.len(),
        lambda: N.search_sorted(1), lambda: pl.arg_where(B),
        lambda: N.hist(), lambda: N.reshape((-1, 1)), lambda: N.bottom_k(2), lambda: N.sort().head(3),
    ]),
    ("is random", [
        lambda: N.sample(1), lambda: N.sample(fraction=1.0, shuffle=True), lambda: N.shuffle(),
        lambda: N.shuffle(seed=1),
        lambda: WORDS.list.sample(1).list.first(),
        lambda: WORDS.list.eval(pl.element().shuffle()).list.first(),
    ]),
    ("name one: pl.col('a')", [
        lambda: pl.all(), lambda: pl.col("i", "j"), lambda: pl.col("^i.*$"), lambda: pl.col(pl.Int64),
        lambda: cs.numeric(),
        lambda: cs.numeric() + 1, lambda: pl.first(), lambda: pl.nth(0), lambda: pl.last(),
        lambda: pl.exclude("i"),
        lambda: pl.sum_horizontal(pl.all()), lambda: ROW.struct.field("*"), lambda: ROW.struct.unnest(),
    ]),
    ("map_elements(f, return_dtype=...)", [
        lambda: N.map_batches(lambda s: s, return_dtype=pl.Int64), lambda: N.map_batches(lambda s: s.sum(),
        returns_scalar=True),
        lambda: pl.map_batches(["i", "j"], lambda s: s[0], return_dtype=pl.Int64), lambda: N.inspect(),
    ]),
    ("pl.sum_horizontal, pl.max_horizontal", [
        lambda: pl.fold(0, lambda a, b: a + b, ["i", "j"]), lambda: pl.reduce(lambda a, b: a + b, ["i", "j"]),
    ]),
    ("a list instead of a Series", [lambda: N.is_in(pl.Series([1, 2])), lambda: pl.lit(pl.Series([1, 2])),
        lambda: N + pl.Series([1]),
        lambda: T.dt.date().dt.is_business_day()]),
    ("guesses the format", [lambda: S.str.to_datetime(), lambda: S.str.to_date(),
        lambda: S.str.to_datetime(time_zone="UTC")]),
    ("leave it out", [lambda: N.set_sorted(), lambda: N.set_sorted() > 3]),
    ("gives other values for a batch than row by row", [
        lambda: N.map_batches(lambda s: s.shift(1), return_dtype=pl.Int64, is_elementwise=True),
        lambda: F.map_batches(lambda s: s - s.max(), return_dtype=pl.Float64, is_elementwise=True),
        lambda: N.map_batches(lambda s: s.sort(), return_dtype=pl.Int64, is_elementwise=True),
        lambda: N.map_batches(lambda s: s.cum_sum(), return_dtype=pl.Int64, is_elementwise=True) + 1,
        lambda: pl.map_batches(["i", "j"], lambda s: s[0].reverse(), return_dtype=pl.Int64,
        is_elementwise=True),
    ]),
    ("fails for a batch", [lambda: N.map_batches(lambda s: s if len(s) < 3 else s + 1 // 0,
        return_dtype=pl.Int64, is_elementwise=True)]),
    ("did you mean", [lambda: pl.col("wind_sped"), lambda: N + pl.col("wind_spee") * 2]),
    ("known columns", [lambda: pl.col("nowhere"), lambda: pl.col("I")]),
    ("types do not fit", [
        lambda: N + S, lambda: N.dt.hour(), lambda: S.abs(), lambda: T + T, lambda: S.log(),
        lambda: N.str.len_chars(),
        lambda: N.is_in(["a"]), lambda: S.dt.year(), lambda: S & N, lambda: N.list.len(),
        lambda: ROW.struct.field("nope"),
        lambda: pl.when(N).then(1), lambda: np.isnan(F), lambda: T > "x",
        lambda: N.map_batches(lambda s: s.cast(pl.String), return_dtype=pl.Int64, is_elementwise=True),
    ]),
    ("a column cannot have type Date;", [lambda: T.dt.date(), lambda: S.str.to_date("%Y"),
        lambda: pl.date(2020, 1, 1)]),
    ("use .dt.total_seconds()", [lambda: T - W, lambda: pl.duration(days=N)]),
    (".dt.hour()", [lambda: T.dt.time()]),
    ("cast it to Float64, or", [lambda: N.cast(pl.Decimal(10, 2))]),
    (".list.get(0)", [lambda: WORDS, lambda: pl.concat_list("i", "j"), lambda: N.repeat_by(2),
        lambda: pl.lit([1, 2])]),
    (".arr.get(0)", [lambda: pl.concat_arr("i", "j")]),
    ("use .struct.field('a')", [lambda: ROW, lambda: N.cut([1], include_breaks=True)]),
    ("give the null a type", [lambda: pl.lit(None)]),
    (".bin.encode('hex')", [lambda: S.cast(pl.Binary)]),
    (".dt.replace_time_zone('UTC')", [lambda: T.dt.replace_time_zone(None), lambda: pl.lit(datetime(2024, 1,
        1))]),
    (".dt.convert_time_zone('UTC')", [lambda: T.dt.convert_time_zone("Europe/Berlin")]),
    ("expected a Polars expression", [
        lambda: 3, lambda: "i", lambda: None, lambda: 1.5, lambda: [N], lambda: pl.Series([1]),
        lambda: N.sum, lambda: pl.when(B),
    ]),
    ("panics on this expression", [
        lambda: N.map_elements(lambda x: pl.struct("a").struct.field("*").meta.is_row_separable(),
        return_dtype=pl.Int64)
    ]),
]  # fmt: skip
YES = [(e, t) for t, es in ACCEPTED for e in es]
NO = [(make, text) for text, makes in REFUSED for make in makes]


@pytest.mark.parametrize(("expr", "dtype"), YES, ids=[f"{k}-{str(e)[:40]!r}" for k, (e, _) in enumerate(YES)])
def test_row_wise_expressions_are_accepted_with_their_type(expr: pl.Expr, dtype: pl.DataType) -> None:
    assert check("x", expr, SCHEMA) == dtype
    assert type(check("x", expr, SCHEMA)) is type(dtype)


@pytest.mark.parametrize(("make", "text"), NO, ids=[f"{k}-{text}" for k, (_, text) in enumerate(NO)])
def test_other_expressions_are_refused_with_a_hint(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        check("x", make(), SCHEMA)
    assert text in str(refused.value)
    assert str(refused.value).startswith("'x': ")


def test_the_table_is_large() -> None:
    assert len(YES) >= 150
    assert len(NO) >= 150


def message(expr: Any) -> str:
    with pytest.raises(ExpressionError) as refused:
        check("delay", expr, {"distance": INT, "wind_speed": FLOAT, "at": TIME})
    return str(refused.value)


DISTANCE = pl.col("distance")


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (pl.col("windspeed"), "'delay': no column 'windspeed'; did you mean 'wind_speed'? "
         "known columns: 'distance', 'wind_speed', 'at'"),
        (DISTANCE - DISTANCE.mean(),
        "'delay': 'distance.mean()' looks across rows; expected an expression of the "
         "columns of one row; use op.aggregate, or op.window for the rows before"),
        (DISTANCE.shift(1),
        "'delay': 'distance.shift(1)' looks across rows; expected an expression of the columns of "
         "one row; use op.previous for the row before, or op.join_asof for the latest row of another source"),
        (DISTANCE.filter(DISTANCE > 1),
        "'delay': 'distance.filter([(distance) > (1)])' does not keep one row per row; "
         "expected an expression of the columns of one row; use op.where"),
        (5, "'delay': 5 is of type int; expected a Polars expression; write pl.lit(5) for a constant"),
        ("at",
        "'delay': 'at' is of type str; expected a Polars expression; write pl.col('at') for a column or "
         "pl.lit('at') for a constant"),
        (pl.col("at").dt.date(),
        "'delay': a column cannot have type Date; expected Int64, Float64, String, Boolean or "
         "Datetime('us', 'UTC'); cast it to Datetime or String: .cast(pl.Datetime('us', 'UTC'))"),
        (DISTANCE.map_batches(lambda s: s.shift(1), return_dtype=pl.Int64, is_elementwise=True),
         "'delay': 'distance.python_udf()' gives other values for a batch than row by row; expected an "
         "expression of the columns of one row; use a function that treats every row alone, or op.window"),
    ],
)  # fmt: skip
def test_the_whole_text(expr: Any, text: str) -> None:
    assert message(expr) == text


def test_a_type_mismatch_carries_the_message_of_polars_and_the_types_found() -> None:
    text = message(DISTANCE + pl.col("at").dt.to_string("iso"))
    assert "arithmetic on dtypes i64 and str is not allowed" in text
    assert "found distance Int64, at Datetime" in text


def test_a_function_that_gives_another_type_than_it_says_is_refused() -> None:
    text = message(DISTANCE.map_elements(lambda x: str(x), return_dtype=pl.Int64))
    assert "unexpected value while building Series of type Int64" in text
    assert "say which by return_dtype=" in text


def test_a_panic_is_an_error_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def bad(_: int) -> bool:
        return pl.struct("a").struct.field("*").meta.is_row_separable()

    text = message(DISTANCE.map_elements(bad, return_dtype=pl.Int64))
    assert "panics on this expression: internal error" in text
    assert capfd.readouterr().err == ""
    with pytest.raises(pl.exceptions.PanicException):
        bad(0)
    assert "panicked" in capfd.readouterr().err, "the panic that is silenced above is a real one"


def test_what_a_function_prints_meanwhile_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def loud(x: int) -> int:
        os.write(2, b"loud")
        return x

    check("x", N.map_elements(loud, return_dtype=pl.Int64), SCHEMA)
    assert "loud" in capfd.readouterr().err


def test_columns_are_in_order_and_once() -> None:
    assert columns(pl.when(B).then(N + J).otherwise(J * N)) == ["b", "i", "j"]
    assert columns(J + N * J) == ["j", "i"]
    assert columns(pl.lit(1)) == []
    assert columns(pl.col('a "Column": "b"') + pl.lit('"Column": "c"')) == ['a "Column": "b"']
    assert columns(np.add(*ANY)) == ["f", "g"]
    assert columns(N.map_elements(double, return_dtype=pl.Int64).alias("z")) == ["i"]


# Fingerprints


def make(n: int) -> Callable[[int], int]:
    return lambda x: x + n


def test_a_fingerprint_tells_expressions_apart() -> None:
    def elements(f: Callable[..., Any]) -> pl.Expr:
        return N.map_elements(f, return_dtype=pl.Int64)

    different = [
        N, J, N + 1, N + 2, N.alias("z"), np.sin(F), np.cos(F), elements(lambda x: x + 1),
        elements(lambda x: x + 2),
        elements(lambda x: x - 1), elements(make(1)), elements(make(2)), elements(double),
        elements(lambda x: double(x)),
        elements(lambda x: x in {1, 2}), elements(abs), elements(lambda x, n=1: x + n), elements(lambda x,
        n=2: x + n),
    ]  # fmt: skip
    assert len({fingerprint(e) for e in different}) == len(different)
    assert fingerprint(elements(make(1))) == fingerprint(elements(make(1)))
    assert len(fingerprint(N)) == 64


def test_a_fingerprint_sees_a_changed_global(monkeypatch: pytest.MonkeyPatch) -> None:
    expr = N.map_elements(lambda x: double(x), return_dtype=pl.Int64)
    before = fingerprint(expr)
    monkeypatch.setitem(globals(), "double", lambda x: 3 * x)
    assert fingerprint(expr) != before


PROGRAM = """
{blank}
import polars as pl, numpy as np
from operators.expression import fingerprint
names = {{"a", "b", "c", "d"}}
k = pl.col("s").map_elements(lambda x: x in {{"p", "q", "r"}} or x in names, return_dtype=pl.Boolean)
print(fingerprint(k), fingerprint(np.sin(pl.col("f")) + 1), fingerprint(pl.col("i").is_in([1, 2])))
"""


def test_a_fingerprint_is_the_same_in_every_process_and_place_of_the_file() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM.format(blank="\n" * seed)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)}, cwd=Path(__file__).parents[2],
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop().split()) == 3


def test_cloudpickle_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    real = object()
    monkeypatch.setitem(sys.modules, "cloudpickle", real)
    fingerprint(N.map_elements(double, return_dtype=pl.Int64))
    assert sys.modules["cloudpickle"] is real
    monkeypatch.delitem(sys.modules, "cloudpickle")
    fingerprint(N)
    assert "cloudpickle" not in sys.modules


# An upgrade of Polars whose serialised form changed must fail here, before it misjudges anything.

FORMS: list[tuple[pl.Expr, str]] = [
    (N, '{"Column":"i"}'),
    (pl.lit(1), '{"Literal":{"Dyn":{"Int":1}}}'),
    (pl.lit("x"), '{"Literal":{"Scalar":{"String":"x"}}}'),
    (N.alias("z"), '{"Alias":[{"Column":"i"},"z"]}'),
    (N.name.keep(), '{"KeepName":{"Column":"i"}}'),
    (N.name.suffix("x"), '{"RenameAlias":{"function":{"Suffix":"x"},"expr":{"Column":"i"}}}'),
    (N.cast(pl.String), '{"Cast":{"expr":{"Column":"i"},"dtype":{"Literal":"String"},"options":"Strict"}}'),
    (N + J, '{"BinaryExpr":{"left":{"Column":"i"},"op":"Plus","right":{"Column":"j"}}}'),
    (pl.when(B).then(N).otherwise(J),
        '{"Ternary":{"predicate":{"Column":"b"},"truthy":{"Column":"i"},"falsy":{"Column":"j"}}}'),
    (N.abs(), '{"Function":{"input":[{"Column":"i"}],"function":"Abs"}}'),
    (T.dt.hour(), '{"Function":{"input":[{"Column":"t"}],"function":{"TemporalExpr":"Hour"}}}'),
    (N.is_unique(), '{"Function":{"input":[{"Column":"i"}],"function":{"Boolean":"IsUnique"}}}'),
    (N.shuffle(1),
        '{"Function":{"input":[{"Column":"i"}],"function":{"Random":{"method":"Shuffle","seed":1}}}}'),
    (N.set_sorted(),
        '{"Function":{"input":[{"Column":"i"}],"function":'
     '{"SetSortedFlag":{"descending":false,"nulls_last":false}}}}'),
    (N.sum(), '{"Agg":{"Sum":{"Column":"i"}}}'),
    (pl.len(), '"Len"'),
    (pl.all(), '{"Selector":"Wildcard"}'),
    (N.over("s"),
        '{"Over":{"function":{"Column":"i"},"partition_by":[{"Column":"s"}],"order_by":null,'
     '"mapping":"GroupsToRows"}}'),
    (N.filter(B), '{"Filter":{"input":{"Column":"i"},"by":{"Column":"b"}}}'),
    (N.list.eval(pl.element().sum()),
        '{"Eval":{"expr":{"Column":"i"},"evaluation":{"Agg":{"Sum":"Element"}},"variant":"List"}}'),
    (N.list.sample(1, seed=1),
        '{"Function":{"input":[{"Column":"i"},{"Literal":{"Dyn":{"Int":1}}}],"function":{"ListExpr":'
     '{"Sample":{"is_fraction":false,"with_replacement":false,"shuffle":null,"seed":1}}}}}'),
    (N.cumulative_eval(pl.element().sum()),
        '{"Eval":{"expr":{"Column":"i"},"evaluation":{"Agg":{"Sum":"Element"}},"variant":'
     '{"Cumulative":{"min_samples":1}}}}'),
    (N.struct.with_fields(pl.field("a")),
        '{"StructEval":{"expr":{"Column":"i"},"evaluation":[{"Field":["a"]}],"variant":"WithFields"}}'),
]  # fmt: skip


@pytest.mark.parametrize(("expr", "form"), FORMS, ids=[form[:40] for _, form in FORMS])
def test_the_serialised_form_is_the_one_that_was_studied(expr: pl.Expr, form: str) -> None:
    assert json.loads(expr.meta.serialize(format="json")) == json.loads(form)


def test_the_form_of_python_functions_is_the_one_that_was_studied() -> None:
    from operators.expression import _tree

    def options(expr: pl.Expr) -> tuple[Any, int, set[str]]:
        node = _tree(expr)["AnonymousFunction"]
        blob = node["function"]
        assert bytes(blob[:6]) == b"PLPYFN"
        return node["input"], len(blob), set(node["options"]["flags"].split(" | "))

    row_wise = {"OPTIONAL_RE_ENTRANT", "ROW_SEPARABLE", "LENGTH_PRESERVING"}
    inputs, _, flags = options(N.map_elements(double, return_dtype=pl.Int64))
    assert (inputs, flags) == ([{"Column": "i"}], row_wise)
    assert options(np.sin(N))[2] == row_wise
    assert options(N.map_batches(lambda s: s + 1, return_dtype=pl.Int64))[2] == {"OPTIONAL_RE_ENTRANT"}


# Random compositions of what is accepted really are row-wise.

Exprs = st.SearchStrategy[pl.Expr]


def compositions(depth: int) -> dict[str, Exprs]:
    leaves: dict[str, Exprs] = {
        "int": st.sampled_from([N, J, pl.lit(3)]), "float": st.sampled_from([F, G, pl.lit(0.5)]),
        "text": st.sampled_from([S, U, pl.lit("a")]), "bool": st.sampled_from([B, D]),
        "time": st.sampled_from([T, W]),
    }  # fmt: skip
    if depth == 0:
        return leaves
    n = compositions(depth - 1)

    def of(f: Callable[..., pl.Expr], *kinds: str) -> Exprs:
        return st.builds(f, *(n[k] for k in kinds))

    def same(kind: str) -> list[Exprs]:
        return [
            leaves[kind],
            of(lambda a, b: pl.coalesce(a, b), kind, kind),
            of(lambda c, a, b: pl.when(c).then(a).otherwise(b), "bool", kind, kind),
        ]

    return {
        "int": st.one_of(*same("int"), of(lambda a, b: a + b, "int", "int"), of(lambda a, b: a // b, "int",
        "int"),
                         of(lambda a, b: a % b, "int", "int"), of(lambda a: a.clip(-5, 5), "int"),
                         of(lambda a: a.str.len_chars().cast(pl.Int64), "text"),
                         of(lambda a: a.dt.hour().cast(pl.Int64), "time"),
                         of(lambda a: a.fill_null(0), "int"), of(lambda a: a.cast(pl.Int64), "bool"),
                         of(lambda a, b: pl.max_horizontal(a, b), "int", "int"),
                         of(lambda a: a.map_elements(double, return_dtype=pl.Int64), "int")),
        "float": st.one_of(*same("float"), of(lambda a, b: a * b, "float", "float"), of(lambda a, b: a / b,
        "int", "int"),
                           of(lambda a: a.log1p(), "float"), of(lambda a: np.sin(a), "float"),
                           of(lambda a, b: pl.sum_horizontal(a, b), "float", "int"),
                           of(lambda a: a.fill_nan(0.0), "float"),
                           of(lambda a: a.cast(pl.Float64, strict=False), "text")),
        "text": st.one_of(*same("text"), of(lambda a, b: a + b, "text", "text"),
        of(lambda a: a.str.to_uppercase(), "text"),
                          of(lambda a: a.str.split(",").list.last(), "text"), of(lambda a: a.cast(pl.String),
                          "int"),
                          of(lambda a, b: pl.concat_str([a, b], separator="-", ignore_nulls=True), "text",
                          "text"),
                          of(lambda a: a.replace({"a": "z"}), "text"), of(lambda a: a.dt.strftime("%H"),
                          "time")),
        "bool": st.one_of(*same("bool"), of(lambda a: ~a, "bool"), of(lambda a, b: a & b, "bool", "bool"),
                          of(lambda a, b: a > b, "float", "int"), of(lambda a: a.is_in([1, 2, 3]), "int"),
                          of(lambda a: a.str.contains("a"), "text"), of(lambda a: a.is_null(), "text"),
                          of(lambda a, b: a < b, "time", "time"), of(lambda a, b: a.eq_missing(b), "int",
                          "int")),
        "time": st.one_of(*same("time"), of(lambda a: a.dt.truncate("1d"), "time"),
                          of(lambda a: a + timedelta(hours=1), "time"),
                          of(lambda a, b: a + pl.duration(minutes=b.clip(-9, 9)), "time", "int")),
    }  # fmt: skip


KINDS = {"int": INT, "float": FLOAT, "text": STRING, "bool": BOOL, "time": TIME}
COMPOSED = st.one_of(*(st.tuples(st.just(KINDS[k]), e) for k, e in compositions(3).items()))
VALUES: dict[pl.DataType, st.SearchStrategy[Any]] = {
    INT: st.integers(-3, 9),
    FLOAT: st.sampled_from([0.0, 0.1, -1.5, 2.0, math.nan, math.inf]),
    STRING: st.sampled_from(["", "a", "b,a", "7", "é"]),
    BOOL: st.booleans(),
    TIME: st.datetimes(datetime(2023, 1, 1), datetime(2024, 12, 31)).map(lambda t: t.replace(tzinfo=UTC)),
}
ROWS = st.lists(st.tuples(*(st.none() | VALUES[t] for t in SCHEMA.values())), min_size=1, max_size=7)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(COMPOSED, ROWS)
def test_compositions_are_accepted_and_row_wise(
    composed: tuple[pl.DataType, pl.Expr], rows: list[tuple[Any, ...]]
) -> None:
    dtype, expr = composed
    assert check("x", expr, SCHEMA) == dtype
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def values(some: pl.DataFrame) -> pl.Series:
        return some.with_columns(expr.alias("x")).get_column("x").cast(dtype)

    whole = values(frame)
    assert values(frame.reverse()).reverse().equals(whole)
    if len(rows) > 1:  # see below
        assert pl.concat([values(frame[[k, k]])[:1] for k in range(len(rows))]).equals(whole)


def test_a_frame_of_one_row_divides_differently() -> None:
    """Why a row is evaluated twice. When this fails, Polars has mended it and the doubling can go."""
    frame = pl.DataFrame({"x": [k / 7 for k in range(100)]})
    quotient = pl.col("x") / 24
    whole = frame.select(quotient)
    assert not pl.concat([frame[[k]].select(quotient) for k in range(100)]).equals(whole)
    assert pl.concat([frame[[k, k]].select(quotient)[:1] for k in range(100)]).equals(whole)


ACROSS: list[Callable[[pl.Expr], pl.Expr]] = [
    lambda e: e.shift(1),
    lambda e: e.first(),
    lambda e: e.reverse(),
    lambda e: e.over("s"),
    lambda e: e.fill_null(e.first()),
    lambda e: e.sort(),
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(COMPOSED, st.sampled_from(ACROSS))
def test_one_part_across_rows_anywhere_refuses_the_whole(
    composed: tuple[pl.DataType, pl.Expr], across: Callable[[pl.Expr], pl.Expr]
) -> None:
    spoilt = pl.when(B).then(pl.coalesce(across(composed[1]), composed[1])).otherwise(composed[1])
    with pytest.raises(ExpressionError):
        check("x", spoilt, SCHEMA)
