"""Will this flight be late? The real flights that left New York in 2013.

A question is asked at each flight's scheduled departure; its answer is known when it lands, hours later, or never.
Every feature is computed from what was known at the moment of the question.
"""

from pathlib import Path

import polars as pl
from data import prepare
from river import compose, linear_model, optim

import operators as op
from engine import Pipeline, immediate

p = Pipeline(
    "flights",
    prepare=lambda folder: prepare(folder / "data"),
    learned=Path(__file__).with_name("learned.json"),  # made by: freshet calibrate examples/flights
)

departures = p.source(
    "departures",
    key="flight_id",
    at="sched_dep",
    lateness="30m",
    schema={
        "flight_id": str,
        "sched_dep": pl.Datetime,
        "carrier": str,
        "tailnum": str,
        "origin": str,
        "dest": str,
        "distance": float,
    },
)
landings = p.source(
    "landings",
    key="flight_id",
    at="arrived",
    lateness="30m",
    schema={"flight_id": str, "arrived": pl.Datetime, "tailnum": str, "origin": str, "arr_delay": float},
)
weather = p.source(
    "weather",
    key=["origin", "observed"],
    at="observed",
    lateness="30m",
    idle_after="3h",
    schema={
        "origin": str,
        "observed": pl.Datetime,
        "temp": float,
        "wind_speed": float,
        "precip": float,
        "visib": float,
    },
    expect=[op.between("wind_speed", 0, 200, severity="quarantine")],  # in February Newark reports 1,048 miles an hour
)
# What is usual of each airport's weather is learnt; a row that is not is counted, and used all the same.
observations = p.view(
    "observations",
    weather,
    op.project("origin", "temp", "wind_speed", "precip", "visib"),
    expect=[
        op.usual("temp", by="origin"),
        op.usual("wind_speed", by="origin"),
        op.stuck("temp", by="origin"),
        op.stuck("visib", by="origin"),
        op.null_ratio("temp", by="origin", within="1d"),
        op.level("temp", by="origin", within="1d", against="28d"),
    ],
)
planes = p.table("planes", key="tailnum", schema={"tailnum": str, "year": int, "seats": int})

local = pl.col("sched_dep").dt.convert_time_zone("America/New_York")

features = p.view(
    "features",
    departures,
    op.window(by="origin", size="1h", departures_1h=op.count()),
    op.join_asof(weather, on="origin", tolerance="3h", columns=["temp", "wind_speed", "precip", "visib"]),
    op.join_asof(landings, on="origin", columns={"origin_delay": "arr_delay"}),
    op.join(planes, on="tailnum", columns=["year", "seats"]),
    op.join_asof(landings, on="tailnum", columns={"tail_delay": "arr_delay", "tail_landed": "arrived"}),
    op.project(
        hour=local.dt.strftime("%H"),
        weekday=local.dt.strftime("%a"),
        tail_hours=((pl.col("sched_dep") - pl.col("tail_landed")).dt.total_minutes() / 60.0).clip(0, 48),
        age=2013 - pl.col("year"),
    ),
)

answers = p.view(
    "answers",
    landings,
    op.project("flight_id", delay=pl.col("arr_delay"), late=pl.col("arr_delay") > 15),
)

# What the models see: numbers brought to about the same size (a missing one counts as 0), the rest as words.
inputs = p.view(
    "inputs",
    features,
    op.project(
        "flight_id",
        "carrier",
        "origin",
        "dest",
        "hour",
        "weekday",
        distance=pl.col("distance") / 1000,
        departures_1h=(pl.col("departures_1h") - 20) / 10,
        temp=(pl.col("temp") - 55) / 20,
        wind_speed=pl.col("wind_speed").clip(0, 60) / 10 - 1,
        precip=(pl.col("precip") * 10).clip(0, 5),
        visib=pl.col("visib") / 5 - 2,
        origin_delay=pl.col("origin_delay").clip(-60, 240) / 60,
        tail_delay=pl.col("tail_delay").clip(-60, 240) / 60 * (pl.col("tail_hours") < 12).cast(pl.Float64),
        tail_hours=(pl.col("tail_hours") - 12) / 12,
        age=(pl.col("age") - 11) / 7,
    ),
)


def one_hot(x):
    """Words as features of their own; numbers as they are."""
    return {f"{n}={v}" if isinstance(v, str) else n: 1.0 if isinstance(v, str) else v for n, v in x.items()}


late = p.model(
    "late",
    inputs,
    answers=answers,
    label="late",
    learner=compose.FuncTransformer(one_hot) | linear_model.LogisticRegression(optim.SGD(0.02)),
    refresh=immediate(),
    wait="2d",
    naive=True,
)
delay = p.model(
    "delay",
    inputs,
    answers=answers,
    label="delay",
    learner=compose.FuncTransformer(one_hot)
    | linear_model.LinearRegression(optim.SGD(0.1), loss=optim.losses.Quantile(0.5), intercept_lr=0.1),
    refresh=immediate(),
    wait="2d",
    naive=True,
)

p.sink("predictions", late.predictions, delay.predictions)
p.sink("features", features)
