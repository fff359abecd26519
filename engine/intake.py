"""What each batch was made of, noted before anything follows from it.

What arrives while a run is live is handed out as it comes, views fall due by the clock, partitions appear: a run that
goes on after a crash would cut its batches otherwise, and what it had already published to a place that cannot be cut
back would not be what follows now. So a note of each batch goes to a file, and a resumed run makes the same batches
again, up to the last one that was noted.

A note is written before its batch is published. It survives the death of the process; after a power failure the last
ones may be missing, and then what follows anew may differ from what was published.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from engine.disk import writing
from engine.large import make_durable
from engine.seal import SealError
from operators.delta import BEGINNING


class IntakeError(SealError):
    """Notes that do not belong to the saved state; the text says what is missing, and the cure."""


class Note(msgspec.Struct, omit_defaults=True):
    """What a batch was made of.

    number: of the batch. to: the position that each partition reached with it, where it moved. joined: what the
    partitions are, and where they begin, that are read from this batch on. clock: of a batch without changes, the time
    at which views were due; idle: because nothing was there to read. present: as in `Schedule`, before this batch.
    live: as in `Batch`.
    """

    number: int
    to: dict[str, int] = {}
    joined: dict[str, Any] = {}
    clock: int | None = None
    idle: bool = False
    present: int = BEGINNING
    live: bool = False


class Intake:
    """The notes in a folder, in files that begin where the state was saved.

    saved: the last batch that the saved state contains. begun: where the partitions began that were there at first.
    again: what was noted behind the saved state, to be made again; taken out by whoever does. Raises `IntakeError`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> intake = Intake(folder, 0)
    >>> intake.note(Note(1, {"orders/0": 7}))
    >>> intake.note(Note(2, {"orders/0": 9}))
    >>> [n.to for n in Intake(folder, saved=1).again]
    [{'orders/0': 9}]
    """

    def __init__(self, folder: Path, saved: int) -> None:
        self._folder = folder
        self._saved = saved
        self._file: BinaryIO | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.again: deque[Note] = deque()
        self.begun: dict[str, Any] | None = None
        if (begun := folder / _BEGUN).exists():
            self.begun = _decoded(msgspec.json.decode, begun, begun.read_bytes())
        last = saved
        for path in self._files():
            *lines, cut_off = path.read_bytes().split(b"\n")
            if cut_off:
                os.truncate(path, path.stat().st_size - len(cut_off))
            for line in lines:
                note = _decoded(_NOTE.decode, path, line)
                if note.number > saved:
                    if note.number != last + 1:
                        raise IntakeError(
                            f"{str(path)!r} goes on with batch {note.number} where {last + 1} was expected, so the "
                            "state is not the one that was saved last; restore the whole directory from one backup, or "
                            "start again without the state and the outputs"
                        )
                    self.again.append(note)
                    last = note.number

    def begin(self, partitions: Mapping[str, Any]) -> None:
        """Note where partitions begin before the first batch: a run cut off before one begins there again."""
        if self.begun is None:
            self.begun = dict(partitions)
            path = self._folder / _BEGUN
            draft = path.with_suffix(".new")
            with writing(path):
                draft.write_bytes(msgspec.json.encode(self.begun))
                make_durable(draft)
                draft.rename(path)
                make_durable(self._folder)

    def note(self, note: Note) -> None:
        """Note a batch."""
        if self._file is None:
            self._file = (self._folder / f"{note.number:015d}.jsonl").open("ab")
        self._file.write(_ENCODE(note) + b"\n")
        with writing(self._file.name):
            self._file.flush()

    def save(self, number: int) -> None:
        """The state is being saved with this batch as its last; the one saved before is safe now."""
        if number == self._saved:
            return
        paths = self._files()
        for path, following in pairwise(paths):
            if int(following.stem) <= self._saved + 1:
                path.unlink()
        self._saved = number
        self.close()

    def close(self) -> None:
        """The next note begins a file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.jsonl"))


def _decoded(decode: Callable[[bytes], Any], path: Path, given: bytes) -> Any:
    try:
        return decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise IntakeError(
            f"{str(path)!r} is damaged; restore the whole state directory from one backup, or start again without the "
            "state and the outputs"
        ) from None


_BEGUN = "begun.json"
_NOTE = msgspec.json.Decoder(Note)
_ENCODE = msgspec.json.Encoder().encode
