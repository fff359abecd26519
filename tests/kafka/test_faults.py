"""What goes wrong around topics: nothing is lost or doubled, and what cannot go on says why in one clear line.

Each test proves that its fault landed, and ends with a run that is alive: new rows arrive, and the views are right.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from deploy.broker.broker import Broker
from engine.bind import Inputs
from engine.cli import main
from engine.flow import FlowError
from engine.intake import Intake
from engine.merge import Merge
from engine.outbox import Outbox
from engine.publish import Publish
from engine.sink import SinkError
from engine.topics import Topic as Part
from engine.topics import TopicError
from tests.chaos.world import read
from tests.flow.test_recovery import CrashingAt
from tests.kafka.conftest import prepared
from tests.kafka.shop import Shop, cpu_and_memory, headers, order

Topic = Callable[..., str]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path, bootstrap: str, topic: Topic) -> Shop:
    return Shop(tmp_path, bootstrap, topic)


@pytest.fixture
def admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    with KafkaAdminClient(bootstrap_servers=bootstrap) as client:
        yield client


def alive(shop: Shop, capsys: Capture) -> None:
    """What comes now is taken, and the views are right."""
    shop.put(*[order(i) for i in range(90_000, 90_010)])
    shop.run(capsys)
    assert shop.is_right(), (shop.found(), shop.wanted())


# Bad input

GOOD = json.dumps(order(4)).encode()
BAD: list[tuple[bytes | None, bytes | None, str, str]] = [
    (b"1", b'{"id": 1, "at": "2024-01-01T00', "malformed", "JSON"),
    (b"2", b'{"id": 1, "shop": "\xff\xfe"}', "malformed", "utf-8"),
    (b"3", b"[" * 100_000 + b"]" * 100_000, "refused", "object"),
    (b"4", GOOD.replace(b"1.5", b"NaN"), "malformed", "NaN"),
    (b"5", GOOD.replace(b'"id": 4', b'"id": 18446744073709551616'), "refused", "int"),
    (b"6", GOOD.replace(b'"id": 4', b'"id": "four"'), "refused", "int"),
    (b"7", b'{"id": 4}', "refused", "at"),
    (None, None, "refused", "neither a key nor a value"),
    (b"\x00\xff", b"\xff\x00", "malformed", "utf-8"),
    (b"{", None, "refused", "int"),
    (b"10", b'{"id": 1, "shop": "' + b"x" * 2_000_000 + b'"}', "malformed", "1,048,576"),
]


def test_bad_messages_become_letters_and_the_run_goes_on(
    tmp_path: Path, bootstrap: str, topic: Topic, capsys: Capture
) -> None:
    big = topic(1, max_message_bytes=4_000_000)
    shop = Shop(tmp_path, bootstrap, topic, partitions=1, inputs=[big])
    shop.put(order(1), order(2), 77, partition=0)
    with KafkaProducer(bootstrap_servers=bootstrap, max_request_size=4_000_000) as producer:
        # clients do not send what has neither key nor value, unless it becomes nothing while it is packed
        producer.config["value_serializer"] = SimpleNamespace(serialize=lambda topic, headers, given: given or None)
        sent = [producer.send(big, v or b"", k, partition=0).get(timeout=30) for k, v, _, _ in BAD]
    shop.put(order(3), partition=0)
    shop.run(capsys)
    assert shop.is_right()
    letters = shop.letters()
    assert len(letters) == len(BAD)
    for letter, (key, value, kind, reason), place in zip(letters, BAD, sent, strict=True):
        told = headers(letter)
        assert letter.key == key
        if value is None or len(value) < 1_000_000:
            assert letter.value == (b"" if key is value is None else value)
        else:
            assert told["cut_from"] == str(len(value))
            assert value.startswith(letter.value)
            assert len(letter.value) > 900_000
        assert told["source_topic"] == big
        assert told["source_partition"] == "0"
        assert told["source_offset"] == str(place.offset)
        assert told["source_timestamp"] == str(place.timestamp)
        assert (told["error_class"], reason in told["error"]) == (kind, True), told["error"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["dead_letters"] == len(BAD)
    alive(shop, capsys)
    assert len(shop.letters()) == len(BAD)


def test_a_number_that_is_not_finite_is_never_published(shop: Shop, capsys: Capture) -> None:
    shop.put(order(1, 1e308), order(6, 1e308))
    shop.run(capsys)
    found = [json.loads(r.value) for r in read(shop.bootstrap, shop.outputs["shops"])]
    assert found[-1]["n"] == 2, "the sum of both overflows"
    assert all(f["turnover"] is None or math.isfinite(f["turnover"]) for f in found)
    shop.put(1, 6)
    alive(shop, capsys)


# Topics that are not what they were


def test_what_retention_removed_is_told(shop: Shop, admin: KafkaAdminClient, capsys: Capture) -> None:
    name = shop.inputs[0]
    shop.put(*[order(i) for i in range(20)])
    shop.run(capsys)
    assert shop.is_right()
    admin.delete_records({TopicPartition(name, 0): 10})
    shop.run(capsys)
    assert shop.is_right(), "all that was removed had been read"
    shop.put(*[order(i) for i in range(20, 40)])
    admin.delete_records({TopicPartition(name, 0): 15})
    before = shop.messages()
    said = shop.run(capsys, code=3)
    assert f"topic '{name}', partition 0 begins at offset 15 now, but the next to be read is 10" in said
    assert "start again without the state and the outputs" in said
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1
    assert shop.messages() == before, "nothing was read past the gap"


def test_what_retention_removes_while_it_waits_to_be_read_is_told(
    shop: Shop, admin: KafkaAdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put(*[order(i) for i in range(10)])
    with pytest.raises(Exception, match="begins at offset 8"), shop.live() as live:  # noqa: PT012
        shop.reached(live)
        monkeypatch.setattr(Part, "full", lambda self, most: True)  # as if what reads were slow
        live.until(lambda: len(live.run.inputs._topics._consumer.paused()) == 2)
        time.sleep(1)  # what was asked for before is answered
        shop.put(*[order(i) for i in range(10, 20)])
        admin.delete_records({TopicPartition(shop.inputs[0], 0): 8})
        monkeypatch.undo()
        assert isinstance(live.fails(), TopicError)


def test_a_topic_that_is_made_anew_is_told_before_and_while_it_is_read(
    tmp_path: Path, bootstrap: str, topic: Topic, admin: KafkaAdminClient, capsys: Capture
) -> None:
    shop = Shop(tmp_path, bootstrap, topic, metadata_max_age_ms=500)
    name = shop.inputs[0]
    shop.put(*[order(i) for i in range(10)])
    with shop.live() as live:
        shop.reached(live)
        anew(admin, name, 2)
        failed = live.fails()
        assert isinstance(failed, TopicError)
        assert f"topic '{name}' was deleted and made anew" in str(failed) or "was truncated" in str(failed)
        live.error = None
    shop.put(*[order(i) for i in range(10, 40)])
    before = shop.messages()
    said = shop.run(capsys, code=3)
    assert f"topic '{name}' was deleted and made anew since it was read" in said
    admin.delete_topics([name])
    said = shop.run(capsys, code=2)
    assert f"source 'orders': there is no topic '{name}'" in said
    assert shop.messages() == before


def anew(admin: KafkaAdminClient, name: str, partitions: int) -> None:
    admin.delete_topics([name])
    wanted = {name: {"num_partitions": partitions, "replication_factor": 1}}
    for attempt in range(50):
        try:
            admin.create_topics(wanted, wait_for_metadata=True)
            return
        except Exception:
            assert attempt < 49
            time.sleep(0.2)


def test_an_output_that_is_made_anew_or_gone_is_told(
    tmp_path: Path, bootstrap: str, topic: Topic, admin: KafkaAdminClient, capsys: Capture, monkeypatch: Any
) -> None:
    monkeypatch.setattr("engine.outbox._SILENT", 1.0)
    shop = Shop(tmp_path, bootstrap, topic, metadata_max_age_ms=500)
    name = shop.outputs["kept"]
    shop.put(*[order(i) for i in range(10)])
    with shop.live() as live:
        shop.reached(live)
        anew(admin, name, 2)
        shop.put(order(11))
        failed = live.fails()
        assert isinstance(failed, SinkError)
        assert f"the topic '{name}' was deleted and made anew since it was written" in str(failed)
        live.error = None
    said = shop.run(capsys, code=3)
    assert f"the topic '{name}' was deleted and made anew since it was written" in said
    admin.delete_topics([name])
    said = shop.run(capsys, code=2)
    assert f"sink 'kept': there is no topic '{name}'" in said


def test_an_output_that_is_deleted_while_it_is_written_is_told(
    tmp_path: Path, bootstrap: str, topic: Topic, admin: KafkaAdminClient, monkeypatch: Any
) -> None:
    monkeypatch.setattr("engine.outbox._SILENT", 1.0)
    shop = Shop(tmp_path, bootstrap, topic)
    shop.put(*[order(i) for i in range(10)])
    with shop.live() as live:
        shop.reached(live)
        admin.delete_topics([shop.outputs["kept"]])
        shop.put(order(11))
        failed = live.fails()
        assert isinstance(failed, SinkError)
        assert f"there is no topic '{shop.outputs['kept']}' for sink 'kept'" in str(failed)
        live.error = None


def test_an_output_with_messages_of_others_is_refused(shop: Shop, topic: Topic, capsys: Capture) -> None:
    name = shop.outputs["shops"]
    shop.put(order(1))
    with KafkaProducer(bootstrap_servers=shop.bootstrap) as producer:
        producer.send(name, b"{}", b"x").get(timeout=30)
    said = shop.run(capsys, code=3)
    assert f"the topic '{name}' of sink 'shops' holds 1 messages, but there is no state that sent them" in said
    assert "take an empty topic, or point --state to the state that did" in said
    assert len(read(shop.bootstrap, name)) == 1
    shop.outputs["shops"] = topic(2)
    shop.settings()
    alive(shop, capsys)
    with KafkaProducer(bootstrap_servers=shop.bootstrap) as producer:  # what comes later does not disturb
        producer.send(shop.outputs["shops"], None, b'{"shop":"other"}').get(timeout=30)
    alive(shop, capsys)


def test_a_second_run_of_the_same_is_refused(shop: Shop, capsys: Capture) -> None:
    shop.put(order(1))
    with shop.live() as live:
        shop.reached(live)
        said = shop.run(capsys, code=3)
        assert "another run uses the state" in said
        said = shop.run(capsys, "--state", str(shop.folder / "other"), "--out", str(shop.folder / "another"), code=3)
        assert "but there is no state that sent them" in said
        shop.put(order(2))
        shop.reached(live)


# Partitions and topics that appear


def test_partitions_that_are_added_are_read_from_their_beginning(
    tmp_path: Path, bootstrap: str, topic: Topic, admin: KafkaAdminClient, capsys: Capture
) -> None:
    shop = Shop(tmp_path, bootstrap, topic, metadata_max_age_ms=500)
    name = shop.inputs[0]
    shop.settings(source=f'topic = "{name}"\nstart = "latest"', metadata_max_age_ms=500)
    with shop.live() as live:
        live.caught_up()
        shop.put(*[order(i) for i in range(10)])
        admin.create_partitions({name: 4})
        shop.put(*[order(i) for i in range(20, 30)], partition=2)
        shop.put(*[order(i) for i in range(30, 40)], partition=3)
        shop.reached(live)
    admin.create_partitions({name: 5})  # while nothing runs
    shop.put(*[order(i) for i in range(40, 50)], partition=4)
    shop.run(capsys)
    assert shop.is_right(), "what came before it was noticed is not skipped"
    alive(shop, capsys)


def test_topics_that_match_an_expression_are_noticed(
    tmp_path: Path, bootstrap: str, topic: Topic, admin: KafkaAdminClient, capsys: Capture
) -> None:
    first = topic(1)
    shop = Shop(tmp_path, bootstrap, topic, partitions=1, inputs=[first])
    shop.settings(source=f'topic = "^{first}.*"', metadata_max_age_ms=500)
    shop.put(order(1), partition=0)
    with shop.live() as live:
        shop.reached(live)
        admin.create_topics({f"{first}-b": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
        shop.put(*[order(i) for i in range(10, 20)], topic=f"{first}-b", partition=0)
        shop.reached(live)
    shop.put(order(21), topic=f"{first}-b", partition=0)
    shop.run(capsys)
    assert shop.is_right()


# Where it starts


def test_where_a_topic_is_begun(tmp_path: Path, bootstrap: str, topic: Topic, capsys: Capture) -> None:
    """And a run that dies before its first batch begins there again, whatever was sent meanwhile."""
    source = topic(1, retention_ms=-1)
    with KafkaProducer(bootstrap_servers=bootstrap) as producer:
        stamps = [1_704_067_200_000 + 1000 * i for i in range(10)]
        for i, stamp in enumerate(stamps):
            value = json.dumps(order(i)).encode()
            producer.send(source, value, b'{"id":%d}' % i, partition=0, timestamp_ms=stamp)
    for start, first in (
        ('"earliest"', 0),
        ('"latest"', 10),
        ('"2024-01-01T00:00:03.500Z"', 4),
        ('"2034-01-01T00:00:00Z"', 10),
        ("{ 0 = 7 }", 7),
    ):
        folder = tmp_path / str(abs(hash(start)))
        folder.mkdir()
        shop = Shop(folder, bootstrap, topic, partitions=1, inputs=[source])
        shop.settings(source=f'topic = "{source}"\nstart = {start}')
        if first == 10:
            with pytest.MonkeyPatch.context() as patch, shop.live() as live:
                patch.setattr("engine.merge.Merge.next", lambda self, now=None: None)  # it dies before its first batch
                live.until(lambda live=live: live.run.merge is not None)
                time.sleep(0.2)
            shop.put(order(500 + len(start)), partition=0)
            late = [500 + len(start)]
        else:
            late = []
        shop.run(capsys)
        found = {int(n) for n in shop.found()["kept"]}
        assert set(range(first, 10)) | set(late) <= found, start
        assert not found & set(range(first)), start
    shop.settings(source=f'topic = "{source}"\nstart = {{ 0 = 700 }}')
    said = shop.run(capsys, "--state", str(tmp_path / "s"), "--out", str(tmp_path / "o"), code=3)
    assert "start says offset 700 for topic" in said


# Transactions, codecs, compaction


def test_what_was_aborted_is_not_seen_and_what_is_open_stalls_nothing_else(
    shop: Shop, bootstrap: str, capsys: Capture
) -> None:
    name = shop.inputs[0]

    def sent(producer: Any, *numbers: int) -> None:
        for n in numbers:
            producer.send(name, json.dumps(order(n)).encode(), b'{"id":%d}' % n, partition=n % 2)
        producer.flush()

    with KafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{name}-1") as one:
        one.init_transactions()
        for numbers, kept in (((0, 1, 2), True), ((4, 5, 6), False), ((8, 9), True), ((10, 11), False)):
            one.begin_transaction()
            sent(one, *numbers)
            if kept:
                one.commit_transaction()
                shop.rows |= {n: order(n) for n in numbers}
            else:
                one.abort_transaction()
        shop.run(capsys)  # a run to the end does end, behind the markers
        assert shop.is_right()
        with shop.live() as live:
            live.caught_up()
            one.begin_transaction()
            sent(one, 20)
            shop.put(order(31))  # of another partition than the open transaction
            shop.reached(live)
            shop.put(order(32))  # behind it
            del shop.rows[32]
            shop.put(order(33))
            shop.reached(live)
            one.commit_transaction()
            shop.rows |= {20: order(20), 32: order(32)}
            shop.reached(live)
    alive(shop, capsys)


def test_all_codecs_and_the_gaps_of_compaction(tmp_path: Path, bootstrap: str, topic: Topic, capsys: Capture) -> None:
    name = topic(
        2, cleanup_policy="compact", segment_ms=100, min_cleanable_dirty_ratio=0.01, max_compaction_lag_ms=100,
        delete_retention_ms=0,
    )  # fmt: skip
    shop = Shop(tmp_path, bootstrap, topic, inputs=[name])
    for i, codec in enumerate((None, "gzip", "snappy", "lz4", "zstd")):
        rows = [order(n, 0.5 * i) for n in range(i, 30)]
        shop.put(*rows, 29, compression_type=codec, linger_ms=20)

    def gaps() -> bool:
        shop.put(order(28), order(27))
        offsets = {p: [r.offset for r in read(bootstrap, name) if r.partition == p] for p in (0, 1)}
        return all(len(o) < o[-1] - 10 for o in offsets.values())

    end = time.monotonic() + 60
    while not gaps():
        assert time.monotonic() < end, "it is not compacted"
        time.sleep(0.2)
    shop.run(capsys)
    assert shop.is_right()
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        shop.put(*[order(n, 2.5) for n in range(20)], compression_type=codec, linger_ms=20)
        shop.run(capsys)
        assert shop.is_right(), codec
    alive(shop, capsys)


# Crashes at each point of the commit

POINTS = [
    (Intake, "begin", True),
    (Intake, "note", True),  # before anything of the batch is sent
    (Intake, "save", False),
    (Intake, "save", True),
    (Merge, "state", True),
    (Inputs, "commit", True),  # between the positions and the outputs
    (Outbox, "_connect", True),
    (Outbox, "write", False),
    (Outbox, "write", True),
    (Outbox, "flush", False),
    (Outbox, "flush", True),  # sent, and not saved
    (Publish, "snapshot", True),
]


@pytest.mark.parametrize("transactions", [False, True], ids=["plain", "transactions"])
@pytest.mark.parametrize(("owner", "method", "after"), POINTS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_crash_at_each_point_of_the_commit(
    owner: type,
    method: str,
    after: bool,
    transactions: bool,
    tmp_path: Path,
    bootstrap: str,
    topic: Topic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = f'transactions = "{topic(1, cleanup_policy="compact")}"' if transactions else ""
    shop = Shop(tmp_path, bootstrap, topic, more=more)
    crash = CrashingAt(monkeypatch, owner, method, after)

    def run() -> None:
        live, release = shop.begun(follow=False, epoch="1ms", batch_rows=7)
        try:
            live.run()
        finally:
            release()

    for n, rows in ((1, range(10)), (3, range(5, 40)), (1, range(30, 50))):
        shop.put(*map(order, rows))
        crash.left = n
        with suppress(FlowError):
            run()
    assert crash.landed >= (1 if method == "begin" else 2), "the crash must land, or nothing was tested"
    crash.left = -1
    shop.put(3, 4, *[order(i, 2.5) for i in range(40, 60)])
    run()
    assert shop.is_right(), (shop.found(), shop.wanted())


# Brokers that do not answer


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of these tests alone; each leaves it running."""
    broker = prepared(tmp_path_factory.mktemp("own"))
    try:
        yield broker.start()
    finally:
        broker.stop()


@contextmanager
def out_of_reach(broker: Broker, how: str) -> Iterator[None]:
    if how == "frozen":
        broker.freeze()
    elif how == "killed":
        broker.kill()
    else:
        broker.stop()
    assert not broker.answers()
    try:
        yield
    finally:
        broker.thaw()
        broker.start()


def rests(seconds: float) -> None:
    """This process does next to nothing for some time, and does not grow."""
    pid = os.getpid()
    cpu, memory = cpu_and_memory(pid)
    time.sleep(seconds)
    more_cpu, more_memory = cpu_and_memory(pid)
    assert (more_cpu - cpu) / seconds < 0.2
    assert more_memory - memory < 50_000_000


HOW = ["stopped", "killed", "frozen"]
SHORT = {"request_timeout_ms": 2_000, "session_timeout_ms": 1_500, "heartbeat_interval_ms": 500}


def follows_a_file(shop: Shop, **kafka: Any) -> Callable[..., None]:
    """Let orders come from a file, which can be written while no broker answers; what appends to it."""
    file = shop.folder / "orders.jsonl"
    file.touch()
    shop.settings(source='path = "orders.jsonl"', **kafka)

    def append(*rows: dict[str, Any]) -> None:
        with file.open("a") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)
        shop.rows |= {r["id"]: r for r in rows}

    return append


@pytest.mark.parametrize("transactions", [False, True], ids=["plain", "transactions"])
def test_what_was_not_acknowledged_arrives_once_when_a_broker_is_back(
    transactions: bool, tmp_path: Path, own: Broker, topic: Topic
) -> None:
    more = f'transactions = "{topic(1, on=own.bootstrap)}"' if transactions else ""
    shop = Shop(tmp_path, own.bootstrap, topic, more=more)
    append = follows_a_file(shop, **SHORT)
    if transactions:
        text = (tmp_path / "freshet.toml").read_text()
        (tmp_path / "freshet.toml").write_text(text.replace("[kafka]", f"{more}\n[kafka]", 1))
    append(*map(order, range(10)))
    with shop.live() as live:
        shop.reached(live)
        for i, how in enumerate(HOW, 1):
            with out_of_reach(own, how):
                append(*[order(n) for n in range(100 * i, 100 * i + 30)])
                live.until(lambda: live.run.publish.topics._sent)
                rests(6.0 if how == "frozen" else 3.0)
                assert live.thread.is_alive()
                assert live.run.publish.topics._sent, "nothing was answered"
            began = time.monotonic()
            shop.reached(live)
            assert time.monotonic() - began < 15


def test_reading_goes_on_when_a_broker_is_back(tmp_path: Path, own: Broker, topic: Topic) -> None:
    shop = Shop(tmp_path, own.bootstrap, topic, **SHORT)
    with shop.live() as live:
        for i, how in enumerate(HOW, 1):
            shop.put(*[order(n) for n in range(1000 * i, 1000 * i + 500)])
            with out_of_reach(own, how):
                rests(5.0 if how == "frozen" else 2.0)
                assert live.thread.is_alive()
            began = time.monotonic()
            shop.put(*[order(n) for n in range(1000 * i + 500, 1000 * i + 510)])
            shop.reached(live)
            assert time.monotonic() - began < 15


def ends(process: subprocess.Popen[str], code: int | None = 0) -> str:
    """A process that is told to end does so in time; what it says."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    if code is not None:
        assert process.returncode == code, said
    return said


def test_a_run_that_is_told_to_end_saves_and_the_next_repeats_nothing(shop: Shop, capsys: Capture) -> None:
    shop.put(*map(order, range(10)))
    with shop.process() as process:
        shop.reached(seconds=120)  # and then it is idle
        ends(process)
    before = shop.messages()
    shop.run(capsys)
    assert shop.messages() == before
    with shop.process() as process:
        shop.put(*[order(i % 2_000) for i in range(20_000)])
        while shop.messages() == before:
            time.sleep(0.02)
        ends(process)
    alive(shop, capsys)


def test_a_run_is_told_to_end_while_no_broker_answers(
    tmp_path: Path, own: Broker, topic: Topic, capsys: Capture
) -> None:
    shop = Shop(tmp_path, own.bootstrap, topic)
    append = follows_a_file(shop)
    append(*map(order, range(10)))
    for i, how in enumerate(("killed", "frozen"), 1):
        with shop.process() as process:
            append(order(50 + i))
            shop.reached(seconds=120)
            with out_of_reach(own, how):
                append(*[order(n) for n in range(100 * i, 100 * i + 10)])
                time.sleep(1)
                said = ends(process, code=1)
                assert "no broker answers; what was not sent is sent when it is run again" in said
            shop.run(capsys)
            assert shop.is_right()
    shop.settings()
    other = Shop(tmp_path, own.bootstrap, topic)
    with other.process("--state", str(tmp_path / "s"), "--out", str(tmp_path / "o")) as process:
        other.put(order(1))
        other.reached(seconds=120)
        with out_of_reach(own, "killed"):
            time.sleep(1)
            ends(process, code=None)
    before = other.messages()
    other.run(capsys, "--state", str(tmp_path / "s"), "--out", str(tmp_path / "o"))
    assert other.messages() == before


# What cannot keep up, and what is full


def test_what_is_not_written_on_is_not_read_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.topics._MOST", 200_000)
    monkeypatch.setattr("engine.topics._CHUNK", 50_000)
    monkeypatch.setattr("engine.flow._CAP", 3)
    shop.settings(max_partition_fetch_bytes=50_000)
    write, slow = Outbox.write, [True]

    def slowly(self: Outbox, *args: Any) -> None:
        while slow[0] and not self._stop.is_set():
            time.sleep(0.05)
        write(self, *args)

    monkeypatch.setattr(Outbox, "write", slowly)
    with KafkaProducer(bootstrap_servers=shop.bootstrap, linger_ms=20) as producer:
        for i in range(40_000):
            producer.send(shop.inputs[0], json.dumps(order(i % 50)).encode(), b'{"id":%d}' % (i % 50), partition=i % 2)
        shop.rows |= {i: order(i) for i in range(50)}
    with shop.live(batch_rows=500) as live:
        live.until(lambda: live.run.inputs and live.run.inputs._topics._consumer.paused())
        parts = live.run.inputs._topics.parts["orders"]
        time.sleep(1)
        before = [p.fetched for p in parts]
        rests(2.0)
        assert [p.fetched for p in parts] == before, "it is paused"
        assert sum(before) < 20_000
        assert sum(p.size for p in parts) < 3_000_000
        slow[0] = False
        shop.reached(live)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("what", ["out", "state"])
def test_a_full_disk_is_told_and_when_there_is_room_all_is_right(
    what: str, small: Path, shop: Shop, topic: Topic, capsys: Capture
) -> None:
    extra = shop.outputs.pop("dead_letters")  # they go to a file
    assert extra
    shop.settings()
    place = [f"--{what}", str(small / what)]
    shop.put(order(1))
    shop.run(capsys, *place)
    filler = small / "filler"
    for left in (60_000, 4_000, 0):
        filler.write_bytes(b"")
        room = os.statvfs(small)
        filler.write_bytes(b"x" * max(room.f_bavail * room.f_frsize - left, 0))
        with KafkaProducer(bootstrap_servers=shop.bootstrap) as producer:
            for i in range(300):
                producer.send(shop.inputs[0], b'{"no": "%d%s"}' % (i, b"x" * 300), b"x", partition=0)
        shop.put(*[order(i, 0.5 * (left % 7)) for i in range(200)])
        said = shop.run(capsys, *place, code=1 if left > 4_000 or what == "out" else 3)
        assert sum(line.startswith("error:") for line in said.splitlines()) == 1, said
        assert str(small / what) in said, said
        assert "make room" in said
    filler.unlink()
    shop.run(capsys, *place)
    assert shop.is_right()
    out = small / "out" if what == "out" else shop.folder / "out"
    letters = [json.loads(line)["position"] for line in (out / "dead_letters.jsonl").open()]
    assert len(letters) == len(set(letters)) == 900


# Forgetting


def test_a_key_is_forgotten_in_topics_even_if_that_is_cut_off(
    shop: Shop, topic: Topic, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.outputs["late"] = topic(1)
    shop.settings()
    shop.put(*map(order, range(10)))
    shop.put({**order(86_400 * 2), "id": 3, "shop": "s9", "at": "2024-02-01T00:00:00Z"}, partition=1)
    shop.run(capsys)
    assert shop.is_right()
    shop.put({**order(1), "shop": "s8"}, partition=1)  # too late, so that the order stays one of s1
    shop.rows[1] = order(1)
    shop.run(capsys)
    assert shop.is_right()
    assert len(read(shop.bootstrap, shop.outputs["late"])) == 1
    crash = CrashingAt(monkeypatch, Outbox, "flush", after=True)
    crash.left = 1
    line = ["forget", str(shop.folder), "shop=s1", *shop.places]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert (ended.value.code, crash.landed) == (1, 1)
    assert "forgetting shop=s1 was cut off" in shop.run(capsys, code=3)
    with pytest.raises(SystemExit) as ended:
        main(line)
    said = capsys.readouterr()
    assert ended.value.code == 0, said
    assert "compaction removes" in " ".join(said.out.split())
    del shop.rows[1], shop.rows[6]
    shop.outputs.pop("late")
    assert shop.is_right(), (shop.found(), shop.wanted())
    newest = {r.key: r.value for r in read(shop.bootstrap, shop.outputs["kept"])}
    assert newest[b'{"id":1}'] is newest[b'{"id":6}'] is None
