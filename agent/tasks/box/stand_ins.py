"""What the tester has in the place of the candidate's functions, classes and objects: each use of one is a request.

An object is equal to itself and to nothing else, has no order, contains what it iterates over, and has no arithmetic
but with its like: what the candidate's own methods say of a value of the tests' would be its own verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any


class Remote:
    """Stands for an object of the candidate's."""

    __slots__ = ("_raft_number", "_raft_session")

    def __init__(self, session: Any, number: int):
        object.__setattr__(self, "_raft_session", session)
        object.__setattr__(self, "_raft_number", number)

    def _raft(self, operation: str, *operands: Any) -> Any:
        return self._raft_session.operate(operation, self._raft_number, *operands)

    def __getattr__(self, name: str) -> Any:
        # What numpy would take for a place in this process's memory, or for numbers that compare as they like.
        if name.startswith("__array"):
            raise AttributeError(name)
        found = self._raft("get", name)
        if name in ("send", "throw") and isinstance(found, RemoteFunction):
            return lambda *values: self._raft_session.call(found._raft_number, values, {}, may_end=True)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._raft("set", name, value)

    def __delattr__(self, name: str) -> None:
        self._raft("remove", name)

    def __getitem__(self, key: Any) -> Any:
        return self._raft("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._raft("put", key, value)

    def __delitem__(self, key: Any) -> None:
        self._raft("delete", key)

    def __len__(self) -> int:
        return int(self._raft("length"))

    def __bool__(self) -> bool:
        return self._raft("truth") is True

    def __int__(self) -> int:
        return int(self._raft("whole"))

    def __float__(self) -> float:
        return float(self._raft("real"))

    def __iter__(self) -> Iterator[Any]:
        return self._iterator("iterate")

    def __reversed__(self) -> Iterator[Any]:
        return self._iterator("reversed")

    def _iterator(self, operation: str) -> Iterator[Any]:
        found = self._raft(operation)
        return found if isinstance(found, Remote) else iter(found)

    def __next__(self) -> Any:
        return self._raft("next")

    def __str__(self) -> str:
        return str(self._raft("text"))

    def __repr__(self) -> str:
        return str(self._raft("shown"))

    def __format__(self, spec: str) -> str:
        return str(self._raft("format", spec))

    def __enter__(self) -> Any:
        return self._raft("enter")

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        """Told the class of what was raised, where it is a built-in one. It swallows nothing: neither an assertion."""
        self._raft("exit", self._raft_session.nearest_built_in(kind))

    def _made(self, found: Any) -> Any:
        if not isinstance(found, Remote):
            raise TypeError("arithmetic with objects of the code under test has to make another one")
        return found

    def __reduce__(self) -> Any:
        raise TypeError("an object of the code under test cannot be copied")


_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
_UNARY = ("neg", "pos", "invert")


def _binary(name: str) -> Callable[[Remote, Any], Any]:
    def apply(self: Remote, other: Any) -> Any:
        return self._made(self._raft(name, other)) if isinstance(other, Remote) else NotImplemented

    return apply


def _unary(name: str) -> Callable[[Remote], Any]:
    def apply(self: Remote) -> Any:
        return self._made(self._raft(name))

    return apply


for _name in _ARITHMETIC:
    setattr(Remote, f"__{_name}__", _binary(_name))
for _name in _UNARY:
    setattr(Remote, f"__{_name}__", _unary(_name))


class RemoteFunction(Remote):
    __slots__ = ()

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._raft_session.call(self._raft_number, positional, named)


class RemoteClass(RemoteFunction):
    __slots__ = ()

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._raft("instance", value) is True


def coroutine(session: Any, number: int) -> Coroutine[Any, Any, Any]:
    """In the place of the candidate's, which runs there from its start to its end where this one is awaited."""

    async def awaited() -> Any:
        return session.operate("await", number)

    return awaited()
