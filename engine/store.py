"""The store in which bytewax keeps states: checked before bytewax reads it, for it unpickles what it finds.

Each row must be the pickle of bytes and nothing else, and these bytes must be sealed under the name of their step. The
rows must be of one moment, and none may be missing: bytewax would start a step without its row from nothing.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bytewax.recovery import init_db_dir

from engine.large import Row, row
from engine.seal import CURE, MAGIC, Seal, SealError

READ = "read"
"""The step that reads the sources."""


class StoreError(SealError):
    """A store that is missing or damaged; the text names it and the cure."""


def make(folder: Path) -> str:
    """Make an empty store in a folder, which is emptied; returns its schema."""
    folder.mkdir(exist_ok=True, mode=0o700)
    for left in folder.iterdir():
        left.unlink()
    init_db_dir(folder, 1)  # type: ignore[no-untyped-call]
    with _open(folder) as dbs:
        return _schema(dbs)


def check(folder: Path, schema: str, seal: Seal, pipeline: str, saved: bool) -> bool:
    """Ready a store to be resumed from; returns whether it holds states.

    schema: what `make` gave. saved: whether it must. Removes what epochs left that never completed, once all else is
    found to be in order. Raises `StoreError` or `SealError`.
    """
    with _open(folder) as dbs:
        if _schema(dbs) != schema:
            raise StoreError(f"the saved state {str(folder)!r} has tables that are not bytewax's; {CURE}")
        resume = _resumed_at(dbs)
        if rows := _rows(dbs, resume, seal, pipeline):
            _whole(rows, folder)
        elif saved:
            raise StoreError(f"the saved state {str(folder)!r} is empty, but state was saved; {CURE}")
        _forget_torn_epochs(dbs, resume)
    return bool(rows)


def compact(folder: Path) -> None:
    """Rewrite the store, so that nothing of what was removed from it is left in its files.

    Raises `StoreError` while another process reads it.
    """
    for path in folder.glob("part-*.sqlite3"):
        db = sqlite3.connect(path)
        db.execute("VACUUM")
        busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        db.close()
        if busy:
            raise StoreError(f"the saved state {str(path)!r} is being read, which keeps what was removed; end that")


@contextmanager
def _open(folder: Path) -> Iterator[Sequence[sqlite3.Connection]]:
    """The files of the store, each checked to be whole."""
    paths, dbs, at = sorted(folder.glob("part-*.sqlite3")), list[sqlite3.Connection](), folder
    if not paths:
        raise StoreError(f"the saved state {str(folder)!r} is missing; {CURE}")
    try:
        for at in paths:
            dbs.append(sqlite3.connect(at))
            (verdict,) = dbs[-1].execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        yield dbs
    except sqlite3.DatabaseError as error:
        if str(error) in ("disk I/O error", "database or disk is full", "unable to open database file"):
            raise StoreError(f"the saved state {str(at)!r} cannot be written: {error}; make room") from None
        raise StoreError(f"the saved state {str(at)!r} is damaged ({error}); {CURE}") from None
    finally:
        for db in dbs:
            db.close()


def _schema(dbs: Sequence[sqlite3.Connection]) -> str:
    """Of all tables, views and triggers: one that is not bytewax's could show it other rows than are checked."""
    found = [
        db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall() for db in dbs
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _resumed_at(dbs: Sequence[sqlite3.Connection]) -> int:
    """The epoch at which bytewax will resume."""
    executions = [r for db in dbs for r in db.execute("SELECT ex_num, worker_count, resume_epoch FROM exs")]
    number, workers, epoch = max(executions, default=(0, 1, 1))
    fronts: dict[int, int] = {}
    for db in dbs:
        fronts.update(
            db.execute("SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?", (number,)).fetchall()
        )
    return int(min(max(epoch, fronts.get(w, 0)) for w in range(workers)))


def _forget_torn_epochs(dbs: Sequence[sqlite3.Connection], resume: int) -> None:
    """Remove what epochs left that never completed.

    bytewax keeps such snapshots; were the next run to complete that epoch without touching a key, the run after would
    load the stale snapshot and count its rows twice.
    """
    for db in dbs:
        with db:
            db.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (resume,))


def _rows(dbs: Sequence[sqlite3.Connection], resume: int, seal: Seal, pipeline: str) -> dict[str, Row]:
    """The newest row of each step and key before an epoch, by name; after its seal and that of all others there."""
    found: dict[str, Row] = {}
    for db in dbs:
        every = "SELECT step_id, state_key, ser_change FROM snaps WHERE snap_epoch < ? ORDER BY snap_epoch"
        for step, key, value in db.execute(every, (resume,)):
            name = f"{step.removeprefix(f'{pipeline}.')}.{key}"
            found[name] = row(seal, _bytes(value, name), name)
    return found


def _bytes(value: bytes | None, name: str) -> bytes:
    """The bytes of which a value is the pickle, by what their pickle would be: nothing is unpickled."""
    found = b"" if value is None else value[value.find(MAGIC) : -2]
    if value is None or value[1:2] not in (b"\4", b"\5") or pickle.dumps(found, protocol=value[1]) != value:
        raise SealError(f"the saved state of {name!r} is damaged, or something else wrote it: it has no seal; {CURE}")
    return found


def _whole(rows: dict[str, Row], folder: Path) -> None:
    """Raises `StoreError` unless the rows are of one moment and none is missing."""
    for name, mine in {f"{READ}.all": Row(-1, {}, 0), **rows}.items():
        if name not in rows:
            raise StoreError(f"the saved state of {name!r} is missing in {str(folder)!r}; {CURE}")
        for other, batch in mine.beside.items():
            if other not in rows:
                raise StoreError(f"the saved state of {other!r} is missing in {str(folder)!r}; {CURE}")
            if rows[other].batch != batch:
                raise StoreError(
                    f"the saved state of {other!r} in {str(folder)!r} is of another moment than that of {name!r} "
                    f"(batch {rows[other].batch:,}, not {batch:,}); {CURE}"
                )
