"""Payments that can be erased, under a model of each kind."""

import polars as pl
from river import linear_model, preprocessing
from sklearn.linear_model import LinearRegression

import operators as op
from engine import Pipeline, deferred, immediate, on_query
from engine.learners import Ridge

p = Pipeline("forgotten")

payments = p.source(
    "payments",
    key="tx",
    at="at",
    lateness="60s",
    erasable=True,
    log=True,
    epoch={"at": "ms"},
    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},
)
chargebacks = p.source(
    "chargebacks",
    key="tx",
    at="known",
    lateness="60s",
    append_only=False,
    log=True,
    epoch={"known": "ms"},
    schema={"tx": int, "known": pl.Datetime, "fraud": bool},
)
questions = p.view(
    "questions", payments, op.dedupe(by="tx", within="1d"), op.window(by="card", size="10m", n=op.count()), log=True
)
answers = p.view("answers", chargebacks, op.project("tx", cost=pl.when(pl.col("fraud")).then(25.0).otherwise(0.0)))

LEFT_OUT: tuple[str, ...] = ()

for name, learner, refresh in (
    ("group", Ridge(), immediate()),
    ("online", preprocessing.StandardScaler() | linear_model.LinearRegression(), immediate()),
    ("similar", linear_model.LinearRegression(), on_query(neighbours=8)),
    ("nearest", linear_model.LinearRegression(), on_query(neighbours=8, fit="learner")),
    ("fitted", LinearRegression(), deferred(rows=100)),
    ("shops", Ridge(), deferred(every="5m", mode="incremental")),
):
    if name not in LEFT_OUT:
        model = p.model(
            name,
            questions,
            answers=answers,
            label="cost",
            features=["shop"] if name == "shops" else ["amount", "n"],
            learner=learner,
            refresh=refresh,
            wait="6m",
            naive=name == "online",
        )
        p.sink(name, model.predictions)
