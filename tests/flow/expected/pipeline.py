"""The change files of the cards pipeline with something expected of every kind of relation."""

import polars as pl
from river import linear_model, preprocessing

import operators as op
from engine import Pipeline, deferred

p = Pipeline("expected")

payments = p.source(
    "payments",
    key="tx",
    at="at",
    lateness="60s",
    erasable=True,
    epoch={"at": "ms"},
    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},
    expect=[
        op.between("amount", 0.5, 100, severity="quarantine"),
        op.matches("card", "c[0-9]", name="short"),
        op.one_of("shop", [f"s{i}" for i in range(11)], severity="quarantine", name="shops"),
    ],
)
chargebacks = p.source(
    "chargebacks",
    key="tx",
    at="known",
    lateness="60s",
    append_only=False,
    epoch={"known": "ms"},
    schema={"tx": int, "known": pl.Datetime, "fraud": bool},
    expect=[op.one_of("fraud", [False], severity="quarantine", name="honest")],
)
shops = p.table(
    "shops",
    key="shop",
    at="since",
    epoch={"since": "ms"},
    schema={"shop": str, "since": pl.Datetime, "country": str, "limit": float},
    expect=[op.between("limit", 0, 200)],
)

repeated = op.unique("tx", within="1d", severity="quarantine", name="repeated")
once = p.view("once", payments, op.where(pl.lit(True)), expect=[repeated])
counted = (
    op.window(by="card", size="10m", n=op.count(), spent=op.total("amount")),
    op.join(shops, on="shop", columns=["country"]),
)
features = p.view("features", once, *counted, expect=[op.check("even", pl.col("n") % 2 == 0, severity="quarantine")])
all_features = p.view("all_features", once, *counted, expect=[op.check("even", pl.col("n") % 2 == 0)])

told = p.view("told", chargebacks, op.project("tx", "fraud"))

by_card = op.aggregate(by="card", payments=op.count(), turnover=op.total("amount"))
due = deferred(every="2m", rows=40)
small = op.check("small", pl.col("payments") * 7 % 5 < 3, severity="quarantine")
cards = p.view("cards", once, by_card, refresh=due, expect=[small, op.not_null("card"), op.unique("payments")])
all_cards = p.view("all_cards", once, by_card, refresh=due)
unusual = p.view(
    "unusual", p.quarantine(cards), op.aggregate(by="reason", cards=op.count(), most=op.maximum("payments"))
)

cheap = op.check("cheap", pl.col("amount") < 30, severity="quarantine")
let_in = op.release(told, within="1m")
cleared = p.view("cleared", once, op.where(pl.lit(True)), expect=[cheap], release=let_in)
cleared_later = p.view("cleared_later", once, op.where(pl.lit(True)), refresh=due, expect=[cheap], release=let_in)
all_later = p.view("all_later", once, op.where(pl.lit(True)), refresh=due)
sums = p.view("sums", cleared, op.aggregate(by="card", payments=op.count(), turnover=op.total("amount")))

answers = p.view("answers", payments, op.project("tx", high=pl.col("amount") > 50))
high = p.model(
    "high",
    all_features,
    answers=answers,
    label="high",
    key="tx",
    features=["n", "spent"],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    wait="1d",
    expect=[op.between("prediction", 0, 1, severity="stop"), op.between("prediction", 0, 0.5)],
    training_expect=[op.check("even", pl.col("n") % 2 == 0), op.not_null("label", severity="stop")],
)

p.sink("once", once)
p.sink("once_aside", p.quarantine(once))
p.sink("payments_aside", p.quarantine(payments))
p.sink("told", told)
p.sink("chargebacks_aside", p.quarantine(chargebacks))
p.sink("features", features)
p.sink("features_aside", p.quarantine(features))
p.sink("all_features", all_features)
p.sink("cards", cards)
p.sink("cards_aside", p.quarantine(cards))
p.sink("all_cards", all_cards)
p.sink("unusual", unusual)
p.sink("cleared", cleared)
p.sink("cleared_aside", p.quarantine(cleared))
p.sink("cleared_later", cleared_later)
p.sink("cleared_later_aside", p.quarantine(cleared_later))
p.sink("all_later", all_later)
p.sink("sums", sums)
p.sink("predictions", high.predictions)
p.sink("training", high.training)
