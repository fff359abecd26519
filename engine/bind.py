"""From a source and its settings to partitions: lines of files, decoded and validated."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.decode import Decoder, Shape
from engine.graph import Graph, Source
from engine.lines import Lines
from engine.merge import Chunk, Partition
from engine.plan import lags
from engine.policy import duration, parse
from engine.settings import Settings, SettingsError, SourceSettings
from operators.operator import microseconds


def shape_of(source: Source) -> Shape:
    """What the decoder must know of a source."""
    return Shape(
        name=source.name,
        schema=source.columns,
        key=source.key,
        at=source.at,
        epoch=source.epoch,
        append_only=source.append_only,
        required=source.required,
        earliest=source.earliest,
        latest=source.latest,
    )


_BLOCK = 1 << 20
"""Bytes read at once: some thousand records."""


class FilePartition:
    """A file of records as a partition."""

    def __init__(self, source: Source, settings: SourceSettings, path: Path, follow: bool, state: Any) -> None:
        self.name = path.name
        self._decoder = Decoder(shape_of(source), settings.format, strict_columns=settings.strict_columns)
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

    def read(self) -> Chunk | None:
        records, offsets = self._lines.read(_BLOCK)
        if not len(records):
            return None
        got = self._decoder.decode(records)
        bad = [(int(offsets[i]), reason, records[i]) for i, reason in got.bad]
        if got.skipped:
            quiet = np.ones(len(records), np.bool_)
            quiet[got.index] = False
            quiet[[i for i, _ in got.bad]] = False
            bad = sorted([*bad, *((int(offsets[i]), "", b"") for i in np.flatnonzero(quiet))], key=lambda b: b[0])
        return Chunk(got.columns, got.deleted, got.at, offsets[got.index], records.take(got.index), bad)

    def identity(self) -> Any:
        return self._lines.fingerprint


def files(source: Source, settings: Settings) -> list[Path]:
    """The files that a source is bound to. Raises `SettingsError` when it is bound to none."""
    bound = settings.sources.get(source.name)
    if bound is None:
        raise SettingsError(
            f'source {source.name!r} is bound to nothing; add to freshet.toml: [sources.{source.name}] path = "FILE", '
            f"or on the command line: --bind {source.name}=FILE"
        )
    found: list[Path] = []
    for given in [bound.path] if isinstance(bound.path, str) else bound.path:
        some = sorted(glob.glob(given)) if "*" in given else [given]
        if not some:
            raise SettingsError(f"source {source.name!r}: no file matches {given!r}")
        found += map(Path, some)
    for path in found:
        if not path.is_file():
            kind = "is a directory" if path.is_dir() else "does not exist"
            raise SettingsError(f"source {source.name!r}: the file {str(path)!r} {kind}; expected a file of changes")
    return found


def check_bindings(graph: Graph, settings: Settings) -> None:
    """Raises `SettingsError` when a source is bound to nothing that can be read, or something else is bound."""
    if unknown := [n for n in settings.sources if n not in graph.sources]:
        raise SettingsError(
            f"settings bind {unknown[0]!r}, which is no source of pipeline {graph.name!r}; "
            f"its sources: {', '.join(graph.sources)}"
        )
    for source in graph.sources.values():
        files(source, settings)


def set_policies(graph: Graph, settings: Settings) -> None:
    """Give views and models the refresh policies of the settings. Raises `DefinitionError`."""
    for name, text in settings.refresh.items():
        graph.refresh(name, parse(text, f"refresh of {name!r}"))


def check_lags(graph: Graph, settings: Settings) -> None:
    """Raises `SettingsError` when a target lag is less than an epoch, `DefinitionError` when one cannot be kept."""
    epoch = microseconds(settings.epoch, "epoch")
    for view, lag in lags(graph).items():
        if lag < epoch:
            raise SettingsError(
                f"view {view!r}: its target_lag is {duration(lag)}, but what it contains is saved only every "
                f"{settings.epoch} (epoch); expected a target_lag of {settings.epoch} or more, or a shorter epoch"
            )


def partitions(
    graph: Graph, settings: Settings, follow: bool, state: Any = None
) -> list[tuple[Source, Sequence[Partition]]]:
    """For each source its partitions, at the positions in `state` if given. Raises `SettingsError`."""
    feeds = (state or {}).get("feeds", {})
    return [
        (
            source,
            [
                FilePartition(source, settings.sources[source.name], path, follow, feeds.get(f"{source.name}/{i}"))
                for i, path in enumerate(files(source, settings))
            ],
        )
        for source in graph.sources.values()
    ]
