"""Seals: what is saved is opened only when it is what this pipeline saved, and where it saved it.

States and learners are pickles, and a pickle runs what it names when it is read. So each is sealed with a key before it
is written, and opened before it is unpickled. The name of what it is (pipeline, step, version) is sealed with it: a
value that was moved to another place, or that comes from another pipeline, does not open there.

sealed = magic, mark of the key, HMAC-SHA256 of the rest, length of the name, name, value
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import msgspec

MAGIC = b"freshet seal 1\n"
_MARK, _TAG, _LENGTH = 8, 32, 2
_HEAD = len(MAGIC) + _MARK + _TAG + _LENGTH

CURE = "restore it from a backup, or start again without state and outputs"


class SealError(RuntimeError):
    """Something that was saved and cannot be trusted; the text names it, what is wrong with it, and the cure."""


class Seal:
    """Seals and opens with a key. scope: whose seal it is, one line; part of every name."""

    def __init__(self, key: bytes, scope: str) -> None:
        self._key, self.scope = key, scope
        self.mark = hmac.digest(key, MAGIC, "sha256")[:_MARK]
        """Tells keys apart, and nothing else of them."""

    def mac(self, name: str) -> Any:
        """A code of something of this name, to be updated with what it is; its digest is a tag."""
        return self._code(self._full(name))

    def tag(self, value: bytes, name: str) -> bytes:
        """The tag of a value."""
        code = self.mac(name)
        code.update(value)
        return bytes(code.digest())

    def sign(self, value: bytes, name: str) -> bytes:
        """The value, sealed under a name."""
        full = self._full(name)
        code = self._code(full)
        code.update(value)
        return b"".join([MAGIC, self.mark, code.digest(), len(full).to_bytes(_LENGTH, "little"), full, value])

    def open(self, sealed: bytes, name: str, what: str, cure: str = CURE) -> bytes:
        """The value that was sealed under that name. what: names it in an error. Raises `SealError`."""
        return self.read(sealed, lambda found: found == name, what, cure)[1]

    def read(self, sealed: bytes, named: Callable[[str], bool], what: str, cure: str = CURE) -> tuple[str, bytes]:
        """The name and the value of what was sealed. named: whether a name is right. Raises `SealError`."""
        start = len(MAGIC)
        if len(sealed) < _HEAD or sealed[:start] != MAGIC:
            raise SealError(f"{what} is damaged, or something else wrote it: it has no seal; {cure}")
        if sealed[start : start + _MARK] != self.mark:
            raise SealError(f"{what} was sealed with another key: it belongs to another state, or is damaged; {cure}")
        tag = sealed[start + _MARK : _HEAD - _LENGTH]
        end = _HEAD + int.from_bytes(sealed[_HEAD - _LENGTH : _HEAD], "little")
        full = sealed[_HEAD:end]
        code = self._code(full)
        code.update(memoryview(sealed)[end:])
        if end > len(sealed) or not hmac.compare_digest(tag, code.digest()):
            raise SealError(f"{what} is damaged, or was changed: its seal is broken; {cure}")
        scope, _, name = full.decode().partition("\n")
        if scope != self.scope or not named(name):
            raise SealError(f"{what} is not in its place: it is {name!r} of {scope!r}; {cure}")
        return name, sealed[end:]

    def told(self, value: msgspec.Struct, name: str) -> bytes:
        """A value as JSON that says its tag."""
        raw = msgspec.json.encode(value)
        return msgspec.json.encode(_Told(msgspec.Raw(raw), self.tag(raw, name).hex()))

    def hear(self, told: bytes, name: str, what: str, cure: str = CURE) -> bytes:
        """The JSON of a value that was told under that name. Raises `SealError`."""
        try:
            found = msgspec.json.decode(told, type=_Told)
        except msgspec.DecodeError as error:
            raise SealError(f"{what} is damaged ({error}); {cure}") from None
        raw = bytes(found.value)
        if not hmac.compare_digest(self.tag(raw, name).hex().encode(), found.seal.encode()):
            raise SealError(f"{what} is damaged, was changed, or belongs to another state: its seal is broken; {cure}")
        return raw

    def _full(self, name: str) -> bytes:
        return f"{self.scope}\n{name}".encode()

    def _code(self, full: bytes) -> Any:
        code = hmac.new(self._key, len(full).to_bytes(_LENGTH, "little"), "sha256")
        code.update(full)
        return code


class _Told(msgspec.Struct):
    value: msgspec.Raw
    seal: str
