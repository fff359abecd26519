"""Policies compared in one pass are what each would be by itself, and are judged on what they may be judged on."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from river import dummy, linear_model, metrics, stats

import operators as op
from engine import DefinitionError, Pipeline
from engine.compare import RESAMPLES, advice, compare, defaults, resample
from engine.due import loss
from engine.model import ModelError
from engine.page import frontier, page
from engine.policy import Policy, deferred, immediate, on_query, parse
from engine.replay import partitions
from engine.show import comparison_of
from tests.flow.cards import data
from tests.flow.running import freshet, project

START = datetime(2024, 1, 1, tzinfo=timezone.utc)


def pipeline(learner: Any, refresh: Policy | None = None, label: Any = float, metric: Any = None) -> Pipeline:
    """Questions with one feature, answers by key, waited for an hour."""
    p = Pipeline("small")
    asked = p.source("asked", key="k", at="at", schema={"k": int, "at": pl.Datetime, "x": float})
    told = p.source("told", key="k", at="at", append_only=False, schema={"k": int, "at": pl.Datetime, "y": label})
    questions = p.view("questions", asked, op.project("k", "x"))
    p.model("m", questions, answers=told, label="y", learner=learner, refresh=refresh, wait="1h", metric=metric)
    return p


def frames(rows: list[tuple[int, float, float, int | None]], label: Any = float) -> dict[str, pl.DataFrame]:
    """Of (second asked, x, y, seconds until the answer, None: never), one row a question."""
    asked = [(k, START + timedelta(seconds=s), x) for k, (s, x, _, _) in enumerate(rows)]
    told = [(k, START + timedelta(seconds=s + d), label(y)) for k, (s, _, y, d) in enumerate(rows) if d is not None]
    time = pl.Datetime("us", "UTC")
    return {
        "asked": pl.DataFrame(asked, {"k": pl.Int64, "at": time, "x": pl.Float64}, orient="row").sort("at", "k"),
        "told": pl.DataFrame(
            told, {"k": pl.Int64, "at": time, "y": pl.Boolean if label is bool else pl.Float64}, orient="row"
        ).sort("at", "k"),
    }


def compared(p: Pipeline, given_rows: dict[str, pl.DataFrame], policies: list[Policy], **more: Any) -> dict[str, Any]:
    (found,) = compare(p, partitions(p, given_rows), {"m": policies}, **more)
    return found


def stream(n: int, seed: int, label: Any = float) -> dict[str, pl.DataFrame]:
    """A question each ten seconds, answered after up to five minutes or never; y follows x."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = x + rng.normal(size=n) > 0 if label is bool else 2 * x + rng.normal(size=n)
    after = [None if rng.random() < 0.1 else int(rng.integers(1, 300)) for _ in range(n)]
    return frames(list(zip(range(0, 10 * n, 10), x.tolist(), y.tolist(), after, strict=True)), label)


POLICIES: list[Policy] = [immediate(), deferred(rows=50), deferred(every="10m", window="20m"), on_query(5)]


def alone(learner: Any, policy: Policy, given_rows: dict[str, pl.DataFrame], label: Any) -> dict[int, Any]:
    """The predictions of a pipeline whose model is kept by this policy, by key."""
    said = pipeline(learner, policy, label).replay(given_rows)["m.predictions"]
    return dict(said.select("k", "prediction").iter_rows())


def matured(given_rows: dict[str, pl.DataFrame]) -> list[int]:
    """The slow twin: the keys of the questions that may be judged, in the order in which they were answered."""
    asked, told = given_rows["asked"].rows(), given_rows["told"].rows()
    end = min(max(at for _, at, _ in asked), max((at for _, at, _ in told), default=START))
    answered = {k for k, _, _ in told}
    judged = set()
    for k, at, _ in asked:
        if k in answered:
            judged.add(k)
        elif at + timedelta(hours=1) >= end:
            break
    return [k for k, _, _ in told if k in judged]


@pytest.mark.parametrize("label", [float, bool])
@pytest.mark.parametrize("batch_rows", [7, 4000])
def test_each_policy_is_what_it_is_by_itself(label: Any, batch_rows: int) -> None:
    learner = linear_model.LogisticRegression() if label is bool else linear_model.LinearRegression()
    given_rows = stream(900, 3, label)
    found = compared(pipeline(learner, label=label), given_rows, POLICIES, batch_rows=batch_rows)
    order = matured(given_rows)
    labels = {k: y for k, _, y in given_rows["told"].rows()}
    said = {str(p): alone(learner, p, given_rows, label) for p in POLICIES}
    common = [k for k in order if all(s[k] is not None for s in said.values())]
    assert found["questions"] == 900
    assert found["judged"] == len(order)
    assert 400 < found["common"] == len(common) < len(order)
    for row in found["policies"]:
        mine = said[row["policy"]]
        own = [k for k in order if mine[k] is not None]
        kind = "probability" if label is bool else "number"
        for keys, lost, judged in ((common, "loss", "metrics"), (own, "own_loss", "own_metrics")):
            assert row[lost] == pytest.approx(np.mean([loss(kind, labels[k], mine[k]) for k in keys]), rel=1e-12)
            metric = metrics.ROCAUC() if label is bool else metrics.MAE()
            for k in keys:
                metric.update(labels[k], {False: 1 - mine[k], True: mine[k]} if label is bool else mine[k])
            assert row[judged] == {type(metric).__name__: metric.get()}
        assert row["own"] == len(own)
        assert row["seconds"]["total"] == pytest.approx(row["seconds"]["serving"] + row["seconds"]["refresh"])
    assert sum(row["best"] for row in found["policies"]) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 4000), st.one_of(st.none(), st.integers(1, 5000))), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_only_matured_questions_are_judged(drawn: list[tuple[int, int | None]]) -> None:
    rows = [(s, 1.0, 1.0, d if d is None or d <= 3600 else None) for s, d in sorted(drawn, key=lambda r: r[0])]
    given_rows = frames(rows)
    p = pipeline(dummy.StatisticRegressor(stats.Mean()))
    found = compared(p, given_rows, [immediate(), deferred(rows=2)])
    assert found["judged"] == len(matured(given_rows))


def test_a_slow_answer_keeps_later_quick_ones_from_being_judged() -> None:
    rows: list[tuple[int, float, float, int | None]] = [(i, 1.0, 1.0, 5) for i in range(20)]
    rows[10] = (10, 1.0, 1.0, None)
    p = pipeline(dummy.StatisticRegressor(stats.Mean()))
    assert compared(p, frames(rows), [immediate(), deferred(rows=2)])["judged"] == 10
    rows[10] = (10, 1.0, 1.0, 30)
    assert compared(p, frames(rows), [immediate(), deferred(rows=2)])["judged"] == 20


def test_staleness_is_from_the_newest_learnt_example_to_the_question() -> None:
    rows: list[tuple[int, float, float, int | None]] = [(60 * i, 1.0, 1.0, 30) for i in range(121)]
    p = pipeline(linear_model.LinearRegression())
    found = compared(p, frames(rows), [immediate(), deferred(every="10m"), on_query(3)])
    by = {r["policy"]: r["stale"] for r in found["policies"]}
    assert by["immediate()"] == by["on_query(neighbours=3)"] == {"p50": 30.0, "p95": 30.0}
    # A version of 00:10:00 knows the answer of 00:09:30 and serves the ten questions from 00:10:00 to 00:19:00.
    served = [30.0 + 60 * i for i in range(10)] * 11 + [30.0]
    for q in (50, 95):
        assert by["deferred(every='10m')"][f"p{q}"] == pytest.approx(np.percentile(served, q))


def test_refreshes_are_told_with_reason_and_verdict() -> None:
    found = compared(pipeline(linear_model.LinearRegression()), stream(300, 1), [immediate(), deferred(rows=50)])
    first, second = found["policies"]
    assert first["refreshes"] is None
    assert (
        sum(second["refreshes"].values()) == len(second["versions"]) == sum(r is not None for r in second["versions"])
    )
    assert second["versions"][0]["reason"] == "rows: answers=50, expected=50"
    assert {v["verdict"] for v in second["versions"]} <= {"published", "refused", "failed"}


def drifting(n: int = 3000) -> dict[str, pl.DataFrame]:
    """What y is turns around each half hour: who learns late is wrong."""
    return frames([(i * 10, 1.0, float(i // 180 % 2 * 10), 5) for i in range(n)])


def test_where_the_world_turns_the_fresh_policy_is_advised() -> None:
    stale, fresh = deferred(every="2h"), immediate()
    p = pipeline(linear_model.LinearRegression(intercept_lr=0.5))
    found = compared(p, drifting(), [stale, fresh])
    assert found["best"] == found["advised"] == "immediate()"
    assert found["policies"][0]["difference"] > 2
    assert found["policies"][1]["best"] == 1
    assert "immediate()" in found["advice"]


def test_where_nothing_differs_the_cheap_policy_is_advised() -> None:
    p = pipeline(dummy.StatisticRegressor(stats.Mean()))
    rows: list[tuple[int, float, float, int | None]] = [(i * 10, float(i % 7), 4.0, 5) for i in range(2000)]
    found = compared(p, frames(rows), [on_query(32), deferred(every="1h")])
    assert found["policies"][0]["loss"] == pytest.approx(found["policies"][1]["loss"], abs=1e-9)
    assert found["advised"] == min(found["policies"], key=lambda p: p["seconds"]["total"])["policy"]


@pytest.mark.parametrize(
    ("cheap", "price", "advised"),
    [
        ((0.30, 0.01), None, "best"),  # worse by 0.05, five standard errors
        ((0.30, 0.04), None, "cheap"),  # 1.25 standard errors: chance
        ((0.25, 0.0), None, "cheap"),
        ((0.30, 0.01), 0.4, "best"),  # 100 questions: 5 of loss against 4 of 10 s
        ((0.30, 0.01), 0.6, "cheap"),
    ],
)
def test_the_cheapest_that_is_not_worse_beyond_chance_is_advised(
    cheap: tuple[float, float], price: float | None, advised: str
) -> None:
    found = {"common": 100, "judged": 100, "loss": "log loss", "second_costs": price}
    rows = [
        {"policy": n, "loss": x, "difference": x - 0.25, "error": e, "seconds": {"total": s}, "own": 100}
        for n, x, e, s in (("best", 0.25, 0.0, 20.0), ("cheap", *cheap, 10.0), ("silent", np.nan, np.nan, 0.0))
    ]
    told = advice(rows, [0, 1], found)
    assert told["advised"] == advised
    assert told["advice"].startswith(f"Take {advised}: ")


@pytest.mark.parametrize(("price", "advised"), [(0.0, "immediate()"), (1e9, "cheapest")])
def test_with_a_price_the_total_cost_decides(price: float, advised: str) -> None:
    p = pipeline(linear_model.LinearRegression(intercept_lr=0.5))
    found = compared(p, drifting(), [deferred(every="2h"), immediate(), on_query(64)], second_costs=price)
    for row in found["policies"]:
        expected = row["loss"] * found["common"] + price * row["seconds"]["total"]
        assert row["total"] == pytest.approx(expected)
    if advised == "cheapest":
        advised = min(found["policies"], key=lambda r: float(r["seconds"]["total"]))["policy"]
    assert found["advised"] == advised


def test_a_policy_that_says_nothing_takes_no_question_from_the_others() -> None:
    p = pipeline(linear_model.LinearRegression())
    found = compared(p, stream(900, 2), [immediate(), deferred(rows=10_000)])
    spoke, silent = found["policies"]
    assert found["common"] == spoke["own"] == found["judged"] > 200
    assert silent["own"] == 0
    assert silent["loss"] is silent["own_loss"] is silent["stale"]["p50"] is None
    assert found["advised"] == "immediate()"


class Superstitious(linear_model.LinearRegression):
    """Learns everything but a thirteen."""

    def learn_one(self, x: Any, y: Any, w: float = 1.0) -> None:
        if y == 13:
            raise ArithmeticError("<thirteen>")
        super().learn_one(x, y, w)


def unlucky() -> dict[str, pl.DataFrame]:
    """A stream in which one answer of 900 is thirteen."""
    given_rows = stream(900, 2)
    y = given_rows["told"]["y"].to_list()
    return given_rows | {"told": given_rows["told"].with_columns(y=pl.Series([*y[:400], 13.0, *y[401:]]))}


def test_a_policy_under_which_the_model_fails_is_told_so_and_the_others_go_on() -> None:
    p = pipeline(Superstitious())
    policies: list[Policy] = [immediate(), on_query(5), deferred(rows=50)]
    (alone,) = compare(p, partitions(p, unlucky()), {"m": policies[1:]}, second_costs=0.0)
    (found,) = compare(p, partitions(p, unlucky()), {"m": policies}, second_costs=0.0)
    failed, *others = found["policies"]
    assert re.fullmatch(
        "model 'm' failed to learn at the question .*: ArithmeticError: <thirteen>; .*", failed["failed"]
    )
    assert failed["loss"] is failed["own_loss"] is failed["metrics"]["MAE"] is failed["stale"]["p50"] is None
    assert (failed["own"], found["questions"]) == (0, 900)
    assert not {"best", "difference", "error", "total"} & set(failed)
    for mine, same in zip(others, alone["policies"], strict=True):
        for name in ("failed", "loss", "metrics", "own", "own_loss", "difference", "error", "stale", "course"):
            assert mine[name] == same[name]
    assert others[0]["failed"] is None
    assert others[1]["refreshes"]["failed"] > 0, "a version that cannot be fitted is no failure of the policy"
    assert found["common"] == alone["common"] > 200
    assert found["advised"] == alone["advised"] == found["best"]
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(comparison_of(found))
    shown = console.export_text()
    assert re.search(r"immediate\(\) +failed +- +- +- ", shown)
    assert f"immediate() failed: {failed['failed']}" in " ".join(shown.split())
    read = Reader(text := page([found], {}))
    assert read.open == []
    assert f"failed: {failed['failed']}" in read.cells
    assert "<thirteen>" not in text


def test_where_every_policy_fails_nothing_is_compared() -> None:
    p = pipeline(Superstitious())
    policies: list[Policy] = [immediate(), on_query(5, fit="learner")]
    with pytest.raises(ModelError, match=r"every policy failed, the last of them .*: model 'm' failed to .*thirteen"):
        compare(p, partitions(p, unlucky()), {"m": policies})


def test_where_all_are_silent_nothing_is_advised() -> None:
    p = pipeline(linear_model.LinearRegression())
    found = compared(p, stream(900, 2), [deferred(rows=9_000), deferred(rows=10_000)])
    assert found["judged"] > 200
    assert (found["common"], found["advised"]) == (0, None)
    assert found["advice"] in page([found], {})


def test_nothing_to_judge() -> None:
    p = pipeline(linear_model.LinearRegression())
    found = compared(p, {}, [immediate(), deferred(rows=10)])
    assert (found["questions"], found["common"], found["advised"]) == (0, 0, None)
    assert "Nothing to compare" in page([found], {})


def test_resampling_keeps_what_is_alike_together() -> None:
    """Against the known error of a mean: blocks see the correlation of neighbours, single cells do not."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(10):
        x = np.convolve(rng.normal(size=407), np.ones(8), "valid")
        found = resample(x[None], np.ones(400), 20)
        assert found.shape == (RESAMPLES, 1)
        inside.append((found[:, 0].std(), resample(x[None], np.ones(400), 1)[:, 0].std()))
    blocks, single = np.mean(inside, 0)
    assert blocks == pytest.approx(8 / np.sqrt(400), rel=0.25)
    assert single < 0.5 * blocks


def test_resampled_means_weigh_questions_not_cells() -> None:
    found = resample(np.array([[10.0, 0.0]]), np.array([10.0, 90.0]), 2)
    assert np.unique(found).tolist() == [0.1]


@pytest.mark.parametrize(
    ("policies", "more", "expected"),
    [
        ({"n": []}, {}, "there is no model 'n'; the models of pipeline 'small': m"),
        ({"m": [immediate(), immediate()]}, {}, "is given immediate.*expected two different policies"),
        ({"m": [immediate(), deferred(target_lag="downstream")]}, {}, "nothing stands on a model"),
        ({"m": [immediate(), on_query(3)]}, {"second_costs": -1.0}, "a second costs -1.0: expected 0 or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(policies: Any, more: Any, expected: str) -> None:
    p = pipeline(linear_model.LinearRegression())
    with pytest.raises(DefinitionError, match=expected):
        compare(p, partitions(p, {}), policies, **more)


def test_the_usual_policies_are_those_that_can_keep_the_model() -> None:
    spec = pipeline(linear_model.LinearRegression()).models["m"].spec
    assert str(defaults(spec)[0]) == "immediate()"
    assert not any("debt" in str(p) for p in defaults(spec))
    assert [str(p) for p in defaults(spec, 2.0) if "debt" in str(p)] == [
        "deferred(every='7d', debt=debt(per_second=2.0))"
    ]
    for policy in defaults(spec, 2.0):
        assert str(parse(str(policy))) == str(policy)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_on_the_frontier_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    kept = [points[i] for i in frontier([(float(c), float(v)) for c, v in points])]
    beaten = {a for a in points for b in points if b != a and b[0] <= a[0] and b[1] <= a[1]}
    assert kept == sorted(set(points) - beaten)


class Reader(HTMLParser):
    """The cells of all tables, all text, all attributes; every tag must be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, *a) for a in attrs]
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def check_page(text: str, found: list[dict[str, Any]]) -> None:
    read = Reader(text)
    assert read.open == []
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<img", text)
    assert not [a for a in read.attributes if a[1] in ("src", "href", "srcset")]
    for one in found:
        assert one["advice"] in read.text
        assert f"{one['common']:,} questions asked" in read.text
        for row in one["policies"]:
            i = next(i for i, c in enumerate(read.cells) if c.endswith(row["policy"]))
            assert read.cells[i + 1] == f"{row['loss']:,.4f}"
            assert f"{row['seconds']['total']:,.1f}" in read.cells[i : i + 15]
            for v in row["versions"] or []:
                assert v["reason"] in read.cells
            for v in row["course"]:
                assert (f"{v:,.4f}" if v is not None else "-") in read.cells
    for picture in re.findall("<svg.*?</svg>", text, re.DOTALL):
        for shape in ElementTree.fromstring(picture).iter():
            for name, most in (("x", 720), ("cx", 720), ("x2", 720), ("y", 340), ("cy", 340), ("y2", 340)):
                assert 0 <= float(shape.get(name, 0)) <= most
            for point in shape.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 60 <= x <= 700
                assert 15 <= y <= 300
    pictures = sum(a[0] == "svg" for a in set(read.attributes) if a[1] == "aria-label")
    assert pictures == 2 * len(found) == text.count('<svg viewBox="0 0 720 340" role="img"')


def test_the_page_says_what_was_found_and_loads_nothing() -> None:
    p = pipeline(linear_model.LinearRegression())
    found = compared(p, stream(500, 5), POLICIES, second_costs=3.0)
    text = page([found], {"machine": "<b>&"})
    check_page(text, [found])
    assert "&lt;b&gt;&amp;" in text


def test_the_command(tmp_path: Path) -> None:
    folder = project(tmp_path)
    declared = (folder / "pipeline.py").read_text()
    assert declared.count('wait="1d",') == 1
    (folder / "pipeline.py").write_text(declared.replace('wait="1d",', 'wait="6m",'))
    data.write(folder / "data", 1500, seed=4)
    some = ["--policy", "immediate()", "--policy", "deferred(every='5m')", "--policy", "on_query(neighbours=8)"]
    done = freshet("compare", folder, *some, "--out", tmp_path / "c.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [r["policy"] for r in found[0]["policies"]] == [parse(t) and t for t in some[1::2]]
    assert found[0]["common"] > 500
    check_page((tmp_path / "c.html").read_text(), found)
    assert not (tmp_path / "state").exists()
    shown = freshet("compare", folder, "--out", tmp_path / "d.html", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for text in ("log loss", "ROCAUC", "immediate()", "Take ", "d.html"):
        assert text in shown.stdout


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        (["--policy", "at_once()"], "--policy is 'at_once()', which cannot be read"),
        (["--policy", "immediate()"], "expected two different policies or more"),
        (["--model", "fraudd"], "there is no model 'fraudd'; the models of pipeline 'cards': fraud"),
        (["--bind", "x=y"], "settings bind 'x', which is no source"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, given_options: list[str], expected: str) -> None:
    folder = project(tmp_path)
    data.write(folder / "data", 20)
    done = freshet("compare", folder, *given_options, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr.replace("\n", " ")
