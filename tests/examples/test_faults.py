"""Learned expectations on the flights' weather, a small part of `make faults`: bounds of the second half of the year
are judged on the first."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest

from benchmarks.faults import DAY, MIDDLE, alarms, false_alarms, judged, learnt, weather
from engine import Pipeline
from engine.cli import load_pipeline

FOLDER = Path(__file__).resolve().parent.parent.parent / "examples" / "flights"
FIRST = datetime(2013, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    p, folder = load_pipeline(FOLDER)
    assert p.prepare is not None
    p.prepare(folder)
    return weather(folder / "data")


@pytest.fixture(scope="module")
def made(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("faults")
    return learnt(rows.filter(pl.col("observed") >= MIDDLE), folder, ["wind_speed", "visib"])


def test_the_gust_is_found_and_a_clear_sky_is_not(made: Pipeline, rows: pl.DataFrame) -> None:
    told = alarms(made, rows)
    gust = told.filter(pl.col("observed") == datetime(2013, 2, 12, 8, tzinfo=timezone.utc))
    assert ("usual(wind_speed)", "EWR") in gust.select("expectation", "origin").rows()
    assert told.filter(pl.col("expectation") == "stuck(visib)").height == 0


def test_the_budget_is_kept_on_days_that_taught_nothing(made: Pipeline, rows: pl.DataFrame) -> None:
    found = false_alarms(made, rows, FIRST, MIDDLE)
    assert found["days"].sum() > 7000
    assert found["alarms"].sum() <= found["days"].sum() / 1000


def test_faults_are_found_and_one_that_looks_usual_is_not(made: Pipeline, rows: pl.DataFrame) -> None:
    days = [FIRST + DAY * n for n in (40, 90, 140)]
    wind, sight = "wind_speed", "visib"
    cases = [("stuck", wind), ("default -9999", sight), ("stopped feed", sight), ("other unit", wind)]
    found = {(f.fault, f.column): f for f in judged(made, rows, days, cases)}
    assert all(f.put == 9 for f in found.values())
    assert len(found["stuck", "wind_speed"].hours) == 9
    assert found["default -9999", "visib"].hours == [0.0] * 9
    assert len(stopped := found["stopped feed", "visib"].hours) == 9
    assert all(1 < hours < 17 for hours in stopped), "by silence, not only when it goes on"
    assert len(found["other unit", "wind_speed"].hours) <= 2


def test_what_the_example_has_learnt_is_of_its_expectations() -> None:
    p, _ = load_pipeline(FOLDER)
    assert all(getattr(e, "bounds", None) is not None for e in p.expected["observations"].expectations)
