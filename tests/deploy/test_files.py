"""The files of `deploy/` are what their readers expect, and name nothing that is not there. No container is run."""

from __future__ import annotations

import configparser
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from engine.brokers import PREFIX, given
from engine.cli import app, load_pipeline
from engine.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
UNIT = DEPLOY / "systemd" / "freshet@.service"
TOKENS = {"FRESHET_TOKEN", "FRESHET_STATE_KEY"}


def documents(folder: str) -> list[dict[str, Any]]:
    """The Kubernetes objects in a folder, patches among them."""
    files = sorted((DEPLOY / folder).glob("*.yaml"))
    return [d for f in files for d in yaml.safe_load_all(f.read_text())]


def one(folder: str, kind: str) -> dict[str, Any]:
    return next(d for d in documents(folder) if d["kind"] == kind)


def options(command: list[str]) -> list[str]:
    """The names of the options in the arguments of `freshet run`."""
    assert command[0] == "run"
    return [word.partition("=")[0] for word in command if word.startswith("--")]


def known_options() -> set[str]:
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    return {o for p in run.params for o in p.opts}


def docker_commands() -> list[list[str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    return [json.loads(found) for found in re.findall(r'^CMD (\["run".*\])$', text, re.MULTILINE)]


def unit() -> dict[str, list[str]]:
    """The settings of the [Service] section, each with its values."""
    found: dict[str, list[str]] = {}
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def commands() -> list[list[str]]:
    """Every command of a worker that a file of `deploy/` has."""
    sets = [one(f, "StatefulSet") for f in ("kubernetes", "kubernetes-cluster")]
    workers = [c for s in sets for c in s["spec"]["template"]["spec"]["containers"]]
    return [
        COMPOSE["services"]["worker"]["command"],
        *(c["args"] for c in workers),
        *docker_commands(),
        shlex.split(unit()["ExecStart"][0])[1:],
    ]


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.y*ml"), key=str), ids=lambda f: str(f.relative_to(DEPLOY)))
def test_every_yaml_file_is_read(file: Path) -> None:
    assert all(isinstance(d, dict) for d in yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("command", commands(), ids=["compose", "kubernetes", "cluster", "image", "systemd"])
def test_every_option_of_a_worker_exists(command: list[str]) -> None:
    assert set(options(command)) <= known_options()
    assert {"--follow", "--state", "--out", "--log"} <= set(options(command))


def test_ports_hosts_and_probes_agree() -> None:
    default = Settings().port
    for command in commands():
        assert [w for w in command if w.startswith("--port=")] in ([], [f"--port={default}"])
    service = one("kubernetes", "Service")["spec"]["ports"][0]["port"]
    worker = one("kubernetes", "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    assert {service, worker["ports"][0]["containerPort"]} == {default}
    assert f"127.0.0.1:{default}/healthz" in (DEPLOY / "Dockerfile").read_text()
    assert worker["startupProbe"]["httpGet"]["path"] == worker["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == [f"worker:{default}"]


def test_compose_is_what_the_specification_says() -> None:
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*line, str(DEPLOY / "compose.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_compose_refers_to_is_there() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] != "service_healthy" or "test" in services[other]["healthcheck"]
            assert healthy, f"{name} waits for the health of {other}, which has no check"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is open to others"
    named = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yml").read_text()))
    example = {line.partition("=")[0] for line in (DEPLOY / "env.example").read_text().splitlines() if line[0] != "#"}
    assert named == example
    binds = [w for w in services["worker"]["command"] if w.startswith(("--bind", "--sink"))]
    pipeline, _ = load_pipeline(ROOT / services["worker"]["command"][1])
    assert {w.split("=")[1] for w in binds} == {*pipeline.sources, *pipeline.sinks}
    build = services["worker"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_the_secret_token_is_where_prometheus_looks() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    secret = COMPOSE["services"]["prometheus"]["secrets"][0]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "FRESHET_TOKEN"}


@pytest.mark.parametrize("version", ["1.29.0", "1.37.0"])
@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-cluster"])
def test_manifests_fit_the_schemas_of_kubernetes(folder: str, version: str) -> None:
    plain = [d for d in documents(folder) if d["kind"] != "Kustomization"]
    if folder == "kubernetes-cluster":  # its StatefulSet is a patch
        plain = [d for d in plain if d["kind"] != "StatefulSet"]
    assert plain
    for document in plain:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-cluster"])
def test_kustomize_makes_manifests_that_fit(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl on this machine")
    done = subprocess.run([kubectl, "kustomize", str(DEPLOY / folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {d["kind"]: d for d in yaml.safe_load_all(done.stdout)}
    for document in made.values():
        kubernetes_validate.validate(document, "1.32.0", strict=True)
    spec = made["StatefulSet"]["spec"]
    volumes = {v["name"] for v in spec["template"]["spec"]["volumes"]}
    claims = {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", ())}
    worker = spec["template"]["spec"]["containers"][0]
    assert {m["name"] for m in worker["volumeMounts"]} == volumes | claims
    assert not volumes & claims


def test_pods_may_do_little() -> None:
    spec = one("kubernetes", "StatefulSet")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert not spec["automountServiceAccountToken"]
    for container in (*spec["containers"], *spec["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
    image = (DEPLOY / "Dockerfile").read_text()
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in image
    cache = re.search(r"NUMBA_CACHE_DIR=(\S+)", image)
    assert cache is not None
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert cache.group(1) == mounts["kernels"]


def test_the_example_of_kubernetes_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = one("kubernetes", "ConfigMap")["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    pipeline, _ = load_pipeline(tmp_path)
    settings = load(tmp_path, {})
    assert set(settings.sources) == set(pipeline.sources)
    assert set(settings.sinks) == set(pipeline.sinks)
    secret = one("kubernetes", "Secret")["stringData"]
    assert all(n in TOKENS or n.startswith(PREFIX) for n in secret)
    for name in secret:
        monkeypatch.setenv(name, "x")
    assert {n.removeprefix(PREFIX).lower() for n in secret if n.startswith(PREFIX)} <= set(given(settings.kafka))
    replicas = one("kubernetes-cluster", "StatefulSet")["spec"]["replicas"]
    (where,) = (a for a in commands()[2] if a.startswith("--addresses"))
    assert len(where.split(";")) == replicas <= settings.shards


def test_the_placeholders_of_secrets_are_refused() -> None:
    assert set(one("kubernetes", "Secret")["stringData"].values()) == {""}


def test_the_unit_is_a_unit(tmp_path: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
    service = unit()
    assert service["RestartPreventExitStatus"] == ["2 3"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["StateDirectory"][0] in service["ExecStart"][0]
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("there is no systemd-analyze on this machine")
    copy = tmp_path / "freshet@.service"
    copy.write_text(UNIT.read_text().replace("/opt/freshet/bin/freshet", sys.executable))
    done = subprocess.run([verify, "verify", "--man=no", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rated = subprocess.run([verify, "security", "--offline=true", str(copy)], capture_output=True, text=True)
    level = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    assert level is not None, rated.stderr
    assert float(level.group(1)) < 2.0


def test_the_dockerfile_has_no_fault_that_a_linter_finds() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed (the extra dev has it)")
    done = subprocess.run([str(linter), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_built_from_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    sources = [*itertools.chain(*(c.split() for c in copied)), *re.findall(r"source=((?:deploy|tests)\S+?),", text)]
    assert {"engine", "operators", "deploy/warm.py", "tests/flow/cards"} <= set(sources)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == a or source.startswith(a + "/") for a in allowed), f".dockerignore leaves out {source}"
    assert all((ROOT / a).exists() for a in allowed)
    assert "USER 10001:10001" in text
    assert text.rstrip().endswith("FROM worker"), "the default target is the worker, not the example"


def test_the_readme_names_what_is_there() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert [
        n for n in re.findall(r"`(deploy/[\w./@-]+)`", text) if n != "deploy/.env" and not (ROOT / n).exists()
    ] == []
    for line in re.findall(r"^\s*freshet run (.*)$", text, re.MULTILINE):
        assert {w.partition("=")[0] for w in line.split() if w.startswith("--")} <= known_options()
    assert "not run by the tests" in text
    for thing in ("Dockerfile", "compose.yml", "kubernetes", "kubernetes-cluster", "systemd", "prometheus"):
        assert thing in text


def test_the_readme_names_every_alert_and_dashboard() -> None:
    text = (DEPLOY / "README.md").read_text()
    rules = [
        r for g in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"] for r in g["rules"]
    ]
    alerts = {r["alert"] for r in rules if "alert" in r}
    assert set(re.findall(r"\bFreshet[A-Z]\w+", text)) == alerts
    boards = [json.loads(f.read_text()) for f in (DEPLOY / "grafana" / "dashboards").iterdir()]
    assert set(re.findall(r"^\| (Freshet: .*?) \|", text, re.MULTILINE)) == {b["title"] for b in boards}
