"""What the clients of Kafka brokers are told: the user's settings, and those that are the engine's own.

A setting has the name that kafka-python gives it, in `[kafka]` of freshet.toml or as an environment variable, such as
`FRESHET_KAFKA_SASL_PLAIN_PASSWORD`, which comes first: the place for secrets. Values are never printed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors

PREFIX = "FRESHET_KAFKA_"
_OWN = {
    *("enable_auto_commit", "auto_offset_reset", "isolation_level", "key_deserializer", "value_deserializer"),
    *("key_serializer", "value_serializer", "acks", "enable_idempotence", "transactional_id", "retries", "partitioner"),
    *("selector", "kafka_client", "metric_reporters", "consumer_timeout_ms", "default_offset_commit_callback"),
    *("allow_auto_create_topics", "ssl_context", "partition_assignment_strategy", "group_instance_id"),
    *("delivery_timeout_ms", "max_block_ms", "check_crcs", "max_poll_records"),
}
"""Settings on which what the engine promises depends."""

logging.getLogger("kafka").addHandler(logging.NullHandler())  # what matters is reported by the engine


_REST = 10
"""Milliseconds for which the sending thread waits for news at least."""


class BrokerError(RuntimeError):
    """A broker that cannot be used; the text says what was tried, what happened and the cure."""


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings, with those of the environment. Raises `BrokerError` when one cannot be used.

    >>> given({"bootstrap_servers": "kafka:9092", "linger": 5})
    Traceback (most recent call last):
    ...
    engine.brokers.BrokerError: [kafka] linger: there is no such setting; did you mean 'linger_ms'? ...
    """
    known = KafkaConsumer.DEFAULT_CONFIG.keys() | KafkaProducer.DEFAULT_CONFIG.keys()
    found = dict(settings)
    for name, text in os.environ.items():
        if name.startswith(PREFIX):
            found[name.removeprefix(PREFIX).lower()] = _value(text)
    for name in found:
        if name in _OWN:
            raise BrokerError(f"[kafka] {name}: this is set by Freshet, for its guarantees depend on it; leave it out")
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, sorted(known - _OWN), 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise BrokerError(
                f"[kafka] {name}: there is no such setting{hint} The names are those of kafka-python's clients"
            )
    if not found.get("bootstrap_servers"):
        raise BrokerError(
            'no Kafka broker is given; add to freshet.toml: [kafka] bootstrap_servers = "HOST:9092", set '
            f"{PREFIX}BOOTSTRAP_SERVERS, or bind to kafka://HOST:9092/TOPIC"
        )
    return found


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def consumer(settings: Mapping[str, Any], committed: bool = True, **own: Any) -> KafkaConsumer:
    """A consumer that never moves or commits by itself; sees of transactions only what is committed, or everything.

    Raises `BrokerError`.
    """
    fixed = {
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed" if committed else "read_uncommitted",
        "allow_auto_create_topics": False,
        "check_crcs": True,
    }
    usual = {
        "bootstrap_timeout_ms": 15_000,
        "metadata_max_age_ms": 30_000,
        "max_partition_fetch_bytes": 4 << 20,
        "reconnect_backoff_max_ms": 2_000,
        "metrics_enabled": False,
    }
    return _client(KafkaConsumer, given(settings), {**usual, **own}, fixed)


def producer(settings: Mapping[str, Any], transactional_id: str | None = None, **own: Any) -> KafkaProducer:
    """A producer that sends each record once and in order, and waits for a broker as long as it takes.

    Raises `BrokerError`.
    """
    fixed = {
        "acks": "all",
        "enable_idempotence": True,
        "retries": float("inf"),
        "delivery_timeout_ms": 2**31 - 1,
        "max_block_ms": 1_000,
        "allow_auto_create_topics": False,
        "transactional_id": transactional_id,
    }
    usual = {
        "bootstrap_timeout_ms": 15_000,
        "batch_size": 128 << 10,
        "transaction_timeout_ms": 300_000,
        "reconnect_backoff_max_ms": 2_000,
        "metrics_enabled": False,
    }
    made = _client(KafkaProducer, given(settings), {**usual, **own}, fixed)
    sender = made._sender
    send, ready = sender._send_producer_data, sender._client.await_ready

    def await_ready(*node: Any, **how: Any) -> bool:
        try:
            return bool(ready(*node, **how))
        except kafka_errors.KafkaError:
            return False

    # Where kafka-python raises, it loses the request of a transaction for which it waited, and the transaction hangs.
    sender._client.await_ready = await_ready
    # While it connects, kafka-python's sending thread would not rest at all.
    sender._send_producer_data = lambda now=None: max(send(now), _REST)
    return made


def missing(settings: Mapping[str, Any], topics: Sequence[str]) -> list[str]:
    """Those of the topics that the cluster does not have, or does not show. Raises `BrokerError`."""
    with consumer(settings) as client:
        return [topic for topic in topics if not client.partitions_for_topic(topic)]


def _client(kind: Any, settings: Mapping[str, Any], usual: Mapping[str, Any], fixed: Mapping[str, Any]) -> Any:
    mine = {name: value for name, value in settings.items() if name in kind.DEFAULT_CONFIG}
    servers = settings["bootstrap_servers"]
    try:
        return kind(**{**usual, **mine, **fixed})
    except (kafka_errors.KafkaError, OSError, ValueError, TypeError, AssertionError) as error:
        raise BrokerError(
            f"no Kafka broker answers at {servers!r} ({told(error)}); is it running, and can it be reached from here? "
            "With TLS or SASL, are security_protocol, sasl_mechanism and the credentials right?"
        ) from None


def told(error: BaseException) -> str:
    """An error of the client in one line."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(name) or not text else f"{name}: {text}" if text != name else name
