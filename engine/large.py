"""Large states lie in files of their own: bytewax's store keeps only the name of the file.

bytewax writes a state into SQLite and reads it from there at some ten milliseconds a megabyte, while the whole stream
stands still. So a state above `SMALL` bytes is written to a file, made durable, and named to bytewax. Epochs are
completed one after another: when a state is saved, the one saved before it can still be what a crash goes back to, and
no earlier one. Files older than that are removed.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.disk import writing

SMALL = 1 << 18
"""The most bytes that are left to bytewax."""

KEPT = 3
"""How many files of a step are kept: the one before the last, and one to spare."""

_MAGIC = b"freshet state 2\n"


class LargeStateError(RuntimeError):
    """A file of saved state that is missing or damaged; the text names it and the cure."""


class Large:
    """The saved states of one step, in files `folder`/`name`.N.state. saved: by name that of the newest."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.number = folder, name, 0
        self.saved: dict[str, Path] = {}

    def save(self, state: Any) -> Any:
        """What bytewax keeps of a state: the number and name of its file, and without a file its bytes."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(state, protocol=5, buffer_callback=buffers.append)
        parts = [head, *(b.raw() for b in buffers)]
        self.number += 1
        self._path(self.number - KEPT).unlink(missing_ok=True)
        self.saved.pop(self.name, None)
        if sum(map(len, parts)) <= SMALL:
            return self.number, self.name, pickle.dumps(state)
        self.saved[self.name] = self._path(self.number)
        if not self.folder.exists():
            self.folder.mkdir(exist_ok=True, mode=0o700)
            make_durable(self.folder.parent)
        _write(self._path(self.number), parts)
        return self.number, self.name, None

    def load(self, kept: Any) -> Any:
        """The state of which bytewax kept that. Raises `LargeStateError`."""
        self.number, self.name, small = kept
        if small is not None:
            return pickle.loads(small)
        self.saved[self.name] = self._path(self.number)
        return _read(self._path(self.number))

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}.{number}.state"


def remove_others(folder: Path, kept: Sequence[Large]) -> None:
    """Remove all files but those of the states that were last saved: what a crash would have gone back to, or left."""
    named = {path for large in kept for path in large.saved.values()}
    for path in folder.glob("*"):
        if path not in named:
            path.unlink()


def _write(path: Path, parts: Sequence[Any]) -> None:
    """Write the parts behind their lengths and checksums, so that after a crash the file is whole or not there."""
    with writing(path):
        _written(path, parts)


def _written(path: Path, parts: Sequence[Any]) -> None:
    draft = path.with_suffix(".new")
    lengths = np.array([len(parts), *map(len, parts), *map(zlib.crc32, parts)], np.int64)
    with draft.open("wb", buffering=0) as file:
        for part in (_MAGIC, lengths.tobytes(), *parts):
            left = memoryview(part).cast("B")
            while len(left):
                left = left[file.write(left) :]
        os.fsync(file.fileno())
    draft.rename(path)
    make_durable(path.parent)


def make_durable(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read(path: Path) -> Any:
    cure = "restore the state directory from a backup, or start again without state and outputs"
    try:
        with path.open("rb", buffering=0) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise LargeStateError(f"the saved state {str(path)!r} is not a file of Freshet's; {cure}")
            many = int(np.frombuffer(_exactly(file, 8), np.int64)[0])
            if not 1 <= many <= path.stat().st_size:
                raise EOFError
            told = np.frombuffer(_exactly(file, 16 * many), np.int64).tolist()
            lengths, sums = told[:many], told[many:]
            if path.stat().st_size != len(_MAGIC) + 8 * (1 + 2 * many) + sum(lengths):
                raise EOFError
            head, *buffers = parts = [_exactly(file, n) for n in lengths]
    except FileNotFoundError:
        raise LargeStateError(f"the saved state {str(path)!r} is missing; {cure}") from None
    except (EOFError, ValueError, OverflowError, MemoryError):
        raise LargeStateError(f"the saved state {str(path)!r} is damaged: it ends early; {cure}") from None
    if list(map(zlib.crc32, parts)) != sums:
        raise LargeStateError(f"the saved state {str(path)!r} is damaged: its checksum is wrong; {cure}")
    return pickle.loads(head, buffers=buffers)


def _exactly(file: Any, n: int) -> bytearray:
    found = bytearray(n)
    left = memoryview(found)
    while len(left):
        got = file.readinto(left)
        if not got:
            raise EOFError
        left = left[got:]
    return found
