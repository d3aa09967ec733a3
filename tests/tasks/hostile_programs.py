"""Programs that attack the sandbox or its verdict, from `hostile/`, and for each what must happen. None may pass.

In the files, `status` is what the verdict must be where all layers are in force (one of several where the system
decides), `before` what stands before the code, `tests` other tests than the usual. In the code, HOME, TCP, UDP, UNIX,
DATAGRAM, ABSTRACT, VICTIM and SUITE stand for what the test has set up: a folder, two ports, three names of sockets, a
process, the process of the test suite.

What must not happen is the same for all and is looked at by `test_tasks_hostile.py`: nothing written outside, nothing
read from the canaries (a file in a home, a variable, the tests' expected values), no connection to a listener, no
process left, nobody signalled, and the next program of the same pool judged as ever. A program that gets what it wants
says so by printing ESCAPED.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EXPECTED = "seven-e2c9"
"""What a right answer says and no program can know."""
CANARY = "canary-51d0"
"""Is in the file HOME/secret and in the variable SOME_API_TOKEN."""
TESTS = "assert f(1) == 'EXPECTED'\nassert f([2]) == ['EXPECTED']\nassert f(3) == 'EXPECTED'\n"
FOLDER = Path(__file__).with_name("hostile")

# A function that does nothing right, so that only an attack could pass.
DUMB = "def f(x): return None\n"
# A system call by number, which says whether it got through.
CALL = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    got = libc.syscall(*map(ctypes.c_long, args))
    if got >= 0: print('ESCAPED', args, got)
{DUMB}"""
# The connection to the tester, to write to behind the back of what serves it.
WIRE = """
import json, os, struct
def frame(value):
    text = json.dumps(value).encode()
    os.write(3, struct.pack('!I', len(text)) + text)
"""
# A function whose result is of a subclass that is equal to everything.
ALWAYS = """
class E(BASE):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
    def __len__(self): return 1
    def __call__(self, *a, **k): return self
    def __getattr__(self, name): return E(VALUE)
    def __getitem__(self, key): return E(VALUE)
    def __sub__(self, other): return 0.0
    __rsub__ = __add__ = __radd__ = __abs__ = __sub__
def f(x): return E(VALUE)
"""


@dataclass(frozen=True)
class Hostile:
    name: str
    group: str
    status: str
    code: str
    tests: str


def programs() -> list[Hostile]:
    return [_program(path.stem, **entry) for path in sorted(FOLDER.glob("*.yaml")) for entry in _entries(path)]


def _entries(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text())
    return entries


def _program(group: str, *, name: str, status: str, code: str = "", before: str = "", tests: str = TESTS) -> Hostile:
    long = {"MINUSES": "-" * 100_000, "BRACKETS": "(" * 10_000}
    for word, text in long.items():
        code = code.replace(word, text)
    return Hostile(name, group, status, _before(before) + code, tests.replace("EXPECTED", EXPECTED))


def _before(words: str) -> str:
    kind, _, rest = words.partition(" ")
    if kind == "always":
        base, _, value = rest.partition(" ")
        return ALWAYS.replace("BASE", base).replace("VALUE", value)
    return {"": "", "dumb": DUMB, "call": CALL, "wire": WIRE}[kind] + (DUMB if rest == "dumb" else "")
