"""What the steps save: sealed, and in a file of its own when it is large.

bytewax writes a state into SQLite and reads it from there at some ten milliseconds a megabyte, while the whole stream
stands still. So a state above `SMALL` bytes is written to a file, made durable, and named to bytewax with the tag of
what is in it. Epochs are completed one after another: when a state is saved, the one saved before it can still be what
a crash goes back to, and no earlier one. Files older than that are removed.

What bytewax keeps of a state is sealed bytes, which say after which batch it was saved, and what else was saved then.
So a store from which something is missing, or in which two moments are mixed, is known before anything starts.
"""

from __future__ import annotations

import hmac
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.disk import writing
from engine.seal import Seal, SealError

SMALL = 1 << 18
"""The most bytes that are left to bytewax."""

KEPT = 3
"""How many files of a step are kept: the one before the last, and one to spare."""

_MAGIC = b"freshet state 3\n"
_PIECE = 1 << 22


class LargeStateError(SealError):
    """A file of saved state that is missing or damaged; the text names it and the cure."""


class Row(msgspec.Struct):
    """What bytewax keeps of a state.

    batch: the last that the step had taken in. beside: by name what else was saved then, and after which batch. number:
    of the file. tag: of what is in the file; without one the state is `small`.
    """

    batch: int
    beside: dict[str, int]
    number: int
    tag: bytes | None = None
    small: bytes = b""


def row(seal: Seal, kept: bytes, name: str) -> Row:
    """The row that bytewax keeps under that name; nothing is unpickled. Raises `SealError`."""
    return msgspec.msgpack.decode(seal.open(kept, name, f"the saved state of {name!r}"), type=Row)


class Large:
    """The saved states of one step, under its name and key; large ones in files `folder`/`step`.`key`.N.state.

    batch: the last that the step has taken in. saved: by name the file of the newest.
    """

    def __init__(self, folder: Path, step: str, seal: Seal, key: str = "all") -> None:
        self.folder, self.step, self.seal, self.key = folder, step, seal, key
        self.number = self.batch = 0
        self.saved: dict[str, Path] = {}

    @property
    def name(self) -> str:
        """Of what is saved."""
        return f"{self.step}.{self.key}"

    def save(self, state: Any, beside: Mapping[str, int] | None = None) -> bytes:
        """What bytewax keeps of a state. beside: see `Row`."""
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(state, protocol=5, buffer_callback=buffers.append)
        parts = [head, *(b.raw() for b in buffers)]
        self.number += 1
        self._path(self.number - KEPT).unlink(missing_ok=True)
        self.saved.pop(self.name, None)
        kept = Row(self.batch, dict(beside or {}), self.number)
        if sum(map(len, parts)) <= SMALL:
            kept.small = pickle.dumps(state, protocol=5)
        else:
            self.saved[self.name] = self._path(self.number)
            if not self.folder.exists():
                self.folder.mkdir(exist_ok=True, mode=0o700)
                make_durable(self.folder.parent)
            kept.tag = _write(self._path(self.number), parts, self.seal)
        return self.seal.sign(msgspec.msgpack.encode(kept), self.name)

    def load(self, kept: bytes) -> Any:
        """The state of which bytewax kept that. Raises `SealError`."""
        name, value = self.seal.read(
            kept, lambda found: found.rpartition(".")[0] == self.step, f"the saved state of {self.step!r}"
        )
        found = msgspec.msgpack.decode(value, type=Row)
        self.key, self.number, self.batch = name.rpartition(".")[2], found.number, found.batch
        if found.tag is None:
            return pickle.loads(found.small)
        self.saved[self.name] = self._path(found.number)
        return _read(self._path(found.number), found.tag, self.seal)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}.{number}.state"


def remove_others(folder: Path, kept: Sequence[Large]) -> None:
    """Remove all files but those of the states that were last saved: what a crash would have gone back to, or left."""
    named = {path for large in kept for path in large.saved.values()}
    for path in folder.glob("*"):
        if path not in named:
            path.unlink()


def _write(path: Path, parts: Sequence[Any], seal: Seal) -> bytes:
    """Write the parts behind their lengths, so that after a crash the file is whole or not there; returns its tag.

    The tag is made while the file is written.
    """
    with writing(path):
        return _written(path, parts, seal)


def _written(path: Path, parts: Sequence[Any], seal: Seal) -> bytes:
    draft, code = path.with_suffix(".new"), seal.mac(path.name)
    lengths = np.array([len(parts), *map(len, parts)], np.int64)
    with ThreadPoolExecutor(1) as beside, draft.open("wb", buffering=0) as file:
        for piece in _pieces([_MAGIC, lengths.tobytes(), *parts]):
            beside.submit(code.update, piece)
            left = memoryview(piece).cast("B")
            while len(left):
                left = left[file.write(left) :]
        os.fsync(file.fileno())
    draft.rename(path)
    make_durable(path.parent)
    return bytes(code.digest())


def _pieces(parts: Sequence[Any]) -> Iterator[Any]:
    """The parts, small ones put together: a state can have thousands."""
    few: list[Any] = []
    size = 0
    for part in parts:
        if len(part) >= _PIECE // 64:
            yield from [b"".join(few)] if few else []
            few, size = [], 0
            yield part
            continue
        few.append(part)
        size += len(part)
        if size >= _PIECE:
            yield b"".join(few)
            few, size = [], 0
    if few:
        yield b"".join(few)


def make_durable(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read(path: Path, tag: bytes, seal: Seal) -> Any:
    """What is in a file, unpickled when its tag is right; that is made while the file is read."""
    cure = "restore the state directory from a backup, or start again without state and outputs"
    code = seal.mac(path.name)
    try:
        with ThreadPoolExecutor(1) as beside, path.open("rb", buffering=0) as file:

            def exactly(n: int) -> bytearray:
                found = bytearray(n)
                whole = memoryview(found)
                for at in range(0, n, _PIECE):
                    left = piece = whole[at : at + _PIECE]
                    while len(left):
                        if not (got := file.readinto(left)):
                            raise EOFError
                        left = left[got:]
                    beside.submit(code.update, piece)
                return found

            if exactly(len(_MAGIC)) != _MAGIC:
                raise LargeStateError(f"the saved state {str(path)!r} is not a file of Freshet's; {cure}")
            many = int(np.frombuffer(first := exactly(8), np.int64)[0])
            size = path.stat().st_size - len(_MAGIC) - len(first)
            if not 1 <= many <= size // 8:
                raise EOFError
            lengths = np.frombuffer(exactly(8 * many), np.int64).tolist()
            if min(lengths) < 0 or size != 8 * many + sum(lengths):
                raise EOFError
            head, *buffers = [exactly(n) for n in lengths]
    except FileNotFoundError:
        raise LargeStateError(f"the saved state {str(path)!r} is missing; {cure}") from None
    except (EOFError, ValueError, OverflowError, MemoryError):
        raise LargeStateError(f"the saved state {str(path)!r} is damaged: it ends early; {cure}") from None
    if not hmac.compare_digest(tag, code.digest()):
        raise LargeStateError(f"the saved state {str(path)!r} is damaged, or was changed: its seal is broken; {cure}")
    return pickle.loads(head, buffers=buffers)
