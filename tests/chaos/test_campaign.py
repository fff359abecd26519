"""What the campaign relies on is there, and its judge finds what is wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaProducer

from tests.chaos.campaign import POINTS
from tests.chaos.running import Bank, Point
from tests.chaos.world import World, read, send
from tests.kafka.conftest import bootstrap, topic  # noqa: F401


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_each_named_point_is_there(point: Point) -> None:
    assert callable(getattr(getattr(importlib.import_module(point.module), point.owner), point.method))


def test_the_judge_finds_what_is_lost_doubled_wrong_and_out_of_balance(
    tmp_path: Path,
    bootstrap: str,  # noqa: F811
    topic: Callable[..., str],  # noqa: F811
) -> None:
    bank = Bank(tmp_path, bootstrap, topic)
    send(bootstrap, bank.inputs, World(5).happen(40))
    assert bank.judge().lost, "nothing was made yet"
    done = bank.run()
    assert done.returncode == 0, done.stderr
    assert bank.judge().clean
    newest = {r.key: r.value for r in read(bootstrap, bank.outputs["features"])}
    there = next(json.loads(key)["id"] for key, value in newest.items() if value is not None)
    with KafkaProducer(bootstrap_servers=bootstrap) as producer:

        def forge(sink: str, row: dict[str, object] | None, version: int, **key: object) -> None:
            value = None if row is None else json.dumps(row).encode()
            text = json.dumps(key, separators=(",", ":")).encode()
            producer.send(bank.outputs[sink], value, text, headers=[("version", b"%d" % version)]).get(timeout=30)

        forge("debits", {"src": "a1", "total": -1, "transfers": 1}, 10_000, src="a1")
        forge("features", None, 10_000, id=there)
        forge("features", None, 10_000, id=there)
    verdict = bank.judge()
    assert verdict.wrong
    assert verdict.lost
    assert verdict.doubled
    assert verdict.unbalanced
