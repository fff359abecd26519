"""Output files that hold each line once, whatever crashes.

Lines are appended. What the state knows of a file is its length when the state was saved (`flush` makes it durable
first); a resumed run cuts the file back to that length and writes the rest again, which is the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from engine.disk import writing


class SinkError(RuntimeError):
    """An output file that is not what the state says it should be; the text names it and the cure."""


def begin(folder: Path, names: Sequence[str]) -> None:
    """Make the folder, and each file that is not there yet, so that an output without lines is an empty file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jsonl").touch()


class Files:
    """The files `folder`/`name`.jsonl, open for appending.

    lengths: what the state says of each file; a file that it does not know begins anew.
    """

    def __init__(self, folder: Path, names: Sequence[str], lengths: Mapping[str, int] | None = None) -> None:
        begin(folder, names)
        self._open: dict[str, BinaryIO] = {}
        for name in names:
            path, length = folder / f"{name}.jsonl", (lengths or {}).get(name, 0)
            there = path.stat().st_size if path.exists() else 0
            if there < length:
                raise SinkError(
                    f"the output {str(path)!r} has {there} bytes, but the state has already written {length} to it; "
                    "put the file back, or start again without the state and the outputs"
                )
            file = path.open("ab")
            file.truncate(length)
            file.seek(length)
            self._open[name] = file

    def write(self, name: str, lines: bytes) -> None:
        """Append whole lines."""
        with writing(self._open[name].name):
            self._open[name].write(lines)

    def flush(self) -> dict[str, int]:
        """Make all that was written durable; returns the length of each file."""
        for file in self._open.values():
            with writing(file.name):
                file.flush()
                os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._open.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            with suppress(OSError):  # what could not be written is written when it is run again
                file.close()
