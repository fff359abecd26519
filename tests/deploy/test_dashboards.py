"""The dashboards are what the code makes, and what Grafana expects; that panels show something: test_monitoring."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from deploy.grafana.build import DASHBOARDS, FOLDER, SCHEMA, SOURCE, text
from engine.metrics import METRICS
from tests.deploy.prometheus import FOLDER as PROMETHEUS
from tests.flow.running import ROOT

READ = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.iterdir())}
UNITS = {"short", "s", "cps", "bytes", "percentunit"}
RECORDED = {
    r["record"]
    for g in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for r in g["rules"]
    if "record" in r
}
EXPORTED = {name + ("_total" if kind == "counter" else "") for name, (kind, *_) in METRICS.items()}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [p for p in dashboard["panels"] if p["type"] != "row"]


def test_what_is_committed_is_what_the_code_makes() -> None:
    made = {f"{d.uid}.json": text(d) for d in DASHBOARDS}
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == made, (
        "they are not current; run: python -m deploy.grafana.build"
    )


@pytest.mark.parametrize("name", sorted(READ))
def test_a_dashboard_is_what_grafana_expects(name: str) -> None:
    board = READ[name]
    assert name == f"{board['uid']}.json"
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert board["schemaVersion"] == SCHEMA
    assert board["title"]
    assert len(board["description"]) > 30
    names = [v["name"] for v in board["templating"]["list"]]
    assert names[:2] == ["datasource", "instance"]
    assert board["templating"]["list"][0]["type"] == "datasource"
    ids = [p["id"] for p in board["panels"]]
    assert len(set(ids)) == len(ids)
    used = {v for p in panels(board) for t in p["targets"] for v in re.findall(r"\$(\w+)", t["expr"])}
    assert used - {"__rate_interval"} == set(names) - {"datasource"}


@pytest.mark.parametrize("name", sorted(READ))
def test_panels_say_what_they_mean_and_do_not_overlap(name: str) -> None:
    taken = set()
    for panel in READ[name]["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(READ[name]):
        assert panel["type"] in ("timeseries", "stat")
        assert len(panel["description"]) > 50, panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == SOURCE
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE
            assert target["legendFormat"]
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("name", sorted(READ))
def test_every_metric_that_is_asked_for_is_exported(name: str) -> None:
    asked = {m for p in panels(READ[name]) for t in p["targets"] for m in re.findall(r"freshet[_:]\w+", t["expr"])}
    asked |= {m for v in READ[name]["templating"]["list"][1:] for m in re.findall(r"freshet_\w+", v["definition"])}
    assert asked
    assert asked - EXPORTED - RECORDED == set()


def test_alerts_ask_for_metrics_that_are_exported() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text()
    asked = {m for expr in re.findall(r"expr: (?:\|\n)?((?:.|\n)*?)(?:for|labels|- |$)", text) for m in
             re.findall(r"freshet[_:]\w+", expr)}  # fmt: skip
    assert asked
    assert asked - EXPORTED - RECORDED == set()


def test_grafana_finds_them_and_prometheus() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    grafana = yaml.safe_load((ROOT / "deploy" / "compose.yml").read_text())["services"]["grafana"]
    mounted = dict(v.split(":")[:2] for v in grafana["volumes"])
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "freshet.yml").read_text())["providers"]
    assert mounted["./grafana/dashboards"] == provider["options"]["path"]
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == READ["freshet-overview.json"]["templating"]["list"][0]["query"]
    assert source["isDefault"]


def test_prometheus_of_compose_finds_its_rules() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "compose.yml").read_text())["services"]["prometheus"]
    mounted = {v.split(":")[1] for v in prometheus["volumes"]}
    rules = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["rule_files"]
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *rules)} <= mounted
