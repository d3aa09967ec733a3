"""The seccomp filter, gone through as the kernel does: which calls it refuses on both architectures, by number."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from itertools import product

import pytest

from agent.tasks.box import confine

ALLOW, EPERM, ENOTTY, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050019, 0x00050026, 0x80000000
ME = 7
Filter = Callable[..., int]


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return str(request.param)


def filter_of(machine: str, *, read_only_root: bool = False) -> Filter:
    """Takes the number of a call and its arguments, and gives the filter's answer (Documentation/networking/filter)."""
    program = confine.seccomp_program(own_pid=ME, read_only_root=read_only_root)
    assert program is not None
    steps = list(struct.iter_unpack("=HBBI", program))

    def answer(number: int, *arguments: int, architecture: int | None = None) -> int:
        given = {0: number, 4: architecture or {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]}
        given |= {16 + 8 * place: value & 0xFFFFFFFF for place, value in enumerate((*arguments, 0, 0, 0, 0, 0, 0)[:6])}
        held, at = 0, 0
        while True:
            code, yes, no, value = steps[at]
            at += 1
            match code:
                case 0x20:
                    held = given[value]
                case 0x54:
                    held &= value
                case 0x15:
                    at += yes if held == value else no
                case 0x35:
                    at += yes if held >= value else no
                case 0x45:
                    at += yes if held & value else no
                case 0x06:
                    return value
                case _:
                    raise AssertionError(code)

    return answer


@pytest.mark.parametrize("read_only_root", [True, False])
def test_the_calls_of_the_tables_are_refused_and_no_others(machine: str, read_only_root: bool) -> None:
    answer = filter_of(machine, read_only_root=read_only_root)
    column = ["x86_64", "aarch64"].index(machine)
    tables = [confine._SOCKETS, confine._PROCESSES, confine._SYSTEM, confine._MEMORY]
    tables += [] if read_only_root else [confine._ATTRIBUTES]
    refused = {numbers[column] for table in tables for numbers in table.values()}
    by_argument = [confine._CLONE, confine._CLONE3, confine._KILL, confine._TGKILL, confine._PRLIMIT64, confine._OPEN]
    by_argument += [confine._SOCKETPAIR, confine._FCNTL, confine._IOCTL, confine._PRCTL, confine._OPENAT]
    others = set(range(470)) - {numbers[column] for numbers in [*by_argument, confine._OPENAT2]}
    assert refused - {None} <= others
    assert {number: answer(number) for number in others} == {n: EPERM if n in refused else ALLOW for n in others}
    assert {answer(number) for number in (470, 9999, 0x40000000 + 41, 0xFFFFFFFF)} == {ENOSYS}
    assert answer(20, architecture=0x40000003) == KILL


def test_what_depends_on_an_argument(machine: str) -> None:
    answer = filter_of(machine)
    column = ["x86_64", "aarch64"].index(machine)

    def says(numbers: tuple[int, int | None], *arguments: int) -> int:
        number = numbers[column]
        return ALLOW if number is None else answer(number, *arguments)

    # The kernel's own look at the lower half of a descriptor, a family and a command; the upper half says nothing.
    high = 1 << 32
    assert {says(confine._SOCKETPAIR, high | 1, kind) for kind in (1, 1 | 0o2000000, 1 | 0o4000)} == {ALLOW}
    refused = [*product((1,), (2, 3, 5, 2 | 0o4000)), *product((0, 2, 16, 40), (1, 2))]
    assert {says(confine._SOCKETPAIR, family, kind) for family, kind in refused} == {EPERM}
    for access, others in product(range(4), (0, 0o100, 0o2000000, 0o10000000)):
        fine = access != 3
        assert says(confine._OPENAT, 5, 0, access | others) == (ALLOW if fine else EPERM)
        assert (says(confine._OPENAT, 5, 0, high | access | others | 0o1000) == ALLOW) == (access in (1, 2))
        assert (says(confine._OPEN, 0, access | others) == ALLOW) == (fine or machine == "aarch64")
    assert {says(confine._IOCTL, 1, command) for command in (0x5401, high | 0x5421, 0x541B)} == {ALLOW}
    assert {says(confine._IOCTL, 1, command) for command in (0x5412, 0x40086602, high | 0x8901)} == {ENOTTY}
    assert {says(confine._FCNTL, 1, command) for command in (8, 10, 15, 1024, 1026)} == {EPERM}
    assert {says(confine._FCNTL, 1, command) for command in (0, 1, 2, 3, 4, 6, 1030, 1031)} == {ALLOW}
    assert {says(confine._PRCTL, option) for option in (1, 4, 22)} == {EPERM}
    assert {says(confine._PRCTL, option) for option in (15, 16, 38)} == {ALLOW}
    assert (says(confine._KILL, ME), says(confine._KILL, high | ME)) == (ALLOW, ALLOW)
    assert {says(confine._KILL, pid) for pid in (0, 1, 8, -1)} == {EPERM}
    assert (says(confine._CLONE, 0x10F00), says(confine._CLONE, 17), says(confine._CLONE3)) == (ALLOW, EPERM, ENOSYS)
