"""A worker with everything, seen by a real Prometheus: all metrics, all panels, and what is seen when it is killed."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from deploy.grafana.build import DASHBOARDS, made
from engine.metrics import METRICS, reference
from tests.deploy.prometheus import Prometheus, free_port, scraping, tool, until
from tests.flow.cards import data
from tests.flow.running import command, environment
from tests.kafka.conftest import bootstrap  # noqa: F401

TOKEN = "0123456789abcdef0123456789abcdef"
PIPELINE = """
import polars as pl
from river import linear_model, preprocessing

import operators as op
from engine import Pipeline, debt, deferred, guard, immediate, on_query

p = Pipeline("everything")
payments = p.source(
    "payments", key="tx", at="at", lateness="60s", epoch={"at": "ms"}, log=True,
    schema={"tx": int, "card": str, "shop": str, "amount": float, "at": pl.Datetime},
)
chargebacks = p.source(
    "chargebacks", key="tx", at="known", lateness="60s", append_only=False, epoch={"known": "ms"},
    schema={"tx": int, "known": pl.Datetime, "fraud": bool},
)
features = p.view(
    "features", payments, op.dedupe(by="tx", within="1d"), op.window(by="card", size="10m", n=op.count()),
    op.project("tx", "amount", "n"), target_lag="5s", warn_after="1m", error_after="10m",
    expect=[op.between("amount", 0, 150)], taint=True,
)
cards = p.view(
    "cards", payments, op.aggregate(by="card", n=op.count()), refresh=deferred(rows=200, mode="auto"),
)
answers = p.view("answers", chargebacks, op.project("tx", cost=pl.when(pl.col("fraud")).then(25.0).otherwise(0.0)))
learner = preprocessing.StandardScaler() | linear_model.LinearRegression()
GUARDS = [guard.clip("sane", 0, 20), guard.refuse("large", pl.col("amount") > 200)]
asked = dict(answers=answers, label="cost", wait="5m")
at_once = p.model("at_once", features, learner=learner, refresh=immediate(), guards=GUARDS, audit="10s", **asked)
fitted = p.model(
    "fitted", features, learner=learner, refresh=deferred(rows=200, debt=debt(per_second=10.0)), guards=GUARDS, **asked
)
similar = p.model("similar", features, learner=learner, refresh=on_query(neighbours=8), **asked)
p.sink("predictions", at_once.predictions, fitted.predictions)
p.sink("similar", similar.predictions)
p.sink("cards", cards)
"""


def send(bootstrap: str, topic: str, lines: list[bytes]) -> None:  # noqa: F811
    with KafkaProducer(bootstrap_servers=bootstrap) as producer:
        for line in lines:
            producer.send(topic, line)
        producer.flush()


@contextmanager
def worker(folder: Path, bootstrap: str, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:  # noqa: F811
    """A worker that follows a topic and a file and writes to a topic and a file, dead afterwards; its topic."""
    read, written = (f"test-{uuid.uuid4().hex[:12]}" for _ in range(2))
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        one = {"num_partitions": 1, "replication_factor": 1}
        admin.create_topics(dict.fromkeys((read, written), one), wait_for_metadata=True)
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "freshet.toml").write_text(
        f'epoch = "200ms"\nbatch_rows = 100\nport = {port}\n[kafka]\nbootstrap_servers = "{bootstrap}"\n'
        f'[sources.payments]\ntopic = "{read}"\n[sinks.cards]\ntopic = "{written}"\n'
        '[sources.chargebacks]\npath = "data/chargebacks.jsonl"\nformat = "changes"\n'
    )
    line = command("run", folder, "--follow", "--quiet", "--out", folder / "out", "--state", folder / "state")
    env = {**environment(), "FRESHET_TOKEN": TOKEN}
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(line, cwd=folder, env=env, stderr=errors, text=True)
    try:
        yield process, read
    finally:
        process.kill()
        process.wait()


def scraped(port: int) -> set[str]:
    """The names of the metrics that have a value, without the suffix of counters."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return {f.name for f in text_string_to_metric_families(answer.read().decode()) if f.samples}


def in_the_reference() -> set[str]:
    return {name.removesuffix("_total") for name in re.findall(r"^\| `(\w+)`", reference(), re.MULTILINE)}


def empty_panels(prometheus: Prometheus) -> list[tuple[str, str, str]]:
    """Panels of which some query gives nothing for any value of what their dashboard is about."""
    found = []
    for dashboard in map(made, DASHBOARDS):
        values = [{"instance": ".*"}]
        for variable in dashboard["templating"]["list"][2:]:
            metric, label = re.fullmatch(r"label_values\((\w+)\{.*\}, (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            values = [{"instance": ".*", label: labels[label]} for labels, _ in prometheus.query(metric)]
            assert len(values) > 1
        for panel in (p for p in dashboard["panels"] if p["type"] != "row"):
            for target in panel["targets"]:
                asked = {filled(target["expr"], chosen) for chosen in values}
                if not any(value == value for one in asked for _, value in prometheus.query(one)):
                    found.append((dashboard["title"], panel["title"], target["expr"]))
    return found


def filled(expression: str, chosen: dict[str, str]) -> str:
    """An expression with its variables replaced, as Grafana does."""
    for name, value in {**chosen, "__rate_interval": "10s"}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression
    return expression


def test_all_is_seen_and_a_worker_that_is_killed_looks_stale_not_frozen(
    tmp_path: Path,
    bootstrap: str,  # noqa: F811
) -> None:
    tool("prometheus")
    folder, port = tmp_path / "everything", free_port()
    data.write(folder / "data", 3000)
    lines = (folder / "data" / "payments.jsonl").read_bytes().splitlines()
    with (
        worker(folder, bootstrap, port) as (process, topic),
        scraping(tmp_path / "prometheus", f"127.0.0.1:{port}", TOKEN) as prometheus,
    ):
        send(bootstrap, topic, lines)

        def alive() -> bool:
            assert process.poll() is None, (folder / "errors").read_text()
            return True

        def caught_up() -> bool:
            lag = prometheus.query("freshet_consumer_lag_records")
            return alive() and bool(lag) and lag[0][1] == 0 and bool(prometheus.query("freshet_model_price"))

        until(caught_up, lambda: "the worker has not caught up", 240)
        until(lambda: prometheus.query('min_over_time(up{job="freshet"}[10s])') != [], lambda: "it is not scraped")
        assert [value for _, value in prometheus.query("up")] == [1.0]

        names = {*METRICS, *(n for n in in_the_reference() if n.startswith("process_"))}
        assert names == in_the_reference(), "what is exported is in the reference, and the other way round"
        until(lambda: alive() and scraped(port) == names, lambda: f"without a value: {names ^ scraped(port)}", 30)

        until(lambda: alive() and empty_panels(prometheus) == [], lambda: f"nothing in {empty_panels(prometheus)}", 120)
        assert not {"FreshetWorkerGone", "FreshetCheckpointOld", "FreshetBrokerSilent"} & set(prometheus.firing())
        until(
            lambda: "FreshetViewStale" in prometheus.firing(), lambda: "the payments are of 2023, and no alert says so"
        )
        told = prometheus.firing()["FreshetViewStale"]["summary"]
        assert re.fullmatch(r"View \w+(\.\w+)? contains what happened up to \d+d .* ago, and nothing newer\.", told)

        until(
            lambda: alive() and prometheus.query('freshet_audits_total{verdict="done"} > 0') != [],
            lambda: f"no audit ended: {prometheus.query('freshet_audits_total')}",
        )
        assert prometheus.query("freshet_audit_questions_total > 0") != []
        assert prometheus.query("freshet_audit_mismatches_total > 0") == []
        age = "time() - last_over_time(freshet_checkpoint_last_success_timestamp_seconds[1h])"
        assert max(value for _, value in prometheus.query(age)) < 10
        process.kill()
        process.wait()
        until(lambda: prometheus.query("up")[0][1] == 0, lambda: "the death is not seen")
        assert prometheus.query("freshet_view_rows") == [], "Prometheus forgets what is not there any more"
        then = {labels["instance"]: value for labels, value in prometheus.query(age)}
        time.sleep(3)
        now = {labels["instance"]: value for labels, value in prometheus.query(age)}
        assert now.keys() == then.keys() != set()
        assert all(now[i] >= then[i] + 3 for i in now), "it looks stale, not frozen"
        assert prometheus.query('absent(up{job="freshet"} == 1)') != []
        until(lambda: "FreshetWorkerGone" in prometheus.firing(), lambda: "the alert does not fire")
        assert "FreshetViewStale" in prometheus.firing()
        assert prometheus.firing()["FreshetWorkerGone"]["summary"].endswith(f"answers at 127.0.0.1:{port}.")
