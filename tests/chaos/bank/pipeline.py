"""Money that moves between accounts: what one account gives another takes, so at every version the totals agree."""

import polars as pl
from river import linear_model, preprocessing

import operators as op
from engine import Pipeline

p = Pipeline("bank")

transfers = p.source(
    "transfers",
    key="id",
    at="at",
    lateness="1h",
    append_only=False,
    schema={"id": int, "src": str, "dst": str, "amount": int, "at": pl.Datetime},
)
verdicts = p.source("verdicts", key="id", at="at", lateness="1h", schema={"id": int, "at": pl.Datetime, "fraud": bool})
accounts = p.table("accounts", key="src", schema={"src": str, "limit": int})

debited = p.view("debits", transfers, op.aggregate(by="src", total=op.total("amount"), transfers=op.count()))
credited = p.view("credits", transfers, op.aggregate(by="dst", total=op.total("amount"), transfers=op.count()))
features = p.view(
    "features",
    transfers,
    op.window(by="src", size="1h", recent=op.count(), spent=op.total("amount")),
    op.join(accounts, on="src", columns=["limit"]),
)
risk = p.model(
    "risk",
    features,
    answers=verdicts,
    label="fraud",
    key="id",
    features=["amount", "recent", "spent"],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    advance="questions",
    wait="1d",
)
p.sink("debits", debited)
p.sink("credits", credited)
p.sink("features", features)
p.sink("predictions", risk.predictions)
