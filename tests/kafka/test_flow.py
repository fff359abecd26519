"""From topics to topics: the views equal a from-scratch recompute, nothing is lost or doubled, whatever happens."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.running import Bank
from tests.chaos.world import World, read, send
from tests.flow.running import freshet

Topic = Callable[..., str]


@pytest.fixture
def bank(tmp_path: Path, bootstrap: str, topic: Topic) -> Bank:
    return Bank(tmp_path, bootstrap, topic)


def test_the_views_in_topics_equal_a_recompute(bank: Bank) -> None:
    world = World(1)
    for _ in range(3):
        send(bank.bootstrap, bank.inputs, world.happen(700))
        done = bank.run()
        assert done.returncode == 0, done.stderr
    verdict = bank.judge()
    assert verdict.clean, verdict
    assert verdict.messages > 2000
    again = bank.run()
    assert again.returncode == 0
    assert bank.judge().messages == verdict.messages, "nothing new, nothing said"
    assert bank.lag() == 0, "tools that show lag see that all was read"


def until(process: subprocess.Popen[str], reached: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something while a process lives."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("transactions", [False, True])
def test_killed_again_and_again_nothing_is_lost_or_doubled(
    tmp_path: Path, bootstrap: str, topic: Topic, transactions: bool
) -> None:
    more = f'transactions = "{topic(1, cleanup_policy="compact")}"' if transactions else ""
    bank, world, chance = Bank(tmp_path, bootstrap, topic, more), World(2), random.Random(3)
    for _ in range(5):
        with bank.running() as process:
            before = len(read(bootstrap, bank.outputs["features"]))
            send(bank.bootstrap, bank.inputs, world.happen(300))
            until(process, lambda before=before: len(read(bootstrap, bank.outputs["features"])) > before)
            send(bank.bootstrap, bank.inputs, world.happen(200))
            time.sleep(chance.random() / 2)
            process.kill()
    done = bank.run()
    assert done.returncode == 0, done.stderr
    verdict = bank.judge()
    assert verdict.clean, verdict
    assert verdict.changes >= 2500


SECOND = """
import polars as pl
import operators as op
from engine import Pipeline

p = Pipeline("second")
features = p.source(
    "features", key="id", at="at", lateness="1d", append_only=False,
    schema={"id": int, "src": str, "amount": int, "at": pl.Datetime},
)
p.sink("spent", p.view("spent", features, op.aggregate(by="src", total=op.total("amount"), transfers=op.count())))
"""


def test_a_view_is_a_source_of_another_pipeline(bank: Bank, topic: Topic) -> None:
    second, spent = bank.folder / "second", topic(2)
    second.mkdir()
    (second / "pipeline.py").write_text(SECOND)
    place = f"kafka://{bank.bootstrap}"
    world = World(4)
    for _ in range(2):
        send(bank.bootstrap, bank.inputs, world.happen(400))
        assert bank.run().returncode == 0
        done = freshet(
            "run", second, "--bind", f"features={place}/{bank.outputs['features']}", "--sink", f"spent={place}/{spent}",
            "--port", 0, cwd=bank.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert newest(bank.bootstrap, spent) == newest(bank.bootstrap, bank.outputs["debits"])


def newest(bootstrap: str, topic: str) -> dict[bytes, Any]:
    """What a compacted topic holds, without event times."""
    held = {r.key: r.value for r in read(bootstrap, topic)}
    rows = {key: json.loads(value) for key, value in held.items() if value is not None}
    return {key: {n: v for n, v in row.items() if n != "at"} for key, row in rows.items()}


def test_what_goes_to_a_topic_does_not_go_to_a_file_unasked(bank: Bank) -> None:
    toml = bank.folder / "freshet.toml"
    settings = toml.read_text()
    send(bank.bootstrap, bank.inputs, World(5).happen(100))
    assert bank.run().returncode == 0
    before = bank.judge().messages
    send(bank.bootstrap, bank.inputs, World(5).happen(100))
    toml.write_text(settings.replace(f'[sinks.debits]\ntopic = "{bank.outputs["debits"]}"', ""))
    refused = bank.run()
    assert refused.returncode == 3, refused.stderr
    assert f"so far sink 'debits' went to topic '{bank.outputs['debits']}'" in refused.stderr
    place = f"debits=kafka://{bank.bootstrap}/{bank.outputs['debits']}"
    forgotten = freshet("forget", bank.folder, "id=1", "--sink", place, *bank.places, "--json", cwd=bank.folder)
    assert forgotten.returncode == 0, forgotten.stderr
    assert (bank.folder / "out" / "debits.jsonl").read_bytes() == b"", "nothing went to the file"
    assert len(read(bank.bootstrap, bank.outputs["debits"])) > 0
    assert bank.run("--sink", place).returncode == 0
    assert bank.judge().messages > before
