"""How far a worker is behind its topics, and what its own messages wait for: counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

from deploy.broker.broker import Broker, until
from engine.bind import Inputs
from engine.cli import load_pipeline
from engine.merge import Merge
from engine.outbox import Outbox
from engine.plan import rank
from engine.settings import load
from tests.kafka.shop import Shop, order

Topic = Callable[..., str]


def test_the_lag_is_what_is_behind_what_was_handed_on(tmp_path: Path, bootstrap: str, topic: Topic) -> None:
    shop = Shop(tmp_path, bootstrap, topic)
    shop.put(*(order(i) for i in range(1000)))
    p = load_pipeline(tmp_path)[0]
    with Inputs(p, load(tmp_path, {}), follow=True) as inputs:
        merge = Merge(inputs.parts, rank(p), 100, follow=True)

        def left() -> dict[str, int]:
            return merge.left()["orders"]

        assert until(lambda: left()["fetched"] > 0, 30)
        assert (left()["records"], left()["rows"]) == (1000, 0)
        assert until(lambda: merge.next() is not None, 30)
        handed = merge.read["orders"]
        assert 0 < handed <= 100
        assert left()["records"] == 1000 - handed
        assert left()["rows"] > 0, "chunks are read, and a batch is handed on"
        assert until(lambda: merge.next() is None and merge.read["orders"] == 1000, 30)
        assert left() == {"rows": 0, "records": 0, "fetched": 0}
        shop.put(*(order(i) for i in range(1000, 1050)))
        assert until(lambda: left()["records"] == 50 and left()["fetched"] > 0, 30)


def test_messages_are_unanswered_until_they_are_acknowledged(tmp_path: Path, broker: Broker, topic: Topic) -> None:
    name = topic(on=broker.bootstrap)
    outbox = Outbox({"bootstrap_servers": broker.bootstrap}, {"out": name}, tmp_path, None, "p", "", Event())
    try:
        outbox.write("out", [b"k"], [b"before"], [[]])
        outbox.flush(1)
        assert (outbox.unanswered, outbox.silent) == (0, 0.0)
        broker.freeze()
        outbox.write("out", [b"k", b"l"], [b"1", b"2"], [[], []])
        assert outbox.unanswered == 2
        assert until(lambda: outbox.silent > 0.5, 10)
        broker.thaw()
        outbox.flush(2)
        assert (outbox.unanswered, outbox.silent) == (0, 0.0)
    finally:
        broker.thaw()
        outbox.close()
