"""The payments of the cards pipeline with two deferred models, whose learners are made of what this file defines."""

import os
import time
from pathlib import Path

import numpy as np
import polars as pl
from river import compose, linear_model
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import operators as op
from engine import Pipeline, deferred, immediate, on_query

HOLD, FITTING = (str(Path(__file__).with_name(name)) for name in ("hold", "fitting"))
SHOPS = [f"s{i}" for i in range(12)]

p = Pipeline("refitted")

payments = p.source(
    "payments",
    key="tx",
    at="at",
    lateness="60s",
    epoch={"at": "ms"},
    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},
)
chargebacks = p.source(
    "chargebacks",
    key="tx",
    at="known",
    lateness="60s",
    append_only=False,
    epoch={"known": "ms"},
    schema={"tx": int, "known": pl.Datetime, "fraud": bool},
)

questions = p.view(
    "questions",
    payments,
    op.dedupe(by="tx", within="1d"),
    op.window(by="card", size="10m", n=op.count()),
    op.project("tx", "shop", "amount", "n"),
)
answers = p.view(
    "answers", chargebacks, op.project("tx", "fraud", cost=pl.when(pl.col("fraud")).then(25.0).otherwise(0.0))
)


def one_hot(x):
    """Words as features of their own; numbers as they are."""
    return {f"{n}={v}" if isinstance(v, str) else n: 1.0 if isinstance(v, str) else v / 100 for n, v in x.items()}


def numbers(frame):
    """Words as columns of their own."""
    shops = [(frame["shop"] == shop).cast(float) for shop in SHOPS]
    return np.column_stack([frame["amount"].log1p(), frame["n"], *shops])


class Paced(Ridge):
    """A learner whose fit does not end as long as the file `hold` is there; it leaves the file `fitting`."""

    def fit(self, x, y):
        Path(FITTING).touch()
        while os.path.exists(HOLD):
            time.sleep(0.01)
        return super().fit(x, y)


fraud = p.model(
    "fraud",
    questions,
    answers=answers,
    label="fraud",
    learner=compose.FuncTransformer(one_hot) | linear_model.LogisticRegression(),
    refresh=deferred(every="5m"),
    wait="4m",
)
cost = p.model(
    "cost",
    questions,
    answers=answers,
    label="cost",
    learner=make_pipeline(FunctionTransformer(numbers), Paced()),
    refresh=deferred(rows=300),
    wait="4m",
)
at_once = p.model(
    "at_once",
    questions,
    answers=answers,
    label="cost",
    features=["amount", "n"],
    learner=linear_model.LinearRegression(),
    refresh=immediate(),
    wait="4m",
)
similar = p.model(
    "similar",
    questions,
    answers=answers,
    label="cost",
    features=["amount", "n"],
    learner=linear_model.LinearRegression(),
    refresh=on_query(neighbours=8),
    wait="4m",
)
p.sink("fraud", fraud.predictions)
p.sink("cost", cost.predictions)
p.sink("others", at_once.predictions, similar.predictions)
p.sink("trained", fraud.training)
