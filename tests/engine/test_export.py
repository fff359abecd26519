"""Export: the file holds the relation, is of the kind its name says, and is whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest

from engine.export import export
from operators.delta import BOOL, FLOAT, INT, STRING, TIME, Schema
from operators.operator import DefinitionError

SCHEMA: Schema = {"i": INT, "f": FLOAT, "s": STRING, "b": BOOL, "t": TIME}
NOON = datetime(2024, 1, 1, 12, 0, 0, 1, tzinfo=timezone.utc)
FRAME = pl.DataFrame(
    {"i": [2**63 - 1, None], "f": [0.1, None], "s": ['a,"é"\n', ""], "b": [True, None], "t": [NOON, None]}, SCHEMA
)
READ: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": lambda p: pl.read_csv(p, schema={**SCHEMA, "t": pl.String}, empty_string_is_null=False),
    ".jsonl": lambda p: pl.read_ndjson(p, schema={**SCHEMA, "t": pl.String}),
    ".ndjson": lambda p: pl.read_ndjson(p, schema={**SCHEMA, "t": pl.String}),
    ".arrow": pl.read_ipc,
    ".CSV": lambda p: READ[".csv"](p),
}


@pytest.mark.parametrize("suffix", READ)
def test_what_is_written_is_read_back(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"a.b{suffix}"
    assert export(FRAME.lazy(), out) == 2
    found = READ[suffix](out)
    if found["t"].dtype == pl.String:
        found = found.with_columns(pl.col("t").replace("", None).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z"))
    assert found.cast({"t": TIME}).equals(FRAME, null_equal=True)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("name", ["a.xlsx", "a", "parquet"])
def test_an_unknown_suffix_is_refused(name: str, tmp_path: Path) -> None:
    text = rf"cannot export to '.*{name}': expected a name that ends in .parquet, .csv, .jsonl, .ndjson, .arrow"
    with pytest.raises(DefinitionError, match=text):
        export(FRAME.lazy(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_when_it_fails_what_was_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    export(FRAME.lazy(), out)
    before = out.read_bytes()
    with pytest.raises(pl.exceptions.ComputeError, match="nested"):
        export(pl.LazyFrame({"a": [[1]]}), out)
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
