"""Fitting a version of a model from its training set, and judging it: what a deferred refresh does, beside the stream.

The version is judged before it serves. Of the questions that were asked of the present version, and of which all is
known (answered, or never to be), the newest are held out; a candidate is fitted on what was known before the first of
them was asked, so no label helps it that a live model could not have had (an embargo as long as labels take). It is
worse when its mean loss on them is above that of what was served to them by more than `MARGIN` and by more than chance
(one-sided, paired, 5 %). A candidate that is not worse is then fitted on all examples, and published when what it says
is finite, and no worse on the `LEAST` newest of them: it has seen these, so only what is broken fails here. The first
version has nothing to compare with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite, sqrt
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import msgspec
import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from engine.due import Kind, loss
from engine.learners import retraction, unlearn
from engine.log import SEQ, scan
from engine.seal import Seal
from engine.spec import ModelSpec, clone, training_schema
from engine.student import Fixed, Online, Reading, labels, table
from engine.training import examples, from_log
from engine.versions import Version, place
from operators.delta import BOOL, Delta, Ints, consolidated

HELD_OUT, SHARE, LEAST = 1000, 5, 20
"""How many questions are held out at most, one in how many of the examples, and at least: with fewer none is."""

MARGIN = 0.05
"""The share of the served loss by which a candidate may be worse: it was fitted without the newest examples."""

CHANCE = 1.645
"""How many standard errors a mean may be off by chance, one-sided, 5 %."""


_JOB = "a job"


@dataclass(frozen=True)
class Job:
    """What is to be fitted.

    version: what is known of it before. parent: the learner of the version that serves. since: the change up to which
    the parent saw the training set. matured: below which `at` all is known of every question.
    """

    spec: ModelSpec
    version: Version
    parent: Any
    since: int
    window: int | None
    matured: int


class _Pupil:
    """A learner that is fitted, bit by bit or all at once."""

    def __init__(self, spec: ModelSpec, model: Any = None) -> None:
        self.spec = spec
        self.schema = {f: spec.questions[f] for f in spec.features}
        self.model = clone(spec, "answers") if model is None else model
        self.online = Online(spec, self.model, ahead=False) if spec.river else None

    def learn(self, rows: Delta, tell: Callable[[int], None]) -> None:
        """Take in examples: a learner of river those, any other nothing but those."""
        label = rows.columns["label"]
        if self.online is None:
            if len(rows):
                self.model.fit(table(rows.columns, self.schema), labels(label, self.spec.answers[self.spec.label]))
            return
        ys = rows.frame({"label": self.spec.answers[self.spec.label]})["label"].to_list()
        for i, (x, y, w) in enumerate(
            zip(self.online.rows(rows.columns, self.schema), ys, rows.weight.tolist(), strict=True)
        ):
            if w > 0:
                self.online.learn(x, y)
            else:
                unlearn(self.online.model, x, y)
            if i % 500 == 0:
                tell(i)

    def fixed(self, alone: bool = False) -> Fixed:
        return Fixed(self.spec, self.online.model if self.online is not None else self.model, alone)


def fit(
    job: Job, changes: Delta, known: Ints, tell: Callable[[float], None] = lambda share: None
) -> tuple[Version, Any]:
    """The version, with its verdict, and the fitted learner (None when it failed).

    changes: of the training set, in order, and when each became known. tell: called with the share done.
    """
    began = time.perf_counter()
    version = msgspec.structs.replace(job.version)
    try:
        model = _fitted(job, version, changes, known, tell)
    except Exception as error:  # whatever a learner raises
        version.verdict, version.why, model = "failed", f"{type(error).__name__}: {error}", None
    version.seconds = time.perf_counter() - began
    return version, model


def _fitted(job: Job, version: Version, changes: Delta, known: Ints, tell: Callable[[float], None]) -> Any:
    spec = job.spec
    rows, when = examples(changes, known)
    if job.window is not None and len(rows):
        inside = rows.at >= int(rows.at.max()) - job.window
        rows, when = rows.take(inside), when[inside]
    if not len(rows):
        raise ValueError("there is no example in the window")
    version.examples, version.first, version.last = len(rows), int(rows.at.min()), int(rows.at.max())
    version.newest = int(when.max())
    start = None
    if version.mode == "incremental":
        new = consolidated(changes.take(changes.seq > job.since))
        if (new.weight < 0).any() and retraction(spec.learner) != "group":
            version.mode, version.told = "full", f"{int((new.weight < 0).sum())} examples were taken back"
        else:
            start, rows, when = deepcopy(job.parent), new, known[np.searchsorted(changes.seq, new.seq)]
    version.fitted = total = len(rows)
    held, before = _split(job, version, rows, when, known[changes.seq <= job.since])
    pupil = _Pupil(spec, start)
    if len(held):
        early = rows.take(before)
        pupil.learn(early, lambda i: tell(i / total))
        _compare(version, spec, pupil.fixed(), held)
        rest = rows.take(~before)
        if spec.river:
            pupil.learn(rest, lambda i: tell((len(early) + i) / total))
        else:
            pupil = _Pupil(spec)
            pupil.learn(rows, lambda i: None)
        if version.verdict == "published":
            _compare(version, spec, pupil.fixed(), rows.take(slice(-LEAST, None)))
    else:
        pupil.learn(rows, lambda i: tell(i / total))
    _finite(spec, pupil, version, rows)
    return pupil.fixed().model


def _split(job: Job, version: Version, rows: Delta, when: Ints, seen: Ints) -> tuple[Delta, Any]:
    """The examples held out, and which of the rows the candidate may see.

    The first held out is asked after all that the parent has seen became known: the parent is to have no advantage.
    """
    everything = np.ones(len(rows), np.bool_)
    nothing = rows.take(slice(0))
    if version.parent is None:
        return nothing, everything
    after = int(seen.max()) if len(seen) else np.iinfo(np.int64).min
    old = np.flatnonzero((rows.at < job.matured) & (rows.at > after) & (rows.weight > 0))
    newest = old[np.argsort(rows.at[old], kind="stable")][-min(HELD_OUT, version.examples // SHARE) :]
    if len(newest) < LEAST:
        return nothing, everything
    before = when <= int(rows.at[newest[0]])
    before[newest] = False
    if not before.any() and version.mode == "full":
        return nothing, everything
    return rows.take(newest), before


def _compared(spec: ModelSpec, candidate: Fixed, held: Delta) -> dict[str, Any]:
    """The losses of the candidate and of what was served, on what was held out."""
    dtype = spec.answers[spec.label]
    kind: Kind = "number" if not spec.classifies else "probability" if dtype == BOOL else "class"
    reading = Reading(spec, kind != "class")
    ys = held.frame({"label": dtype})["label"].to_list()
    served = held.frame({"prediction": training_schema(spec)["prediction"]})["prediction"].to_list()
    pairs = []
    for y, mine, theirs in zip(ys, map(reading, candidate(held.columns)), served, strict=True):
        a, b = loss(kind, y, mine), loss(kind, y, theirs)
        if a is not None and b is not None:
            pairs.append((a, b))
    if len(pairs) < LEAST:
        return {"held_out": len(held), "compared": len(pairs), "worse": False}
    a, b = np.array(pairs).T
    error = float(np.std(a - b, ddof=1)) / sqrt(len(a))
    return {
        "held_out": len(held),
        "compared": len(pairs),
        "loss": float(a.mean()),
        "served_loss": float(b.mean()),
        "by_chance": CHANCE * error,
        "worse": bool(a.mean() - b.mean() > max(CHANCE * error, MARGIN * b.mean())),
    }


def _compare(version: Version, spec: ModelSpec, candidate: Fixed, held: Delta) -> None:
    """Judge a candidate by some examples; the first figures are kept unless it is worse."""
    checks = _compared(spec, candidate, held)
    version.checks = version.checks or checks
    if checks["worse"]:
        version.checks, version.verdict, version.why = checks, "refused", _told(checks)


def _told(checks: dict[str, Any]) -> str:
    return (
        f"worse: a loss of {checks['loss']:.4g} on the last {checks['compared']} answered questions, where what was "
        f"served lost {checks['served_loss']:.4g} (by chance {checks['by_chance']:.2g})"
    )


def _finite(spec: ModelSpec, pupil: _Pupil, version: Version, rows: Delta) -> None:
    """Fails when what the learner says of its newest examples is not finite; notes whether it must be asked alone."""
    newest = rows.take(slice(max(0, len(rows) - HELD_OUT), None))
    fixed = pupil.fixed()
    said = fixed(newest.columns)
    reading = Reading(spec, not spec.classifies or spec.answers[spec.label] == BOOL)
    bad = [v for v in map(reading, said) if v is None or (isinstance(v, float) and not isfinite(v))]
    if bad:
        raise ValueError(f"{len(bad)} of its predictions for its {len(newest)} newest examples are not finite")
    few = newest.take(slice(0, 64))
    version.alone = not spec.river and fixed(few.columns) != pupil.fixed(alone=True)(few.columns)


class Here:
    """Fits at once, in this process: for a replay."""

    def __init__(self, changes: Callable[[], tuple[Delta, Ints]]) -> None:
        self._changes = changes

    def start(self, job: Job) -> Future[tuple[Version, Any]]:
        done: Future[tuple[Version, Any]] = Future()
        done.set_result(fit(job, *self._changes()))
        return done

    def share(self) -> float:
        """All is done."""
        return 1.0

    def close(self) -> None:
        """Nothing is left running."""


class Beside:
    """Fits in a process of its own, one version at a time, from the change log in a folder.

    progress: where it tells how far it is. What the two processes send one another is sealed. The process gives way to
    the stream, ends with this one, and is begun anew when it dies.
    """

    def __init__(self, log: Path, progress: Path, seal: Seal) -> None:
        self._log, self._progress, self._seal = log, progress, seal
        self._pool: ProcessPoolExecutor | None = None

    def start(self, job: Job) -> Future[tuple[Version, Any]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (list(sys.path), os.getpid()))
        _by_value()
        self._progress.unlink(missing_ok=True)
        try:
            packed = self._seal.sign(cloudpickle.dumps(job), _JOB)
            return self._pool.submit(_work, packed, str(self._log), str(self._progress), self._seal)
        except BrokenProcessPool:
            self.close()
            return self.start(job)

    def share(self) -> float:
        """The share of the present fit that is done."""
        try:
            return float(self._progress.read_text())
        except (OSError, ValueError):
            return 0.0

    def close(self) -> None:
        """Let the process end."""
        if self._pool is not None:
            for process in (self._pool._processes or {}).values():
                process.terminate()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _by_value() -> None:
    """Have functions of modules that only this process has loaded (the pipeline file) pickled with their code."""
    module = sys.modules.get("freshet_pipeline")
    if module is not None:
        cloudpickle.register_pickle_by_value(module)


def _begin(path: list[str], parent: int) -> None:
    """What the process does first."""
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    if hasattr(os, "sched_setaffinity") and len(processors := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(0, processors[1:])  # one is left to the stream, whatever threads the learner begins
        threadpool_limits(len(processors) - 1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _work(packed: bytes, log: str, progress: str, seal: Seal) -> tuple[Version, bytes | None]:
    """The version, and its learner as it is to be kept: pickled and sealed."""
    job: Job = cloudpickle.loads(seal.open(packed, _JOB, "what is to be fitted", "run the same command again"))
    told = Path(progress)

    def tell(share: float) -> None:
        told.write_text(f"{share:.4f}")

    tell(0.0)
    changes, known = from_log(scan(Path(log)).filter(pl.col(SEQ) <= job.version.seq).collect(), job.spec)
    version, model = fit(job, changes, known, tell)
    return version, None if model is None else seal.sign(cloudpickle.dumps(model), place(version.model, version.name))
