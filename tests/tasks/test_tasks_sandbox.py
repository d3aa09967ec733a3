"""What programs and tests may do in the sandbox, and what an outcome says; `test_tasks_hostile.py` has the attacks."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from agent.errors import ResourceError
from agent.tasks.sandbox import Limits, Outcome, Sandbox
from agent.tasks.verdicts import Closed

TESTS = "assert f(1) == 2"
RIGHT = "def f(x):\n    return x + 1\n"
QUICK = Limits(wall_seconds=0.5)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(slots=1) as started:
        yield started


def test_right_wrong_and_broken_code(sandbox: Sandbox) -> None:
    assert sandbox.run(RIGHT, TESTS) == Outcome("passed")
    assert sandbox.run("def f(x): return x", TESTS).status == "failed"
    undefined = Outcome("error", "NameError in the tests: name 'y' is not defined")
    assert sandbox.run("def f(x): return y", TESTS) == undefined
    assert sandbox.run("def f(x:", TESTS).status == "syntax"
    assert sandbox.run("f = 1/0", TESTS).detail == "ZeroDivisionError in the code: division by zero"
    # An assertion of the code itself is not a failed test.
    assert sandbox.run("assert False", TESTS).status == "error"


def test_calls_run_after_the_tests(sandbox: Sandbox) -> None:
    tests = "def test_a():\n    assert f(1) == 2\ndef test_b():\n    assert f(2) == 0\n"
    assert sandbox.run(RIGHT, tests).status == "passed"
    assert sandbox.run(RIGHT, tests, calls=["test_a()"]).status == "passed"
    assert sandbox.run(RIGHT, tests, calls=["test_a()", "test_b()"]).status == "failed"


def test_trim_leaves_out_what_does_not_compile_at_the_end(sandbox: Sandbox) -> None:
    text = RIGHT + "\nThis adds one.\nEasy!"
    assert sandbox.run(text, TESTS).status == "syntax"
    assert sandbox.run(text, TESTS, trim=True).status == "passed"


def test_limits_are_met_and_named(sandbox: Sandbox) -> None:
    started = time.monotonic()
    assert sandbox.run("while True: pass", TESTS, limits=QUICK) == Outcome("timeout", "0.5 s")
    assert 0.5 <= time.monotonic() - started < 3.0
    hog = "x = bytearray(3 << 30)"
    assert sandbox.run(hog, TESTS, limits=Limits(memory_bytes=512 << 20)).detail == "MemoryError in the code"
    if sandbox.layers().temporary:
        large = "open('a', 'wb').write(b'x' * (2 << 20))"
        outcome = sandbox.run(large, TESTS, limits=Limits(file_bytes=1 << 20))
        assert outcome.detail == "OSError in the code: [Errno 27] File too large"
    outcome = sandbox.run("while True: print('x' * 9999)", TESTS, limits=Limits(wall_seconds=0.5, output_bytes=1000))
    assert (outcome.status, outcome.output) == ("timeout", "x" * 1000)


def test_processor_time_is_a_limit_of_its_own(sandbox: Sandbox) -> None:
    class OneSecond(Limits):
        def rlimits(self) -> dict[str, int]:
            return super().rlimits() | {"CPU": 1}

    assert sandbox.run("while True: pass", TESTS, limits=OneSecond()) == Outcome("timeout", "processor time")


def test_a_signal_is_named(sandbox: Sandbox) -> None:
    assert sandbox.run("import ctypes\nctypes.string_at(0)", TESTS) == Outcome("ended", "SIGSEGV")
    assert sandbox.run("import os\nos._exit(7)", TESTS).detail == "exit code 7 before the last test"


def test_output_is_the_codes(sandbox: Sandbox) -> None:
    assert sandbox.run("print('hello', end='')\n" + RIGHT, "print('no')\n" + TESTS).output == "hello"
    assert sandbox.run("raise ValueError('\\x1b[31mred\\n')", TESTS).detail == "ValueError in the code: ?[31mred?"


def test_each_program_finds_an_empty_folder_and_no_environment(sandbox: Sandbox) -> None:
    if not sandbox.layers().temporary:
        pytest.skip("no file can be written here")
    code = "import os, tempfile\nprint(os.listdir('.'), tempfile.mkdtemp()[:5])\nopen('a', 'w').write('x')\n"
    for _ in range(2):
        outcome = sandbox.run(f"{code}print([n for n in os.environ if 'THREADS' not in n])\n{RIGHT}", TESTS)
        assert (outcome.status, outcome.output) == ("passed", "[] /tmp/\n[]\n")


def test_threads_are_allowed_and_are_not_waited_for(sandbox: Sandbox) -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()\nfound = []\n"
    code += "t = threading.Thread(target=found.append, args=(1,))\nt.start()\nt.join()\ndef f(x): return x + found[0]\n"
    started = time.monotonic()
    assert sandbox.run(code, TESTS).status == "passed"
    assert time.monotonic() - started < 3.0


def test_an_event_loop_and_a_data_class_work(sandbox: Sandbox) -> None:
    code = (
        "from __future__ import annotations\nimport asyncio, dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "async def g(x): return pickle.loads(pickle.dumps(P(x))).x + 1\ndef f(x): return asyncio.run(g(x))\n"
    )
    assert sandbox.run(code, TESTS) == Outcome("passed")


def test_a_closed_sandbox_runs_nothing() -> None:
    started = Sandbox(slots=1)
    assert started.run(RIGHT, TESTS).status == "passed"
    started.close()
    with pytest.raises(Closed):
        started.run(RIGHT, TESTS)


def test_a_host_that_was_killed_costs_no_program_its_verdict() -> None:
    with Sandbox(slots=1) as started:
        assert started.run(RIGHT, TESTS).status == "passed"
        for host in psutil.Process().children():
            if host.status() == psutil.STATUS_ZOMBIE:  # of another test
                continue
            if any("start.py" in word for word in host.cmdline()):
                host.kill()
                psutil.wait_procs([host], timeout=5.0)
        assert started.run(RIGHT, TESTS).status == "passed"


def test_too_few_descriptors_are_said_to_be_too_few(sandbox: Sandbox) -> None:
    assert sandbox.run(RIGHT, TESTS).status == "passed"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    held = [os.dup(0) for _ in range(highest)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 3, limits[1]))
        with pytest.raises(ResourceError, match="ulimit -n"):
            sandbox.run(RIGHT, TESTS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in held:
            os.close(number)
    assert sandbox.run(RIGHT, TESTS).status == "passed"


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_too_large_to_be_sent_is_wrong(sandbox: Sandbox, place: int) -> None:
    texts = [RIGHT, TESTS]
    texts[place] += "\n#" + "x" * (9 << 20)
    assert sandbox.run(*texts).status == "ended"
    assert sandbox.run(RIGHT, TESTS).status == "passed"


WORKER = """
import sys, threading, time
import psutil
from agent.tasks.sandbox import Limits, Sandbox

sandbox = Sandbox(slots=1)
sandbox.layers()
idle = len(psutil.Process().children(recursive=True))
program = ("import time\\nwhile True: time.sleep(1)", "assert f", )
threading.Thread(target=sandbox.run, args=program, kwargs={"limits": Limits(wall_seconds=60.0)}, daemon=True).start()
while len(children := psutil.Process().children(recursive=True)) < idle + 2:
    time.sleep(0.01)
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", *(pytest.param(way, marks=pytest.mark.slow) for way in ("none", "bwrap"))])
def test_nothing_outlives_a_worker_that_is_killed(sandbox: Sandbox, way: str) -> None:
    if way == "bwrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if way == "direct" and sandbox.layers().way != way:
        pytest.skip(f"this system has no such way: {sandbox.layers()}")
    script = WORKER.replace("slots=1", f"slots=1, ways=[{way!r}]")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        children = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        worker.kill()
    assert len(children) >= 4
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert not alive


# What crosses between tests and code ---------------------------------------------------------------------------

PAIR = """
class Pair:
    count = 0
    def __init__(self, a, b=2):
        self.a, self.b = a, b
        Pair.count += 1
    def total(self): return self.a + self.b
    def __len__(self): return 2
    def __getitem__(self, i): return (self.a, self.b)[i]
    def __eq__(self, other): return True
    def __repr__(self): return f'Pair({self.a}, {self.b})'
class Oops(ValueError): pass
def longest(pairs): return max(pairs, key=Pair.total)
def refuse(x): raise Oops(x, 'no')
"""
CROSSINGS = yaml.safe_load(Path(__file__).with_name("crossings.yaml").read_text())


@pytest.mark.parametrize("case", CROSSINGS, ids=lambda case: case["name"])
def test_what_crosses_arrives_as_it_was(sandbox: Sandbox, case: dict[str, str]) -> None:
    assert sandbox.run(case["code"].replace("PAIR", PAIR), case["tests"]) == Outcome("passed")


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
def test_arrays_of_numbers_cross(sandbox: Sandbox) -> None:
    code = (
        "import numpy as np\ndef f(x): return np.cumsum(x) if len(x) else [np.int64(3), np.float32(0.5), np.bool_(1)]\n"
    )
    tests = (
        "import numpy as np\ngot = f(np.array([[1, 2], [3, 4]]))\nassert np.array_equal(got, [1, 3, 6, 10])\n"
        "assert got.dtype == np.int64 and f([]) == [3, 0.5, True] and type(f([])[0]) is int\n"
    )
    assert sandbox.run(code, tests, limits=Limits(wall_seconds=20.0)) == Outcome("passed")
    liar = "import numpy as np\nclass A(np.ndarray):\n    def __eq__(self, other): return np.array([True])\n"
    liar += "def f(x): return np.array([7]).view(A)\n"
    assert sandbox.run(liar, "assert (f(1) == 3).all()", limits=Limits(wall_seconds=20.0)).status != "passed"


def test_a_built_in_is_the_tests_own_unless_it_is_the_entry_point(sandbox: Sandbox) -> None:
    code, tests = "def len(x): return 7\ndef f(x): return x", "assert len(f('ab')) == 7"
    assert sandbox.run(code, tests).status == "failed"
    assert sandbox.run(code, tests, entry_point="len").status == "passed"


@pytest.mark.parametrize(
    ("code", "tests", "words"),
    [
        ("def f(x): return x", "class T: pass\nassert f(T()) == 1", "a T cannot be passed to the code"),
        ("def f(x): return 'y' * (1 << 25)", "assert f(1) == 1", "the result is too large: more than 8 MiB"),
        ("class P: pass\ndef f(x): return P()", "import copy\nassert copy.copy(f(1))", "cannot be copied"),
        ("class P: pass\ndef f(x): return P()", "assert f(1) < 3", "'<' not supported between instances of 'Remote'"),
    ],
)
def test_what_cannot_cross_says_so(sandbox: Sandbox, code: str, tests: str, words: str) -> None:
    outcome = sandbox.run(code, tests)
    assert outcome.status == "error"
    assert words in outcome.detail


def test_an_object_is_equal_to_itself_alone(sandbox: Sandbox) -> None:
    tests = "p, q = Pair(1), Pair(1)\nassert p == p and p in [p]\nassert p == q\n"
    assert sandbox.run(PAIR, tests).detail == "AssertionError in the tests"
