"""From a database through Debezium and Kafka to views in topics: they are what SQL says of the database."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from deploy.broker.broker import until
from tests.chaos.world import read
from tests.flow.running import command, environment, freshet
from tests.kafka.debezium.running import Connect, Postgres, reads, schemas
from tests.kafka.debezium.shop import BEFORE, FIRST, LAST, SECOND, THIRD, VIEWS
from tests.kafka.needs import needs

PIPELINE = Path(__file__).parent / "store" / "pipeline.py"
Rows = dict[int, dict[str, Any]]


class Shop:
    """The views of a shop, kept from what one connector writes."""

    def __init__(self, folder: Path, bootstrap: str, prefix: str, topics: str, topic: Callable[..., str]) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        self.sinks = {name: topic() for name in VIEWS}
        folder.mkdir()
        (folder / "pipeline.py").write_text(PIPELINE.read_text())
        lines = ['epoch = "200ms"', "port = 0", "[kafka]", f'bootstrap_servers = "{bootstrap}"']
        for name, given in (("orders", topics), ("customers", f'"{prefix}.public.customers"')):
            lines += [f"[sources.{name}]", f"topic = {given}", 'format = "debezium"']
        for name, t in self.sinks.items():
            lines += [f"[sinks.{name}]", f'topic = "{t}"']
        (folder / "freshet.toml").write_text("\n".join(lines))
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Shop:
        line = command("run", self.folder, "--follow", "--quiet")
        self.process = subprocess.Popen(line, cwd=self.folder, env=environment(), stderr=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def view(self, name: str) -> Rows:
        rows: Rows = {}
        for r in read(self.bootstrap, self.sinks[name]):
            (key,) = json.loads(r.key).values()
            rows.pop(key, None)
            if r.value is not None:
                rows[key] = {n: v for n, v in json.loads(r.value).items() if n != "at"}
        return rows

    def becomes(self, wanted: dict[str, Rows]) -> None:
        """Wait until all views are so."""
        assert self.process is not None
        deadline = time.monotonic() + 60
        while True:
            found = {name: self.view(name) for name in wanted}
            if found == wanted or time.monotonic() > deadline:
                break
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            time.sleep(0.2)
        for name, rows in wanted.items():
            for key in rows.keys() | found[name].keys():
                assert short(found[name].get(key)) == short(rows.get(key)), (name, key)


def short(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return row and {n: v[:40] if isinstance(v, str) else v for n, v in row.items()}


def in_sql(postgres: Postgres, lost: tuple[int, ...] = ()) -> dict[str, Rows]:
    """The views as the database has them. lost: orders whose note Debezium did not tell."""
    found = {}
    for name, sql in VIEWS.items():
        rows = json.loads(postgres(f"select coalesce(json_agg(t), '[]') from ({sql}) t"))
        found[name] = {r["customer" if name == "totals" else "id"]: r for r in rows}
        for key in lost:
            if "note" in found[name].get(key, {}):
                found[name][key]["note"] = None
    return found


def happens(postgres: Postgres, statements: list[str]) -> None:
    """One after another, each at a time of its own: Debezium tells milliseconds."""
    for s in statements:
        postgres(s, "select pg_sleep(0.005)")


@pytest.fixture
def postgres() -> Any:
    with needs(), Postgres() as started:
        yield started


def test_the_views_are_what_sql_says_of_the_database(
    postgres: Postgres, bootstrap: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex[:12]
    happens(postgres, BEFORE)
    given = {name: reads(postgres, f"{name}_{mark}") for name in ("bare", "wrapped")}
    tables = {"table.include.list": "public.orders,public.customers"}
    given["bare"] |= tables | schemas(False) | {"decimal.handling.mode": "string"}
    given["bare"] |= {"provide.transaction.metadata": "true", "heartbeat.interval.ms": 300}
    given["wrapped"] |= tables | schemas(True) | {"decimal.handling.mode": "double"}
    topics = {
        "bare": rf"'^(__debezium-heartbeat\.)?bare_{mark}(\.public\.orders|\.transaction|\.message)?$'",
        "wrapped": f'"wrapped_{mark}.public.orders"',
    }
    with Connect(tmp_path / "connect", bootstrap, given) as connect, KafkaConsumer(bootstrap_servers=bootstrap) as c:
        there = {f"{name}_{mark}.public.{table}" for name in given for table in ("orders", "customers")}
        there.add(f"__debezium-heartbeat.bare_{mark}")
        assert until(lambda: there <= c.topics(), 60), connect.log.read_text()[-2000:]
        shops = [Shop(tmp_path / n, bootstrap, f"{n}_{mark}", topics[n], topic) for n in given]
        with ExitStack() as stack:
            for shop in shops:
                stack.enter_context(shop)
            snapshot = in_sql(postgres)
            for shop in shops:
                shop.becomes(snapshot)
            happens(postgres, FIRST)
            first = in_sql(postgres, lost=(70,))
            for shop in shops:
                shop.becomes(first)
            happens(postgres, SECOND[:3])
        happens(postgres, SECOND[3:])
        with ExitStack() as stack:
            for shop in shops:
                stack.enter_context(shop)
            for statements in (THIRD, LAST):
                happens(postgres, statements)
                wanted = in_sql(postgres, lost=(70,))
                for shop in shops:
                    shop.becomes(wanted)
        for shop in shops:
            done = freshet("run", shop.folder, cwd=shop.folder)
            assert done.returncode == 0, done.stderr
            assert {name: shop.view(name) for name in wanted} == wanted
            out = shop.folder / "out" / shop.folder.name
            assert [(out / f"{name}.jsonl").read_text() for name in ("dead_letters", "late")] == ["", ""]
            skipped = json.loads((out / "summary.json").read_text())["sources"]["orders"]["skipped"]
            assert (skipped > 20) == (shop.folder.name == "bare")
