"""Ranges learnt from history: the budget holds on days that taught nothing, a fault of history does not widen them; and
what is learnt is kept, read, outlives no definition, and is asked for before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import operators as op
from engine import DefinitionError, Pipeline, deferred
from engine.calibrate import calibrate, outward, upper
from engine.cli import app
from engine.learnt import Learnt, read, write
from engine.replay import partitions
from operators.expectation import Expectation, Severity
from operators.learned import EVERY, Learned, Ranges

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
SCHEMA = {"id": int, "at": pl.Datetime, "key": str, "x": float}
Q = 0.001


def pipeline(learned: Path, *expect: Expectation) -> Pipeline:
    p = Pipeline("p", learned=learned)
    s = p.source("s", key="id", at="at", schema=SCHEMA, expect=expect)
    p.view("v", s, op.project("id"))
    return p


def frame(x: Any, keys: tuple[str, ...] = ("a", "b")) -> dict[str, pl.DataFrame]:
    """Hourly rows of each key; x: by hour and key."""
    hours, n = len(x), len(x) * len(keys)
    at = [START + timedelta(hours=i // len(keys)) for i in range(n)]
    columns = {"id": list(range(n)), "at": at, "key": list(keys) * hours, "x": np.asarray(x, float).reshape(-1)}
    return {"s": pl.DataFrame(columns).with_columns(pl.col("x").fill_nan(None))}


def learnt(path: Path, given: dict[str, pl.DataFrame], *expect: Expectation, until: int | None = None) -> Pipeline:
    p = pipeline(path, *expect)
    write(path, calibrate(p, partitions(p, given), Q, until=until)[1], Q, None)
    return pipeline(path, *expect)


def bounds(p: Pipeline) -> Ranges:
    (one,) = p.expected["s"].expectations
    assert isinstance(one, Learned)
    assert one.bounds is not None
    return one.bounds


def days(n: int) -> np.ndarray[Any, Any]:
    """Days none of which follows another."""
    return np.arange(n)


@pytest.mark.parametrize("draw", ["exponential", "normal", "gumbel"])
@pytest.mark.parametrize("n", [90, 365])
def test_the_budget_holds_on_days_that_taught_nothing_and_is_used(draw: str, n: int) -> None:
    rng = np.random.default_rng(5)
    rates, widths = [], []
    new = np.sort(getattr(rng, draw)(size=200_000))
    best = np.quantile(new, 1 - Q)
    for _ in range(200):
        u, above, peaks = upper(getattr(rng, draw)(size=n), days(n), Q)
        bound = u + above
        assert peaks >= 9
        rates.append(1 - np.searchsorted(new, bound, "right") / len(new))
        widths.append((bound - np.median(new)) / (best - np.median(new)))
    assert np.mean(rates) <= Q
    assert np.median(widths) < 2, "so wide that it finds nothing"


def test_an_episode_of_days_counts_as_one_peak() -> None:
    rng = np.random.default_rng(1)
    episodes = np.repeat(rng.exponential(size=120), 3)
    u, together, peaks = upper(episodes, np.zeros(360, int), Q)
    same, apart, many = upper(episodes, days(360), Q)
    assert peaks < many == 36
    assert u == same
    assert together > apart, "less is known of fewer"


def test_a_fault_of_history_that_stands_alone_is_left_out_and_two_alike_are_not() -> None:
    usual = np.random.default_rng(2).exponential(size=180)
    expected = sum(upper(usual, days(180), Q)[:2])
    for faults, left_out in (([1048.0], True), ([1048.0, 1040.0], False)):
        bound = sum(upper(np.r_[usual, faults], days(180 + len(faults)), Q)[:2])
        assert (bound < 2 * expected) == left_out
        assert (bound >= 1048) == (not left_out)


def test_what_never_changed_has_its_value_as_bound() -> None:
    assert upper(np.zeros(100), days(100), Q) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("bound", "out"), [(0.0, 0.0), (12.34567, 12.35), (-12.34567, -12.34), (0.1, 0.1), (-99.0, -99.0), (12345.6, 12350)]
)
def test_bounds_have_four_digits_and_no_less_room(bound: float, out: float) -> None:
    assert outward(bound) == out >= bound


def test_a_key_has_its_own_bounds_and_one_that_is_not_known_the_shared(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(100 * 24, 2)) * [1, 10] + [0, 100]
    p = learnt(tmp_path / "learned.json", frame(x), op.usual("x", by="key", severity="quarantine"))
    found = bounds(p)
    (low_a, high_a), (low_b, high_b) = found.groups["a"], found.groups["b"]
    assert -8 < low_a < -3 < 3 < high_a < 8
    assert 20 < low_b < 70 < 130 < high_b < 180
    assert found.rest[0] <= low_a
    assert found.rest[1] >= 130
    given = frame([[50.0, 50.0, 50.0], [0.0, 0.0, -99.0], [np.nan] * 3], ("a", "b", "new"))
    aside = p.replay(given)["s.quarantine"]
    assert aside.select("key", "x", "reason").rows() == [
        ("a", 50.0, "usual(x)"),
        *([("b", 50.0, "usual(x)")] if low_b > 50 else []),
        ("b", 0.0, "usual(x)"),
        ("new", -99.0, "usual(x)"),
    ]


def test_a_value_that_is_common_may_stay_and_others_may_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = np.round(rng.normal(size=(120 * 24, 2)), 1)
    for column in (0, 1):
        for begin in range(0, len(x) - 100, 100):
            x[begin : begin + rng.integers(30, 60), column] = 10.0
    p = learnt(tmp_path / "learned.json", frame(x), op.stuck("x", by="key", severity="quarantine"))
    found = bounds(p)
    assert sorted(found.groups) == ["a / 10.0", "b / 10.0"]
    assert all(high > 60 for _, high in found.groups.values())
    assert found.rest[1] < 20
    aside = p.replay(frame([[10.0, 0.5]] * 40))["s.quarantine"]
    assert set(aside["key"]) == {"b"}
    assert 20 < len(aside) < 40
    assert aside["at"].min() == START + timedelta(hours=40 - len(aside))


def test_each_statistic_is_what_polars_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    x = np.where(rng.random((60 * 24, 2)) < 0.1, np.nan, np.round(rng.normal(size=(60 * 24, 2)), 1))
    given = frame(x)
    rows = given["s"].sort("key", "at").with_columns(zero=pl.col("x") == 0)

    def rolled(expr: str, size: str) -> pl.Expr:
        return pl.col(expr).cast(pl.Float64).rolling_mean_by("at", size).over("key")

    known = pl.col("x").is_not_null().cast(pl.Float64).rolling_mean_by("at", "6h").over("key")
    run = (pl.col("x").ne_missing(pl.col("x").shift()).fill_null(True).cum_sum()).over("key")
    apart = pl.lit(0.0)
    for low, high in ((-9, -0.5), (-0.5, 0.5), (0.5, 9)):
        name = f"in {low}"
        rows = rows.with_columns(((pl.col("x") >= low) & (pl.col("x") < high)).alias(name))
        apart += (rolled(name, "6h") - rolled(name, "2d")).abs()
    wanted = [
        (op.usual("x", by="key"), pl.col("x")),
        (op.jump("x", by="key"), (pl.col("x") - pl.col("x").shift().over("key")).abs()),
        (op.null_ratio("x", by="key", within="6h"), 1 - known),
        (op.default_ratio("x", 0.0, by="key", within="6h"), rolled("zero", "6h")),
        (op.level("x", by="key", within="6h", against="2d"), rolled("x", "6h") - rolled("x", "2d")),
        (op.shape("x", [-0.5, 0.5], by="key", within="6h", against="2d"), apart / 2),
        (op.stuck("x", by="key"), pl.when(pl.col("x").is_not_null()).then(pl.col("_n")).otherwise(0)),
    ]
    rows = rows.with_columns(_run=run).with_columns(_n=pl.int_range(1, pl.len() + 1).over("key", "_run"))
    for e, sql in wanted:
        limit = 1.5 if e.name == "stuck(x)" else 0.3 if "ratio" in e.name or "shape" in e.name else 0.7
        met = e.learnt(Ranges({}, (-limit, limit)))
        value = rows.with_columns(_value=sql)
        failing = value.filter((pl.col("_value") > limit) | ((pl.col("_value") < -limit) & e.both)).sort("at", "key")
        path = tmp_path / f"{e.name}.json"
        write(path, {f"s: {e.name}": read_of(met)}, Q, None)
        p = pipeline(path, replace(e, severity="quarantine"))
        aside = p.replay(given)["s.quarantine"].sort("at", "key")
        assert aside["id"].to_list() == failing["id"].to_list(), e.name
        assert len(aside) > 0, e.name


def read_of(e: Learned) -> Learnt:
    assert e.bounds is not None
    return Learnt(e.asked, e.bounds)


def slow(rows: list[tuple[str, int, str | None]], short: int, long: int) -> list[tuple[float | None, float, float]]:
    """For rows (key, hour, value), in order: the share of new values, of distinct ones, and how shares are apart."""
    new, first, told = list[bool](), list[bool](), list[tuple[float | None, float, float]]()
    for i, (key, hour, value) in enumerate(rows):
        mine = [j for j in range(max(0, i - 400), i + 1) if rows[j][0] == key and rows[j][1] > hour - long]
        near = [j for j in mine if rows[j][1] > hour - short]
        alike = [j for j in mine if rows[j][2] == value]
        new.append(all(j in near for j in alike))
        first.append(sum(j in alike for j in near) == 1)
        apart = 0.0
        for which in (["u"], ["v"], ["w", "x"]):
            shares = [
                sum(rows[j][2] in which for j in some) / max(1, sum(rows[j][2] is not None for j in some))
                for some in (near, mine)
            ]
            apart += abs(shares[0] - shares[1]) / 2
        share = sum(new[j] for j in near) / len(near)
        told.append((share if len(mine) >= 2 * len(near) else None, sum(first[j] for j in near) / len(near), apart))
    return told


def test_categories_are_what_the_slow_twin_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    n = 300
    given = pl.DataFrame(
        {
            "id": range(n),
            "at": [START + timedelta(hours=i // 2) for i in range(n)],
            "key": ["a", "b"] * (n // 2),
            "c": rng.choice(np.array(["u", "v", "w", "x", None]), n, p=[0.5, 0.3, 0.1, 0.04, 0.06]),
        }
    )
    hours = [i // 2 for i in range(n)]
    wanted = slow(list(zip(given["key"], hours, given["c"], strict=True)), 6, 24)
    durations = {"within": "6h", "against": "1d"}
    for at, e, low, high in (
        (0, op.new_ratio("c", by="key", **durations), -1.0, 0.1),
        (1, op.distinct_ratio("c", by="key", within="6h"), 0.4, 0.8),
        (2, op.categories("c", ["u", "v"], by="key", **durations), -1.0, 0.25),
    ):
        path = tmp_path / f"{at}.json"
        write(path, {f"s: {e.name}": read_of(e.learnt(Ranges({}, (low, high))))}, Q, None)
        p = Pipeline("p", learned=path)
        schema = {"id": int, "at": pl.Datetime, "key": str, "c": str}
        p.source("s", key="id", at="at", schema=schema, expect=[replace(e, severity="quarantine")])
        ids = [
            i
            for i, w in enumerate(wanted)
            if (v := w[at]) is not None and (v > high + 1e-9 or (e.both and v < low - 1e-9))
        ]
        assert sorted(p.replay({"s": given})["s.quarantine"]["id"]) == ids
        assert 5 < len(ids) < n - 5


def test_all_can_be_expected_of_one_relation(tmp_path: Path) -> None:
    spans = [("6h", "1d"), ("6h", "7d"), ("1d", "7d")]
    every = [op.usual("x", by="key"), op.jump("x", by="key"), op.stuck("x", by="key"), op.unique("id", within="6h")]
    for i, (within, against) in enumerate(spans):
        both = {"by": "key", "within": within, "against": against, "name": ""}
        for kind, made in (
            ("level", lambda **g: op.level("x", **g)),
            ("shape", lambda **g: op.shape("x", [0, 1], **g)),
            ("other shape", lambda **g: op.shape("x", [0], **g)),
            ("categories", lambda **g: op.categories("id", [1, 2], **g)),
            ("new_ratio", lambda **g: op.new_ratio("id", **g)),
        ):
            every.append(made(**{**both, "name": f"{kind} {i}"}))
    for i, within in enumerate(("6h", "1d")):
        every += [
            op.null_ratio("x", by="key", within=within, name=f"null {i}"),
            op.default_ratio("x", 0.0, by="key", within=within, name=f"default {i}"),
            op.default_ratio("x", 1.0, by="key", within=within, name=f"other {i}"),
            op.distinct_ratio("id", by="key", within=within, name=f"distinct {i}"),
        ]
    p = pipeline(tmp_path / "learned.json", *every)
    assert len(p.expected["s"].expectations) == len(every)
    learned = [e for e in every if isinstance(e, Learned)]
    assert len({e.asked for e in learned}) == len(learned), "each is told from the others"


def test_while_a_key_is_new_its_longer_window_teaches_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(size=(100 * 24, 2))
    x[:24] *= 100
    e = op.level("x", by="key", within="1d", against="10d")
    assert bounds(learnt(tmp_path / "a.json", frame(x), e)).rest[1] < 5
    assert bounds(learnt(tmp_path / "b.json", frame(x), replace(e, warm=0))).rest[1] > 10


def test_what_is_expected_of_a_deferred_view_is_learnt_from_what_it_gives(tmp_path: Path) -> None:
    p = Pipeline("p", learned=tmp_path / "learned.json")
    s = p.source("s", key="id", at="at", schema=SCHEMA)
    p.view("v", s, op.where(pl.col("x") < 50), refresh=deferred(every="1d"), expect=[op.usual("x", by="key")])
    hours = np.repeat(np.arange(24 * 70.0)[:, None] % 60, 2, axis=1)
    _, found = calibrate(p, partitions(p, frame(hours)), Q)
    assert found["v: usual(x)"].bounds.groups["a"] == (0.0, 49.0)


def test_a_share_that_may_be_anything_has_no_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    x = np.where(rng.random((100, 1, 2)) < rng.random((100, 1, 2)), np.nan, np.zeros((100, 24, 2))).reshape(-1, 2)
    e = op.null_ratio("x", by="key", within="1d")
    p = learnt(tmp_path / "learned.json", frame(x), e)
    assert bounds(p) == Ranges({"a": EVERY, "b": EVERY}, EVERY)
    assert p.replay(frame(np.full((48, 2), np.nan)))["v"].height == 96


def test_how_long_is_no_silence_is_learnt_by_key(tmp_path: Path) -> None:
    path, gap = tmp_path / "learned.json", op.jump("at", by="key")

    def declare() -> Pipeline:
        p = Pipeline("p", learned=path)
        s = p.source("s", key="id", at="at", schema=SCHEMA, expect=[gap])
        p.view("silent", s, op.silence(by="key", **p.gaps(s, gap)))
        return p

    def rows(hours: dict[str, list[int]]) -> dict[str, pl.DataFrame]:
        found = sorted((h, k) for k, some in hours.items() for h in some)
        at = [START + timedelta(hours=h) for h, _ in found]
        return {"s": pl.DataFrame({"id": range(len(at)), "at": at, "key": [k for _, k in found], "x": 0.0})}

    rng = np.random.default_rng(12)
    history = {k: np.cumsum(rng.integers(1, most, 1000)).tolist() for k, most in (("a", 4), ("b", 12))}
    p = declare()
    write(path, calibrate(p, partitions(p, rows(history)))[1], Q, None)
    p = declare()
    found = p.gaps(p.sources["s"], gap)
    assert timedelta(hours=3) <= found["after"]["a"] < timedelta(hours=8)
    assert timedelta(hours=11) <= found["after"]["b"] < timedelta(hours=20)
    got = p.replay(rows({"a": [0, 9], "b": [0, 9], "new": [0, 9, 10], "z": [40]}))["silent"]
    assert sorted((r["key"], r["since"].hour, r["until"] is None) for r in got.to_dicts()) == [
        ("a", 0, False),
        ("a", 9, True),
        ("b", 9, True),
        ("new", 10, True),
    ]
    other = op.jump("x", by="key")
    with pytest.raises(DefinitionError, match=r"gaps: 's' is not expected to meet jump\(x\); expected that which was"):
        p.gaps(p.sources["s"], other)


def test_only_rows_before_until_count(tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(100 * 24, 2))
    x[80 * 24 :] *= 1000
    until = round((START + timedelta(days=80)).timestamp() * 1e6)
    found = bounds(learnt(tmp_path / "a.json", frame(x), op.usual("x", by="key"), until=until))
    assert found == bounds(learnt(tmp_path / "b.json", frame(x[: 80 * 24]), op.usual("x", by="key")))
    assert found.rest[1] < 10


def test_what_was_learnt_of_another_definition_is_nothing(tmp_path: Path) -> None:
    path, x = tmp_path / "learned.json", np.zeros((40 * 24, 2))
    level = op.level("x", by="key", within="1d", against="7d")
    before = learnt(path, frame(x), level)
    assert before.replay(frame(x[:1]))["v"].height == 2
    assert bounds(before) == Ranges({}, (0.0, 0.0))
    for other in (
        op.level("x", by="key", within="2d", against="7d"),
        op.usual("x", by="key", name="level(x)"),
        op.level("x", by="id", within="1d", against="7d"),
    ):
        p = pipeline(path, other)
        with pytest.raises(
            DefinitionError, match=r"source 's': level\(x\) is learned, but its bounds are not, or were"
        ):
            p.replay(frame(x[:1]))
    pipeline(path, op.level("x", by="key", within="1d", against="7d", severity="stop")).replay(frame(x[:1]))


def test_bounds_are_part_of_the_definition_only_where_rows_are_put_aside(tmp_path: Path) -> None:
    path, e = tmp_path / "learned.json", op.usual("x", by="key")
    definitions = []
    severities: tuple[Severity, ...] = ("warn", "quarantine")
    for severity in severities:
        for high in (1.0, 2.0):
            write(path, {"s: usual(x)": read_of(e.learnt(Ranges({}, (0.0, high))))}, Q, None)
            definitions.append(pipeline(path, replace(e, severity=severity)).definition())
    warn, same, aside, other = definitions
    assert warn == same
    assert aside != other


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, e = tmp_path / "learned.json", op.usual("x", by="key")
    given = Ranges({"b": (-1.5, float("inf")), "a": (0.0, 2.0)}, (-float("inf"), 3.0))
    write(path, {"s: usual(x)": read_of(e.learnt(given))}, Q, "2024-03-01")
    assert read(path)["s: usual(x)"].bounds == given
    text = path.read_text()
    assert '"b": [-1.5, null]' in text
    assert list(json.loads(text)["bounds"]["s: usual(x)"]["groups"]) == ["a", "b"]


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: Pipeline("p").source("s", key="id", at="at", schema=SCHEMA, expect=[op.usual("x", by="key")]),
     "source 's': usual(x) is learned, but the pipeline names no file for what is learnt; declare Pipeline("),
    (lambda f: pipeline(f, op.usual("key", by="key")), "usual(key): the column 'key' has type String; expected"),
    (lambda f: pipeline(f, op.usual("x", by="x")), "usual(x): by: 'x' has type Float64"),
    (lambda f: op.level("x", by="key", within="1d", against="1d"), "level: 'x' within '1d' against '1d'; expected a"),
    (lambda f: op.null_ratio("x", by="key", within="0s"), "null_ratio: within is '0s'; expected more than 0"),
    (lambda f: op.default_ratio("x", None, by="key", within="1d"), "default_ratio: the value of 'x' is None; expected"),
    (lambda f: op.shape("x", [2, 1], by="key", within="1d", against="7d"), "shape: the edges of 'x' are [2, 1]; "),
    (lambda f: op.shape("x", [1], by="key", within="1d", against="1d"), "shape: 'x' within '1d' against '1d'; "),
    (lambda f: op.categories("x", "ab", by="key", within="1d", against="7d"), "categories: the values of 'x' are 'ab'"),
    (lambda f: calibrate(pipeline(f), []), "pipeline 'p' has no learned expectation; declare one, such as op.stuck("),
    (lambda f: calibrate(pipeline(f, op.usual("x", by="key")), [], 0), "the budget is 0; expected more than 0"),
    (lambda f: calibrate(p := pipeline(f, op.usual("x", by="key")), partitions(p, {})),
     "s: usual(x): history has 0 days on which it can be judged; expected 30 or more"),
    (lambda f: learnt(f, frame(np.zeros((240, 2))), op.usual("x", by="key")),
     "s: usual(x): history has 10 days on which it can be judged; expected 30 or more"),
    (lambda f: (f.write_text("{}"), read(f)), "is not what was learnt ('bounds'); expected what freshet calibrate"),
    (lambda f: (f.write_text('{"bounds": {"a": {"asked": "", "groups": {}, "every other": [1, "x"]}}}'), read(f)),
     "a is [1, 'x']; expected two numbers, or null for no bound"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[w[1][:40] for w in WRONG])
def test_a_mistake_is_refused_with_a_text(wrong: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError) as error:
        wrong(tmp_path / "learned.json")
    assert text in str(error.value)


PIPELINE = """
from pathlib import Path
import operators as op
import polars as pl
from engine import Pipeline

p = Pipeline("sensors", learned=Path(__file__).with_name("learned.json"))
s = p.source(
    "s", key="id", at="at", schema={"id": int, "at": pl.Datetime, "key": str, "x": float},
    expect=[op.jump("x", by="key")],
)
p.view("v", s, op.project("id"))
"""


def test_the_command_finds_bounds_without_which_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    (tmp_path / "freshet.toml").write_text('port = 0\n[sources.s]\npath = "s.jsonl"\n')
    x = np.random.default_rng(8).normal(size=(40 * 24, 2))
    x[-1, 0] = 99.0
    rows = frame(x)["s"].with_columns(pl.col("at").dt.strftime("%FT%TZ"))
    rows.write_ndjson(tmp_path / "s.jsonl")
    run = ["run", str(tmp_path), "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), "--quiet"]
    refused = CliRunner().invoke(app, run)
    assert refused.exit_code == 2
    assert f"find them with freshet calibrate {tmp_path}" in " ".join(refused.output.split())
    checked = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert checked.exit_code == 0
    assert "expects jump(x): warn, its bounds not learnt yet" in checked.output
    wrong = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--until", "soon"])
    assert wrong.exit_code == 2
    assert "--until is 'soon': expected a time" in wrong.output
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--until", "2024-02-09", "--budget", "0.01"])
    assert done.exit_code == 0, done.output
    assert "jump(x)" in done.output
    kept = json.loads((tmp_path / "learned.json").read_text())
    assert (kept["budget"], kept["until"]) == (0.01, "2024-02-09")
    assert CliRunner().invoke(app, run).exit_code == 0
    (told,) = json.loads((tmp_path / "out" / "summary.json").read_text())["expectations"]
    assert (told["expectation"], told["failures"], told["failing"]) == ("jump(x)", 1, 1)
