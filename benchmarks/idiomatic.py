"""Workload W1 in idiomatic bytewax: one record at a time, one stateful step, as its documentation teaches."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main

HOUR_MS = 3_600_000


@dataclass(slots=True)
class Card:
    """What is kept of one card."""

    count: int = 0
    total: float = 0.0
    most: float = 0.0
    recent: float = 0.0
    hour: deque[tuple[int, float]] = field(default_factory=deque)


def aggregate(card: Card | None, event: dict[str, Any]) -> tuple[Card, dict[str, Any]]:
    """The card after an event, and the event's row. A late event counts as of its arrival."""
    if card is None:
        card = Card()
    amount, ts, hour = event["amount"], event["ts"], card.hour
    card.count += 1
    card.total += amount
    card.most = max(card.most, amount)
    hour.append((ts, amount))
    card.recent += amount
    while hour[0][0] <= ts - HOUR_MS:
        card.recent -= hour.popleft()[1]
    return card, {
        "tx_id": event["tx_id"],
        "card_id": event["card_id"],
        "ts": ts,
        "amount": amount,
        "count": card.count,
        "sum": card.total,
        "mean": card.total / card.count,
        "max": card.most,
        "count_1h": len(hour),
        "sum_1h": card.recent,
        "mean_1h": card.recent / len(hour),
    }


def w1(lines_path: Path, out_path: Path) -> None:
    """Per event one row, as `hand.w1`; rows of one card keep their order."""
    flow = Dataflow("w1")
    lines = op.input("lines", flow, FileSource(lines_path))
    events = op.map("decode", lines, orjson.loads)
    keyed = op.key_on("card", events, lambda event: event["card_id"])
    rows = op.stateful_map("aggregate", keyed, aggregate)
    encoded = op.map_value("encode", rows, lambda row: orjson.dumps(row).decode())
    op.output("rows", encoded, FileSink(out_path))
    cli_main(flow)  # type: ignore[no-untyped-call]
