"""Values as plain data between tester and candidate, and the frames they travel in.

A frame is a length of four bytes and that many bytes of JSON. A value is itself where JSON has it (None, bool, int,
float, str), else a list that begins with a tag:

    ["l", n, items]      list; n numbers the list, dict, set, bytearray and deque of a call's arguments, 0 otherwise
    ["t", items]         tuple                      ["d", n, pairs]      dict
    ["N", name, fields, items]   tuple with names
    ["s", n, items]      set                        ["f", items]         frozenset
    ["b", text]          bytes, as latin-1          ["B", n, text]       bytearray
    ["q", n, items, m]   deque with maxlen m        ["D", n, pairs, t]   defaultdict of a built-in type
    ["C", n, pairs]      Counter                    ["O", n, pairs]      OrderedDict
    ["i", text]          large int, hexadecimal     ["c", real, imag]    complex
    ["r", a, b, c]       range                      ["v", which, pairs]  keys, values or items of a dict
    ["x", text]          Decimal                    ["%", a, b]          Fraction
    ["@", kind, text]    datetime, date, time       ["~", d, s, us]      timedelta
    ["a", dtype, shape, text]  an array of numbers of numpy's, its bytes as latin-1
    ["n", name]          a built-in type            ["m", n]             the argument with that number
    ["h", id, ...]       the candidate's object     ["k", id]            a function of the tester's, to be called back
    ["g", module, name]  a function of the standard library (only towards the candidate)
    ["I", items]         an iterator (only towards the candidate)

What arrives is exactly of a built-in type: a subclass of int crosses as the int that it holds, and its `__eq__` stays
behind. There is no pickle, and decoding calls nothing that the other side has said, except where the last four tags
name something that the decoder's owner resolves. Size and depth are limited; whatever is wrong with a frame is Broken.
"""

from __future__ import annotations

import builtins
import datetime
import functools
import json
import re
import socket
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 8 << 20
"""Of one frame."""
MOST_DEPTH = 100
_MOST_FIELDS = 100
_PLAIN_BITS = 10_000
"""Larger integers than this are written as hexadecimal, which takes linear time."""
_HEADER = struct.Struct("!I")
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_TIMES: dict[type, str] = {datetime.datetime: "datetime", datetime.date: "date", datetime.time: "time"}
SAFE_TYPES = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object, type),
        *(value for value in vars(builtins).values() if isinstance(value, type) and issubclass(value, BaseException)),
    )
} | {"NoneType": type(None)}


# What a reader raises for parts that do not fit.
_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, ImportError)


class Broken(Exception):
    """What came over the wire is not what was agreed on, is too large, or ends."""


class Gone(Broken):
    """The other side has closed its end."""


class CannotCross(Exception):
    """A value that has no form as plain data; its type is the message."""


class Wire:
    """One end of a connection."""

    def __init__(self, descriptor: int):
        self._socket = socket.socket(fileno=descriptor)

    def send(self, message: Any) -> None:
        """Raises CannotCross for what is too large, Gone where nobody reads it any more."""
        text = json.dumps(message, separators=(",", ":")).encode()
        if len(text) > MOST_BYTES:
            raise CannotCross(f"more than {MOST_BYTES >> 20} MiB")
        try:
            self._socket.sendall(_HEADER.pack(len(text)) + text)
        except OSError:
            raise Gone("closed") from None

    def receive(self) -> Any:
        (length,) = _HEADER.unpack(self._exactly(_HEADER.size))
        if length > MOST_BYTES:
            raise Broken("a frame that is too large")
        try:
            return json.loads(self._exactly(length))
        except (ValueError, RecursionError):
            raise Broken("a frame that is no JSON") from None

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            try:
                part = self._socket.recv(min(count - len(received), 1 << 16))
            except OSError:
                part = b""
            if not part:
                raise Gone("closed")
            received += part
        return bytes(received)


class Encoder:
    """Writes values. With `numbered`, mutable containers are numbered in the order they are met.

    `other` writes what has no form here, by a tag that the other side's decoder knows; it may raise CannotCross.
    """

    def __init__(self, other: Callable[[Any], Any], *, numbered: bool = False, known: Iterable[Any] = ()):
        self._other = other
        self._numbered = numbered
        self.containers: list[Any] = []
        self._number = {id(value): number for number, value in enumerate(known, start=1)}

    def encode(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if kind is int:
            return value if value.bit_length() < _PLAIN_BITS else ["i", hex(value)]
        if depth > MOST_DEPTH:
            raise CannotCross("nested too deeply")
        if (number := self._number.get(id(value))) is not None:
            return ["m", number]
        if (write := _writer_of(kind)) is not None:
            return write(self, value, depth + 1)
        if kind in _VIEWS:
            return self._view(value, depth)
        if (numpy := sys.modules.get("numpy")) is not None:
            if isinstance(value, numpy.generic):
                return self.encode(value.item(), depth + 1)
            if kind is numpy.ndarray and value.dtype.kind in "biufc":
                return ["a", value.dtype.str, list(value.shape), value.tobytes().decode("latin-1")]
        return self._other(value)

    def content(self, value: Any) -> Any:
        """What a numbered container holds now; containers known by number are named by it."""
        write = _writer_of(type(value))
        assert write is not None
        return write(self, value, 1)

    def items(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.encode(value, depth) for value in values]

    def pairs(self, values: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
        return [[self.encode(key, depth), self.encode(value, depth)] for key, value in values]

    def number(self, value: Any) -> int:
        if not self._numbered:
            return 0
        self.containers.append(value)
        self._number[id(value)] = len(self.containers)
        return len(self.containers)

    def _view(self, value: Any, depth: int) -> Any:
        which = _VIEWS[type(value)]
        listed = list(value)
        if which == "items":
            return ["v", which, self.pairs(listed, depth + 1)]
        pairs = enumerate(listed) if which == "values" else ((key, None) for key in listed)
        return ["v", which, self.pairs(pairs, depth + 1)]


Writer = Callable[[Encoder, Any, int], Any]


def _factory(value: defaultdict[Any, Any]) -> str | None:
    factory: Any = value.default_factory
    name = getattr(factory, "__name__", None)
    return name if name in SAFE_TYPES and SAFE_TYPES[name] is factory else None


def _tag_of_tuple(value: tuple[Any, ...]) -> list[Any]:
    fields = getattr(type(value), "_fields", None)
    names = [type(value).__name__, *fields] if type(fields) is tuple and len(fields) == tuple.__len__(value) else []
    # What `namedtuple` would not take.
    if len(names) < 2 or not all(type(name) is str and name.isidentifier() and name[0] != "_" for name in names[1:]):
        return ["t"]
    return ["N", names[0] if names[0].isidentifier() else "T", names[1:]]


# The unbound methods, because a subclass may lie about what it holds.
_WRITERS: dict[type, Writer] = {
    bool: lambda _, v, depth: bool(v),
    int: lambda e, v, depth: e.encode(int.__int__(v), depth),
    float: lambda _, v, depth: float.__float__(v),
    str: lambda _, v, depth: str.__str__(v),
    list: lambda e, v, depth: ["l", e.number(v), e.items(list.__iter__(v), depth)],
    tuple: lambda e, v, depth: [*_tag_of_tuple(v), e.items(tuple.__iter__(v), depth)],
    dict: lambda e, v, depth: ["d", e.number(v), e.pairs(dict.items(v), depth)],
    set: lambda e, v, depth: ["s", e.number(v), e.items(set.__iter__(v), depth)],
    frozenset: lambda e, v, depth: ["f", e.items(frozenset.__iter__(v), depth)],
    bytes: lambda _, v, depth: ["b", bytes.decode(v, "latin-1")],
    bytearray: lambda e, v, depth: ["B", e.number(v), bytearray.decode(v, "latin-1")],
    deque: lambda e, v, depth: ["q", e.number(v), e.items(deque.__iter__(v), depth), v.maxlen],
    Counter: lambda e, v, depth: ["C", e.number(v), e.pairs(dict.items(v), depth)],
    OrderedDict: lambda e, v, depth: ["O", e.number(v), e.pairs(OrderedDict.items(v), depth)],
    defaultdict: lambda e, v, depth: ["D", e.number(v), e.pairs(dict.items(v), depth), _factory(v)],
    complex: lambda _, v, depth: ["c", v.real, v.imag],
    range: lambda e, v, depth: ["r", e.encode(v.start), e.encode(v.stop), e.encode(v.step)],
    Decimal: lambda _, v, depth: ["x", Decimal.__str__(v)],
    Fraction: lambda e, v, depth: ["%", e.encode(v.numerator), e.encode(v.denominator)],
    datetime.datetime: lambda _, v, depth: ["@", "datetime", datetime.datetime.isoformat(v)],
    datetime.date: lambda _, v, depth: ["@", "date", datetime.date.isoformat(v)],
    datetime.time: lambda _, v, depth: ["@", "time", datetime.time.isoformat(v)],
    datetime.timedelta: lambda _, v, depth: ["~", v.days, v.seconds, v.microseconds],
}


def _writer_of(kind: type) -> Writer | None:
    """How a type is written: as itself, else as the built-in type that it derives from."""
    return _WRITERS.get(kind) or next((_WRITERS[base] for base in type.mro(kind) if base in _WRITERS), None)


class Decoder:
    """Reads values; raises Broken for anything that no honest Encoder has written.

    `other` reads the tags h, k, g and I. `known` are the containers that the tag m speaks of; without, they are those
    that came with a number, in `containers`.
    """

    def __init__(self, other: Callable[[str, list[Any]], Any], *, known: list[Any] | None = None):
        self._other = other
        self.containers: list[Any] = []
        self._known = known if known is not None else self.containers

    def decode(self, node: Any, depth: int = 0) -> Any:
        kind = type(node)
        if node is None or kind is bool or kind is int or kind is float or kind is str:
            return node
        if kind is not list or not node or depth > MOST_DEPTH or type(node[0]) is not str:
            raise Broken("a value of no known form")
        try:
            return self._tagged(node[0], node[1:], depth + 1)
        except _WRONG as error:
            raise Broken(f"a value of tag {node[0][:4]!r} that is none") from error

    def _tagged(self, tag: str, parts: list[Any], depth: int) -> Any:
        if tag in _EMPTY:
            number, content, *more = parts
            container = _EMPTY[tag](*more)
            if number:
                self.containers.append(container)
                if number != len(self.containers):
                    raise ValueError(number)
            self.fill(container, tag, content, depth)
            return container
        read = _READERS.get(tag)
        if read is not None:
            return read(self, depth, *parts)
        if tag == "m":
            (number,) = parts
            if type(number) is not int or number < 1:
                raise ValueError(number)
            return self._known[number - 1]
        return self._other(tag, parts)

    def fill(self, container: Any, tag: str, content: Any, depth: int = 0) -> None:
        """Put what was written as `content` into an empty container."""
        if tag == "B":
            container.extend(_text(content).encode("latin-1"))
        elif tag in ("l", "q"):
            container.extend(self.items(content, depth))
        elif tag == "s":
            container.update(self.items(content, depth))
        else:
            for key, value in self.pairs(content, depth):
                container[key] = value

    def items(self, nodes: Any, depth: int) -> list[Any]:
        if type(nodes) is not list:
            raise TypeError
        return [self.decode(node, depth) for node in nodes]

    def pairs(self, nodes: Any, depth: int) -> list[tuple[Any, Any]]:
        if type(nodes) is not list:
            raise TypeError
        return [(self.decode(key, depth), self.decode(value, depth)) for key, value in nodes]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _limited(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _view_of(decoder: Decoder, depth: int, which: str, pairs: Any) -> Any:
    whole = dict(decoder.pairs(pairs, depth))
    return {"keys": whole.keys, "values": whole.values, "items": whole.items}[which]()


def _named_of(decoder: Decoder, depth: int, name: str, fields: list[str], items: Any) -> Any:
    if len(fields) > _MOST_FIELDS:
        raise ValueError(len(fields))
    return _named(_text(name), tuple(map(_text, fields)))._make(decoder.items(items, depth))


@functools.lru_cache(256)
def _named(name: str, fields: tuple[str, ...]) -> Any:
    """Its fields are checked to be names that do not begin with an underscore, so that they hide nothing."""
    return namedtuple(name, fields)


def _time_of(which: str, text: str) -> Any:
    kind: Any = {name: kind for kind, name in _TIMES.items()}[which]
    return kind.fromisoformat(_text(text))


def _array_of(decoder: Decoder, depth: int, dtype: str, shape: list[int], text: str) -> Any:
    import numpy

    if not re.fullmatch(r"[<>|]?[biufc][0-9]{1,2}", _text(dtype)):
        raise ValueError(dtype)
    # A copy, because what lies in bytes cannot be written to.
    return numpy.frombuffer(_text(text).encode("latin-1"), dtype).reshape([_whole(n) for n in shape]).copy()


_EMPTY: dict[str, Callable[..., Any]] = {
    "l": list,
    "d": dict,
    "s": set,
    "B": bytearray,
    "q": lambda most: deque(maxlen=_limited(most)),
    "D": lambda name: defaultdict(None if name is None else SAFE_TYPES[name]),
    "C": Counter,
    "O": OrderedDict,
}
_READERS: dict[str, Callable[..., Any]] = {
    "t": lambda d, depth, items: tuple(d.items(items, depth)),
    "N": _named_of,
    "f": lambda d, depth, items: frozenset(d.items(items, depth)),
    "b": lambda d, depth, text: _text(text).encode("latin-1"),
    "i": lambda d, depth, text: int(_text(text), 16),
    "c": lambda d, depth, real, imaginary: complex(float(real), float(imaginary)),
    "r": lambda d, depth, *ends: range(*(_whole(d.decode(end)) for end in ends)),
    "v": _view_of,
    "x": lambda d, depth, text: Decimal(_text(text)),
    "%": lambda d, depth, a, b: Fraction(_whole(d.decode(a)), _whole(d.decode(b))),
    "@": lambda d, depth, which, text: _time_of(which, text),
    "~": lambda d, depth, *parts: datetime.timedelta(*map(_whole, parts)),
    "n": lambda d, depth, name: SAFE_TYPES[name],
    "a": _array_of,
}


def replace_content(container: Any, value: Any) -> None:
    """Make a container hold what another one of the same type holds, and stay itself."""
    container.clear()
    if isinstance(container, list | deque | bytearray):
        container.extend(value)
    else:
        container.update(value)
