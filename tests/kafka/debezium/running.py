"""A PostgreSQL server, and Debezium (in Kafka Connect) that writes its changes to a broker; each is a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from deploy.broker.broker import JAVA, MissingError, explain, free_port, jars, java, until

POM = Path(__file__).with_name("pom.xml")
INSTALL = "apt install postgresql"
SERVER = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    "fsync": "off",
    "shared_buffers": "16MB",
}


class FailedError(Exception):
    """What did not start, with the last lines of its log."""


def programs() -> Path:
    """The folder with the programs of the newest PostgreSQL of this machine."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    found = known[-1] / "initdb" if known else shutil.which("initdb")
    if not found:
        raise MissingError(f"Debezium is tried with PostgreSQL, and there is none: {INSTALL}")
    return Path(found).resolve().parent


class Postgres:
    """A server with the database `postgres`, in a folder that is removed at the end."""

    def __init__(self) -> None:
        self.bin = programs()
        self.port = free_port()
        # PostgreSQL does not run as root, and the user of its package cannot read folders of root.
        self._user = "postgres" if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="freshet-postgres-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Postgres:
        data = self.folder / "data"
        settings = [f"--{name}={value}" for name, value in SERVER.items()]
        try:
            self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    [self.bin / "postgres", "-D", data, "-p", str(self.port), *settings],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, user=self._user,
                    start_new_session=True,
                )  # fmt: skip
            if not until(self._answers, 30):
                raise FailedError(f"PostgreSQL did not answer: {self.log.read_text()[-500:]}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.send_signal(signal.SIGQUIT)  # at once; nothing of it is kept
            self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *statements: str) -> str:
        """Runs statements, each in a transaction of its own, and gives what the last of them says."""
        done = self._psql(*(word for s in statements for word in ("-c", s)))
        if done.returncode:
            raise FailedError(done.stderr)
        return done.stdout.strip()

    def _psql(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [self.bin / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-X", "-q", "-A", "-t"]
        return subprocess.run([*line, "-v", "ON_ERROR_STOP=1", *words], capture_output=True, text=True)

    def _answers(self) -> bool:
        return self._psql("-c", "select 1").returncode == 0

    def _run(self, program: str, *words: object) -> None:
        line = [self.bin / program, *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=self.folder, user=self._user)
        if done.returncode:
            raise FailedError(f"{program}: {done.stderr[-500:]}")


class Connect:
    """Kafka Connect in one process, with connectors whose settings are given by name."""

    def __init__(self, folder: Path, bootstrap: str, connectors: dict[str, dict[str, object]]) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "connect.log"
        self._bootstrap, self._connectors = bootstrap, connectors
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Connect:
        self.folder.mkdir(parents=True, exist_ok=True)
        worker = {
            "bootstrap.servers": self._bootstrap,
            "listeners": f"http://127.0.0.1:{self.port}",
            "offset.storage.file.filename": self.folder / "offsets",
            "offset.flush.interval.ms": 1000,
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "plugin.discovery": "service_load",
        }
        files = [self._write("worker", worker)]
        for name, settings in self._connectors.items():
            files.append(self._write(name, {"name": name} | settings))
        line = [java(), *JAVA, "-Dorg.apache.logging.log4j.level=INFO", "-cp", f"{jars(POM)}/*"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*line, "org.apache.kafka.connect.cli.ConnectStandalone", *map(str, files)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        if not until(lambda: self._ended() or self._answers(), 60) or self._ended():
            self.__exit__()
            raise FailedError(explain("Kafka Connect", self.log.read_text(errors="replace"), self.log))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/connectors", timeout=1) as r:
                return bool(r.status == 200)
        except OSError:
            return False

    def _write(self, name: str, settings: dict[str, object]) -> Path:
        path = self.folder / f"{name}.properties"
        path.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        return path


def reads(postgres: Postgres, prefix: str) -> dict[str, object]:
    """The settings of a connector that writes all tables to the topics `PREFIX.public.TABLE`.

    The prefix also names the slot and the publication, unquoted: a word of SQL will not do.
    """
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "plugin.name": "pgoutput",
        "database.hostname": "127.0.0.1",
        "database.port": postgres.port,
        "database.user": "postgres",
        "database.dbname": "postgres",
        "topic.prefix": prefix,
        "slot.name": prefix,
        "publication.name": prefix,
        "skipped.operations": "none",
        "topic.creation.default.replication.factor": 1,
        "topic.creation.default.partitions": 1,
    }


def schemas(shown: bool) -> dict[str, object]:
    """Whether keys and values come with their schema, {"schema": ..., "payload": ...}."""
    json = "org.apache.kafka.connect.json.JsonConverter"
    return {f"{part}.converter": json for part in ("key", "value")} | {
        f"{part}.converter.schemas.enable": str(shown).lower() for part in ("key", "value")
    }
