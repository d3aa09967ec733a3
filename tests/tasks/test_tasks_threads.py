"""Verification in a thread beside generation: every kind works there, together with others, and can be closed."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.recipe.schema import Verifier
from agent.tasks import scorer
from agent.tasks.example import Example
from agent.tasks.verdicts import AnswerVerifier, Closed, Verdict
from agent.tasks.verifiers import build_verifier

SUM = Example("row", "What is 7 * 8?", "56")
CODE = Example("row", "Add.", "", tests="assert add(1, 2) == 3")
RIGHT_CODE = "def add(a, b):\n    return a + b\n"
FUNCTION = """
import time

def score(response, row):
    time.sleep(60 if response == "hang" else 0)
    return response == row["answer"]
"""

KINDS: list[tuple[dict[str, Any], str, Example, str]] = [
    ({"kind": "exact"}, "56", SUM, "57"),
    ({"kind": "last_number"}, "it is 56", SUM, "57"),
    ({"kind": "delimited"}, "<answer>56</answer>", SUM, "57"),
    ({"kind": "regex", "pattern": "((?:5+)+6)"}, "56", SUM, "5" * 60),
    ({"kind": "python_tests"}, RIGHT_CODE, CODE, "while True: pass"),
    ({"kind": "python:check.py:score"}, "56", SUM, "hang"),
]
"""Settings, a right response, its row, a wrong response (one that has to be cut off where there is one).

`math` and `reasoning_gym`, whose packages take seconds to import, do it in test_tasks_scored.py and test_tasks_gym.py.
"""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("settings", "right", "row", "wrong"), KINDS, ids=[kind[0]["kind"] for kind in KINDS])
def test_every_kind_verifies_and_keeps_its_limit_in_a_thread(
    settings: dict[str, Any],
    right: str,
    row: Example,
    wrong: str,
    tmp_path: Path,
    in_thread: Callable[[Callable[[], Any]], Any],
) -> None:
    (tmp_path / "check.py").write_text(FUNCTION)
    config = Verifier.model_validate({**settings, "timeout_seconds": 0.5})
    threads = {thread.name for thread in threading.enumerate()}

    def verified() -> list[Verdict]:
        with build_verifier(config, base=tmp_path, allow_untrusted_code=True) as verifier:
            return verifier.verify_many([(right, row), (wrong, row), (right, row)])

    started = time.monotonic()
    verdicts = in_thread(verified)
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert time.monotonic() - started < 8.0
    assert {thread.name for thread in threading.enumerate()} <= threads


def test_two_threads_share_a_verifier(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(FUNCTION)

    def verified(answer: str) -> list[bool]:
        row = Example("row", "q", answer)
        return [verdict.passed for verdict in verifier.verify_many([(str(n), row) for n in range(40)])]

    with (
        build_verifier(Verifier(kind="python:check.py:score"), base=tmp_path) as verifier,
        ThreadPoolExecutor(4) as pool,
    ):
        found = list(pool.map(verified, map(str, range(8))))
    assert found == [[n == answer for n in range(40)] for answer in range(8)]


@pytest.mark.parametrize("count", [1, 40])
def test_closing_ends_a_batch_in_another_thread_and_its_children(count: int, tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(
        "import os, pathlib, time\n\ndef score(response, row):\n"
        "    pathlib.Path(__file__).with_name(f'{os.getpid()}.pid').touch()\n    time.sleep(60)\n"
    )
    verifier: AnswerVerifier = build_verifier(Verifier(kind="python:check.py:score", timeout_seconds=60), base=tmp_path)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(verifier.verify_many, [("x", SUM)] * count)
        deadline = time.monotonic() + 10.0
        while not list(tmp_path.glob("*.pid")) and time.monotonic() < deadline:
            time.sleep(0.01)
        verifier.close()
        with pytest.raises(Closed):
            future.result(timeout=10.0)
    with pytest.raises(Closed):
        verifier.verify("x", SUM)
    children = [path.stem for path in tmp_path.glob("*.pid")]
    assert children
    assert not [child for child in children if Path("/proc", child).exists()]


def test_closing_reaches_a_child_that_is_just_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "check.py").write_text(FUNCTION)
    verifier = build_verifier(Verifier(kind="python:check.py:score", timeout_seconds=60), base=tmp_path)
    starting, begun = threading.Event(), scorer._started_child
    assert verifier.verify("56", SUM).passed

    def slowly(setup: Any, kept_in: Any) -> subprocess.Popen[bytes]:
        starting.set()
        time.sleep(0.3)
        return begun(setup, kept_in)

    monkeypatch.setattr(scorer, "_started_child", slowly)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(verifier.verify_many, [("hang", SUM)] * 40)
        assert starting.wait(10.0)
        verifier.close()
        with pytest.raises(Closed):
            future.result(timeout=10.0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 40])
def test_closing_ends_code_in_another_thread_and_its_processes(count: int, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    verifier = build_verifier(
        Verifier(kind="python_tests", timeout_seconds=60), base=tmp_path, allow_untrusted_code=True
    )
    hosts = len(set(psutil.Process().children(recursive=True)) - before)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(verifier.verify_many, [(f"import time; time.sleep(60)# {n}", CODE) for n in range(count)])
        deadline = time.monotonic() + 10.0
        # Tester and candidate are two more.
        while len(started := set(psutil.Process().children(recursive=True)) - before) < hosts + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        verifier.close()
        with pytest.raises(Closed):
            future.result(timeout=10.0)
    with pytest.raises(Closed):
        verifier.verify("x = 1", CODE)
    psutil.wait_procs(started, timeout=5.0)
    assert not [process for process in started if process.is_running()]
