"""A deferred model: a version of it serves until the next is fitted, judged and put in its place.

When it is due, is a matter of the policy (`engine.due`); how a version is fitted and judged, of `engine.fit`. The fit
runs beside the stream. In a live run nothing waits for it: the version begins to serve with the batch after it is
done. History goes by faster than life: there the stream waits for the fit, for a live run would have had the time, and
what a replay gives must not depend on the speed of a machine.

A version that cannot be fitted, or is worse, is kept for inspection and does not serve; conditions begin anew. When the
version that serves fails at a question, or says nothing finite, the one before is asked.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from math import isfinite
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from engine.due import Due, Kind, Reason, loss
from engine.examples import Examples, Question
from engine.fit import Job
from engine.keeper import Erased, relearn
from engine.policy import Deferred
from engine.spec import ModelSpec, fingerprint
from engine.student import Fixed, Online, Reading, dicts, shadow
from engine.versions import Served, Version, Versions, numbers, saw
from operators.delta import BOOL, Columns, Delta, Ints, Schema

NOTHING_LEARNT = np.iinfo(np.int64).max


class Fits(Protocol):
    """What fits versions: at once, or beside the stream."""

    def start(self, job: Job) -> Future[tuple[Version, Any]]: ...

    def share(self) -> float:
        """The share of the present fit that is done."""

    def close(self) -> None: ...


class Log(Protocol):
    """Where the training set is kept."""

    def append(self, delta: Delta, known: Ints) -> None: ...

    def save(self) -> Any: ...

    def flush(self) -> int: ...

    def close(self) -> None: ...


class Refitted:
    """What keeps a deferred model. See `engine.keeper.Keeper`.

    live: whether the present is being followed: then no fit is waited for.
    """

    steady, keeps, tell = True, False, None

    def __init__(self, spec: ModelSpec, refresh: Deferred, versions: Versions, fits: Fits, log: Log) -> None:
        self.spec, self.refresh_, self.versions, self.fits, self.log = spec, refresh, versions, fits, log
        self.live = False
        self.meter = Due(refresh)
        self._kind: Kind = (
            "number" if not spec.classifies else "probability" if spec.answers[spec.label] == BOOL else "class"
        )
        self._reading = Reading(spec, self._kind != "class")
        self._shadow = Online(spec, shadow(spec, refresh.debt.shadow)) if refresh.debt else None
        self._watches = any(name in spec.features for name, _ in refresh.drift)
        self._serving: Version | None = None
        self._before: str | None = None
        self._fixed: dict[str, Fixed] = {}
        self._fit: tuple[Version, Future[tuple[Version, Any]]] | None = None
        self._ahead: list[Served] = []
        self._began = False
        self._matured = 0
        self._seconds: float | None = None
        self._cost: dict[str, float] = {}
        self._checksum = self._learned = self._failed = 0
        self._count = {"published": 0, "refused": 0, "failed": 0, "fallen_back": 0}
        self._last: Version | None = None

    def rows(self, columns: Columns, schema: Schema) -> Sequence[Any]:
        if self._shadow is not None:
            return self._shadow.rows(columns, schema)
        n = len(next(iter(columns.values())))
        return dicts(columns, schema) if self._watches else [None] * n

    def asked(self, question: Question, clock: int) -> None:
        if self._shadow is not None:
            question.shade = self._reading(self._shadow.predict(question.x))
        if self._watches:
            x = question.x
            named = x if isinstance(x, Mapping) else dict(zip(self.spec.features, x.tolist(), strict=True))
            self.meter.asked(clock, named)

    def say(self, questions: Sequence[Question], columns: Columns) -> Sequence[Any]:
        for q in questions:
            q.version, q.trained = self._serving.name if self._serving else "", self.newest()
        if self._serving is None:
            return [None] * len(questions)
        said = self._said(self._serving.name, columns)
        if self._before is not None and (bad := [i for i, s in enumerate(said) if not self._is_good(s)]):
            index, trained = np.array(bad), self.versions.about(self._before).newest
            for i, s in zip(bad, self._said(self._before, {n: c[index] for n, c in columns.items()}), strict=True):
                if self._is_good(s):
                    said[i], questions[i].version, questions[i].trained = s, self._before, trained
                    self._count["fallen_back"] += 1
        return said

    def _said(self, name: str, columns: Columns) -> list[Any]:
        fixed = self._ask(name)
        try:
            return fixed(columns)
        except Exception:  # of one of them: ask for each by itself
            n, out = len(next(iter(columns.values()))), []
            for i in range(n):
                try:
                    out += fixed({c: a[i : i + 1] for c, a in columns.items()})
                except Exception:  # whatever a learner raises: it has no prediction, and that is counted
                    self._failed += 1
                    out.append(None)
            return out

    def _is_good(self, said: Any) -> bool:
        value = self._reading(said)
        return value is not None and (not isinstance(value, float) or isfinite(value))

    def _ask(self, name: str) -> Fixed:
        if name not in self._fixed:
            keep = {self._serving.name if self._serving else None, self._before}
            self._fixed = {n: f for n, f in self._fixed.items() if n in keep}
            about = self.versions.about(name)
            self._fixed[name] = Fixed(self.spec, self.versions.model(name), about.alone)
        return self._fixed[name]

    def learn(self, question: Question, clock: int) -> None:
        self._note(question)
        self._learned += 1
        if not question.first:
            return
        y, shade = question.label, question.shade
        current = self._serving is not None and question.version == self._serving.name
        lost = loss(self._kind, y, question.value)
        self.meter.answered(clock, lost, loss(self._kind, y, shade), current)
        if self._shadow is not None:
            self._shadow.learn(question.x, y)

    def unlearn(self, question: Question, clock: int) -> None:
        self._note(question)
        self._learned -= 1
        self.meter.taken_back(clock)

    def _note(self, question: Question) -> None:
        told = f"{question.key}|{question.told}|{question.state}"
        self._checksum = zlib.crc32(told.encode(), self._checksum)

    def due(self, seq: int, clock: int) -> bool:
        """Whether a version is to begin to serve, or to be fitted."""
        if self._ahead and self._ahead[0].seq <= seq + 1:
            return True
        return self._fit is None and self.meter.reason(clock) is not None

    def refresh(self, seq: int, clock: int, examples: Examples) -> None:
        while self._ahead and self._ahead[0].seq <= seq + 1:
            self._serve(self._ahead.pop(0))
        if self._fit is None and (reason := self.meter.reason(clock)):
            self._begin(reason, seq, clock, examples)
            if not self.live:
                self.wait(seq, clock)

    def forget(self, erased: Erased, seq: int, clock: int) -> str:
        self._ahead = []
        self.versions.cut(seq, self._serving.name if self._serving else None)
        if self._fit is not None:
            self.wait(seq - 1, clock)
        self._learned -= len(erased.gone)
        self._checksum = zlib.crc32(f"forgotten|{seq}".encode(), self._checksum)
        if self._shadow is not None:
            self._shadow = Online(self.spec, shadow(self.spec, self.refresh_.debt and self.refresh_.debt.shadow))
            relearn(self.spec, self._shadow, erased.rest())
        if self._serving is None or not (seen := saw(self._serving, erased.log)):
            return "no version that serves had seen them"
        self.meter.forgotten(seen)
        return f"the version that served had seen {seen:,} of them: a refit was due"

    def begin(self, seq: int, clock: int, live: bool) -> None:
        """Before the changes from `seq` on: let begin to serve what is ready, or asked for."""
        self.live = live
        if first := not self._began:
            self._began, self._ahead = True, [s for s in self.versions.ahead(seq) if s.version in self.versions]
        if self._fit is not None and self._fit[1].done():
            self.wait(seq - 1, clock)
        if (name := self.versions.wanted()) is not None:
            self._serve(Served(name, seq, clock, True, "asked for"))
            self.versions.took()
            if self._before is not None and not self.versions.opens(self._before):
                self._before = None  # why another was asked for
        if first:
            if self._before is not None and self.versions.about(self._before).verdict == "removed":
                self._before = None
            for asked in (self._serving.name if self._serving else None, self._before):
                if asked is not None:
                    self.versions.check(asked)

    def wait(self, seq: int, clock: int) -> None:
        """Wait for the fit that runs, and do with it as it deserves."""
        assert self._fit is not None
        version, future = self._fit
        self._fit = None
        try:
            version, model = future.result()
        except Exception as error:  # the process of the fit died
            version, model = msgspec.structs.replace(version, verdict="failed", why=f"the fit died: {error}"), None
        if version.name not in self.versions or model is not None:
            self.versions.save(version, model)
        self._done(version)
        if version.verdict == "published" and not any(s.version == version.name for s in self._ahead):
            self._serve(Served(version.name, seq + 1, clock, self.live, version.reason))

    def _begin(self, reason: Reason, seq: int, clock: int, examples: Examples) -> None:
        self.log.flush()
        serving = self._serving
        mode, told = self._mode()
        version = Version(
            name=f"{fingerprint(self.spec)}.{seq}",
            model=self.spec.name,
            definition=fingerprint(self.spec),
            parent=serving.name if serving else None,
            reason=str(reason),
            numbers=numbers(reason.numbers),
            mode=mode,
            told=told,
            seq=seq,
            known=clock,
            checksum=self._checksum,
        )
        self.meter.refitted(clock, self._seconds)
        self._start(version, examples.matured(clock))

    def _start(self, version: Version, matured: int) -> None:
        """Fit a version, unless that was done before, by a run that was cut off."""
        self._matured = matured
        done: Future[tuple[Version, Any]] = Future()
        if version.name in self.versions and (about := self.versions.about(version.name)).checksum == version.checksum:
            done.set_result((about, None))
            self._fit = about, done
            return
        parent = self.versions.model(version.parent) if version.parent and version.mode == "incremental" else None
        since = self.versions.about(version.parent).seq if version.parent else -1
        self._fit = version, self.fits.start(Job(self.spec, version, parent, since, self.refresh_.window, matured))

    def _mode(self) -> tuple[Literal["full", "incremental"], str]:
        """How the next version is fitted, and why so."""
        mode = self.refresh_.mode or "full"
        if mode == "full" or self._serving is None:
            return "full", "declared" if mode == "full" else "the first"
        if mode == "incremental":
            return "incremental", "declared"
        new, total = self.meter.figures()["answers"], self._learned
        if "incremental" not in self._cost:
            return "incremental", "not measured yet"
        catch_up, anew = new * self._cost["incremental"], total * self._cost["full"]
        told = f"incremental {catch_up:.3g} s, full {anew:.3g} s"
        return ("incremental", told) if catch_up <= anew else ("full", told)

    def _done(self, version: Version) -> None:
        """A fit ended."""
        self._last = version
        self._count[version.verdict] += 1
        if version.verdict == "failed" and self._serving is None:
            self.meter.failed()
        if version.verdict != "failed" and version.fitted:
            self._seconds = version.seconds
            self._cost[version.mode] = version.seconds / version.fitted

    def _serve(self, served: Served) -> None:
        """Let a version serve from now on; noted before it does."""
        if self._serving is not None and served.version == self._serving.name:
            return
        about = self.versions.about(served.version)
        self.versions.model(served.version)
        self.versions.serve(served)
        self._before = self._serving.name if self._serving and not self._serving.forgotten else None
        self._serving = about

    def close(self) -> None:
        """Leave no fit running; a fit that was cut off begins anew with the next run."""
        self.fits.close()

    def newest(self) -> int | None:
        """When the newest example that the serving version has learnt became known."""
        return self._serving.newest if self._serving else None

    def figures(self) -> dict[str, Any]:
        """The `version` that serves, and when the newest example it was `trained` on became known.

        `failed`: how often a version failed at a question.
        Further `refreshes` by verdict; the version that is `fitting`, and the `share` of that done; the `last` that was
        fitted; what is `due`.
        """
        fit = self._fit
        return {
            "version": self._serving.name if self._serving else None,
            "trained": self._serving.newest if self._serving else None,
            "failed": self._failed,
            "refreshes": dict(self._count),
            "fitting": fit[0].name if fit else None,
            "share": self.fits.share() if fit else None,
            "last": msgspec.to_builtins(self._last) if self._last else None,
            "due": self.meter.figures(),
        }

    def snapshot(self) -> Any:
        names = self._serving and self._serving.name, self._before
        fit = self._fit and (self._fit[0], self._matured)
        learner = self._shadow and self._shadow.model
        kept = self._seconds, self._cost, self._checksum, self._learned, self._failed, self._count, self._last
        return names, fit, self.meter, learner, kept

    def restore(self, state: Any) -> None:
        (serving, before), fit, self.meter, learner, kept = state
        self._seconds, self._cost, self._checksum, self._learned, self._failed, self._count, self._last = kept
        if learner is not None:
            self._shadow = Online(self.spec, learner)
        if serving is not None:
            self._serving = self.versions.about(serving)
        if before is not None and not self.versions.about(before).forgotten:
            self._before = before
        if fit is not None:
            self._start(*fit)
