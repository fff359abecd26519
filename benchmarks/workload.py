"""Workload W1: card payments as JSON lines, one change per line, in order of arrival.

| field         | value                                                                             |
| ------------- | --------------------------------------------------------------------------------- |
| `tx_id`       | 0, 1, 2, ... in order of arrival                                                  |
| `card_id`     | the k-th most used card has probability proportional to k^-0.9                    |
| `merchant_id` | one of 1,000, alike in frequency                                                  |
| `amount`      | log-normal, median 25, two decimals                                               |
| `ts`          | epoch milliseconds; 2,298 events an hour; 2 % up to 30 s behind the newest so far |
| `country`     | one of eight                                                                      |
| `is_fraud`    | likelier for large amounts and in some countries                                  |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

START_MS = 1_704_067_200_000
EVENTS_PER_HOUR = 2_298
HOUR_MS = 3_600_000
ZIPF = 0.9
MERCHANTS = 1_000
LATE_SHARE = 0.02
LATE_MS = 30_000

COUNTRIES = ("US", "GB", "DE", "FR", "NL", "BR", "NG", "VN")
COUNTRY_SHARES = (0.40, 0.15, 0.12, 0.10, 0.08, 0.07, 0.04, 0.04)
COUNTRY_LOGITS = (0.0, 0.0, -0.3, -0.2, -0.3, 0.5, 1.0, 0.8)


def write(
    path: Path,
    events: int = 1_000_000,
    keys: int = 10_000,
    seed: int = 7,
    *,
    per_hour: int = EVENTS_PER_HOUR,
    late_share: float = LATE_SHARE,
) -> None:
    """Write the workload; the same arguments give the same lines.

    At the default rate few late events are behind one of their own card; raise `per_hour` for more.
    """
    frame(events, keys, seed, per_hour=per_hour, late_share=late_share).write_ndjson(path)


def frame(events: int, keys: int, seed: int, *, per_hour: int, late_share: float) -> pl.DataFrame:
    """The workload as a frame, in order of arrival."""
    rng = np.random.default_rng(seed)
    popularity = np.cumsum(np.arange(1, keys + 1) ** -ZIPF)
    card = np.searchsorted(popularity, rng.random(events) * popularity[-1], side="right")
    country = rng.choice(len(COUNTRIES), events, p=COUNTRY_SHARES)
    size = rng.standard_normal(events)
    amount = np.maximum(np.round(25 * np.exp(size), 2), 0.01)
    logit = -4.5 + 0.7 * size + np.asarray(COUNTRY_LOGITS)[country]
    is_fraud = rng.random(events) < 1 / (1 + np.exp(-logit))

    ts = START_MS + np.sort(rng.integers(0, max(1, events * HOUR_MS // per_hour), events))
    late = rng.random(events) < late_share
    late[:1] = False
    # A late event is behind the newest event in time so far, not merely behind its own arrival.
    newest = np.maximum.accumulate(np.where(late, 0, ts))
    ts = np.where(late, newest - rng.integers(1, LATE_MS + 1, events), ts)

    merchant = rng.integers(0, MERCHANTS, events)
    return pl.select(
        tx_id=pl.Series(np.arange(events)),
        card_id=_names("card", card, keys),
        merchant_id=_names("m", merchant, MERCHANTS),
        amount=pl.Series(amount),
        ts=pl.Series(ts),
        country=pl.Series(COUNTRIES).gather(country),
        is_fraud=pl.Series(is_fraud),
    )


def _names(prefix: str, numbers: npt.NDArray[np.int64], many: int) -> pl.Expr:
    digits = len(str(many - 1))
    return pl.format(prefix + "-{}", pl.lit(pl.Series(numbers)).cast(pl.String).str.zfill(digits))
