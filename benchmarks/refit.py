"""Does a refit disturb the stream? Latency of predictions before, while and after a version is fitted.

`python -m benchmarks.refit [--examples 300000] [--rate 100] [--calm 2000]`: a deferred model of boosted trees takes in
history, is fitted at half of the examples, and serves. Then questions come live at a steady rate. The first `calm` of
them show the latency without a fit; then the refit on all examples falls due. The run ends five seconds after the fit.

The latency of a question is the time from its line being written to the file until the batch that holds it is
published, with its prediction. It is measured in a run of the whole dataflow, state saved.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from threading import Thread

import numpy as np
import orjson
import polars as pl
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingRegressor

import operators as op
from benchmarks.engine_run import tell
from engine import Pipeline, deferred
from engine.flow import Run
from engine.publish import outputs
from engine.recovery import claim
from engine.settings import Settings, SourceSettings

FEATURES = [f"x{i}" for i in range(8)]
DELAY = 1000
"""A question is answered when so many more have been asked; they are a millisecond apart in event time."""
BEGAN = 1_700_000_000_000_000


def pipeline(rows: int) -> Pipeline:
    """Questions and answers, and a model that is refitted with every so many answers."""
    p = Pipeline("refit")
    schema = {"id": int, "at": pl.Datetime, **dict.fromkeys(FEATURES, float)}
    asked = p.source("questions", key="id", at="at", schema=schema, epoch={"at": "us"})
    told = p.source("answers", key="id", at="at", schema={"id": int, "at": pl.Datetime, "y": float}, epoch={"at": "us"})
    questions = p.view("features", asked, op.project("id", *FEATURES))
    learner = HistGradientBoostingRegressor(random_state=0)
    model = p.model("m", questions, answers=told, label="y", learner=learner, refresh=deferred(rows=rows), wait="2s")
    p.sink("predictions", model.predictions)
    return p


def features(i: int) -> list[float]:
    """The features of question `i`."""
    drawn: list[float] = np.random.default_rng(i).normal(size=len(FEATURES)).round(4).tolist()
    return drawn


def question(i: int) -> bytes:
    """The line that asks question `i`."""
    row = {"id": i, "at": BEGAN + 1000 * i, **dict(zip(FEATURES, features(i), strict=True))}
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def answer(i: int) -> bytes:
    """The line that answers question `i`."""
    x = features(i)
    row = {"id": i, "at": BEGAN + 1000 * (i + DELAY), "y": x[0] * x[1] + abs(x[2])}
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.refit")
    parser.add_argument("--examples", type=int, default=300_000)
    parser.add_argument("--rate", type=int, default=100, help="questions a second")
    parser.add_argument("--calm", type=int, default=2000, help="questions before the refit falls due")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshet-refit-") as temporary:
        measure(Path(temporary), args.examples, args.rate, args.calm)


def measure(folder: Path, examples: int, rate: int, calm: int) -> None:
    """Write history, let it be read, go on live until the refit is done, and print the table."""
    console = Console()
    history = examples + DELAY - calm
    paths = {name: folder / f"{name}.jsonl" for name in ("questions", "answers")}
    paths["questions"].write_bytes(b"".join(question(i) for i in range(history)))
    paths["answers"].write_bytes(b"".join(answer(i) for i in range(history - DELAY)))
    p = pipeline(examples // 2)
    settings = Settings(sources={name: SourceSettings(path=str(path)) for name, path in paths.items()})
    state = claim(folder / "state", p.name, p.definition(), 1, folder / "out", outputs(p))
    run = Run(p, settings, folder / "out", state, follow=True)
    read, written, seen = 0, list[float](), list[float]()

    def published() -> None:
        nonlocal read
        assert run.publish is not None
        read = run.publish.read["questions"]
        seen.extend([time.perf_counter()] * (read - history - len(seen)))

    tell(run, published)
    thread = Thread(target=run.run, daemon=True)
    thread.start()
    with console.status(f"history: {history:,} questions"):
        while read < history and thread.is_alive():
            time.sleep(0.1)
    fitting = ended = float("inf")
    began = time.perf_counter()
    with (
        console.status("live"),
        paths["questions"].open("ab", buffering=0) as asked,
        paths["answers"].open("ab", buffering=0) as told,
    ):
        while thread.is_alive() and time.perf_counter() < ended + 5:
            i = history + len(written)
            told.write(answer(i - DELAY))
            asked.write(question(i))
            written.append(time.perf_counter())
            fits = run.models["m"].keeper.figures()["fitting"]
            if fits and fitting > written[-1]:
                fitting = written[-1]
            elif not fits and fitting < written[-1] < ended:
                ended = written[-1]
            time.sleep(max(0.0, began + len(written) / rate - time.perf_counter()))
    time.sleep(1)
    run.stop.set()
    thread.join()
    state.release()
    when = np.array(written[: len(seen)])
    waits = 1000 * (np.array(seen) - when)
    table = Table("", "questions", "p50 ms", "p99 ms", "most ms", title=f"latency at {rate} questions a second")
    p99 = []
    for name, some in (
        ("before", when < fitting),
        ("while fitting", (when >= fitting) & (when < ended)),
        ("after", when >= ended),
    ):
        p50, high, most = np.percentile(waits[some], [50, 99, 100])
        p99.append(high)
        table.add_row(name, f"{some.sum():,}", f"{p50:.1f}", f"{high:.1f}", f"{most:.1f}")
    console.print(table)
    last = run.models["m"].figures()["last"]
    console.print(
        f"{last['examples']:,} examples fitted in {last['seconds']:.1f} s beside the stream; "
        f"p99 while fitting is {p99[1] / p99[0]:.2f} times that before"
    )


if __name__ == "__main__":
    main()
