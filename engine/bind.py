"""From sources and their settings to partitions: files and topics, decoded and validated."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from engine.decode import Decoder, Shape
from engine.files import File
from engine.graph import EXTRA, Graph, Source
from engine.merge import Partition
from engine.past import needed
from engine.plan import lags
from engine.policy import duration, parse
from engine.settings import Settings, SettingsError, SourceSettings
from operators.operator import DefinitionError, microseconds


class UnreachableError(RuntimeError):
    """No broker can be asked; the text says what was tried, what happened and the cure."""


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


def _bound(source: Source, settings: Settings) -> SourceSettings:
    """The settings of a source. Raises `SettingsError` when it is bound to nothing."""
    if source.name not in settings.sources:
        raise SettingsError(
            f"source {source.name!r} is bound to nothing; add to freshet.toml: [sources.{source.name}] "
            f'path = "FILE" or topic = "TOPIC", or on the command line: --bind {source.name}=FILE or '
            f"--bind {source.name}=kafka://HOST:PORT/TOPIC"
        )
    return settings.sources[source.name]


def files(source: Source, settings: Settings) -> list[Path]:
    """The files that a source is bound to; none when it is bound to topics. Raises `SettingsError`."""
    found: list[Path] = []
    for given in _bound(source, settings).paths:
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
    """Raises `SettingsError` when a source is bound to nothing that can be read, or something else is bound.

    Brokers are asked whether topics are there: `UnreachableError` when none answers.
    """
    if unknown := [n for n in settings.sources if n not in graph.sources]:
        raise SettingsError(
            f"settings bind {unknown[0]!r}, which is no source of pipeline {graph.name!r}; "
            f"its sources: {', '.join(graph.sources)}"
        )
    sinks = [*graph.sinks, *EXTRA]
    if unknown := [n for n in settings.sinks if n not in sinks]:
        raise SettingsError(
            f"settings say where {unknown[0]!r} goes, which is no sink of pipeline {graph.name!r}; "
            f"its sinks: {', '.join(sinks)}"
        )
    for name in settings.sinks:
        for relation in graph.sinks[name].relations if name in graph.sinks else ():
            if not graph.views[relation].key:
                raise SettingsError(
                    f"sink {name!r} goes to a topic, but the rows of view {relation!r} have no key; "
                    "keep the key of its source among its columns, or let it go to a file"
                )
    for source in graph.sources.values():
        files(source, settings)
    _check_topics(settings)


def _check_topics(settings: Settings) -> None:
    wanted = {t: f"source {name!r}" for name, one in settings.sources.items() for t in one.topics if t[0] != "^"}
    wanted |= {one.topic: f"sink {name!r}" for name, one in settings.sinks.items()}
    wanted |= {settings.transactions: "transactions"} if settings.transactions else {}
    if wanted:
        from engine.brokers import BrokerError, missing  # the client is slow to import

        try:
            absent = missing(settings.kafka, list(wanted))
        except BrokerError as error:
            raise UnreachableError(str(error)) from None
        for topic in absent:
            raise SettingsError(
                f"{wanted[topic]}: there is no topic {topic!r}, or it may not be used; mend the name, or make it, "
                "with the partitions it is to have (and compacted for a view)"
            )


def set_policies(graph: Graph, settings: Settings) -> None:
    """Give views and models the refresh policies of the settings. Raises `DefinitionError`."""
    for name, text in settings.refresh.items():
        graph.refresh(name, parse(text, f"refresh of {name!r}"))
    for model in graph.models.values():
        if model.audit is not None:
            try:
                needed(graph, model.questions, roots=True)
            except DefinitionError as error:
                raise DefinitionError(f"model {model.name!r}: audit: {error}") from None


def check_lags(graph: Graph, settings: Settings) -> None:
    """Raises `SettingsError` when a target lag is less than an epoch, `DefinitionError` when one cannot be kept."""
    epoch = microseconds(settings.epoch, "epoch")
    for view, lag in lags(graph).items():
        if lag < epoch:
            raise SettingsError(
                f"view {view!r}: its target_lag is {duration(lag)}, but what it contains is saved only every "
                f"{settings.epoch} (epoch); expected a target_lag of {settings.epoch} or more, or a shorter epoch"
            )


def check_alone(graph: Graph, settings: Settings, addresses: bool) -> None:
    """Raises `SettingsError` when several processes are to run what one alone can answer. addresses: of several."""
    if graph.lookups and (settings.processes > 1 or addresses):
        raise SettingsError(
            f"{', '.join(graph.lookups)}: one process keeps what is looked up and answers, but several are to run; "
            "expected processes to be 1 and no addresses, or views and models without lookup="
        )


class Inputs:
    """The partitions of all sources, opened. parts: by source; those of topics may become more.

    feeds: what is known of those that were read before, by "source/number". again: they are read again from there, as
    far as they are still there. Raises `SettingsError`, `LinesError`, `TopicError`, `BrokerError`.
    """

    def __init__(
        self,
        graph: Graph,
        settings: Settings,
        follow: bool = False,
        feeds: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> None:
        self._sources = graph.sources
        self._topics: Any = None
        known = feeds or {}
        self.parts: list[tuple[Source, list[Partition]]] = [(source, []) for source in graph.sources.values()]
        wanted = []
        for source, parts in self.parts:
            bound = _bound(source, settings)
            for i, path in enumerate(files(source, settings)):
                state = known.get(f"{source.name}/{i}")
                parts.append(File(path, _decoder(source, bound), follow, state))
            if bound.topics:
                mine = [known[n] for i in range(len(known)) if (n := f"{source.name}/{i}") in known]
                wanted.append(
                    (source.name, bound.topics, bound.start, _decoder(source, bound), mine, _json(bound, settings))
                )
        if wanted:
            from engine.topics import Topics, Wanted  # the client is slow to import

            group = f"freshet-{graph.name}"
            self._topics = Topics(settings.kafka, [Wanted(*w) for w in wanted], follow, group, again)
            for source, parts in self.parts:
                parts += self._topics.parts.get(source.name, [])

    def appeared(self) -> list[tuple[Source, int, Partition]]:
        """The partitions that are new since this was last called, each with its number within its source."""
        found = [] if self._topics is None else self._topics.appeared()
        return [(self._sources[name], number, partition) for name, number, partition in found]

    @staticmethod
    def of_topics(begins: Mapping[str, Any]) -> dict[str, Any]:
        """Of where partitions begin what is said of topics: what is to be read may depend on when it was begun."""
        return {n: one for n, one in begins.items() if isinstance(one["identity"], dict) and "topic" in one["identity"]}

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Tell where topics need not be read again, for whoever wants to know."""
        if self._topics is not None:
            self._topics.commit({p: at for p, at in positions.items() if not isinstance(p, File)})

    @property
    def silent(self) -> float:
        """Seconds since a broker last answered."""
        return 0.0 if self._topics is None else monotonic() - self._topics.heard

    def close(self) -> None:
        """End the thread that reads topics."""
        if self._topics is not None:
            self._topics.close()

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _json(bound: SourceSettings, settings: Settings) -> Callable[[bytes], bytes] | None:
    """What makes JSON of the records of a topic; None when they are."""
    if bound.encoding == "json":
        return None
    try:
        from engine.avro import Avro
    except ImportError:
        raise SettingsError("records in Avro need fastavro: pip install 'freshet[avro]'") from None
    return Avro(settings.registry).json


def _decoder(source: Source, bound: SourceSettings) -> Decoder:
    return Decoder(shape_of(source), bound.format, strict_columns=bound.strict_columns)
