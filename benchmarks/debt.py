"""`python -m benchmarks.debt`: does refitting when the debt is due cost less than a cadence, or than waiting for drift?

A stream is cut into blocks of answers, and after each block a version is fitted on the last 20,000: gradient boosting,
with a river linear model as the shadow. What every version would have lost on every later question is computed once, so
any schedule of refits can be priced: losses + price * refits, the first version being free. A question is answered by
the version of its time, so answers that come late are late here too.

Compared are `deferred(debt=price)`, the best of all fixed cadences in hindsight, `deferred(drift=ADWIN())` on the
loss, and the least that any schedule costs (`retrainopt`'s dynamic programme). The debt was designed on the flights;
the other streams were not looked at before:

| stream     | rows    | what                                                                  |
| ---------- | ------- | --------------------------------------------------------------------- |
| flights    | 327,346 | is the flight late? answered when it lands; the features of examples/ |
| agrawal    | 100,000 | river's generator, another concept after each 25,000 rows             |
| hyperplane | 100,000 | river's generator, a hyperplane that turns slowly                     |
| weather    |  26,000 | the temperature at a New York airport in 24 hours, answered then      |
| shuttle    |  49,097 | river's bundled data; it does not drift                               |
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import numpy.typing as npt
import polars as pl
from retrainopt.core.dp import solve_exact_schedule
from rich.console import Console
from rich.progress import track
from rich.table import Table
from river import datasets, drift, linear_model, optim, preprocessing
from river.datasets import synth
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from engine import deferred
from engine.cli import load_pipeline
from engine.due import CLIP, Due

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Unit = Literal["errors", "log loss", "degrees"]

WINDOW = 20_000
FLIGHTS = Path(__file__).parent.parent / "examples" / "flights"
console = Console(width=120)


@dataclass
class Stream:
    """Examples in the order of their answers. shadow: the prediction of the shadow, made when asked.

    x: words as numbers; words: which columns they are. block: answers after which a refit is possible.
    """

    name: str
    x: Floats
    words: list[int]
    y: Floats
    asked: Ints
    known: Ints
    shadow: Floats
    block: int
    units: dict[Unit, tuple[float, ...]]

    def __post_init__(self) -> None:
        self.blocks = len(self.y) // self.block
        n = self.blocks * self.block
        self.x, self.y, self.shadow = self.x[:n], self.y[:n], self.shadow[:n]
        self.asked, self.known = self.asked[:n], self.known[:n]
        ends = self.known[self.block - 1 :: self.block]
        self.segment = np.minimum(np.searchsorted(ends, self.asked, side="right"), self.blocks - 1)
        """For each question how many blocks of answers were known: version i is there from segment i on."""


PRICES = (20.0, 100.0, 400.0, 1600.0)
CLASSES: dict[Unit, tuple[float, ...]] = {"errors": PRICES, "log loss": PRICES}


def flights() -> Stream:
    """The features and the shadow are the views and the immediate model of the example."""
    pipeline, _ = load_pipeline(FLIGHTS)
    assert pipeline.prepare is not None
    with TemporaryDirectory() as folder:
        frames = {n: pl.read_ndjson(f, infer_schema_length=None) for n, f in pipeline.prepare(Path(folder)).items()}
    for name, at in (("departures", "sched_dep"), ("landings", "arrived"), ("weather", "observed")):
        frames[name] = frames[name].with_columns(pl.col(at).str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC"))
    views = pipeline.replay(frames, 20_000)
    rows = (
        views["answers"]
        .join(views["inputs"], on="flight_id", how="left", maintain_order="left")
        .join(views["late.predictions"].select("flight_id", "prediction", "at"), on="flight_id", maintain_order="left")
        .join(frames["landings"].select("flight_id", "arrived"), on="flight_id", maintain_order="left")
        .sort("arrived", maintain_order=True)
    )
    x = rows.drop("flight_id", "delay", "late", "prediction", "at", "arrived")
    words = [i for i, t in enumerate(x.dtypes) if t == pl.String]
    x = x.with_columns((pl.col(pl.String).rank("dense") - 1).cast(pl.Float64))
    asked, known = (rows[n].cast(pl.Int64).to_numpy() for n in ("at", "arrived"))
    y, shadow = rows["late"].cast(pl.Float64).to_numpy(), rows["prediction"].to_numpy()
    return Stream("flights", x.to_numpy(), words, y, asked, known, shadow, 2000, CLASSES)


def agrawal() -> Stream:
    parts = (synth.Agrawal(f, seed=7 + f).take(25_000) for f in (0, 3, 6, 1))
    return at_once("agrawal", itertools.chain(*parts), 1000, [3, 4, 5])


def hyperplane() -> Stream:
    rows = synth.Hyperplane(seed=7, n_features=10, n_drift_features=5, mag_change=0.001, noise_percentage=0.05)
    return at_once("hyperplane", rows.take(100_000), 1000)


def shuttle() -> Stream:
    return at_once("shuttle", datasets.Shuttle(), 500)


def at_once(name: str, rows: Iterable[tuple[dict[str, float], Any]], block: int, words: Sequence[int] = ()) -> Stream:
    """A stream of classes in which each answer comes right after its question."""
    xs, ys = zip(*rows, strict=True)
    x = np.array([list(map(float, row.values())) for row in xs])
    y = np.array(ys, np.float64)
    asked = 2 * np.arange(len(y))
    learner = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.02))
    shadow = prequential(learner, x, y > 0.5, asked, asked + 1)
    return Stream(name, x, list(words), y, asked, asked + 1, shadow, block, CLASSES)


def weather() -> Stream:
    pipeline, _ = load_pipeline(FLIGHTS)
    assert pipeline.prepare is not None
    with TemporaryDirectory() as folder:
        rows = pl.read_ndjson(pipeline.prepare(Path(folder))["weather"], infer_schema_length=None)
    at = pl.col("observed").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    rows = rows.unique(["origin", "observed"], keep="first", maintain_order=True).with_columns(at=at)
    later = rows.select("origin", pl.col("at").dt.offset_by("-24h"), y="temp")
    rows = rows.join(later, on=["origin", "at"], maintain_order="left").drop_nulls(["temp", "y"]).sort("at", "origin")
    x = rows.select(
        pl.col("origin").rank("dense") - 1.0,
        pl.col("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib").fill_null(strategy="forward"),
        hour=pl.col("at").dt.hour().cast(pl.Float64),
    ).fill_null(0.0)
    asked = rows["at"].cast(pl.Int64).to_numpy()
    learner = preprocessing.StandardScaler() | linear_model.LinearRegression(optim.SGD(0.005))
    values, y = x.to_numpy(), rows["y"].to_numpy()
    known = asked + 24 * 3_600_000_000
    shadow = prequential(learner, values, y, asked, known)
    return Stream("weather", values, [0], y, asked, known, shadow, 500, {"degrees": (100.0, 400.0, 1600.0, 6400.0)})


def prequential(learner: Any, x: Floats, y: npt.NDArray[Any], asked: Ints, known: Ints) -> Floats:
    """What a river learner predicts for each question, having learnt the answers known by then; both are in order."""
    out, told, classifies = np.zeros(len(y)), 0, y.dtype == np.bool_
    rows, labels = [dict(enumerate(row)) for row in x.tolist()], y.tolist()
    for i, row in enumerate(rows):
        while known[told] <= asked[i]:
            learner.learn_one(rows[told], labels[told])
            told += 1
        out[i] = learner.predict_proba_one(row).get(True, 0.5) if classifies else learner.predict_one(row)
    return out


def lost(unit: Unit, y: Floats, prediction: Floats) -> Floats:
    """`engine.due.loss` over arrays."""
    if unit == "errors":
        return np.asarray((prediction > 0.5) != (y > 0.5), np.float64)
    off = np.abs(y - prediction)
    return off if unit == "degrees" else 0.0 - np.log(np.clip(1 - off, CLIP, 1))


def versions(stream: Stream) -> Floats:
    """The predictions of each version for each example; nan for questions that came before it."""
    out = np.full((stream.blocks, len(stream.y)), np.nan, np.float32)
    numbers = "degrees" in stream.units
    make = HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier
    for i in track(range(1, stream.blocks), f"{stream.name}: fitting", console=console):
        end, later = i * stream.block, stream.segment >= i
        learner = make(random_state=0, categorical_features=stream.words or None)
        learner.fit(stream.x[max(0, end - WINDOW) : end], stream.y[max(0, end - WINDOW) : end])
        out[i, later] = learner.predict(stream.x[later]) if numbers else learner.predict_proba(stream.x[later])[:, 1]
    return out


def cost(losses: Floats, refits: Sequence[int], price: float) -> float:
    """What a schedule costs: the losses of the version that serves in each segment, and the price of each refit.

    losses[i, s]: what version i loses in segment s >= i. refits: the first version, which is free, and each later one.
    """
    ends = [*refits[1:], losses.shape[1]]
    served = (losses[i, i:end].sum() for i, end in zip(refits, ends, strict=True))
    return float(sum(served)) + price * (len(refits) - 1)


def cadence(segments: int, every: int) -> list[int]:
    """A refit every so many segments."""
    return list(range(1, segments, every))


def optimum(losses: Floats, price: float) -> tuple[float, list[int]]:
    """The cheapest schedule there is, and its cost, by `retrainopt`; the first version serves from segment 1 on."""
    n = losses.shape[1]

    def model(i: int, start: int) -> dict[str, Any]:
        return {"training_cost": price, "future_losses": {s: float(losses[i, s + 1]) for s in range(start, n - 1)}}

    models = {(i - 1, 1): model(i, i - 1) for i in range(2, n)}
    total, decisions, *_ = solve_exact_schedule(n - 1, {(-1, 0): {**model(1, 0), "training_cost": 0.0}, **models})
    return total, [1, *(t + 1 for t, d in enumerate(decisions) if d.trained_at is not None)]


def scheduled(stream: Stream, losses: Floats, shadow: Floats, due: Due) -> list[int]:
    """The refits of a policy that is told each answer, and may refit after each block."""
    refits, serving = [1], np.ones(stream.blocks, np.int64)
    due.refitted(int(stream.known[stream.block - 1]), None)
    known, told = stream.known.tolist(), shadow.tolist()
    for block in range(1, stream.blocks):
        rows = range(block * stream.block, (block + 1) * stream.block)
        there = stream.segment[rows]
        by = serving[there]
        lose = losses[by, rows].tolist()
        for a, s, v, what in zip(rows, there.tolist(), by.tolist(), lose, strict=True):
            due.answered(known[a], what if s else None, told[a], bool(s) and v == refits[-1])
        if block + 1 < stream.blocks and due.reason(known[rows[-1]]) is not None:
            due.refitted(known[rows[-1]], None)
            refits.append(block + 1)
            serving[block + 1 :] = block + 1
    return refits


def by_segment(stream: Stream, losses: Floats) -> Floats:
    """The losses of each version summed over each segment."""
    return np.array([np.bincount(stream.segment, np.nan_to_num(row), stream.blocks) for row in losses])


def out_of_order(sums: Floats) -> float:
    """How often an older version loses less than a newer one, of all pairs in all segments."""
    columns = [sums[1 : s + 1, s] for s in range(2, sums.shape[1])]
    found = [np.triu(c[:, None] < c, 1).sum() for c in columns]
    return float(sum(found) / sum(len(c) * (len(c) - 1) / 2 for c in columns))


def measure(stream: Stream, predictions: Floats, table: Table) -> None:
    """A line of the table for each unit and price."""
    for unit, prices in stream.units.items():
        losses, shadow = lost(unit, stream.y, predictions), lost(unit, stream.y, stream.shadow)
        sums = by_segment(stream, losses)
        drifting = scheduled(stream, losses, shadow, Due(deferred(drift=drift.ADWIN())))
        for price in prices:
            refits = scheduled(stream, losses, shadow, Due(deferred(debt=price)))
            mine = cost(sums, refits, price)
            costs = {k: cost(sums, cadence(stream.blocks, k), price) for k in range(1, stream.blocks)}
            best = min(costs, key=lambda k: (costs[k], -k))
            adwin = cost(sums, drifting, price)
            table.add_row(
                stream.name,
                unit,
                f"{price:g}",
                f"{mine:,.0f}",
                str(len(refits) - 1),
                str(len(cadence(stream.blocks, best)) - 1),
                str(len(drifting) - 1),
                f"{mine / costs[best]:.3f}",
                f"{mine / adwin:.3f}",
                f"{mine / optimum(sums, price)[0]:.3f}",
                f"{out_of_order(sums):.0%}",
            )


STREAMS: dict[str, Callable[[], Stream]] = {s.__name__: s for s in (flights, agrawal, hyperplane, weather, shuttle)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.debt")
    parser.add_argument("--only", choices=STREAMS)
    args = parser.parse_args()
    os.nice(10)
    table = Table("stream", "unit", "price", "cost", "refits", "cadence's", "ADWIN's", box=None)
    for ratio in ("/ cadence", "/ ADWIN", "/ optimum", "out of order"):
        table.add_column(ratio)
    for name in [args.only] if args.only else STREAMS:
        stream = STREAMS[name]()
        measure(stream, versions(stream), table)
    console.print(table)


if __name__ == "__main__":
    main()
