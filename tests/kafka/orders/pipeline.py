"""Orders of shops: what each order is, and what each shop turned over."""

import polars as pl

import operators as op
from engine import Pipeline

p = Pipeline("orders")
orders = p.source(
    "orders",
    key="id",
    at="at",
    lateness="1d",
    append_only=False,
    schema={"id": int, "shop": str, "price": float, "at": pl.Datetime},
)
p.sink("kept", p.view("kept", orders, op.project("id", "shop", "price")))
p.sink("shops", p.view("shops", orders, op.aggregate(by="shop", n=op.count(), turnover=op.total("price"))))
