"""Files of records as partitions to be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.decode import Decoded, Decoder
from engine.lines import Lines
from engine.merge import Bad, Chunk
from engine.scan import Records
from operators.delta import Ints

_BLOCK = 1 << 20
"""Bytes read at once: some thousand records."""


class File:
    """A file of records as a partition. state: where it was, when it was read before."""

    def __init__(self, path: Path, decoder: Decoder, follow: bool, state: Any) -> None:
        self.name = path.name
        self._decoder = decoder
        self._lines = Lines(path, 0 if state is None else state["position"], follow=follow)
        if state is not None:
            self._lines.check(state["identity"])

    @property
    def position(self) -> int:
        return self._lines.position

    @property
    def ended(self) -> bool:
        return self._lines.ended

    @property
    def done(self) -> int:
        return self._lines.total - self._lines.size_left()

    @property
    def total(self) -> int:
        return self._lines.total

    def left(self, position: int) -> dict[str, int]:
        """The `bytes` of the file behind a position; of a compressed file those that were not read yet."""
        return {"bytes": self._lines.size_left(position)}

    def read(self) -> Chunk | None:
        records, offsets = self._lines.read(_BLOCK)
        return chunk(self._decoder.decode(records), offsets, records) if len(records) else None

    def identity(self) -> Any:
        return self._lines.fingerprint


def chunk(got: Decoded, offsets: Ints, records: Records) -> Chunk:
    """What was decoded of records at these offsets."""
    bad = [Bad(int(offsets[i]), reason, records[i]) for i, reason in got.bad]
    if got.skipped:
        quiet = np.ones(len(records), np.bool_)
        quiet[got.index] = False
        quiet[[i for i, _ in got.bad]] = False
        bad = sorted([*bad, *(Bad(int(offsets[i]), "", b"") for i in np.flatnonzero(quiet))], key=lambda b: b.offset)
    return Chunk(got.columns, got.deleted, got.at, offsets[got.index], records.take(got.index), bad)
