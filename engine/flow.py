"""The whole system on one screen: how a batch travels from the sources to the outputs, as a bytewax dataflow.

    read (merge of all partitions, in order of knowledge)
      -> for each stage: split by key -> shards (state of the operators) -> gather
         (before the stage in which a deferred view begins, its changes are held until it is due; behind the one in
         which it ends, what comes out is settled)
      -> each model in turn
      -> change logs, if there are any
      -> lookups, if there are any
      -> publish

What travels is a `Batch`; every step adds its deltas to it. Steps that keep state are keyed steps of bytewax, so that
their state is saved at the end of each epoch together with the positions read and the lengths of the outputs. After a
crash all three are restored to the same moment.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import Event
from time import perf_counter, time
from typing import Any

import bytewax.operators as bw
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig
from bytewax.run import cli_main
from threadpoolctl import threadpool_limits

from engine.auditing import Audits
from engine.batch import Batch
from engine.bind import Inputs
from engine.changes import Changes
from engine.clock import Clock
from engine.cost import Costs
from engine.disk import DiskError
from engine.expect import Judged
from engine.forget import Found, Request, find
from engine.freshness import Bounds, OnTime, contained_after_each
from engine.graph import LATE, Graph, Hold, Model
from engine.hold import Holding, Settling
from engine.intake import Intake
from engine.large import Large
from engine.lookup import Lookups
from engine.merge import Merge, merged
from engine.model import KeptModel, kept
from engine.plan import Settle, Stage, Tick, bounds, roots, steps, watermark
from engine.publish import Publish
from engine.recovery import State
from engine.settings import Settings
from engine.store import READ
from engine.timing import Checkpoints, Timing
from engine.view import Gather, Part, Shard, Split
from operators.delta import concat
from operators.operator import microseconds

_CAP = 200
"""Batches in flight at most: bytewax has no back-pressure between workers within an epoch."""


class Published:
    """The number of the last batch that was published, for the process that reads. path: where processes share it."""

    def __init__(self, path: Path | None = None) -> None:
        self._number = 0
        self._file = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def set(self, number: int) -> None:
        self._number = number
        if self._file is not None:
            os.pwrite(self._file, number.to_bytes(8, "little"), 0)

    def get(self) -> int:
        if self._file is not None:
            self._number = int.from_bytes(os.pread(self._file, 8, 0), "little")
        return self._number


class FlowError(RuntimeError):
    """A step failed; the text names the step, the cause is the error."""


@dataclass
class Run:
    """A run of a pipeline: what it was asked to do, and the live stages, for whoever wants to look.

    state: its state directory, held by this process. steps: those that keep state, but for shards, under their names.
    forget: it forgets what is asked for, and reads nothing new. found: what that was; share: how much of the present
    source has been searched.
    now: the present in microseconds; None in a run to the end, whose clock is the data. process: which of those at
    these addresses this one is; alone without addresses.
    """

    graph: Graph
    settings: Settings
    out: Path
    state: State
    follow: bool = False
    until: int | None = None
    now: Callable[[], int | None] = lambda: None
    process: int = 0
    addresses: Sequence[str] = ()
    published: Published = field(default_factory=Published)
    stop: Event = field(default_factory=Event)
    inputs: Inputs | None = None
    merge: Merge | None = None
    steps: list[str] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    costs: dict[str, Costs] = field(default_factory=dict)
    models: dict[str, KeptModel] = field(default_factory=dict)
    publish: Publish | None = None
    lookups: Lookups | None = None
    changes: Changes | None = None
    audits: Audits | None = None
    states: list[Large] = field(default_factory=list)
    timing: Timing = field(default_factory=lambda: Timing(perf_counter))
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    forget: Request | None = None
    found: Found | None = None
    share: float = 0.0
    failed: tuple[str, BaseException] | None = None
    on_time: OnTime = field(default_factory=OnTime)

    def guard(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its first error is noted, because bytewax may lose it."""

        def guarded(*args: Any) -> Any:
            try:
                return call(*args)
            except StopIteration:
                raise
            except BaseException as error:
                if self.failed is None:
                    self.failed = (step, error)
                raise

        return guarded

    @cached_property
    def declared(self) -> dict[str, Bounds]:
        """By view and model what is declared of its lag."""
        return bounds(self.graph, microseconds(self.settings.epoch, "epoch"))

    @cached_property
    def made_of(self) -> dict[str, frozenset[str]]:
        """By relation the sources that it is made of."""
        return roots(self.graph)

    @cached_property
    def passed(self) -> dict[str, frozenset[str]]:
        """By relation the deferred views that its changes pass, and the sources whose changes pass none."""
        return roots(self.graph, held=True)

    def measured(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, guarded, and what it takes is noted."""
        return self.timing.measured(step, self.guard(step, call))

    def saving(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which saves the state of a step: guarded, and what it takes is noted."""
        return self.timing.saving(step, self.guard(f"{step}: save", call))

    @property
    def live(self) -> bool:
        """Whether it follows, and has once caught up with all there was."""
        return self.merge is not None and self.merge.live

    @property
    def silent(self) -> float:
        """Seconds for which brokers have not answered."""
        reading = 0.0 if self.inputs is None else self.inputs.silent
        topics = None if self.publish is None else self.publish.topics
        return max(reading, 0.0 if topics is None else topics.silent)

    @property
    def unanswered(self) -> int:
        """Messages to topics that were sent and are not acknowledged."""
        topics = None if self.publish is None else self.publish.topics
        return 0 if topics is None else topics.unanswered

    @property
    def in_flight(self) -> int:
        """Batches that were read and are not published; 0 in a process that does not read."""
        return 0 if self.merge is None else max(0, self.merge.number - self.published.get())

    @property
    def large(self) -> Path:
        """Where large states lie."""
        return self.state.folder / "large"

    def saves(self, step: str, key: str = "all") -> Large:
        """What saves the states of a step, and loads them."""
        self.states.append(made := Large(self.large, step, self.state.seal, key))
        return made

    def run(self) -> None:
        """Run until the sources end or `stop` is set. Raises `FlowError`."""
        gc.freeze()  # what the imports left need not be looked through again and again
        try:
            cli_main(  # type: ignore[no-untyped-call]
                build(self),
                workers_per_process=self.settings.workers,
                process_id=self.process if self.addresses else None,
                addresses=list(self.addresses) or None,
                epoch_interval=timedelta(microseconds=microseconds(self.settings.epoch, "epoch")),
                recovery_config=RecoveryConfig(self.state.recovery, None),  # type: ignore[no-untyped-call]
            )
            self.state.saved()
            self.checkpoints.end(self.timing.saved)
            if self.inputs is not None and self.merge is not None:
                self.inputs.commit(self.merge.saved())
        except BaseException as error:  # bytewax also raises panics, which are no Exceptions
            if self.failed is None and self.addresses:
                raise FlowError("another process failed, or is gone") from error
            step, cause = self.failed or ("the dataflow", error)
            if "SqliteFailure" in str(cause) and ("DiskFull" in str(cause) or "SystemIoFailure" in str(cause)):
                told = "no space is left, or the disk fails"
                step, cause = "saving", DiskError(f"{str(self.state.recovery)!r} cannot be written: {told}; make room")
            raise FlowError(f"{step}: {type(cause).__name__}: {cause}") from cause
        finally:
            gc.unfreeze()
            if self.inputs is not None:
                self.inputs.close()
            if self.publish is not None:
                self.publish.close()
            for model in self.models.values():
                model.close()
            for other in (self.changes, self.audits):
                if other is not None:
                    other.close()


class _Reader(StatefulSourcePartition[Batch, Any]):
    """The merge as the one partition of the one input."""

    def __init__(self, run: Run, kept: Any) -> None:
        self._run, self._large, self._saved = run, run.saves(READ), kept is not None
        state = None if kept is None else self._large.load(kept)
        self._intake = Intake(run.state.folder / "intake", state["number"] if state else 0)
        known = dict(self._intake.begun or {})
        known |= {n: one for note in self._intake.again for n, one in note.joined.items()}
        known |= state["feeds"] if state else {}
        run.inputs = self._inputs = Inputs(run.graph, run.settings, run.follow, known)
        run.merge = self._merge = merged(
            run.graph, self._inputs.parts, run.settings.batch_rows, run.until, state, run.follow, self._intake
        )
        self._intake.begin(self._inputs.of_topics(self._merge.beginnings()))
        self._next = run.measured("reading", self._merge.next)
        self._save = run.saving("reading", self._saved_state)
        self._find: Callable[[Request], list[Batch]] = run.guard("searching for what is to be forgotten", self._forget)
        run.published.set(self._merge.number)

    def next_batch(self) -> Iterable[Batch]:
        if self._run.stop.is_set() or self._run.found is not None:
            raise StopIteration
        if self._run.forget is not None and not self._merge.again:
            return self._find(self._run.forget)
        if self._merge.number - self._run.published.get() >= _CAP:
            return []
        for source, number, partition in self._inputs.appeared():
            self._merge.add(source, number, partition)
        batch = self._next(self._run.now())
        if batch is not None:
            return [batch]
        if self._run.follow or not self._merge.ended:
            return []
        raise StopIteration

    def _forget(self, asked: Request) -> list[Batch]:
        """The batch that forgets; none when there is nothing to forget."""
        run = self._run

        def tell(share: float) -> None:
            run.share = share

        found = find(asked, run.graph, run.settings, self._merge, _late(run), tell)
        run.found = found
        if not len(found.positions):
            return []
        return [self._merge.forget(found.changes, found.taken, found.positions)]

    def snapshot(self) -> Any:
        if self._saved:
            self._run.state.saved()  # the epoch before is complete
        self._run.checkpoints.begin(time(), self._run.timing.saved)
        return self._save()

    def _saved_state(self) -> Any:
        self._saved, self._large.batch = True, self._merge.number
        self._intake.save(self._merge.number)
        self._inputs.commit(self._merge.saved())
        beside = self._run.steps if self._merge.number else ()
        return self._large.save(self._merge.state(), dict.fromkeys(beside, self._merge.number))


def _late(run: Run) -> list[bytes]:
    """The lines of late changes, wherever they went."""
    if LATE in run.settings.sinks:
        from engine.outbox import held  # the client is slow to import

        return held(run.settings.kafka, run.settings.sinks[LATE].topic)
    path = run.out / f"{LATE}.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


class _Input(FixedPartitionedSource[Batch, Any]):
    def __init__(self, run: Run) -> None:
        self._build = run.guard("opening the sources", lambda state: _Reader(run, state))

    def list_parts(self) -> list[str]:
        return ["all"]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> _Reader:
        reader: _Reader = self._build(resume_state)
        return reader


class _Keep(bw.StatefulBatchLogic[Any, Any, Any]):
    """A step with state: `work` takes an item to a list of items, `save` gives what is kept of the state in `large`.

    end: called when no item comes any more.
    """

    def __init__(
        self,
        work: Callable[[Any], list[Any]],
        save: Callable[[], bytes],
        large: Large,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._work, self._save, self._large, self._end = work, save, large, end

    def on_batch(self, values: list[Any]) -> tuple[Iterable[Any], bool]:
        self._large.batch = max(value.number for value in values)
        return [out for value in values for out in self._work(value)], False

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        self._end()
        return [], False

    def snapshot(self) -> Any:
        return self._save()


class _Nothing(DynamicSink[Any]):
    """Batches end here: `publish` has written them."""

    class _Part(StatelessSinkPartition[Any]):
        def write_batch(self, items: list[Any]) -> None:
            return None

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Part:
        return self._Part()


def build(run: Run) -> Dataflow:
    """The dataflow of a run."""
    stream: Any = bw.input(READ, Dataflow(run.graph.name), _Input(run))
    run.costs = {view: Costs(h.refresh.mode or "incremental") for view, h in run.graph.holds.items()}
    for step in steps(run.graph):
        if isinstance(step, Stage):
            stream = _stage(run, step, stream)
        elif isinstance(step, Tick):
            stream = _tick(run, step, stream)
        elif isinstance(step, Hold):
            stream = _hold(run, step, stream)
        else:
            stream = _settle(run, step, stream)
    if run.graph.expected:
        judged = Judged(run.graph, run.graph.expected.keys() - run.graph.of_models)
        stream = bw.map("expected", stream, run.measured("what is expected", judged))
    stream = bw.map("one", stream, lambda batch: ("all", batch))
    for model in run.graph.models.values():
        stream = _keyed(run, f"model-{model.name}", stream, _model(run, model))
    if run.graph.logged:
        stream = _keyed(run, "log", stream, _log(run))
    if run.graph.lookups:
        stream = _keyed(run, "lookup", stream, _lookup(run))
    stream = _keyed(run, "publish", stream, _publish(run))
    bw.output("end", stream, _Nothing())
    flow: Dataflow = stream.flow()
    return flow


def _keyed(run: Run, name: str, stream: Any, build_one: Callable[[Any], _Keep]) -> Any:
    """A keyed step of one key: it takes in every batch."""
    run.steps.append(f"{name}.all")
    return bw.stateful_batch(name, stream, build_one)


def _tick(run: Run, step: Tick, stream: Any) -> Any:
    return _kept(run, step.clock, step.clock.replace(".", "-"), lambda: Clock(run.graph, step.clock), stream)


def _hold(run: Run, hold: Hold, stream: Any) -> Any:
    what = f"view {hold.view}: waiting"
    return _kept(run, what, f"hold-{hold.view}", lambda: Holding(run.graph, hold, run.costs[hold.view]), stream)


def _settle(run: Run, step: Settle, stream: Any) -> Any:
    hold = step.hold
    what = f"view {hold.view}: settling"
    return _kept(
        run, what, f"settle-{hold.view}", lambda: Settling(run.graph, hold, run.costs[hold.view], perf_counter), stream
    )


def _kept(run: Run, what: str, name: str, make: Callable[[], Clock | Holding | Settling], stream: Any) -> Any:
    """A step that takes whole batches, one after another, and keeps state."""

    def build_one(kept: Any) -> _Keep:
        mine, large = make(), run.saves(name)
        if kept is not None:
            mine.restore(large.load(kept))
        return _Keep(
            run.measured(what, lambda batch: [mine(batch)]),
            run.saving(what, lambda: large.save(mine.snapshot())),
            large,
        )

    keyed = bw.map(f"{name}-one", stream, lambda batch: ("all", batch))
    done = _keyed(run, name, keyed, run.guard(what, build_one))
    return bw.map(f"{name}-done", done, lambda keyed: keyed[1])


def _stage(run: Run, stage: Stage, stream: Any) -> Any:
    if not stage.split:
        return bw.map(stage.name, stream, run.guard(_named(stage), Shard(run.graph, stage, run.timing).whole))

    split = run.measured(f"{stage.name}: split", Split(stage, run.settings.shards))

    def shard(kept: Any) -> _Keep:
        mine, large = Shard(run.graph, stage, run.timing), run.saves(f"{stage.name}-shard")
        if kept is not None:
            mine.restore(large.load(kept))
        run.shards.append(mine)

        def work(part: Part) -> list[Part]:
            large.key = str(part.shard)
            return [mine(part)]

        return _Keep(
            run.guard(_named(stage), work),
            run.saving(stage.name, lambda: large.save(mine.snapshot())),
            large,
        )

    def gather(kept: Any) -> _Keep:
        large = run.saves(f"{stage.name}-gather")
        mine = Gather(stage, *([] if kept is None else large.load(kept)))

        def save() -> bytes:
            return large.save(mine.snapshot(), {f"{stage.name}-shard.{s}": n for s, n in mine.shards.items()})

        return _Keep(run.measured(f"{stage.name}: gather", mine), run.saving(f"{stage.name}: gather", save), large)

    parts = bw.flat_map(f"{stage.name}-split", stream, lambda batch: [(str(s), part) for s, part in split(batch)])
    done = bw.stateful_batch(f"{stage.name}-shard", parts, run.guard(_named(stage), shard))
    rekeyed = bw.map(f"{stage.name}-rekey", done, lambda keyed: ("all", keyed[1]))
    whole_again = _keyed(run, f"{stage.name}-gather", rekeyed, run.guard(f"{stage.name}: gather", gather))
    return bw.map(f"{stage.name}-done", whole_again, lambda keyed: keyed[1])


def _named(stage: Stage) -> str:
    """How errors name a stage: by its steps."""
    return ", ".join(f"{n.name} ({n.operator.name})" for n in stage.nodes)


def _model(run: Run, model: Model) -> Callable[[Any], _Keep]:

    def build_one(found: Any) -> _Keep:
        threadpool_limits(1)  # a learner that is asked waits for no thread of its own while a fit takes the processors
        large = run.saves(f"model-{model.name}")
        saved = None if found is None else large.load(found)
        mine = kept(model.spec, model.refresh, run.state.folder, saved, run.state.seal)
        run.models[model.name] = mine
        judged = Judged(run.graph, [model.predictions.name, model.training.name])
        passed = run.passed[model.questions]

        def work(batch: Batch) -> list[Batch]:
            made = mine.apply(
                batch.deltas[model.questions],
                batch.deltas[model.answers],
                watermark(run.graph, model, batch.watermark),
                batch.known,
                batch.first,
                batch.live,
                refreshes=batch.forgotten is None,
                reached=contained_after_each(model.spec.sources, passed, batch.watermarks, batch.contained),
            )
            predictions, training = made
            if batch.forgotten is not None:
                lost = mine.forget(batch.forgotten, batch.last, int(batch.known[-1]))
                training = concat([training, lost])
            batch.deltas[model.predictions.name], batch.deltas[model.training.name] = predictions, training
            return [judged(batch)]

        return _Keep(
            run.measured(f"model {model.name}", work),
            run.saving(f"model {model.name}", lambda: large.save(mine.snapshot())),
            large,
            run.guard(f"model {model.name}: end", mine.end),
        )

    return run.guard(f"model {model.name}", build_one)


def _log(run: Run) -> Callable[[Any], _Keep]:
    def build_one(kept: Any) -> _Keep:
        large = run.saves("log")
        run.changes = mine = Changes(run.graph, run.state.folder, None if kept is None else large.load(kept))

        def work(batch: Batch) -> list[Batch]:
            mine(batch)
            return [batch]

        return _Keep(
            run.measured("change logs", work),
            run.saving("change logs", lambda: large.save(mine.snapshot())),
            large,
            run.guard("change logs: end", mine.flush),
        )

    return run.guard("change logs", build_one)


def _lookup(run: Run) -> Callable[[Any], _Keep]:
    def build_one(kept: Any) -> _Keep:
        large = run.saves("lookup")
        run.lookups = mine = Lookups(run.graph, None if kept is None else large.load(kept))

        def work(batch: Batch) -> list[Batch]:
            mine(batch)
            return [batch]

        return _Keep(run.guard("lookup", work), run.guard("lookup: save", lambda: large.save(mine.snapshot())), large)

    return run.guard("lookup", build_one)


def topics(run: Run) -> Callable[[Any], Any] | None:
    """What makes the outputs that are topics, from what was saved of them; None when there are none."""
    if not run.settings.sinks:
        return None
    from engine.outbox import Outbox  # the client is slow to import

    names = {name: one.topic for name, one in run.settings.sinks.items()}
    folder, pipeline, transactions = run.state.folder, run.graph.name, run.settings.transactions
    return lambda state: Outbox(run.settings.kafka, names, folder, state, pipeline, transactions, run.stop)


def _publish(run: Run) -> Callable[[Any], _Keep]:
    def build_one(kept: Any) -> _Keep:
        large = run.saves("publish")
        state = None if kept is None else large.load(kept)
        run.publish = mine = Publish(run.graph, run.out, state, run.settings.sinks, topics(run))

        def work(batch: Batch) -> list[Batch]:
            mine(batch)
            run.published.set(batch.number)
            return []

        return _Keep(run.measured("publish", work), run.saving("publish", lambda: large.save(mine.snapshot())), large)

    return run.guard("publish", build_one)
