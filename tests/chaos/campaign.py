"""A campaign against the bank: seeded faults, again and again, and after each round a judge of all that was made.

Two banks read the same topics, one with transactions. In a round one of them lives and dies some times; then it reads
to the end, and record by record its views must be what a from-scratch recompute makes them, and its totals must agree
at every version.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from deploy.broker.broker import Broker
from tests.chaos.running import Bank, Life, Point
from tests.chaos.world import World, send

POINTS = [
    Point("engine.intake", "Intake", "note", True),
    Point("engine.intake", "Intake", "save", False),
    Point("engine.intake", "Intake", "save", True),
    Point("engine.merge", "Merge", "next", True),
    Point("engine.merge", "Merge", "state", True),
    Point("engine.bind", "Inputs", "commit", True),
    Point("engine.view", "Shard", "__call__", True),
    Point("engine.view", "Shard", "snapshot", True),
    Point("engine.model", "KeptModel", "apply", True),
    Point("engine.model", "KeptModel", "snapshot", True),
    Point("engine.large", "Large", "save", True),
    Point("engine.outbox", "Outbox", "_connect", True),
    Point("engine.outbox", "Outbox", "write", False),
    Point("engine.outbox", "Outbox", "write", True),
    Point("engine.outbox", "Outbox", "_send", True),
    Point("engine.outbox", "Outbox", "flush", False),
    Point("engine.outbox", "Outbox", "flush", True),
    Point("engine.publish", "Publish", "snapshot", True),
]
"""Of these each run of the pipeline passes all."""

OTHERS = ["broker stopped", "broker killed", "broker frozen", "slow sink", "full disk", "damaged store"]
PATIENCE = 120.0
FIRST = 900.0
"""Seconds that the first run may take, which compiles its kernels."""
ROUND = 10
"""Kills in a round."""


class CampaignError(Exception):
    """The bank did what it never should, beside wrong views; the text says what."""


@dataclass
class Report:
    """What a campaign found. recovered: seconds until the first new output, of commands and of forked processes."""

    seed: int
    kills: int = 0
    landed: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    messages: int = 0
    judged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unbalanced: list[str] = field(default_factory=list)
    recovered: dict[str, list[float]] = field(default_factory=lambda: {"command": [], "forked": []})

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.mismatched or self.unbalanced)


class Campaign:
    """So many kills, and some of all other faults, in a folder of its own.

    tell: called with the report, and what is being done.
    """

    def __init__(self, kills: int, seed: int, folder: Path, tell: Callable[[Report, str], None]) -> None:
        self._kills, self._folder, self._tell = kills, folder, tell
        self._chance = random.Random(seed)
        self._world = World(seed)
        self.report = Report(seed)
        self._points = [*POINTS]
        self._chance.shuffle(self._points)
        self._others: list[str] = []
        self._consumers: dict[str, KafkaConsumer] = {}

    def run(self) -> Report:
        with Broker(self._folder / "broker") as broker:
            self._broker = broker
            first = self._bank("plain", "")
            self._inputs = first.inputs
            more = f'transactions = "{self._topic(1)}"'
            banks = [first, self._bank("transactions", more, first.inputs)]
            for bank in banks:  # kernels are compiled once
                self._happen(100)
                self._judged(bank)
            number = 0
            while self.report.kills < self._kills:
                bank = banks[number % 2]
                for _ in range(min(ROUND, self._kills - self.report.kills)):
                    self._one_kill(bank)
                for _ in range(2 if self._kills >= 100 else 3):
                    self._other(bank, self._next_other())
                self._judged(bank)
                number += 1
            for bank in banks:
                self._judged(bank)
        return self.report

    def _bank(self, name: str, more: str, inputs: dict[str, str] | None = None) -> Bank:
        return Bank(self._folder / name, self._broker.bootstrap, self._topic, more, inputs)

    def _topic(self, partitions: int = 1) -> str:
        name = f"chaos-{uuid.uuid4().hex[:8]}"
        with KafkaAdminClient(bootstrap_servers=self._broker.bootstrap) as admin:
            wanted = {name: {"num_partitions": partitions, "replication_factor": 1}}
            admin.create_topics(wanted, wait_for_metadata=True)
        return name

    def _happen(self, n: int) -> None:
        send(self._broker.bootstrap, self._inputs, self._world.happen(n))

    # Faults

    def _one_kill(self, bank: Bank) -> None:
        """A life that ends by a kill: at a named point, or at some moment from its first to long after its output."""
        if self._points and self._chance.random() < 0.6:
            point = self._points.pop()
        elif self._chance.random() < 0.3:
            point = self._chance.choice(POINTS)
            if point.method != "_connect":  # which a process does once
                point = point._replace(number=self._chance.randrange(1, 5))
        else:
            point = None
        self._happen(self._chance.randrange(20, 120))
        before = self._there(bank)
        life = Life(bank, point=point)
        if point is None:
            early = self._chance.random() < 0.3
            if early:
                life.ends(self._chance.random() * 1.5)
            else:
                self._until(life, lambda: self._there(bank) > before)
                self.report.recovered["forked"].append(time.monotonic() - life.began)
                if self._chance.random() < 0.7:
                    self._happen(self._chance.randrange(20, 120))
                life.ends(self._chance.random() * 0.7)
            self._died_by(life, "kill -9, before its first output" if early else "kill -9")
            return
        while not life.ends(0.5):
            if time.monotonic() - life.began > PATIENCE:
                raise CampaignError(f"the point {point} was not reached: {life.said[-2000:]}")
            self._happen(5)
        self._died_by(life, f"kill -9 {point}")

    def _died_by(self, life: Life, what: str) -> None:
        if not life.alive and life.code != -9:
            raise CampaignError(f"a run ended by itself with code {life.code}: {life.said[-2000:]}")
        life.kill()
        self.report.kills += 1
        self.report.landed[what] += 1
        self._tell(self.report, what)

    def _next_other(self) -> str:
        if not self._others:
            self._others = [*OTHERS]
            self._chance.shuffle(self._others)
        return self._others.pop()

    def _other(self, bank: Bank, what: str) -> None:
        self._tell(self.report, what)
        self._happen(50)
        if what == "damaged store":
            self._damage(bank)
        elif what == "full disk":
            self._fill(bank)
        else:
            before = self._there(bank)
            life = Life(bank, slow=0.2 if what == "slow sink" else 0.0)
            self._until(life, lambda: self._there(bank) > before)
            if what == "slow sink":
                self._happen(500)
            else:
                self._happen(50)
                self._shake(what)
            before = self._there(bank)
            self._happen(50)
            self._until(life, lambda: self._there(bank) > before)
            life.kill()
        self.report.landed[what] += 1

    def _shake(self, what: str) -> None:
        """Take the broker out of reach for some time."""
        if what == "broker frozen":
            self._broker.freeze()
            time.sleep(2 + 3 * self._chance.random())
            self._broker.thaw()
        else:
            self._broker.kill() if what == "broker killed" else self._broker.stop()
            time.sleep(2 * self._chance.random())
            self._broker.start()

    def _fill(self, bank: Bank) -> None:
        """Let no file grow much: the run says so, and ends."""
        store = bank.state / "recovery" / "part-0.sqlite3"
        life = Life(bank, room=store.stat().st_size + self._chance.randrange(0, 20_000))
        while not life.ends(0.5):
            if time.monotonic() - life.began > PATIENCE:
                raise CampaignError("the disk was full, and nobody said so")
            self._happen(100)
        if life.code not in (1, 3) or "make room" not in life.said:
            raise CampaignError(f"the disk was full, and the run ended with code {life.code}: {life.said[-2000:]}")

    def _damage(self, bank: Bank) -> None:
        """Damage the saved state; it is refused. Then put the last good copy back."""
        good, store = self._folder / "good", bank.state / "recovery" / "part-0.sqlite3"
        shutil.rmtree(good, ignore_errors=True)
        shutil.copytree(bank.state, good)
        how = self._chance.choice(["cut", "overwritten", "one bit"])
        if how == "one bit":
            with closing(sqlite3.connect(store)) as db, db:
                number, value = db.execute("SELECT rowid, ser_change FROM snaps ORDER BY snap_epoch").fetchone()
                bit = self._chance.randrange(len(value))
                changed = value[:bit] + bytes([value[bit] ^ 1]) + value[bit + 1 :]
                db.execute("UPDATE snaps SET ser_change = ? WHERE rowid = ?", (changed, number))
        else:
            for left in store.parent.glob("part-0.sqlite3-*"):
                left.unlink()
            with store.open("r+b") as file:
                file.truncate(store.stat().st_size // 2) if how == "cut" else file.write(self._chance.randbytes(4096))
        life = Life(bank, follow=False)
        if not life.ends(PATIENCE) or life.code != 3 or "damaged" not in life.said:
            raise CampaignError(f"damaged state was not refused, but code {life.code}: {life.said[-2000:]}")
        shutil.rmtree(bank.state)
        shutil.copytree(good, bank.state)

    # What came of it

    def _judged(self, bank: Bank) -> None:
        """Let the bank read to the end as a command of its own; then its views are judged."""
        self._tell(self.report, "judging")
        before, began = self._there(bank), time.monotonic()
        self._happen(20)
        with bank.running() as process:
            while self._there(bank) == before:
                patience = PATIENCE if self.report.kills else FIRST
                if process.poll() is not None or time.monotonic() - began > patience:
                    process.kill()
                    raise CampaignError(f"no output: {process.communicate()[1][-2000:]}")
                time.sleep(0.02)
            if self.report.kills:
                self.report.recovered["command"].append(time.monotonic() - began)
        life = Life(bank, follow=False)
        if not life.ends(PATIENCE) or life.code != 0:
            raise CampaignError(f"a run to the end ended with code {life.code}: {life.said[-2000:]}")
        verdict, r = bank.judge(), self.report
        r.judged += 1
        r.changes = max(r.changes, verdict.changes)
        r.messages += verdict.messages
        r.lost += verdict.lost
        r.doubled += verdict.doubled
        r.mismatched += verdict.wrong
        r.unbalanced += verdict.unbalanced
        if not r.clean:
            raise CampaignError(f"the views of {bank.folder.name} are wrong")

    def _there(self, bank: Bank) -> int:
        """How many messages of features there are, as others see them."""
        topic = bank.outputs["features"]
        consumer = self._consumers.get(topic)
        keys = [TopicPartition(topic, p) for p in range(2)]
        if consumer is None:
            consumer = self._consumers[topic] = KafkaConsumer(
                bootstrap_servers=bank.bootstrap, isolation_level="read_committed", metadata_max_age_ms=5_000
            )
        return sum(consumer.end_offsets(keys, timeout_ms=60_000).values())

    def _until(self, life: Life, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if not life.alive or time.monotonic() > deadline:
                raise CampaignError(f"no output; the run ended with code {life.code}: {life.said[-2000:]}")
            time.sleep(0.02)
