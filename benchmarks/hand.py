"""The yardstick: workloads W1 and W2 as a good user writes them by hand, in one process without an engine.

A late event counts as of its arrival: what was written is never corrected. Nothing is kept over a restart.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import orjson
from river import compose, linear_model, preprocessing

HOUR_MS = 3_600_000
FEATURES = ("amount", "count", "sum", "mean", "max", "count_1h", "sum_1h", "mean_1h")


def w1(lines_path: Path, out_path: Path) -> None:
    """Per event one row: count, sum, mean, max of its card's past; count, sum, mean of its last hour."""
    _run(lines_path, out_path, None)


def w2(lines_path: Path, out_path: Path) -> None:
    """W1, and per event the probability of fraud: predicted first, then learned from the event's label."""
    _run(lines_path, out_path, preprocessing.StandardScaler() | linear_model.LogisticRegression())


def _run(lines_path: Path, out_path: Path, model: compose.Pipeline | None) -> None:
    """One loop for both, for speed: a generator or a function call per event would cost a tenth of W1."""
    cards: dict[str, list[Any]] = {}
    with lines_path.open("rb") as lines, out_path.open("wb", buffering=1 << 20) as out:
        for line in lines:
            event = orjson.loads(line)
            card_id, amount, ts = event["card_id"], event["amount"], event["ts"]
            card = cards.get(card_id)
            if card is None:
                card = cards[card_id] = [0, 0.0, amount, 0.0, deque()]
            card[0] = count = card[0] + 1
            card[1] = total = card[1] + amount
            if amount > card[2]:
                card[2] = amount
            hour, recent, start = card[4], card[3] + amount, ts - HOUR_MS
            hour.append((ts, amount))
            while hour[0][0] <= start:
                recent -= hour.popleft()[1]
            card[3] = recent
            row = {
                "tx_id": event["tx_id"],
                "card_id": card_id,
                "ts": ts,
                "amount": amount,
                "count": count,
                "sum": total,
                "mean": total / count,
                "max": card[2],
                "count_1h": len(hour),
                "sum_1h": recent,
                "mean_1h": recent / len(hour),
            }
            if model is not None:
                x = {name: row[name] for name in FEATURES}
                row["probability"] = model.predict_proba_one(x)[True]
                model.learn_one(x, event["is_fraud"])
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
