"""The state directory: whose it is, who uses it, and that it can be resumed.

bytewax saves and restores the state, but it starts from zero without a word when the flow has another name, resumes
half of it when a step was renamed, lets two runs share one store, and can load what an epoch left that never completed.
So before each start: one run at a time (a lock), only for the same definition, never on outputs that are not its own,
and without torn epochs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bytewax.recovery import init_db_dir

FORMAT = 4
FORGET = "forget.json"
"""What is being forgotten: left behind by a crash."""


class StateError(RuntimeError):
    """A state directory that cannot be used for this run; the text says why and what to do."""


class State:
    """A state directory held by this process until `release`."""

    def __init__(self, folder: Path, lock: IO[str], fresh: bool) -> None:
        self.folder = folder
        self.recovery = folder / "recovery"
        self.fresh = fresh
        self._lock = lock

    @classmethod
    def shared(cls, folder: Path) -> State:
        """The directory that another process of the same run holds."""
        return cls(folder, (folder / "lock").open("a"), fresh=False)

    def forgotten(self) -> None:
        """What was to be forgotten is."""
        (self.folder / FORGET).unlink(missing_ok=True)

    def release(self) -> None:
        """Let another run have the directory."""
        self._lock.close()


def claim(
    folder: Path,
    pipeline: str,
    definition: Mapping[str, str],
    shards: int,
    out: Path,
    outputs: Sequence[str],
    forget: Mapping[str, str] | None = None,
) -> State:
    """Take the state directory for this pipeline, made if it is not there, ready to start or resume.

    forget: what is to be forgotten in this run; nothing else can be done with the state until `State.forgotten`.

    Raises `StateError` when another run holds it, when something else is still to be forgotten, when it belongs to
    another pipeline, definition or output folder, when it is damaged, or when outputs are there that it did not write.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(
            f"another run uses the state in {str(folder)!r}; wait for it, stop it, or choose another --state"
        ) from None
    try:
        _forget_first(folder / FORGET, forget)
        state = _claimed(folder, lock, pipeline, definition, shards, out, outputs)
        if forget is not None:
            write_durably(folder / FORGET, dict(forget))
        return state
    except BaseException:
        lock.close()
        raise


def _forget_first(pending: Path, forget: Mapping[str, str] | None) -> None:
    if pending.exists() and (left := json.loads(pending.read_text())) != forget:
        what = shlex.join(f"{column}={value}" for column, value in left.items())
        raise StateError(
            f"forgetting {what} was cut off, and half of it may be done; finish it before anything else: "
            f"freshet forget PIPELINE {what}"
        )


def _claimed(
    folder: Path,
    lock: IO[str],
    pipeline: str,
    definition: Mapping[str, str],
    shards: int,
    out: Path,
    outputs: Sequence[str],
) -> State:
    about = folder / "definition.json"
    mine = {
        "format": FORMAT,
        "pipeline": pipeline,
        "shards": shards,
        "out": str(out.resolve()),
        "definition": dict(definition),
    }
    state = State(folder, lock, fresh=not about.exists())
    if state.fresh:
        if state.recovery.exists():
            raise StateError(
                f"{str(folder)!r} holds saved state but no definition.json, so it cannot be told what it belongs to; "
                "restore that file, or remove the directory to start again"
            )
        for name in outputs:
            path = out / f"{name}.jsonl"
            if path.exists() and path.stat().st_size:
                raise StateError(
                    f"the output {str(path)!r} is there already, but {str(folder)!r} holds no state that wrote it; "
                    "move it away, choose another --out, or point --state to the state that belongs to it"
                )
        made = state.recovery.with_name("recovery.new")
        made.mkdir(exist_ok=True, mode=0o700)
        for left in made.iterdir():
            left.unlink()
        init_db_dir(made, 1)  # type: ignore[no-untyped-call]
        write_durably(about, mine)
        made.rename(state.recovery)
        return state
    try:
        theirs = json.loads(about.read_text())
    except (ValueError, UnicodeDecodeError):
        raise StateError(f"{str(about)!r} is damaged; restore it, or remove {str(folder)!r} to start again") from None
    _same(theirs, mine, folder)
    if not state.recovery.exists() and (new := state.recovery.with_name("recovery.new")).exists():
        new.rename(state.recovery)
    forget_torn_epochs(state.recovery)
    return state


def _same(theirs: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    cure = f"choose another --state and --out, or remove {str(folder)!r} and the outputs to start again"
    for what in ("format", "pipeline", "shards", "out"):
        if theirs.get(what) != mine[what]:
            raise StateError(
                f"the state in {str(folder)!r} was made with {what} {theirs.get(what)!r}, this run has {mine[what]!r}; "
                + (f"go on with {theirs.get(what)!r}, or " if what in ("shards", "out") else "")
                + cure
            )
    old, new = theirs["definition"], mine["definition"]
    changes = [f"{n} changed" for n in old if n in new and old[n] != new[n]]
    changes += [f"{n} is gone" for n in old if n not in new] + [f"{n} is new" for n in new if n not in old]
    if changes:
        raise StateError(
            f"the pipeline is not the one that the state in {str(folder)!r} belongs to: {'; '.join(changes[:5])}"
            + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")
            + f"; go back to the earlier definition, {cure}"
        )


def write_durably(path: Path, value: Any) -> None:
    """Write JSON to a file so that after a crash there is the old file or the whole new one."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def compact(recovery: Path) -> None:
    """Rewrite the store, so that nothing of what was removed from it is left in its files.

    Raises `StateError` while another process reads it.
    """
    for path in recovery.glob("part-*.sqlite3"):
        db = sqlite3.connect(path)
        db.execute("VACUUM")
        busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        db.close()
        if busy:
            raise StateError(f"the saved state {str(path)!r} is being read, which keeps what was removed; end that")


def forget_torn_epochs(recovery: Path) -> None:
    """Remove what epochs left that never completed.

    bytewax keeps such snapshots; were the next run to complete that epoch without touching a key, the run after would
    load the stale snapshot and count its rows twice. Raises `StateError` when the store is missing or damaged.
    """
    parts = sorted(recovery.glob("part-*.sqlite3"))
    if not parts:
        raise StateError(
            f"the saved state {str(recovery)!r} is missing; restore it from a backup, "
            "or start again without state and outputs"
        )
    for path in parts:
        try:
            db = sqlite3.connect(path)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            db.close()
        except sqlite3.DatabaseError as error:
            if str(error) in ("disk I/O error", "database or disk is full", "unable to open database file"):
                raise StateError(f"the saved state {str(path)!r} cannot be written: {error}; make room") from None
            raise StateError(
                f"the saved state {str(path)!r} is damaged ({error}); restore it from a backup, "
                "or start again without state and outputs"
            ) from None
    dbs = [sqlite3.connect(p) for p in parts]
    executions = [r for db in dbs for r in db.execute("SELECT ex_num, worker_count, resume_epoch FROM exs")]
    number, workers, epoch = max(executions, default=(0, 1, 1))
    fronts: dict[int, int] = {}
    for db in dbs:
        fronts.update(
            db.execute("SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?", (number,)).fetchall()
        )
    resume = min(max(epoch, fronts.get(w, 0)) for w in range(workers))
    for db in dbs:
        with db:
            db.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (resume,))
        db.close()
