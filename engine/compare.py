"""Refresh policies of a model compared on the same history: what each would have said, lost and spent.

One pass over the log: the views are kept once, and under each policy a model is asked the same questions and told the
same answers.

Which questions count. Labels that come quickly are not like the others, so a question is judged only if it is answered
and every question asked before it is answered or closed. All policies are compared on the *common* questions: those
judged of which every policy said something (one that never said anything is not asked for its opinion). What each lost
on its *own*, all judged questions of which it said something, is told beside. A policy under which the model fails is
said to have failed, and why; what it said before counts for nothing, and the others go on.

Chance. Losses of neighbouring moments are alike, so the error of a difference comes from a circular block bootstrap:
the losses are summed by cells of a day (of a `CELLS`-th of the period, where that is less), and of n cells, blocks of
n^(1/3) neighbouring ones are drawn together, `RESAMPLES` times, the same for all policies.

Advice. The cheapest in processor time of the policies that are not worse than the best beyond chance; when the price of
a second is known, the one for which losses plus seconds cost least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

from engine.due import Kind, loss
from engine.examples import OPEN, Examples, Question
from engine.fit import CHANCE
from engine.graph import Graph, Model, Source
from engine.keeper import Erased, Keeper
from engine.merge import Partition, merged
from engine.model import kept
from engine.plan import watermark
from engine.policy import Policy, check_model, debt, deferred, immediate, on_query
from engine.refit import Refitted
from engine.replay import batches
from engine.spec import ModelSpec
from engine.student import Judge, ModelError
from operators.delta import BOOL, Columns, Ints, Schema
from operators.operator import DefinitionError

CELLS, RESAMPLES, BINS = 20, 2000, 50
"""Cells of a period of less than so many days; resamples of the bootstrap; points of the course of the loss."""

_DAY = 86_400_000_000

LOSSES: dict[Kind, str] = {"number": "absolute error", "probability": "log loss", "class": "share of wrong classes"}

Floats = NDArray[np.float64]


def defaults(spec: ModelSpec, second_costs: float | None = None) -> list[Policy]:
    """Policies worth comparing for a model: of the usual ones those that can keep it; by debt if a price is known."""
    drifted = deferred(drift=ADWIN())  # type: ignore[no-untyped-call]
    usual: list[Policy] = [immediate(), deferred(every="1d"), deferred(every="7d"), drifted]
    if second_costs is not None:
        usual.append(deferred(every="7d", debt=debt(per_second=second_costs)))
    return [*(usual if spec.river else usual[1:]), on_query(32, window="14d")]


class Watched:
    """A keeper, and what is seen of it: what it says of each question, how old that is, and what it takes.

    By the number of the question, in the order in which they are asked: `asked_at` its `at`, `labels`, `said`, `values`
    (None: none), `stale` (microseconds from the newest example that what answered had learnt until the question, nan:
    nothing had been learnt). `told`: numbers in the order in which answers came. seconds: of the processor, for
    "serving" and "refresh" (learning, fitting, judging). failed: why the model failed, and was asked no further.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.steady, self.keeps = keeper.steady, keeper.keeps
        self.tell = self._tell if keeper.tell is not None else None
        self.asked_at: list[int] = []
        self.labels: list[Any] = []
        self.said: list[Any] = []
        self.values: list[Any] = []
        self.stale: list[float] = []
        self.told: list[int] = []
        self.seconds = {"serving": 0.0, "refresh": 0.0}
        self.failed: str | None = None
        self._waiting: dict[Question, int] = {}
        self._clocks: dict[Question, int] = {}
        self._newest: int | None = None

    @property
    def matured(self) -> int:
        """The number of the first question that is neither answered nor closed."""
        return min((n for q, n in self._waiting.items() if q.state == OPEN), default=len(self.asked_at))

    def rows(self, columns: Columns, schema: Schema) -> Sequence[Any]:
        began = time.process_time()
        given = self.keeper.rows(columns, schema)
        self.seconds["serving"] += time.process_time() - began
        return given

    def asked(self, question: Question, clock: int) -> None:
        self._waiting[question], self._clocks[question] = len(self.asked_at), clock
        self.asked_at.append(question.at)
        for kept_of_it in (self.labels, self.said, self.values):
            kept_of_it.append(None)
        self.stale.append(np.nan)
        began = time.process_time()
        self.keeper.asked(question, clock)
        self.seconds["serving"] += time.process_time() - began

    def _tell(self, question: Question) -> Any:
        assert self.keeper.tell is not None
        began = time.process_time()
        said = self.keeper.tell(question)
        self.seconds["serving"] += time.process_time() - began
        self._age(question)
        return said

    def say(self, questions: Sequence[Question], columns: Columns) -> Sequence[Any]:
        began = time.process_time()
        said = self.keeper.say(questions, columns)
        self.seconds["serving"] += time.process_time() - began
        for q in questions:
            self._age(q)
        return said

    def newest(self) -> int | None:
        return self.keeper.newest()

    def forget(self, erased: Erased, seq: int, clock: int) -> str:
        return self.keeper.forget(erased, seq, clock)

    def _age(self, question: Question) -> None:
        clock, newest = self._clocks.pop(question), self._learnt(question)
        if newest is not None:
            self.stale[self._waiting[question]] = clock - newest

    def _learnt(self, question: Question) -> int | None:
        """When the newest example that answers this question became known."""
        if isinstance(self.keeper, Refitted):
            return self.keeper.versions.about(question.version).newest if question.version else None
        return self._newest

    def learn(self, question: Question, clock: int) -> None:
        if question.first:
            number = self._waiting.pop(question)
            self.labels[number], self.said[number] = question.label, question.said
            self.values[number] = question.value
            self.told.append(number)
        self._newest = clock
        began = time.process_time()
        self.keeper.learn(question, clock)
        self.seconds["refresh"] += time.process_time() - began

    def unlearn(self, question: Question, clock: int) -> None:
        began = time.process_time()
        self.keeper.unlearn(question, clock)
        self.seconds["refresh"] += time.process_time() - began

    def begin(self, seq: int, clock: int, live: bool) -> None:
        self.keeper.begin(seq, clock, live)

    def due(self, seq: int, clock: int) -> bool:
        return self.keeper.due(seq, clock)

    def refresh(self, seq: int, clock: int, examples: Examples) -> None:
        began = time.process_time()
        self.keeper.refresh(seq, clock, examples)
        self.seconds["refresh"] += time.process_time() - began

    def close(self) -> None:
        self.keeper.close()

    def figures(self) -> dict[str, Any]:
        return self.keeper.figures()

    def snapshot(self) -> Any:
        return self.keeper.snapshot()

    def restore(self, state: Any) -> None:
        self.keeper.restore(state)


def compare(
    graph: Graph,
    partitions: Sequence[tuple[Source, Sequence[Partition]]],
    policies: Mapping[str, Sequence[Policy]],
    *,
    batch_rows: int = 4000,
    until: int | None = None,
    second_costs: float | None = None,
    progress: Callable[[float, int], object] | None = None,
) -> list[dict[str, Any]]:
    """For each model named in `policies`, what each of its policies would have been worth: see `figures`.

    partitions: for each source its partitions, as `engine.bind` or `engine.replay` give them. policies: for each model
    its own; none: the usual ones. until: microseconds after midnight of the first day. second_costs: the price of a
    second of the processor, in units of the loss. progress: called after each batch with the share that is done and how
    many changes have been read.

    Raises `DefinitionError` when there is no such model, fewer than two different policies, or one that cannot keep it;
    `ModelError` when no policy is left under which a model did not fail.
    """
    for name in policies:
        if name not in graph.models:
            there = ", ".join(graph.models) or "none"
            raise DefinitionError(
                f"compare: there is no model {name!r}; the models of pipeline {graph.name!r}: {there}"
            )
    if second_costs is not None and not 0 <= second_costs < float("inf"):
        raise DefinitionError(f"compare: a second costs {second_costs!r}: expected 0 or more")
    running: list[tuple[Model, Policy, Watched, Callable[..., Any]]] = []
    for name, several in policies.items():
        model = graph.models[name]
        different = {str(p): p for p in several or defaults(model.spec, second_costs)}
        if len(different) < 2:
            raise DefinitionError(
                f"compare: model {name!r} is given {', '.join(different)}: expected two different policies or more"
            )
        for policy in different.values():
            check_model(model.spec, policy)
            one = kept(replace(model.spec, naive=False), policy)
            one.keeper = watched = Watched(one.keeper)
            running.append((model, policy, watched, one.apply))
    merge = merged(graph, partitions, batch_rows, until)
    for batch in batches(graph, merge):
        for model, policy, watched, apply in running:
            if watched.failed is not None:
                continue
            below = watermark(graph, model, batch.watermark)
            try:
                apply(batch.deltas[model.questions], batch.deltas[model.answers], below, batch.known, batch.first)
            except ModelError as error:
                watched.failed = str(error)
                if all(w.failed is not None for _, _, w, _ in running):
                    raise ModelError(f"every policy failed, the last of them {policy}: {error}") from error
        if progress is not None:
            progress(merge.progress, sum(merge.read.values()))
    changes = sum(merge.read.values())
    return [
        {"pipeline": graph.name, "changes": changes}
        | figures(graph.models[name].spec, [(str(p), w) for m, p, w, _ in running if m.name == name], second_costs)
        for name in policies
    ]


def figures(spec: ModelSpec, watched: Sequence[tuple[str, Watched]], second_costs: float | None) -> dict[str, Any]:
    """What a comparison found, as JSON values. Times are microseconds UTC; means are None where nothing was judged.

    `loss`: what the loss is; `metrics`: of each whether more is better. `questions` asked; `judged`, and of these
    `common`, asked from `since` to `until`. `cells`: of the bootstrap; `cell`, `block`: their lengths in microseconds.
    `course`: where its bins begin. `policies`, in the order given: why it `failed` (None: it did not; one that did is
    told as if it had said nothing); `loss` and `metrics` on the common questions, `own_loss` and `own_metrics` on the
    `own`; `difference` of the loss to the best, its `error` (one standard error), and `best`: the share of resamples in
    which it loses least; `stale` (seconds, of its own): `p50` and `p95`; `seconds` of the processor; `refreshes` by
    verdict and `versions` (None unless deferred); `course` of the loss; `total` cost when a second has a price. `best`
    and `advised`: policies; `advice`: the same as a sentence.
    """
    first = next((w for _, w in watched if w.failed is None), watched[0][1])
    kind = _kind(spec)
    at = np.array(first.asked_at, np.int64)
    told = np.array(first.told, np.int64)
    told = told[told < first.matured]
    judged = np.zeros(len(at), np.bool_)
    judged[told] = True
    lost = [_lost(kind, w) if w.failed is None else np.full(len(at), np.nan) for _, w in watched]
    own = [judged & ~np.isnan(x) for x in lost]
    common = judged & np.logical_and.reduce([o for o in own if o.any()] or [judged & False])
    since, until = (int(at[common].min()), int(at[common].max()) + 1) if common.any() else (None, None)
    judge = Judge(spec.name, spec.metrics)
    found: dict[str, Any] = {
        "model": spec.name,
        "loss": LOSSES[kind],
        "metrics": {n: bool(m.bigger_is_better) for n, m in zip(judge.figures(), judge.each, strict=True)},
        "questions": len(at),
        "judged": int(judged.sum()),
        "common": int(common.sum()),
        "since": since,
        "until": until,
        "second_costs": second_costs,
    }
    rows = [
        {
            "policy": policy,
            "failed": w.failed,
            "loss": _mean(x[common]),
            "metrics": _metrics(spec, w, told[common[told]] if o.any() else told[:0]),
            "own": int(o.sum()),
            "own_loss": _mean(x[o]),
            "own_metrics": _metrics(spec, w, told[o[told]]),
            "stale": _stale(np.array(w.stale)[np.flatnonzero(o)]),
            "seconds": {**w.seconds, "total": sum(w.seconds.values())},
            **_versions(w.keeper),
        }
        for (policy, w), x, o in zip(watched, lost, own, strict=True)
    ]
    speaking = [i for i, o in enumerate(own) if o.any()]
    if since is not None and until is not None:
        several = np.stack([lost[i][common] for i in speaking])
        found |= _chance(rows, speaking, several, at[common], since, until)
        edges = np.linspace(since, until, BINS + 1)
        found["course"] = edges[:-1].astype(np.int64).tolist()
        place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, BINS - 1)
        for row, x in zip(rows, lost, strict=True):
            row["course"] = [_mean(x[common & (place == b)]) for b in range(BINS)]
    return found | {"policies": rows} | advice(rows, speaking if common.any() else [], found)


def _kind(spec: ModelSpec) -> Kind:
    return "number" if not spec.classifies else "probability" if spec.answers[spec.label] == BOOL else "class"


def _lost(kind: Kind, watched: Watched) -> Floats:
    """The loss of each question, nan where nothing was said or answered."""
    each = (loss(kind, *pair) for pair in zip(watched.labels, watched.values, strict=True))
    return np.array([np.nan if x is None else x for x in each])


def _mean(x: Floats) -> float | None:
    return float(x.mean()) if len(x) and not np.isnan(x).any() else None


def _metrics(spec: ModelSpec, watched: Watched, numbers: Ints) -> dict[str, float | None]:
    """The metrics of the model on these questions, in the order in which their answers came."""
    judge = Judge(spec.name, spec.metrics)
    for n in numbers.tolist():
        judge(n, watched.labels[n], watched.said[n])
    return judge.figures()


def _stale(us: Floats) -> dict[str, float | None]:
    us = us[~np.isnan(us)]
    return {f"p{q}": float(np.percentile(us, q)) / 1e6 if len(us) else None for q in (50, 95)}


def _versions(keeper: Keeper) -> dict[str, Any]:
    if not isinstance(keeper, Refitted):
        return {"refreshes": None, "versions": None}
    versions = keeper.versions.all()
    count = {verdict: sum(v.verdict == verdict for v in versions) for verdict in ("published", "refused", "failed")}
    return {"refreshes": count, "versions": [msgspec.to_builtins(v) for v in versions]}


def resample(sums: Floats, counts: Floats, block: int) -> Floats:
    """Means of resampled cells, one row a resample, one column a policy.

    sums: of the loss, one row a policy, one column a cell; counts: of the questions of each cell.
    """
    n = len(counts)
    starts = np.random.default_rng(0).integers(n, size=(RESAMPLES, -(-n // block), 1))
    drawn = ((starts + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    weight = np.stack([np.bincount(d, minlength=n) for d in drawn]).astype(np.float64)
    total = weight @ counts
    weight, total = weight[total > 0], total[total > 0]
    return np.asarray((weight @ sums.T) / total[:, None])


def _chance(
    rows: Sequence[dict[str, Any]], speaking: Sequence[int], lost: Floats, at: Ints, since: int, until: int
) -> dict[str, Any]:
    """Fills in what is known of differences and chance; returns what the bootstrap was made of."""
    cell = max(1, min(_DAY, (until - since) // CELLS))
    place = (at - since) // cell
    n = int(place.max()) + 1
    block = max(1, round(n ** (1 / 3)))
    counts, *sums = (np.bincount(place, x, n).astype(np.float64) for x in (np.ones(len(at)), *lost))
    means = resample(np.stack(sums), counts, block)
    losses = [float(rows[i]["loss"]) for i in speaking]
    best = losses.index(min(losses))
    least = means == means.min(1, keepdims=True)
    shares = (least / least.sum(1, keepdims=True)).mean(0)
    for j, i in enumerate(speaking):
        rows[i]["difference"] = losses[j] - losses[best]
        rows[i]["error"] = float((means[:, j] - means[:, best]).std())
        rows[i]["best"] = float(shares[j])
    return {"cells": n, "cell": cell, "block": block * cell}


def advice(rows: Sequence[dict[str, Any]], speaking: Sequence[int], found: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the policies that said something to take, and why. See `figures`; fills in `total` where it is known."""
    some = [rows[i] for i in speaking]
    if not some:
        return {
            "best": None,
            "advised": None,
            "advice": "Nothing to compare: no policy said anything that can be judged.",
        }
    best = min(some, key=lambda r: float(r["loss"]))
    price = found["second_costs"]
    if price is not None:
        for row in some:
            row["total"] = row["loss"] * found["common"] + row["seconds"]["total"] * price
        chosen = min(some, key=lambda r: float(r["total"]))
        why = (
            f"losses and processor time together cost least, {chosen['total']:,.1f}: {chosen['loss']:.4f} a question "
            f"on {found['common']:,} questions, and {chosen['seconds']['total']:,.1f} s at {price:g} each"
        )
    else:
        near = [r for r in some if r["difference"] <= CHANCE * r["error"]]
        chosen = min(near, key=lambda r: float(r["seconds"]["total"]))
        spent = f"{chosen['seconds']['total']:,.1f} s of processor time"
        if chosen is best:
            why = f"the least {found['loss']}, {best['loss']:.4f}, and none within chance of it is cheaper than {spent}"
        else:
            why = (
                f"{found['loss']} {chosen['loss']:.4f} is within chance of the least, {best['loss']:.4f} of "
                f"{best['policy']} (difference {chosen['difference']:.4f}, standard error {chosen['error']:.4f}), for "
                f"{spent} instead of {best['seconds']['total']:,.1f} s"
            )
    if silent := found["judged"] - chosen["own"]:
        why += f"; it leaves {silent:,} of {found['judged']:,} judged questions without a prediction"
    return {"best": best["policy"], "advised": chosen["policy"], "advice": f"Take {chosen['policy']}: {why}."}
