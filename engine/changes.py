"""The change logs of a pipeline's sources and views: those that are declared with `log=True`.

What is logged of a source are its changes as they were taken in, after it was decided which are late: of a keyed source
its messages, with what is untold. So any view at any moment is a function of these logs (`engine/past.py`).

Logs are written one after another by one thread. When all that the state has is written, it is noted up to which `seq`
the logs are complete, so that who reads several of them while the run goes on sees one moment. A resumed run withdraws
the note before it cuts logs back.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from engine.batch import Batch
from engine.graph import Graph
from engine.log import ChangeLog, Saved

_NOTE = "_complete"  # not the name of a relation


class Changes:
    """Appends the changes of each batch to the logs.

    folder: the state of the pipeline. state: what `snapshot` gave. Raises `LogError`, see `ChangeLog`.
    """

    def __init__(self, graph: Graph, folder: Path, state: tuple[Mapping[str, Saved], int] | None = None) -> None:
        saved, self.seq = ({}, -1) if state is None else state
        self._sources, self._folder = list(graph.sources), folder
        _note(folder, -1)
        self._writer = ThreadPoolExecutor(1, "change logs")
        self._noted: Future[None] | None = None
        self._logs = {
            name: ChangeLog(folder / "log" / name, schema, *saved.get(name, Saved()), writer=self._writer)
            for name, schema in graph.logged.items()
        }

    def __call__(self, batch: Batch) -> None:
        """Take in a batch whose deltas are complete."""
        for name, log in self._logs.items():
            if len(delta := batch.deltas[name]):
                log.append(delta, batch.known[delta.seq - batch.first])
        if any(len(batch.deltas[name]) for name in self._sources):
            self.seq = batch.last
        if batch.forgotten is not None:
            self.flush()  # what is to be erased may lie in the logs only, not in the state

    def flush(self) -> None:
        """Make all that was appended durable, and note that it is there."""
        for log in self._logs.values():
            log.flush()
        self._written().result()

    def close(self) -> None:
        """Let nothing be written any more."""
        self._writer.shutdown(cancel_futures=True)

    def snapshot(self) -> tuple[dict[str, Saved], int]:
        """What the state is to remember."""
        saved = {name: log.save() for name, log in self._logs.items()}
        if self._noted is not None and self._noted.done():
            self._noted.result()
        self._noted = self._written()
        return saved, self.seq

    def _written(self) -> Future[None]:
        """Note, when all before is written, up to where the logs are complete."""
        return self._writer.submit(_note, self._folder, self.seq)


def _note(folder: Path, seq: int) -> None:
    (note := folder / "log" / _NOTE).parent.mkdir(exist_ok=True)
    draft = note.with_suffix(".new")
    draft.write_text(str(seq))
    draft.rename(note)


def complete(folder: Path) -> int:
    """Up to which `seq` the logs in the state of a pipeline are complete; -1 when it is not known, or nothing is."""
    try:
        return int((folder / "log" / _NOTE).read_text())
    except (OSError, ValueError):
        return -1
