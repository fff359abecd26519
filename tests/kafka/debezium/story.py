"""What happens in the database while Debezium looks on, and which connectors look on."""

from __future__ import annotations

import random

from tests.kafka.debezium.running import Postgres, reads, schemas

_RANDOM = random.Random(7)
LONG = [f"{_RANDOM.getrandbits(64_000):016000x}" for _ in range(2)]
"""Texts so long that PostgreSQL keeps them beside the row, and tells of them only when they change."""

BEFORE = [
    "create table accounts (id int primary key, owner text, balance bigint, note text)",
    "alter table accounts alter note set storage external",
    f"insert into accounts values (1, 'Ann', 100, '{LONG[0]}'), (2, 'Bob', 200, null)",
    "create table kinds (id bigint primary key, flag boolean, small real, big double precision, price numeric(12, 2),"
    " free numeric, day date, clock time, at timestamp, at_zone timestamptz, span interval, doc jsonb, code uuid,"
    " bytes bytea, tags text[])",
    "insert into kinds values (1, true, 1.5, 0.1, 19.99, 1e30, '2024-02-29', '12:30:00.25',"
    " '2024-02-29 12:30:00.123456', '2024-02-29 12:30:00.123456+01', '1 day 2 hours', '{\"a\": [1, null]}',"
    " '00000000-0000-4000-8000-000000000001', '\\xdeadbeef', '{a,\"b c\"}')",
]
"""What is there when Debezium comes: it arrives as a snapshot."""

AFTER = [
    "insert into accounts values (3, 'Čeněk \"Q\" \\ 😀', 9223372036854775807, 'a\nb')",
    "update accounts set balance = balance - 5 where id = 1",  # the note is not told
    f"update accounts set note = '{LONG[1]}' where id = 1",
    "update accounts set balance = balance + 5 where id = 1; update accounts set balance = balance - 5 where id = 2",
    "update accounts set balance = balance where id = 2",  # nothing changes, and it is told
    "delete from accounts where id = 3",
    "update accounts set id = 4 where id = 2",  # a change of key
    "alter table accounts replica identity full",  # from here on all of `before` is told
    "update accounts set balance = 7 where id = 1",
    "delete from accounts where id = 4",
    "select pg_logical_emit_message(true, 'audit', 'by hand')",
    "alter table accounts add column email text",
    "insert into accounts values (5, 'Eve', -1, '', 'eve@example.org')",
    "insert into kinds (id) values (2)",
    "update kinds set big = 'NaN', small = '-Infinity', free = 'NaN', at_zone = 'infinity', day = '0044-03-15 BC'"
    " where id = 1",
    "begin; insert into accounts values (6, 'nobody', 0, null, null); rollback",  # is not told
    "truncate accounts",
    "insert into accounts values (1, 'Ann', 1, null, null)",  # the same key again
]
"""What Debezium sees happen; each is a transaction."""

CONNECTORS = ("bare", "wrapped", "flat")
TABLES = ("accounts", "kinds")


def connectors(postgres: Postgres, mark: str) -> dict[str, dict[str, object]]:
    """Connectors for each way in which changes may come, by name. mark: makes their topics new ones."""
    given = {name: reads(postgres, f"{name}_{mark}") for name in CONNECTORS}
    given["bare"] |= schemas(False) | {"decimal.handling.mode": "string", "provide.transaction.metadata": "true"}
    given["bare"] |= {"heartbeat.interval.ms": 1000}
    given["wrapped"] |= schemas(True)
    given["flat"] |= schemas(False) | {
        "decimal.handling.mode": "double",
        "transforms": "flat",
        "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
        "transforms.flat.delete.tombstone.handling.mode": "rewrite-with-tombstone",
        "transforms.flat.add.fields": "op,source.ts_ms",
    }
    return given
