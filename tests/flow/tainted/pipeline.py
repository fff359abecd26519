"""The change files of the cards pipeline, with marks on what stands on suspect rows."""

import polars as pl
from river import linear_model, preprocessing

import operators as op
from engine import Pipeline, deferred, guard

p = Pipeline("tainted")

payments = p.source(
    "payments",
    key="tx",
    at="at",
    lateness="60s",
    epoch={"at": "ms"},
    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},
    expect=[op.between("amount", 2, 150, severity="quarantine"), op.check("shop", pl.col("shop") != "s3")],
    taint=True,
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
    op.window(by="card", size="5s", n=op.count(), spent=op.total("amount"), most=op.maximum("amount", size="2s")),
    op.join(shops, on="shop", columns=["limit"]),
    op.project("tx", "card", "n", "spent", over=pl.col("amount") / pl.col("limit")),
    expect=[op.between("over", 0, 1.5, severity="quarantine"), op.between("n", 0, 3)],
)
cards = p.view("cards", payments, op.aggregate(by="card", n=op.count(), turnover=op.total("amount")))
busy = p.view("busy", features, op.aggregate(by="card", n=op.count()), refresh=deferred(every="2m", rows=40))
known = p.view("known", chargebacks, op.join_asof(features, on="tx", columns=["n"]))
labelled = p.view("labelled", features, op.join_label(chargebacks, on="tx", columns=["fraud"], wait="1d"))
clean = p.view("clean", features, op.where(~pl.col("suspect")), op.project("tx", "n"))
fraud = p.model(
    "fraud",
    features,
    answers=chargebacks,
    label="fraud",
    key="tx",
    features=["n", "spent"],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    wait="1d",
    guards=[guard.refuse("suspect", pl.col("suspect"))],
)

for view in (features, cards, busy, known, labelled, clean):
    p.sink(view.name, view)
p.sink("predictions", fraud.predictions)
p.sink("training", fraud.training)
