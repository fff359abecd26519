"""What happens in the bank, and an independent judge of what the pipeline made of it: plain dicts, no engine code."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

Message = tuple[str, bytes, dict[str, Any] | None]
"""Topic, key, value; None is a tombstone."""

SINKS = ("debits", "credits", "features", "predictions")
_BEGIN = datetime(2024, 1, 1, tzinfo=timezone.utc)
_ACCOUNTS = [f"a{i}" for i in range(12)]


class World:
    """Events without end, the same for the same seed: transfers, corrections, withdrawals, late ones, verdicts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seconds = 0
        self._next = 0
        self._live: dict[int, dict[str, Any]] = {}
        self._waiting: list[tuple[int, int]] = []

    def happen(self, n: int) -> Iterator[Message]:
        """The next n messages or a few more."""
        if not self._next:
            for i, account in enumerate(_ACCOUNTS[:-2]):
                yield "accounts", _key(src=account), {"src": account, "limit": 100 * i}
        r = self._random
        for _ in range(n):
            self._seconds += r.choice([0, 1, 1, 2, 30])
            what = r.random()
            if what < 0.7 or len(self._live) < 5:
                late = r.choice([0, 0, 0, r.randrange(1800)])
                yield self._transfer(self._next, self._seconds - late)
                self._waiting.append((self._seconds + r.randrange(600), self._next))
                self._next += 1
            elif what < 0.8:
                number = r.choice(list(self._live))
                yield self._transfer(number, self._seconds)
            elif what < 0.87:
                number = r.choice(list(self._live))
                del self._live[number]
                yield "transfers", _key(id=number), None
            else:
                yield from self._answers()

    def _transfer(self, number: int, seconds: int) -> Message:
        src, dst = self._random.sample(_ACCOUNTS, 2)
        row = {"id": number, "src": src, "dst": dst, "amount": self._random.randrange(1, 1000), "at": _iso(seconds)}
        self._live[number] = row
        return "transfers", _key(id=number), row

    def _answers(self) -> Iterator[Message]:
        due = [w for w in self._waiting if w[0] <= self._seconds]
        self._waiting = [w for w in self._waiting if w[0] > self._seconds]
        for _, number in due:
            yield "verdicts", _key(id=number), {"id": number, "at": _iso(self._seconds), "fraud": number % 3 == 0}


def _key(**columns: Any) -> bytes:
    return json.dumps(columns, separators=(",", ":")).encode()


def _iso(seconds: int) -> str:
    return (_BEGIN + timedelta(seconds=max(seconds, 0))).isoformat().replace("+00:00", "Z")


def send(bootstrap: str, topics: Mapping[str, str], messages: Iterator[Message]) -> int:
    """Send messages; how many there were."""
    with KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5) as producer:
        n = 0
        for name, key, value in messages:
            producer.send(topics[name], None if value is None else json.dumps(value).encode(), key)
            n += 1
        producer.flush()
    return n


@dataclass
class Verdict:
    """changes: sent to the pipeline. messages: it sent. lost: rows that should be there and are not; wrong: that are
    otherwise; doubled: messages that were sent twice; unbalanced: versions at which the totals differ.
    """

    changes: int = 0
    messages: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unbalanced: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.wrong or self.doubled or self.unbalanced)


def read(bootstrap: str, topic: str) -> list[Any]:
    """All records of a topic that are committed, each partition in its order."""
    with KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False) as c:
        keys = [TopicPartition(topic, p) for p in sorted(c.partitions_for_topic(topic))]
        c.assign(keys)
        c.seek_to_beginning()
        ends = c.end_offsets(keys)
        found = []
        while any(c.position(k) < ends[k] for k in keys):
            found += [r for rs in c.poll(200).values() for r in rs]
        return found


def judge(bootstrap: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Verdict:
    """What the views should be by the inputs, against what they are."""
    verdict = Verdict()
    rows: dict[int, dict[str, Any]] = {}
    asked: set[int] = set()
    for r in (transfers := read(bootstrap, inputs["transfers"])):
        number = json.loads(r.key)["id"]
        if r.value is None:
            rows.pop(number, None)
        else:
            rows[number] = json.loads(r.value)
            asked.add(number)
    verdict.changes = (
        len(transfers) + len(read(bootstrap, inputs["verdicts"])) + len(read(bootstrap, inputs["accounts"]))
    )
    limits = {a["src"]: a["limit"] for r in read(bootstrap, inputs["accounts"]) if (a := json.loads(r.value))}
    want: dict[str, dict[str, Any]] = {"debits": _totals(rows, "src"), "credits": _totals(rows, "dst")}
    want["features"] = {str(n): _feature(row, rows, limits) for n, row in rows.items()}
    records = {name: read(bootstrap, topic) for name, topic in outputs.items()}
    for name, sent in records.items():
        verdict.messages += len(sent)
        seen = Counter((r.key, dict(r.headers)["version"]) for r in sent)
        verdict.doubled += [f"{name} {key} version {version}" for (key, version), n in seen.items() if n > 1]
    for name, mine in want.items():
        found = {}
        for r in records[name]:
            key = str(next(iter(json.loads(r.key).values())))
            found[key] = None if r.value is None else json.loads(r.value)
        found = {k: v for k, v in found.items() if v is not None}
        for key in mine.keys() | found.keys():
            if key not in found:
                verdict.lost.append(f"{name} {key}: {mine[key]}")
            elif key not in mine or any(found[key][c] != v for c, v in mine[key].items()):
                verdict.wrong.append(f"{name} {key}: {found[key]}, expected {mine.get(key)}")
    answered = Counter(json.loads(r.key)["id"] for r in records["predictions"])
    verdict.lost += [f"predictions {n}" for n in asked - answered.keys()]
    verdict.doubled += [f"predictions {n}: {times}" for n, times in answered.items() if times > 1]
    verdict.unbalanced = _unbalanced(records["debits"], records["credits"])
    return verdict


def _totals(rows: Mapping[int, dict[str, Any]], by: str) -> dict[str, Any]:
    totals: dict[str, Any] = defaultdict(lambda: {"total": 0, "transfers": 0})
    for row in rows.values():
        totals[row[by]]["total"] += row["amount"]
        totals[row[by]]["transfers"] += 1
    return dict(totals)


def _feature(row: dict[str, Any], rows: Mapping[int, dict[str, Any]], limits: Mapping[str, int]) -> dict[str, Any]:
    """Amount and account; the window's figures depend on the order among equals, so only their sum is certain."""
    return {"src": row["src"], "amount": row["amount"], "at": row["at"], "limit": limits.get(row["src"])}


def _unbalanced(given: list[Any], taken: list[Any]) -> list[str]:
    """The versions at which what was given is not what was taken."""
    by_version: dict[int, list[tuple[str, Any]]] = defaultdict(list)
    for name, sent in (("debits", given), ("credits", taken)):
        for r in sent:
            by_version[int(dict(r.headers)["version"])].append((name, r))
    totals: dict[str, dict[bytes, int]] = {"debits": {}, "credits": {}}
    wrong = []
    for version in sorted(by_version):
        for name, r in by_version[version]:
            totals[name][r.key] = 0 if r.value is None else json.loads(r.value)["total"]
        out, back = (sum(t.values()) for t in totals.values())
        if out != back:
            wrong.append(f"version {version}: {out} given, {back} taken")
    return wrong
