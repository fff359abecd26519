"""The first days of the flights, run as the command runs them: one prediction per flight and model, no look ahead."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import polars as pl
import pytest

from engine.cli import load_pipeline
from engine.flow import Run
from engine.publish import outputs
from engine.recovery import claim
from engine.report import figures
from engine.settings import load

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "examples" / "flights"
DAYS = 3


def take(out: Path, batch_rows: int, workers: int = 1) -> Run:
    p, folder = load_pipeline(FOLDER)
    assert p.prepare is not None
    p.prepare(folder)
    settings = load(folder, {"batch_rows": batch_rows, "workers": workers})
    held = claim(out / "state", p.name, p.definition(), settings.shards, out, outputs(p))
    run = Run(p, settings, out, held, until=DAYS * 86_400_000_000)
    run.run()
    held.release()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return take(tmp_path_factory.mktemp("flights"), 1000)


def lines(run: Run, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.out / f"{name}.jsonl").read_text().splitlines()]


def test_exactly_one_prediction_for_each_flight_and_model(run: Run) -> None:
    got = lines(run, "predictions")
    flights = [r["flight_id"] for r in lines(run, "features")]
    assert len(flights) == len(set(flights)) > 2000
    assert sorted((r["model"], r["flight_id"]) for r in got) == sorted(
        (m, f) for m in ("late", "delay") for f in flights
    )
    assert all(0 <= r["prediction"] <= 1 for r in got if r["model"] == "late")  # type: ignore[operator]


def test_features_are_what_sql_finds_in_the_files(run: Run) -> None:
    data = FOLDER / "data"
    db = duckdb.connect()
    until = "TIMESTAMPTZ '2013-01-04 00:00:00Z'"
    db.execute("SET TimeZone = 'UTC'")
    for name, when in (("departures", "sched_dep"), ("landings", "arrived"), ("weather", "observed")):
        db.execute(f"""CREATE TABLE {name} AS SELECT * REPLACE ({when}::TIMESTAMPTZ AS {when}),
            row_number() OVER () AS pos
            FROM read_json('{data}/{name}.jsonl', format='newline_delimited') WHERE {when}::TIMESTAMPTZ < {until}""")
    db.execute(f"CREATE TABLE planes AS SELECT * FROM read_json('{data}/planes.jsonl', format='newline_delimited')")
    want = db.sql("""
        SELECT d.flight_id,
            (SELECT count(*) FROM departures e WHERE e.origin = d.origin AND e.sched_dep > d.sched_dep - INTERVAL 1 HOUR
                AND (e.sched_dep, e.pos) <= (d.sched_dep, d.pos)),
            (SELECT arg_max(w.temp, w.observed) FROM weather w WHERE w.origin = d.origin
                AND w.observed BETWEEN d.sched_dep - INTERVAL 3 HOUR AND d.sched_dep),
            (SELECT arg_max(l.arr_delay, (l.arrived, l.pos)) FROM landings l
                WHERE l.tailnum = d.tailnum AND l.arrived <= d.sched_dep),
            (SELECT arg_max(l.arr_delay, (l.arrived, l.pos)) FROM landings l
                WHERE l.origin = d.origin AND l.arrived <= d.sched_dep),
            p.seats
        FROM departures d LEFT JOIN planes p ON p.tailnum = d.tailnum ORDER BY 1
    """).fetchall()
    names = ("flight_id", "departures_1h", "temp", "tail_delay", "origin_delay", "seats")
    got = sorted(tuple(r[n] for n in names) for r in lines(run, "features"))  # type: ignore[type-var]
    assert got == want


def test_what_is_served_does_not_depend_on_batches_or_workers(run: Run, tmp_path: Path) -> None:
    again = take(tmp_path, 37, workers=2)
    for name in ("predictions", "features"):
        assert sorted((again.out / f"{name}.jsonl").read_bytes().splitlines()) == sorted(
            (run.out / f"{name}.jsonl").read_bytes().splitlines()
        )
    assert figures(again, None)["models"] == figures(run, None)["models"]


def test_the_wrong_wind_of_the_year_is_put_aside() -> None:
    p, folder = load_pipeline(FOLDER)
    lines = (folder / "data" / "weather.jsonl").read_bytes()
    weather = pl.read_ndjson(lines, infer_schema_length=None).with_columns(
        pl.col("observed").str.to_datetime("%FT%TZ", time_zone="UTC")
    )
    assert len(weather) == 26115
    (found,) = p.replay({"weather": weather}, 4000)["weather.quarantine"].rows(named=True)
    assert (found["origin"], found["wind_speed"]) == ("EWR", 1048.36058)
    assert found["observed"].isoformat() == "2013-02-12T08:00:00+00:00"
    assert found["reason"] == "between(wind_speed, 0, 200)"


def test_the_leak_claims_more_than_is_honest(run: Run) -> None:
    late = figures(run, None)["models"]["late"]
    assert late["questions"] == late["predictions"]
    assert late["answers"] + late["closed"] + late["waiting"] == late["questions"]
    assert late["naive"]["ROCAUC"] > late["metrics"]["ROCAUC"]
