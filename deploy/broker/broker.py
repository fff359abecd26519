"""One Kafka broker on this machine, to try things and for tests: `python -m deploy.broker start`, or `make kafka`.

It is Apache Kafka itself, as Maven has it: broker and controller in one Java process (KRaft), on the loopback address.
Topics are not made by using them. All replication factors are 1, and compaction and retention run within seconds.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "kafka"
POM = Path(__file__).with_name("pom.xml")
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

JAVA = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
"""A small heap; the quick compiler only, with which it starts in half the time."""

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "2000",  # so long the controller refuses the next start after a kill
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "log.initial.task.delay.ms": "500",
    "log.retention.check.interval.ms": "1000",
    "log.segment.delete.delay.ms": "500",
    "log.cleaner.backoff.ms": "500",
    "log.cleaner.threads": "1",
    "log.cleaner.dedupe.buffer.size": "8388608",
}

PORTS = range(15000, 32000)
"""Where free ports are sought: below those that the system gives to clients. A client that tries again and again to
reach a port of that range while the broker is down may be given that very port, and then talks to itself."""


class BrokerError(Exception):
    """What went wrong, with the cure, in one line (the log of the broker may follow)."""


class MissingError(BrokerError):
    """This machine lacks what a broker needs."""


def java() -> str:
    """The command that runs Java."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(f"{home}/bin/java") if home else shutil.which("java")
    if not found:
        where = f"JAVA_HOME is {home} and has no bin/java" if home else "there is no java on the PATH"
        raise MissingError(f"Kafka needs Java 17 or later, and {where}: apt install openjdk-17-jre-headless")
    return found


def jars(pom: Path = POM, cache: Path = CACHE) -> Path:
    """The folder with the jars that a pom asks for; they are fetched once, whoever asks at the same time."""
    folder = cache / f"libs-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        maven = shutil.which("mvn")
        if not maven:
            raise MissingError("Kafka is fetched by Maven, and there is no mvn on the PATH: apt install maven")
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        command = [maven, "-q", "-B", "-f", str(pom), COPY, "-DincludeScope=runtime", f"-DoutputDirectory={new}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode or not any(new.glob("*.jar")):
            said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
            raise BrokerError(f"Maven could not fetch Kafka; is there a network? {said[0] if said else ''}")
        new.rename(folder)
    return folder


def is_free(port: int) -> bool:
    """Whether a port of the loopback address can be listened on."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody listens on; not from the seeded generator, which may give every test the same."""
    return next(p for p in iter(lambda: random.SystemRandom().choice(PORTS), None) if is_free(p))


class Broker:
    """A broker that keeps all it has in a folder, and its ports with it.

    What was acknowledged is there after a restart, also after `kill`. Any process may stop the broker of a folder.
    """

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.log = self.folder / "broker.log"
        self.properties = self.folder / "server.properties"
        self._pid_file = self.folder / "broker.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = port

    @property
    def port(self) -> int:
        """The port of clients; 0 before the first start when any will do."""
        kept, _ = self._kept_ports()
        return kept if self.running else self._asked or kept

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process of the broker, while there is one."""
        if self._process and self._process.poll() is not None:
            self._process = None
        try:
            pid = int(self._pid_file.read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is the broker, and not one that was given its number, nor a dead one."""
        proc = Path(f"/proc/{pid}")
        try:
            command = (proc / "cmdline").read_bytes()
        except OSError:
            return not Path("/proc/self").exists()  # a system without /proc: the number must do
        if command:
            return str(self.properties).encode() in command
        return not all_are(pid, "ZX")  # being loaded, or ending: until its last thread is gone it holds its ports

    @property
    def running(self) -> bool:
        """Whether there is a process; a frozen one counts."""
        return self.pid is not None

    def answers(self, timeout: float = 1.0) -> bool:
        """Whether it answers a client, which a process that is still starting, or frozen, does not."""
        ask = struct.pack(">hhih", 18, 0, 1, -1)  # ApiVersions, version 0, no client id
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout) as s:
                s.settimeout(timeout)
                s.sendall(struct.pack(">i", len(ask)) + ask)
                return len(s.recv(8)) > 0
        except OSError:
            return False

    def start(self, timeout: float = 60.0) -> Broker:
        """Starts it and waits until it answers; nothing to do when it runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.running:
                command, libs = java(), jars()
                self._configure()
                self._format(command, libs)
                self._launch(command, libs)
            self._wait(timeout)
        return self

    def stop(self, timeout: float = 30.0) -> None:
        """Lets it end in order; kills it if it does not."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        if not self._gone(timeout):
            self.kill()

    def kill(self) -> None:
        """Ends it at once, with nothing put in order."""
        self._signal(signal.SIGKILL)
        if not self._gone(10.0):
            raise BrokerError(f"the broker of {self.folder} cannot be killed")

    def freeze(self) -> None:
        """Stops all threads of the process: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)
        pid = self.pid
        if pid is None or not until(lambda: all_are(pid, "TZX"), 10.0):  # a busy thread goes on for a moment
            raise BrokerError(f"the broker of {self.folder} cannot be frozen")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _gone(self, timeout: float) -> bool:
        return until(lambda: not self.running, timeout)

    def _kept_ports(self) -> tuple[int, int]:
        """The ports of client and controller as they were at the last start, 0 for none."""
        if not self.properties.exists():
            return 0, 0
        kept = dict(line.split("=", 1) for line in self.properties.read_text().splitlines())
        client, controller = kept["listeners"].split(",")
        return int(client.rpartition(":")[2]), int(controller.rpartition(":")[2])

    def _configure(self) -> None:
        kept, controller = self._kept_ports()
        client = self._asked or kept or free_port()
        if not is_free(client):
            raise BrokerError(
                f"port {client} is taken: stop what uses it, or take another one (make kafka PORT={client + 1})"
            )
        if not (controller and controller != client and is_free(controller)):
            controller = next(p for p in iter(free_port, None) if p != client)
        settings = SETTINGS | {
            "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.folder / "data"),
        }
        self.properties.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))

    def _format(self, command: str, libs: Path) -> None:
        if (self.folder / "data" / "meta.properties").exists():
            return
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        line = [command, *JAVA, "-cp", f"{libs}/*", "kafka.tools.StorageTool", "format"]
        line += ["--cluster-id", f"A{name[1:]}", "--config", str(self.properties), "--ignore-formatted"]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise BrokerError(explain("storage could not be formatted", done.stdout + done.stderr, self.folder))

    def _launch(self, command: str, libs: Path) -> None:
        line = [command, *JAVA, "-Dorg.apache.logging.log4j.level=INFO", "-cp", f"{libs}/*", "kafka.Kafka"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*line, str(self.properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))

    def _wait(self, timeout: float) -> None:
        until(lambda: not self.running or self.answers(), timeout)
        if self.running and self.answers():
            return
        what = f"it did not answer within {timeout:g} s" if self.running else "it ended"
        self.kill()
        raise BrokerError(explain(what, self.log.read_text(errors="replace"), self.log))


def until(condition: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Waits for a condition; whether it came true in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def all_are(pid: int, states: str) -> bool:
    """Whether all threads of a process that are left are in one of these states, by their letters in /proc."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if thread.read_text().rpartition(")")[2].split()[0] not in states:
                return False
    return True


def explain(what: str, said: str, where: Path) -> str:
    """An error in one line when its cause is known, else with the last lines of the log."""
    if "UnsupportedClassVersionError" in said:
        return "Kafka needs Java 17 or later, and this is an older one: apt install openjdk-17-jre-headless"
    if "Address already in use" in said or "BindException" in said:
        return f"Kafka did not start: its port is taken by now; try again, or another one (see {where})"
    told = [line for line in said.splitlines() if line.strip() and not line.startswith("\tat ")]
    return "\n  ".join([f"Kafka did not start: {what}; {where} ends with", *told[-8:]])


def lines(broker: Broker, action: str) -> Iterator[str]:
    """Does what the command line asks for, and says what came of it."""
    if action == "start":
        was = broker.running
        broker.start()
        yield f"Kafka {'already answered' if was else 'answers'} on {broker.bootstrap}; its log is {broker.log}"
    elif action == "stop":
        yield "Kafka is stopped" if broker.running else "Kafka was not running"
        broker.stop()
    else:
        state = f"answers on {broker.bootstrap}" if broker.answers() else "runs, but does not answer"
        yield f"Kafka {state} (process {broker.pid})" if broker.running else "Kafka is not running: make kafka"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.broker", description="One Kafka broker on this machine.")
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--folder", type=Path, default=CACHE / "broker", help="where it keeps all it has")
    parser.add_argument("--port", type=int, default=9092, help="0 for any that is free")
    given = parser.parse_args()
    broker = Broker(given.folder, given.port)
    try:
        for line in lines(broker, given.action):
            print(line)
    except BrokerError as error:
        sys.exit(f"error: {error}")
    if given.action == "status" and not broker.running:
        sys.exit(1)
