"""A relation as a file of the kind that its name says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from operators.operator import DefinitionError

_WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".csv": pl.DataFrame.write_csv,
    ".jsonl": pl.DataFrame.write_ndjson,
    ".ndjson": pl.DataFrame.write_ndjson,
    ".arrow": pl.DataFrame.write_ipc,
}


def export(frame: pl.LazyFrame, out: Path) -> int:
    """Write a relation to a file in the format that its suffix says; returns how many rows.

    There is the whole new file or, when something fails, what was there before. Raises `DefinitionError` for a suffix
    of no known format.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise DefinitionError(f"cannot export to {str(out)!r}: expected a name that ends in {', '.join(_WRITERS)}")
    rows = frame.collect()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.name}.{os.getpid()}.new")
    try:
        write(rows, draft)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return len(rows)
