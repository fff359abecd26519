"""Records in Avro, whose schemas are in a registry, as the JSON that the engine reads.

The wire format is Confluent's, which Apicurio and others speak too: a zero byte, the number of the schema in four
bytes, and the value. A schema is asked for once. Bytes become base64, a decimal a number.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from time import sleep
from typing import Any

import orjson
from fastavro import parse_schema, schemaless_reader

_TRIES = 5
"""How often a registry is asked that does not answer; between, one second more each time."""


class RegistryError(RuntimeError):
    """A registry that cannot be asked; the text names it, what happened and the cure."""


class Avro:
    """Decodes records whose schemas are in the registry at this address.

    The address may hold a name and a password, which are never printed.
    """

    def __init__(self, registry: str, wait: Callable[[float], None] = sleep) -> None:
        scheme, _, rest = registry.rstrip("/").rpartition("://")
        who, at, place = rest.rpartition("@")
        self.registry = f"{scheme}://{place}"
        self._headers = {"Accept": "application/json"}
        if at:
            self._headers["Authorization"] = "Basic " + base64.b64encode(who.encode()).decode()
        self._wait = wait
        self._schemas: dict[int, Any] = {}

    def json(self, record: bytes) -> bytes:
        """A record as JSON. Raises `ValueError` with the reason when it is none, and `RegistryError`."""
        if len(record) < 5 or record[0] != 0:
            raise ValueError("not Avro with the number of a schema: it does not begin with a zero byte")
        schema = self._schema(int.from_bytes(record[1:5], "big"))
        body = io.BytesIO(record[5:])
        try:
            value = schemaless_reader(body, schema)
        except Exception as error:  # fastavro raises what its input makes fail
            raise ValueError(f"not Avro of its schema: {type(error).__name__}") from None
        if left := len(record) - 5 - body.tell():
            raise ValueError(f"not Avro of its schema: {left} bytes are left over")
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NAIVE_UTC)

    def _schema(self, number: int) -> Any:
        if number not in self._schemas:
            found = self._get(f"schemas/ids/{number}")
            if found is None:
                raise ValueError(f"its schema {number} is not in the registry {self.registry}")
            self._schemas[number] = self._parsed(found, {})
        return self._schemas[number]

    def _parsed(self, found: dict[str, Any], named: dict[str, Any]) -> Any:
        for reference in found.get("references") or []:
            other = self._get(f"subjects/{reference['subject']}/versions/{reference['version']}")
            if other is None:
                raise ValueError(f"a schema that it refers to is not in the registry {self.registry}")
            self._parsed(other, named)
        return parse_schema(json.loads(found["schema"]), named_schemas=named)

    def _get(self, path: str) -> dict[str, Any] | None:
        """What the registry has at this path; None for nothing."""
        request = urllib.request.Request(f"{self.registry}/{path}", headers=self._headers)
        told = ""
        for i in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                told = f"{error.code} {error.reason}"
                if error.code < 500:
                    break
            except (OSError, ValueError) as error:
                told = str(error)
            if i < _TRIES - 1:
                self._wait(i + 1)
        raise RegistryError(
            f"the schema registry {self.registry} does not answer ({told}); is the address right, is it running, and "
            "may it be read? Nothing is lost: run again once it answers"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
