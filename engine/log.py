"""The change log of a relation: every change it ever had, in a folder that any tool can read.

A log is appended to and never changed, so what a relation was is a question to it: what was known at some time, or
after so many changes. It is a Delta table; polars, duckdb, pandas and Spark read it as it stands. Beside the columns of
the relation it has

| column    |                                                                                |
| --------- | ------------------------------------------------------------------------------ |
| `_at`     | event time; null for rows that were there from the start                       |
| `_known`  | when the change became known                                                   |
| `_pos`    | where the row came from; `(_at, _pos)` identifies a live row                   |
| `_seq`    | the number of the change in the order of knowledge                             |
| `_weight` | 1 inserts the row, -1 takes it back                                            |
| `_row`    | the number of the row in the log, from 0; what was taken back is numbered anew |

Rows are written by a thread of their own, so that nobody waits for the disk. What the state of a run remembers of a log
is what it is sure of: the *length* up to which the log is durable (how many rows were ever appended by then), and the
rows after that. A run that goes back to a state cuts the log back to that length, and writes those rows, and what
follows, again. Compaction moves rows but keeps their numbers; erasure takes rows out and leaves their numbers unused.
So neither can undo the other.
"""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from engine.large import make_durable
from operators.delta import AT, BEGINNING, INT, NULL, POS, TIME, Delta, Ints, Schema, concat, to_series
from operators.operator import known as check_known

if TYPE_CHECKING:
    from deltalake import DeltaTable

KNOWN, SEQ, WEIGHT, ROW = "_known", "_seq", "_weight", "_row"
LOG = "_delta_log"

TEND = 100
"""After so many commits small files are joined, and what no reader can need any more is removed."""

OWN: Schema = {AT: TIME, KNOWN: TIME, POS: INT, SEQ: INT, WEIGHT: INT, ROW: INT}
"""The columns that a log has beside those of its relation."""
_SETTINGS = {
    "delta.dataSkippingStatsColumns": f"{SEQ},{ROW}",  # no values of the relation outside the data files
    "delta.deletedFileRetentionDuration": "interval 1 hours",  # so long a reader can read what it has opened
}
_FILE_BYTES = 8 << 20
_BLOCK = 4_000
"""So many rows are written without waiting for the state to be saved, once those before are."""
_REST = 12_000
"""So many rows at most are saved with the state; if more are not durable yet, saving waits for them."""
_SLICE = 1 << 20
"""So many rows are erased from at a time."""
_APP, _ERASED = "freshet", "freshet.erased"
_CURE = "put it back from a backup, or start again without state and outputs"


class LogError(RuntimeError):
    """A change log that is not what the state says it should be; the text names it and the cure."""


class Saved(NamedTuple):
    """What a state remembers of a log: how many rows are durable, and those after them, with when each was known."""

    length: int = 0
    rest: tuple[Delta, Ints] | None = None


class ChangeLog:
    """The log in a folder, open for appending; made when it is not there.

    length, rest: what `save` gave, or `flush`, 0 when no state was saved yet. What was appended after that is taken
    back. None: the log must be new or empty. writer: the one thread that writes (default: one of its own). One process
    at a time.

    Raises `LogError` when it is not, or when it is missing, damaged, shorter, or has other columns.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        length: int | None = None,
        rest: tuple[Delta, Ints] | None = None,
        writer: Executor | None = None,
    ) -> None:
        self.folder, self.schema = folder, schema
        self._writer = writer or ThreadPoolExecutor(1, "change log")
        self._pending: list[tuple[Delta, Ints]] = []
        self._writing: deque[tuple[Future[None], list[tuple[Delta, Ints]]]] = deque()
        self._length = self._handed = self._flushed = length or 0
        self._table = _open(folder, {**schema, **OWN}, self._length)
        self._durable = max(self._table.version() - 2, -1)
        self._sync()
        self._tended = max(_versions(folder, ".checkpoint.parquet"), default=0)
        there = _length(self._table)
        if there and length is None:
            raise LogError(
                f"the change log {str(folder)!r} holds {there} rows, but there is no state that wrote them; "
                "move it away, or point --state to the state that belongs to it"
            )
        if there > self._length:
            self._delete(f"{ROW} >= {self._length}")
        if rest is not None:
            self.append(*rest)
            self.flush()

    def append(self, delta: Delta, known: Ints) -> None:
        """Add the rows of a delta, in its order. known: when each became known, microseconds UTC.

        They are durable after `flush`; what `save` gives has those that are not.
        """
        if not len(delta):
            return
        self._pending.append((delta, known))
        self._length += len(delta)
        if self._length - self._handed >= _BLOCK:
            self._settle()
            if not self._writing:
                self._write()

    def save(self) -> Saved:
        """What the state is to remember; what was appended is on its way to the disk when this returns."""
        self._settle()
        if self._length - self._flushed > _REST:
            self.flush()
        rest = [one for _, rows in self._writing for one in rows] + self._pending
        self._write()
        return Saved(self._flushed, _together(rest) if rest else None)

    def flush(self) -> int:
        """Make all that was appended durable; returns the length of the log."""
        self._write()
        for future, _ in self._writing:
            future.result()
        self._settle()
        return self._length

    def close(self) -> None:
        """Let nothing be written any more; what was not flushed is lost."""
        self._writer.shutdown(cancel_futures=True)

    def read(self) -> pl.LazyFrame:
        """All rows, in the order of knowledge; rows of one `_seq` in the order they were appended."""
        self.flush()
        return pl.scan_delta(self._table).sort(SEQ, ROW)

    def _write(self) -> None:
        """Hand what was appended to the thread that writes."""
        if self._pending:
            rows, self._pending = self._pending, []
            self._writing.append((self._writer.submit(self._commit, rows, self._length), rows))
            self._handed = self._length

    def _settle(self) -> None:
        """Let go of what has been written. Raises what kept it from being written."""
        while self._writing and self._writing[0][0].done():
            self._writing[0][0].result()
            self._flushed += sum(len(delta) for delta, _ in self._writing.popleft()[1])

    def _commit(self, rows: list[tuple[Delta, Ints]], length: int) -> None:
        """Write rows, in one commit after which the log has that length, and make it durable."""
        import deltalake

        delta, known = _together(rows)
        own = {
            AT: np.where(delta.at == BEGINNING, NULL, delta.at),
            KNOWN: known,
            POS: delta.pos,
            SEQ: delta.seq,
            WEIGHT: delta.weight,
            ROW: np.arange(length - len(delta), length),
        }
        frame = delta.frame(self.schema).with_columns(to_series(n, own[n], t) for n, t in OWN.items())
        deltalake.write_deltalake(self._table, frame, mode="append", **self._how(length))
        self._sync()
        if self._table.version() - self._tended >= TEND:
            self._tend(length)

    def erase(self, rows: pl.Expr) -> int:
        """Remove the rows for which a condition on columns of the relation is true; returns how many there were.

        The files that held them are gone when this returns, and with them what readers have open. They do not come
        back when the log is cut back. A run that goes back to an earlier state, however, appends again what it reads
        again: erase at the source first, and count it as done when the next state is saved.
        """
        check_known(rows.meta.root_names(), {**self.schema, AT: TIME, POS: INT}, "erase")
        import deltalake

        self.flush()
        last = pl.scan_delta(self._table).select(pl.col(SEQ).max()).collect().item()
        erased = 0
        for first in range(0, self._length, _SLICE):
            within = f"{ROW} >= {first} AND {ROW} < {first + _SLICE}"
            old = pl.scan_delta(self._table).filter(pl.sql_expr(within)).collect()
            if gone := len(old) - len(kept := old.remove(rows)):
                how = self._how(self._length, last)
                deltalake.write_deltalake(self._table, kept, mode="overwrite", predicate=within, **how)
                self._sync()
            erased += gone
        self._table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
        self._sync()
        return erased

    def _delete(self, condition: str) -> None:
        self._table.delete(condition, **self._how(self._length))
        self._sync()

    def _tend(self, length: int) -> None:
        """Keep the cost of a commit bounded: few files, and a log not older than the checkpoint before the last."""
        self._table.optimize.compact(target_size=_FILE_BYTES, **self._how(length))
        self._sync()
        self._table.vacuum(dry_run=False, full=True)
        self._sync()
        self._table.create_checkpoint()
        log = self.folder / LOG
        for path in (*log.glob("*.checkpoint.parquet"), log / "_last_checkpoint", log):
            make_durable(path)
        before, self._tended = self._tended, self._table.version()
        for path in sorted(p for p in log.glob("0*") if int(p.name[:20]) < before):
            path.unlink()

    @staticmethod
    def _how(length: int, erased: int | None = None) -> dict[str, Any]:
        """What goes with each commit: the length of the log after it, up to which `seq` rows may be erased from it,
        and no upkeep but ours."""
        import deltalake

        told = [deltalake.Transaction(_APP, length)]
        told += [] if erased is None else [deltalake.Transaction(_ERASED, erased)]
        return {
            "writer_properties": deltalake.WriterProperties(compression="ZSTD"),
            "commit_properties": deltalake.CommitProperties(app_transactions=told),
            "post_commithook_properties": deltalake.PostCommitHookProperties(False, False),
        }

    def _sync(self) -> None:
        """Make durable what was committed since the last time: data files, commits and folders."""
        version = self._table.version()
        if version == self._durable:
            return
        for v in range(self._durable + 1, version + 1):
            for path, _ in _files(self.folder, v):
                make_durable(path)
            make_durable(_commit(self.folder, v))
        make_durable(self.folder)
        make_durable(self.folder / LOG)
        self._durable = version


def _together(rows: list[tuple[Delta, Ints]]) -> tuple[Delta, Ints]:
    return concat([delta for delta, _ in rows]), np.concatenate([known for _, known in rows])


class About(NamedTuple):
    """A log as it is listed. first, last: when its first and its last change became known."""

    name: str
    rows: int
    version: int
    bytes: int
    first: datetime | None
    last: datetime | None


def scan(folder: Path) -> pl.LazyFrame:
    """What is flushed of the log in a folder, as `ChangeLog.read` gives it. Raises `LogError`."""
    return pl.scan_delta(_load(folder)).sort(SEQ, ROW)


def logs(state: Path) -> list[About]:
    """The logs below a state folder, by name. Raises `LogError`."""
    found = []
    for folder in sorted(p.parent for p in (state / "log").glob(f"*/{LOG}")):
        table = _load(folder)
        rows, first, last = (
            pl.scan_delta(table)
            .select(pl.len(), pl.col(KNOWN).min().alias("first"), pl.col(KNOWN).max().alias("last"))
            .collect()
            .row(0)
        )
        size = sum(pl.DataFrame(table.get_add_actions())["size_bytes"])
        found.append(About(folder.name, rows, table.version(), size, first, last))
    return found


def erase(folder: Path, schema: Schema, rows: pl.Expr) -> int:
    """Erase rows from the log in a folder that no run has open; see `ChangeLog.erase`. Raises `LogError`."""
    return ChangeLog(folder, schema, _length(_load(folder))).erase(rows)


def erased(folder: Path) -> int:
    """Up to which `seq` rows may have been erased from a log; -1 when none were. Raises `LogError`."""
    found = _load(folder).transaction_version(_ERASED)
    return -1 if found is None else found


def as_of(log: pl.LazyFrame, known: datetime | int | None = None, seq: int | None = None) -> pl.LazyFrame:
    """The relation as it was then, in the order of `_at` and `_pos`, from rows of its log.

    known: with what was known at that time (inclusive; an int is microseconds UTC). seq: with the changes up to that
    one. Each row says in `_known` and `_seq` when it came. A condition on columns of the relation may be applied to
    the log or to the result, with the same outcome.
    """
    names = log.collect_schema().names()
    if known is not None:
        log = log.filter(pl.col(KNOWN) <= pl.lit(known).cast(TIME))
    if seq is not None:
        log = log.filter(pl.col(SEQ) <= seq)
    net = log.group_by(n for n in names if n not in (KNOWN, SEQ, WEIGHT, ROW)).agg(
        pl.col(WEIGHT).sum(), pl.col(KNOWN, SEQ).max()
    )
    return net.filter(pl.col(WEIGHT) > 0).select(n for n in names if n not in (WEIGHT, ROW)).sort(AT, POS)


def _open(folder: Path, schema: Schema, length: int) -> DeltaTable:
    """The table, made if need be, checked to be whole and to have had so many rows."""
    import deltalake

    _forget_torn(folder, length)
    if not _versions(folder, ".json"):
        if length:
            raise LogError(f"the change log {str(folder)!r} is missing; {_CURE}")
        deltalake.write_deltalake(folder, pl.DataFrame(schema=schema), configuration=_SETTINGS)
        for parent in (folder.parent, folder.parent.parent):
            make_durable(parent)
    table = _load(folder)
    found = pl.scan_delta(table).collect_schema()
    if list(found.items()) != list(schema.items()):
        raise LogError(
            f"the change log {str(folder)!r} has columns {dict(found)}, the relation has {schema}; "
            "go back to the earlier definition, or start again without state and outputs"
        )
    for name, size in pl.DataFrame(table.get_add_actions()).select("path", "size_bytes").iter_rows():
        if not (path := folder / name).exists() or path.stat().st_size != size:
            raise LogError(f"the change log {str(folder)!r} is damaged: its file {name!r} is not whole; {_CURE}")
    if (there := _length(table)) < length:
        raise LogError(
            f"the change log {str(folder)!r} has had {there} rows, but the state has already appended {length}; {_CURE}"
        )
    return table


def _forget_torn(folder: Path, length: int) -> None:
    """Remove what a power cut kept from the disk: checkpoints, and last commits, none that `flush` has told of."""
    versions = whole = _versions(folder, ".json")
    while whole and not _is_whole(folder, whole[-1]):
        whole = whole[:-1]
    if torn := versions[len(whole) :]:
        if length and (not whole or _length(_load(folder, whole[-1])) < length):
            raise LogError(f"the change log {str(folder)!r} is damaged in commit {torn[0]}; {_CURE}")
        for v in reversed(torn):
            _commit(folder, v).unlink()
    for path in (folder / LOG).glob("*.checkpoint.parquet"):
        if path.read_bytes()[-4:] != b"PAR1":
            path.unlink()
            (folder / LOG / "_last_checkpoint").unlink(missing_ok=True)


def _is_whole(folder: Path, version: int) -> bool:
    try:
        return all(p.stat().st_size == size for p, size in _files(folder, version))
    except (OSError, ValueError):
        return False


def _files(folder: Path, version: int) -> list[tuple[Path, int]]:
    """The data files that a commit added, with their sizes. Raises `ValueError` when it is torn."""
    actions = map(json.loads, _commit(folder, version).read_bytes().split(b"\n"))
    return [(folder / a["add"]["path"], a["add"]["size"]) for a in actions if "add" in a]


def _commit(folder: Path, version: int) -> Path:
    return folder / LOG / f"{version:020}.json"


def _versions(folder: Path, suffix: str) -> list[int]:
    return sorted(int(p.name[:20]) for p in (folder / LOG).glob(f"0*{suffix}"))


def _load(folder: Path, version: int | None = None) -> DeltaTable:
    import deltalake

    try:
        return deltalake.DeltaTable(folder, version)
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise LogError(f"the change log {str(folder)!r} cannot be read ({why}); {_CURE}") from None


def _length(table: DeltaTable) -> int:
    return table.transaction_version(_APP) or 0
