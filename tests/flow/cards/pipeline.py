"""A small pipeline with everything in it: late rows, corrections, a table with deletes, a model with late answers."""

import polars as pl
from river import linear_model, preprocessing

import operators as op
from engine import Pipeline, deferred, immediate

p = Pipeline("cards")

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
shops = p.table(
    "shops",
    key="shop",
    at="since",
    epoch={"since": "ms"},
    schema={"shop": str, "since": pl.Datetime, "country": str, "limit": float},
)

features = p.view(
    "features",
    payments,
    op.dedupe(by="tx", within="1d"),
    op.window(
        by="card",
        size="10m",
        n=op.count(),
        spent=op.total("amount"),
        spent_ever=op.total("amount", size="forever"),
        most=op.maximum("amount"),
    ),
    op.join(shops, on="shop", columns=["country", "limit"]),
    op.project(share=pl.col("amount") / pl.col("spent")),
)
by_country = p.view(
    "by_country", features, op.aggregate(by="country", payments=op.count(), turnover=op.total("amount"))
)
labelled = p.view("labelled", features, op.join_label(chargebacks, on="tx", columns=["fraud"], wait="1d"))
cards = p.view(
    "cards",
    payments,
    op.dedupe(by="tx", within="1d"),
    op.aggregate(by="card", payments=op.count(), turnover=op.total("amount")),
    refresh=deferred(every="2m", rows=40),
)
known_cards = p.view("known_cards", payments, op.join_asof(cards, on="card", columns={"before": "payments"}))
fraud = p.model(
    "fraud",
    features,
    answers=chargebacks,
    label="fraud",
    key="tx",
    features=["amount", "n", "spent", "spent_ever", "most", "share"],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    refresh=immediate(),
    advance="questions",
    wait="1d",
    naive=True,
)
p.sink("predictions", fraud.predictions)
p.sink("features", features)
p.sink("by_country", by_country)
p.sink("labelled", labelled)
p.sink("cards", cards)
p.sink("known_cards", known_cards)
