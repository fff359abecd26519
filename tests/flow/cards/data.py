"""Makes the change files of the cards pipeline: seeded, with all that goes wrong in real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

START = 1_700_000_000_000
"""Milliseconds: the first payment."""


def write(folder: Path, n: int = 2000, seed: int = 1) -> dict[str, list[dict[str, object]]]:
    """Write payments (rows, with late, duplicate and broken lines), chargebacks (changes with updates and deletes) and
    shops (Debezium envelopes with updates and deletes), each in the order of knowledge; returns the good payments."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    at = START + np.cumsum(rng.integers(0, 2000, n))
    payments: list[bytes] = []
    good: list[dict[str, object]] = []
    answers: list[tuple[int, dict[str, object]]] = []
    for i in range(n):
        amount = round(float(rng.exponential(50)), 2)
        late = rng.random() < 0.05
        row = {
            "tx": i,
            "card": f"c{int(rng.zipf(1.5)) % 40}",
            "shop": f"s{rng.integers(12)}",
            "amount": amount,
            "at": int(at[i]) - (int(rng.integers(0, 50_000)) if late else 0),
        }
        payments.append(orjson.dumps(row))
        good.append(row)
        if rng.random() < 0.01:
            payments.append(orjson.dumps(row))
        if rng.random() < 0.01:
            payments.append(
                b'{"tx": "oops"' if rng.random() < 0.5 else b'{"tx": 1, "card": "c", "shop": "s", "amount": "x"}'
            )
        if rng.random() < 0.005:
            payments.append(orjson.dumps({**row, "tx": n + i, "at": int(at[i]) - 3_600_000}))
        if rng.random() < 0.8:
            when = int(at[i]) + int(rng.integers(1_000, 300_000))
            is_fraud = bool(rng.random() < (0.6 if amount > 100 else 0.1))
            answers.append((when, {"op": "insert", "tx": i, "known": when, "fraud": is_fraud}))
            if rng.random() < 0.05:
                again = when + int(rng.integers(1_000, 50_000))
                if rng.random() < 0.5:
                    answers.append((again, {"op": "update", "tx": i, "known": again, "fraud": not is_fraud}))
                else:
                    answers.append((again, {"op": "delete", "tx": i, "known": again}))
    answers.sort(key=lambda a: a[0])
    shops: list[bytes] = []
    for k in range(12):
        shops.append(_envelope("c", k, START - 1000, "NO" if k % 3 else "SE", 100.0 + k))
    for when in sorted(rng.integers(START, int(at[-1]), n // 50).tolist()):
        k = int(rng.integers(12))
        kind = "d" if rng.random() < 0.2 else "u"
        shops.append(_envelope(kind, k, when, ["NO", "SE", "DK"][int(rng.integers(3))], float(rng.integers(50, 500))))
    (folder / "payments.jsonl").write_bytes(b"\n".join(payments) + b"\n")
    (folder / "chargebacks.jsonl").write_bytes(b"".join(orjson.dumps(a) + b"\n" for _, a in answers))
    (folder / "shops.jsonl").write_bytes(b"\n".join(shops) + b"\n")
    return {"payments": good, "chargebacks": [a for _, a in answers]}


def _envelope(kind: str, k: int, ms: int, country: str, limit: float) -> bytes:
    row = {"shop": f"s{k}", "since": ms, "country": country, "limit": limit}
    return orjson.dumps(
        {
            "before": {"shop": f"s{k}"} if kind == "d" else None,
            "after": None if kind == "d" else row,
            "op": kind,
            "source": {"ts_ms": ms},
            "ts_ms": ms + 5,
        }
    )
