"""Values as plain data: what is written is read as the same, and what nobody has written is refused."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tasks.box.wire import MOST_BYTES, Broken, CannotCross, Decoder, Encoder, Gone, Wire

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ATOMS |= st.decimals(allow_nan=False) | st.fractions() | st.complex_numbers(allow_nan=False) | st.timedeltas()
ATOMS |= st.dates() | st.datetimes() | st.times()
KEYS = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    KEYS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4) | st.sets(KEYS),
    max_leaves=20,
)


def refuse(value: Any) -> Any:
    raise CannotCross(type(value).__name__)


def read_nothing(tag: str, parts: list[Any]) -> Any:
    raise Broken(tag)


def carried(value: Any) -> Any:
    """As the other side has it, by way of JSON."""
    return Decoder(read_nothing).decode(json.loads(json.dumps(Encoder(refuse, numbered=True).encode(value))))


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types throughout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return all(map(same, one.items(), other.items())) and len(one) == len(other)
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@given(VALUES)
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    assert same(carried(value), value)


def test_one_container_stays_one_and_may_hold_itself() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    first, second = carried([inner, inner])
    assert first is second
    assert first[1] is first


TAGS = st.sampled_from([*"ltNdsfbBqDCOicrvx@~%nmhkgIa"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | TAGS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=30,
)  # fmt: skip


@given(JUNK)
def test_anything_else_is_a_value_or_broken(node: Any) -> None:
    try:
        value = Decoder(read_nothing).decode(node)
    except Broken:
        return
    assert type(value).__module__ in ("builtins", "decimal", "fractions", "datetime", "collections")


@pytest.mark.parametrize("node", [["n", "eval"], ["n", "__import__"], ["m", 1], ["l", 5, []], ["@", "datetime", 3], {}])
def test_nothing_is_called_by_name(node: Any) -> None:
    with pytest.raises(Broken):
        Decoder(read_nothing).decode(node)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack("!I", MOST_BYTES + 1),
        struct.pack("!I", 2) + b"[[",
        struct.pack("!I", 200_000) + b"[" * 200_000,
        struct.pack("!I", 1) + b"\xff",
        struct.pack("!I", 9) + b"12",
        b"\0\0",
        b"",
    ],
)
def test_a_frame_that_is_none_is_broken(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(os.dup(ours.fileno()))
    ours.close()
    theirs.settimeout(5.0)
    theirs.sendall(sent)
    theirs.close()
    with pytest.raises(Broken):
        wire.receive()
    wire.close()


def test_frames_come_whole_and_too_large_ones_are_not_sent() -> None:
    ours, theirs = (Wire(end.detach()) for end in socket.socketpair())
    ours.send({"a": [1, "x"]})
    assert theirs.receive() == {"a": [1, "x"]}
    with pytest.raises(CannotCross, match="8 MiB"):
        ours.send("x" * MOST_BYTES)
    theirs.close()
    with pytest.raises(Gone):
        ours.receive()
    ours.close()
