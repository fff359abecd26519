"""The broker of the tests is a real one: faults do not touch what it acknowledged; it compacts, truncates, commits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from deploy.broker.broker import ROOT, Broker, BrokerError, MissingError, free_port, jars, until

Topic = Callable[..., str]


def send(bootstrap: str, topic: str, values: Iterable[bytes], **settings: object) -> list[int]:
    """Sends values, each keyed by itself, and gives the offsets under which they were acknowledged."""
    with KafkaProducer(bootstrap_servers=bootstrap, **settings) as producer:
        sent = [producer.send(topic, value, key=value) for value in values]
        return [s.get(timeout=30).offset for s in sent]


@contextmanager
def consumer(bootstrap: str, topic: str, **settings: object) -> Iterator[KafkaConsumer]:
    """A consumer of the first partition of a topic, from its beginning."""
    settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "check_crcs": True} | settings
    with KafkaConsumer(bootstrap_servers=bootstrap, **settings) as c:
        c.assign([TopicPartition(topic, 0)])
        yield c


def read(bootstrap: str, topic: str, **settings: object) -> list[bytes]:
    """All values of the first partition of a topic."""
    at = TopicPartition(topic, 0)
    found: list[bytes] = []
    with consumer(bootstrap, topic, **settings) as c:
        end = c.end_offsets([at])[at]
        assert until(
            lambda: found.extend(r.value for rs in c.poll(100).values() for r in rs) or c.position(at) >= end, 30
        )
    return found


def numbered(n: int) -> list[bytes]:
    return [b"%d" % i for i in range(n)]


def command(broker: Broker, action: str) -> str:
    """What the command line says, from another process."""
    line = [sys.executable, "-m", "deploy.broker", action, "--folder", str(broker.folder)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "snappy", "zstd"])
def test_what_is_sent_is_read(bootstrap: str, topic: Topic, compression: str | None) -> None:
    name = topic()
    assert send(bootstrap, name, numbered(100), compression_type=compression) == list(range(100))
    assert read(bootstrap, name) == numbered(100)


def test_topics_have_the_partitions_asked_for_and_are_not_made_by_use(bootstrap: str, topic: Topic) -> None:
    name = topic(3)
    with KafkaConsumer(bootstrap_servers=bootstrap) as c:
        assert c.partitions_for_topic(name) == {0, 1, 2}
        assert not c.partitions_for_topic("nobody-made-this")
        assert "nobody-made-this" not in c.topics()


def test_a_broker_keeps_what_it_acknowledged(broker: Broker, topic: Topic) -> None:
    name = topic(on=broker.bootstrap)
    send(broker.bootstrap, name, numbered(100))
    where, before = broker.bootstrap, broker.pid

    assert command(broker, "status") == f"Kafka answers on {where} (process {before})\n"
    assert command(broker, "stop") == "Kafka is stopped\n"
    assert not broker.running
    assert not broker.answers()
    assert command(broker, "status") == "Kafka is not running: make kafka\n"
    broker.start()
    assert (broker.bootstrap, broker.pid == before) == (where, False)
    assert read(where, name) == numbered(100)

    assert send(where, name, numbered(100)) == list(range(100, 200))
    broker.kill()
    assert not broker.running
    assert not (broker.folder / "data" / ".kafka_cleanshutdown").exists()
    broker.start()
    assert read(where, name) == numbered(100) * 2
    assert send(where, name, [b"alive"]) == [200]


def test_a_frozen_broker_answers_again_when_thawed(broker: Broker, topic: Topic) -> None:
    name = topic(on=broker.bootstrap)
    with KafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        assert producer.send(name, b"before").get(timeout=10).offset == 0
        broker.freeze()
        assert broker.running
        assert not broker.answers(0.5)
        sent = producer.send(name, b"meanwhile")
        with pytest.raises(KafkaError):
            sent.get(timeout=1)
        broker.thaw()
        assert until(broker.answers, 10)
        producer.flush(timeout=20)
        assert sent.succeeded()
    assert read(broker.bootstrap, name) == [b"before", b"meanwhile"]

    broker.freeze()
    assert not broker.answers(0.5)
    broker.stop(timeout=20)
    assert not broker.running
    assert (broker.folder / "data" / ".kafka_cleanshutdown").exists()


def test_compaction_keeps_the_last_of_each_key(bootstrap: str, topic: Topic) -> None:
    name = topic(
        cleanup_policy="compact", segment_ms=100, min_cleanable_dirty_ratio=0.01, max_compaction_lag_ms=100,
        delete_retention_ms=0,
    )  # fmt: skip
    with KafkaProducer(bootstrap_servers=bootstrap) as producer:
        for i in range(30):
            producer.send(name, b"%d" % i, key=b"%d" % (i % 3))
        producer.send(name, None, key=b"0")
        producer.flush()

        def cleaned() -> bool:  # the newest segment is never compacted, so another record has to begin a new one
            producer.send(name, b"x", key=b"other").get(timeout=10)
            found = [v for v in read(bootstrap, name) if v != b"x"]
            return found in ([b"28", b"29"], [b"28", b"29", None])

        assert until(cleaned, 20, pause=0.2)


def test_what_is_deleted_or_too_old_is_out_of_range(bootstrap: str, topic: Topic) -> None:
    name, old = topic(), topic(retention_ms=1000, segment_ms=100)
    send(bootstrap, name, numbered(10))
    send(bootstrap, old, numbered(10))
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        admin.delete_records({TopicPartition(name, 0): 7})
    assert read(bootstrap, name) == numbered(10)[7:]
    with consumer(bootstrap, name, auto_offset_reset="none") as c:
        c.seek(TopicPartition(name, 0), 3)
        with pytest.raises(OffsetOutOfRangeError):
            until(lambda: bool(c.poll(100)), 10)
        at = TopicPartition(old, 0)
        assert until(lambda: c.beginning_offsets([at])[at] == 10, 20, pause=0.2)


def test_only_what_is_committed_is_read(bootstrap: str, topic: Topic) -> None:
    name = topic()
    with KafkaProducer(bootstrap_servers=bootstrap, transactional_id=name) as producer:
        producer.init_transactions()
        for value, commit in ((b"kept", True), (b"aborted", False), (b"kept too", True)):
            producer.begin_transaction()
            producer.send(name, value).get(timeout=10)
            (producer.commit_transaction if commit else producer.abort_transaction)()
        producer.begin_transaction()
        producer.send(name, b"open").get(timeout=10)
        assert read(bootstrap, name, isolation_level="read_committed") == [b"kept", b"kept too"]
        assert read(bootstrap, name) == [b"kept", b"aborted", b"kept too", b"open"]
        producer.abort_transaction()


def test_a_port_that_is_taken_is_said_so(bootstrap: str, tmp_path: Path) -> None:
    taken = int(bootstrap.rpartition(":")[2])
    with pytest.raises(BrokerError, match=f"port {taken} is taken: stop what uses it"):
        Broker(tmp_path, taken).start()


def test_what_is_missing_is_said_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MissingError, match="needs Java 17 or later, and there is no java on the PATH: apt install"):
        Broker(tmp_path / "broker").start()
    with pytest.raises(MissingError, match="no mvn on the PATH: apt install maven"):
        jars(cache=tmp_path / "cache")


def test_a_broker_that_ends_is_explained_by_its_log(idle_broker: Broker) -> None:
    data = idle_broker.folder / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\ncluster.id=another\nnode.id=7\n")
    begun = time.monotonic()
    with pytest.raises(BrokerError, match=r"it ended; .*broker.log ends with\n(.*\n)*.*Stored node id 7"):
        idle_broker.start()
    assert time.monotonic() - begun < 30
    assert not idle_broker.running


def test_free_ports_are_none_that_clients_are_given() -> None:
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not lowest.exists():
        pytest.skip("the range of the system is not known")
    assert free_port() < int(lowest.read_text().split()[0])
