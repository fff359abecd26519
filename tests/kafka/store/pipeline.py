"""Orders and customers as a database has them: totals, the dear orders with their notes, orders with their customer."""

import polars as pl

import operators as op
from engine import Pipeline

p = Pipeline("shop")
orders = p.source(
    "orders",
    key="id",
    at="changed",
    lateness="1h",
    append_only=False,
    schema={"id": int, "customer": int, "amount": float, "note": str, "changed": pl.Datetime},
)
customers = p.table(
    "customers",
    key="id",
    at="changed",
    lateness="1h",
    schema={"id": int, "name": str, "bio": str, "photo": str, "changed": pl.Datetime},
)
totals = p.view("totals", orders, op.aggregate(by="customer", orders=op.count(), amount=op.total("amount")))
dear = p.view("dear", orders, op.where(pl.col("amount") > 10), op.project("id", "amount", "note"))
joined = p.view(
    "joined",
    orders,
    op.join(customers, on="customer", right_on="id", columns=["name", "bio"]),
    op.project("id", "customer", "note", "name", "bio"),
)
known = p.view("known", customers, op.project("id", "name", "bio", "photo"))
for view in (totals, dear, joined, known):
    p.sink(view.name, view)
