"""The notebook path gives what the long-lived run gives: same views, same predictions."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from engine import DefinitionError
from operators.delta import TIME
from tests.flow.cards import data
from tests.flow.running import cards, project, run_here

COLUMNS = {
    "payments": {"tx": pl.Int64, "card": pl.String, "shop": pl.String, "amount": pl.Float64, "at": pl.Int64},
    "chargebacks": {"tx": pl.Int64, "known": pl.Int64, "fraud": pl.Boolean, "deleted": pl.Boolean},
    "shops": {"shop": pl.String, "since": pl.Int64, "country": pl.String, "limit": pl.Float64, "deleted": pl.Boolean},
}


def frames(folder: Path) -> dict[str, pl.DataFrame]:
    """The change files as a notebook would have them."""
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in COLUMNS}
    for line in (folder / "payments.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row["amount"], str):
            rows["payments"].append(row)
    for line in (folder / "chargebacks.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows["chargebacks"].append({"fraud": None, **row, "deleted": row["op"] == "delete"})
    for line in (folder / "shops.jsonl").read_text().splitlines():
        e = json.loads(line)
        row = e["after"] or {**e["before"], "country": None, "limit": None}
        rows["shops"].append({**row, "since": e["source"]["ts_ms"], "deleted": e["op"] == "d"})
    times = {"payments": "at", "chargebacks": "known", "shops": "since"}
    return {
        name: pl.DataFrame([{c: r[c] for c in columns} for r in rows[name]], schema=columns).with_columns(
            (pl.col(times[name]) * 1000).cast(TIME)
        )
        for name, columns in COLUMNS.items()
    }


def accumulated(path: Path) -> Counter[str]:
    rows: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        weight = row.pop("weight")
        if path.stem != "predictions":
            row.pop("at")
        rows[json.dumps(row, sort_keys=True)] += weight
    return +rows


@pytest.mark.parametrize("batch_rows", [1, 17, 5000])
def test_replay_gives_what_a_run_gives(tmp_path: Path, batch_rows: int) -> None:
    folder = project(tmp_path)
    data.write(folder / "data", 600, seed=3)
    p = cards(folder)
    run_here(p, folder, folder / "out", folder / "state")
    views = p.replay(frames(folder / "data"), batch_rows)
    for view, output in (
        ("features", "features"),
        ("by_country", "by_country"),
        ("cards", "cards"),
        ("known_cards", "known_cards"),
        ("fraud.predictions", "predictions"),
    ):
        frame = views[view].with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"))
        got = Counter(json.dumps(_short(r, view), sort_keys=True) for r in frame.rows(named=True))
        want = Counter[str]()
        for row, n in accumulated(folder / "out" / f"{output}.jsonl").items():
            want[json.dumps(_short(json.loads(row), view), sort_keys=True)] += n
        assert got == want
        assert len(got) >= 3


def _short(row: dict[str, object], view: str) -> dict[str, object]:
    """Without the columns that only one of the two writes as text."""
    if view in ("features", "known_cards"):
        row.pop("at", None)
    if view == "fraud.predictions":
        for name in ("at", "trained", *(n for n in row if n.startswith("frontier"))):
            row[name] = row[name] and datetime.fromisoformat(str(row[name]).replace("Z", "+00:00")).isoformat()
    return row


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = project(tmp_path)
    data.write(folder / "data", 20)
    p, given = cards(folder), frames(folder / "data")
    with pytest.raises(DefinitionError, match="no source or table 'payment'; did you mean 'payments'"):
        p.replay({"payment": given["payments"]})
    with pytest.raises(
        DefinitionError, match="the frame of source 'payments' is a list; expected a DataFrame of Polar"
    ):
        p.replay({"payments": given["payments"].to_dicts()})  # type: ignore[dict-item]
    with pytest.raises(DefinitionError, match="the frame of source 'payments': no column 'card'"):
        p.replay({"payments": given["payments"].drop("card")})
    with pytest.raises(DefinitionError, match="the column 'tx' is null in 1 rows"):
        p.replay({"payments": given["payments"].with_columns(tx=pl.col("tx").replace(0, None))})
    assert p.replay({})["features"].is_empty()
