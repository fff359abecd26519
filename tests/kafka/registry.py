"""A schema registry for tests: Apicurio, as Maven has it, with Confluent's protocol; it keeps all in memory."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.broker.broker import CACHE, MissingError, free_port, java, until

ARTIFACT = "io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"


def app() -> Path:
    """The folder with its jars; fetched once, whoever asks at the same time."""
    folder = CACHE.with_name("registry")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        if not (maven := shutil.which("mvn")):
            raise MissingError("the registry is fetched by Maven, and there is no mvn on the PATH: apt install maven")
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            command = [maven, "-q", "-B", COPY, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={new}"]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, cwd=new)
            (packed,) = Path(new).glob("*.tar.gz")
            with tarfile.open(packed) as tar:
                tar.extractall(Path(new) / "app", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            (Path(new) / "app").rename(folder)
    return folder


class Registry:
    """Where it answers, and what to ask of it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def register(self, subject: str, schema: Any, *references: dict[str, Any]) -> int:
        """The number of a schema, which is new or known."""
        body = json.dumps({"schema": json.dumps(schema), "references": references}).encode()
        kind = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        request = urllib.request.Request(f"{self.url}/subjects/{subject}/versions", body, kind)
        with urllib.request.urlopen(request) as answer:
            number: int = json.load(answer)["id"]
            return number

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=1):
                return True
        except OSError:
            return False


@contextmanager
def running() -> Iterator[Registry]:
    """A registry, until it is not needed any more."""
    port, (jar,) = free_port(), app().glob("*-runner.jar")
    line = [java(), "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dquarkus.http.host=127.0.0.1"]
    with subprocess.Popen(
        [*line, f"-Dquarkus.http.port={port}", "-jar", str(jar)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            registry = Registry(f"http://127.0.0.1:{port}/apis/ccompat/v7")
            assert until(registry.answers, 90), "the registry did not answer"
            yield registry
        finally:
            process.kill()
