"""Brokers and topics for tests: `bootstrap` is of a shared one, `broker` is a test's own, to kill and to freeze."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from deploy.broker.broker import Broker, jars, java
from tests.kafka.needs import needs

Topic = Callable[..., str]


def prepared(folder: Path | str) -> Broker:
    """A broker that can be started."""
    with needs():
        java()
        jars()
    return Broker(folder)


@pytest.fixture(scope="session")
def bootstrap() -> str:
    """Where a broker answers: that of KAFKA_BOOTSTRAP, or else one for all tests of this run."""
    given = os.environ.get("KAFKA_BOOTSTRAP")
    return given or prepared(os.environ["FRESHET_TEST_BROKER"]).start().bootstrap


@pytest.fixture
def idle_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of this test alone, not started yet."""
    own = prepared(tmp_path / "broker")
    try:
        yield own
    finally:
        own.stop()


@pytest.fixture
def broker(idle_broker: Broker) -> Broker:
    """A broker of this test alone."""
    return idle_broker.start()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> Topic:
    """Makes topics with names of their own, on the shared broker or another: `topic(2, cleanup_policy="compact")`."""

    def make(partitions: int = 1, on: str | None = None, **settings: object) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        configs = {key.replace("_", "."): str(value) for key, value in settings.items()}
        with KafkaAdminClient(bootstrap_servers=on or request.getfixturevalue("bootstrap")) as admin:
            topics = {name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}}
            admin.create_topics(topics, wait_for_metadata=True)
        return name

    return make
