"""Seals: what was sealed comes back under its name and key, and under no other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.seal import MAGIC, Seal, SealError

SEAL = Seal(b"a key", "cards 1")


@settings(deadline=None)
@given(value=st.binary(), name=st.text(max_size=50), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_it_comes_back_and_no_bit_can_be_changed(value: bytes, name: str, at: float, bit: int) -> None:
    sealed = SEAL.sign(value, name)
    assert SEAL.open(sealed, name, "it") == value
    changed = bytearray(sealed)
    changed[int(at * len(sealed))] ^= 1 << bit
    for damaged in (bytes(changed), sealed[: int(at * len(sealed))], sealed + b"\0"):
        with pytest.raises(SealError, match=r"^it (is damaged|was sealed with another key)"):
            SEAL.open(damaged, name, "it")


@pytest.mark.parametrize(
    ("other", "name", "text"),
    [
        (SEAL, "step.1", "it is not in its place: it is 'step.0' of 'cards 1'; restore it from a backup"),
        (Seal(b"a key", "cards 2"), "step.0", "it is not in its place: it is 'step.0' of 'cards 1'"),
        (Seal(b"another", "cards 1"), "step.0", "it was sealed with another key: it belongs to another state"),
    ],
)
def test_it_opens_nowhere_else(other: Seal, name: str, text: str) -> None:
    with pytest.raises(SealError, match=text):
        other.open(SEAL.sign(b"value", "step.0"), name, "it")


@pytest.mark.parametrize("sealed", [b"", b"value", MAGIC, MAGIC + SEAL.mark, MAGIC + SEAL.mark + b"\0" * 34])
def test_what_has_no_seal_is_refused(sealed: bytes) -> None:
    with pytest.raises(SealError, match=r"^it is damaged, or .*; the cure$"):
        SEAL.open(sealed, "", "it", "the cure")


def test_a_name_that_ends_behind_the_end_is_refused() -> None:
    sealed = bytearray(SEAL.sign(b"", "step"))
    sealed[len(MAGIC) + len(SEAL.mark) + 32 + 1] = 1
    with pytest.raises(SealError, match="its seal is broken"):
        SEAL.open(bytes(sealed), "step", "it")


def test_where_a_name_ends_is_sealed() -> None:
    assert SEAL.tag(b"bc", "a") != SEAL.tag(b"c", "ab")
    assert Seal(b"a key", "a").tag(b"", "b\nc") != Seal(b"a key", "ab").tag(b"", "c")


class Told(msgspec.Struct):
    n: int


def test_json_is_told_and_heard() -> None:
    told = SEAL.told(Told(3), "x")
    assert b'"value":{"n":3}' in told
    assert SEAL.hear(told, "x", "it") == b'{"n":3}'
    for damaged, name in (
        (told, "y"),
        (told.replace(b"3}", b"4}"), "x"),
        (told[:-1], "x"),
        (b"[]", "x"),
        (b"\xff", "x"),
    ):
        with pytest.raises(SealError, match=r"^it is damaged"):
            SEAL.hear(damaged, name, "it")


def test_a_key_is_never_shown() -> None:
    assert b"a key" not in SEAL.sign(b"", "") + SEAL.mark
    assert "a key" not in repr(SEAL)
