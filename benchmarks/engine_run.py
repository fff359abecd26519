"""Workloads W1 and W2 through the engine: the same rows as the hand-written loop, with corrections for late events."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from river import linear_model, metrics, preprocessing

import operators as op
from benchmarks.hand import FEATURES
from engine import Pipeline, immediate
from engine.batch import Batch
from engine.flow import Run
from engine.publish import outputs
from engine.recovery import claim
from engine.settings import Settings, SourceSettings


def pipeline(model: bool) -> Pipeline:
    """W1, with a model W2."""
    p = Pipeline("bench")
    payments = p.source(
        "payments",
        key="tx_id",
        at="ts",
        lateness="30s",
        epoch={"ts": "ms"},
        schema={
            "tx_id": int,
            "card_id": str,
            "merchant_id": str,
            "amount": float,
            "ts": pl.Datetime,
            "country": str,
            "is_fraud": bool,
        },
    )
    rows = p.view(
        "rows",
        payments,
        op.project("tx_id", "card_id", "amount"),
        op.window(
            by="card_id",
            size="1h",
            count=op.count(size="forever"),
            sum=op.total("amount", size="forever"),
            mean=op.mean("amount", size="forever"),
            max=op.maximum("amount", size="forever"),
            count_1h=op.count(),
            sum_1h=op.total("amount"),
            mean_1h=op.mean("amount"),
        ),
    )
    p.sink("rows", rows)
    if model:
        answers = p.view("answers", payments, op.project("tx_id", "is_fraud"))
        fraud = p.model(
            "fraud",
            rows,
            answers=answers,
            label="is_fraud",
            features=FEATURES,
            learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
            refresh=immediate(),
            metric=metrics.LogLoss(),
            wait="1m",
        )
        p.sink("predictions", fraud.predictions)
    return p


def run(lines_path: Path, folder: Path, model: bool, batch_rows: int = 4000) -> None:
    """Run to the end of the lines; outputs and state go to `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    go_on(lines_path, folder, model, batch_rows)


def go_on(
    lines_path: Path, folder: Path, model: bool, batch_rows: int = 4000, published: Callable[[], None] | None = None
) -> None:
    """Run to the end of the lines from where the state in `folder` is. published: called after each batch."""
    p = pipeline(model)
    settings = Settings(sources={"payments": SourceSettings(path=str(lines_path))}, batch_rows=batch_rows)
    state = claim(folder / "state", p.name, p.definition(), settings.shards, folder, outputs(p))
    run = Run(p, settings, folder, state)
    if published is not None:
        tell(run, published)
    run.run()
    state.release()


def tell(run: Run, published: Callable[[], None]) -> None:
    """Have `published` called after each batch that the run publishes."""
    guard = run.guard

    def guarded(step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        inner: Callable[..., Any] = guard(step, call)
        if step != "publish":
            return inner

        def told(*args: Any) -> Any:
            found = inner(*args)
            if isinstance(args[0], Batch):  # and not when the step is built
                published()
            return found

        return told

    run.guard = guarded  # type: ignore[method-assign]
