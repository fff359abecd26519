"""The example's feed against a real broker: each line once, in order, wherever it was cut off; and the worker on it."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from deploy.example.feed import KEYS, STREAMS, main
from tests.flow.running import ROOT, freshet
from tests.kafka.conftest import bootstrap  # noqa: F401

LINES = {
    "departures": [
        {"flight_id": f"f{i}", "sched_dep": f"2013-01-0{1 + i // 4}T1{i % 4}:00:00Z", "carrier": "UA", "distance": 5.0}
        for i in range(12)
    ],
    "landings": [
        {"flight_id": f"f{i}", "arrived": f"2013-01-0{1 + i // 4}T1{4 + i % 4}:30:00Z", "arr_delay": float(i * 5)}
        for i in range(12)
    ],
    "weather": [{"origin": "EWR", "observed": f"2013-01-01T0{i}:00:00Z", "temp": 30.0} for i in range(8)],
    "planes": [{"tailnum": f"N{i}", "year": 2000 + i, "seats": 100} for i in range(5)],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a few flights, taken for those that are prepared."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in LINES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr("deploy.example.feed.prepare", lambda folder: None)
    return folder


def held(bootstrap: str, topic: str) -> list[tuple[bytes, bytes]]:  # noqa: F811
    """The keys and values of a topic, in its order."""
    with KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning()
        end, found = consumer.end_offsets([partition])[partition], []
        while consumer.position(partition) < end:
            found += [(r.key, r.value) for rs in consumer.poll(200).values() for r in rs]
        return found


def test_each_line_is_sent_once_and_the_worker_predicts(
    data: Path,
    tmp_path: Path,
    bootstrap: str,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefix = f"test-{uuid.uuid4().hex[:8]}-"
    always = ["--bootstrap", bootstrap, "--prefix", prefix, "--data", str(data)]
    for said in ("topics: 6 made, 0 were there\nplanes: 5 sent", "topics: 0 made, 6 were there\nplanes: 0 sent"):
        main(["topics", *always])
        assert capsys.readouterr().out.startswith(said)
    for days, speed, sent in ((1, 0.0, 16), (2, 1e6, 8), (0, 0.0, 8), (0, 0.0, 0)):
        main(["send", *always, "--speed", str(speed), "--days", str(days)])
        assert capsys.readouterr().out.startswith(f"done: {sent} sent")
    for name, rows in LINES.items():
        got = held(bootstrap, prefix + name)
        assert [json.loads(value) for _, value in got] == rows
        assert [json.loads(key) for key, _ in got] == [{c: r[c] for c in KEYS[name]} for r in rows]

    place = f"kafka://{bootstrap}/{prefix}"
    binds = [w for name in (*STREAMS, "planes") for w in ("--bind", f"{name}={place}{name}")]
    sinks = ["--sink", f"predictions={place}predictions", "--sink", f"features={place}features"]
    done = freshet("run", ROOT / "examples" / "flights", *binds, *sinks, "--quiet", "--port", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predicted = [json.loads(value) for _, value in held(bootstrap, prefix + "predictions")]
    assert sorted((r["model"], r["flight_id"]) for r in predicted) == sorted(
        (model, r["flight_id"]) for model in ("late", "delay") for r in LINES["departures"]
    )


def test_without_a_broker_it_says_so_in_a_line(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.example.feed.PATIENCE", 300)
    with pytest.raises(SystemExit) as ended:
        main(["topics", "--bootstrap", "127.0.0.1:1", "--data", str(data)])
    assert str(ended.value.code).startswith("error: ")
    assert "\n" not in str(ended.value.code)
