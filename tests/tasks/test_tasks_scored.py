"""`python:FILE.py:FUNCTION`, `math` and `regex`: scoring in child processes, and what happens when it goes wrong."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from agent.errors import DataError, Unavailable, UsageError
from agent.recipe.schema import Verifier
from agent.tasks import scorer
from agent.tasks.example import Example
from agent.tasks.faults import TOLERATED
from agent.tasks.layers import Layers
from agent.tasks.verifiers import AnswerVerifier, Verdict, build_verifier, refuse_hopeless_data

ROW = Example("line:7", "What is 7 * 8?", "56", row={"level": "easy", "answer": "so #### 56"})

SCORES = """
import os, sys, time
import neighbour

def score(response, row):
    print("a word for the log")
    if response.startswith("return "):
        return eval(response.removeprefix("return "))
    if response == "hang":
        time.sleep(60)
    if response == "loop in C":
        return 9 ** 9 ** 9 ** 9
    if response == "raise":
        raise KeyError("no such thing")
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(4)
    if response == "read":
        return float(sys.stdin.read() == "")
    if response == "pid":
        return 1 / os.getpid()
    return neighbour.right(response, row)
"""
NEIGHBOUR = """
def right(response, row):
    assert row["question"] == "What is 7 * 8?" and row["level"] == "easy"
    return response.strip() == row["answer"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scores.py").write_text(SCORES)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    return tmp_path


@pytest.fixture
def checker(folder: Path) -> Iterator[AnswerVerifier]:
    config = Verifier(kind="python:scores.py:score", timeout_seconds=0.7)
    with build_verifier(config, base=folder) as verifier:
        yield verifier


def test_the_users_function_gets_the_row_and_may_import_its_neighbours(checker: AnswerVerifier) -> None:
    assert checker.verify(" 56 ", ROW) == Verdict(1.0, True, True, False, None)
    assert checker.verify("57", ROW) == Verdict(0.0, False, None, False, None)


@pytest.mark.parametrize(
    ("returned", "score", "passed"),
    [("True", 1.0, True), ("1", 1.0, True), ("0.25", 0.25, False), ("1 - 1e-12", 1.0, True), ("False", 0.0, False)],
)
def test_scores(checker: AnswerVerifier, returned: str, score: float, passed: bool) -> None:
    verdict = checker.verify(f"return {returned}", ROW)
    assert (verdict.score, verdict.passed, verdict.formatted) == (score, passed, True if score > 0 else None)


@pytest.mark.parametrize("returned", ["float('inf')", "1.5", "-0.1", "'1'", "[1]", "{}"])
def test_anything_else_than_a_score_is_an_error(checker: AnswerVerifier, returned: str) -> None:
    with pytest.raises(DataError, match="a bool or a number from 0 to 1") as caught:
        checker.verify(f"return {returned}", ROW)
    assert "scores.py:score" in str(caught.value)
    assert "line:7" in str(caught.value)


RAISES_AT = SCORES.splitlines().index('        raise KeyError("no such thing")') + 1


@pytest.mark.parametrize(
    ("response", "note"),
    [
        ("raise", rf"KeyError: 'no such thing' \(.*scores\.py:{RAISES_AT}\)"),
        ("exit", r"SystemExit: 3 \(.*scores\.py:\d+\)"),
        ("die", "its process ended by exit code 4"),
        ("return float('nan')", "it returned NaN"),
        ("return None", "it returned None"),
    ],
)
def test_a_fault_scores_zero_with_its_reason_and_the_next_call_works(
    checker: AnswerVerifier, response: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    verdict = checker.verify(response, ROW)
    assert (verdict.score, verdict.passed, verdict.formatted, verdict.fault) == (0.0, False, None, True)
    assert re.fullmatch(note, verdict.note or "")
    assert checker.verify("56", ROW).passed
    checker.verify(response, ROW)
    # The log has the first one, and not a line for each.
    assert [re.search(note, record.getMessage()) is not None for record in caplog.records] == [True]
    assert "scores.py:score" in caplog.text
    assert "line:7" in caplog.text


def test_many_faults_are_an_error_that_names_function_row_and_reason(checker: AnswerVerifier) -> None:
    checker.verify_many([("raise", ROW)] * TOLERATED)
    with pytest.raises(DataError) as caught:
        checker.verify("raise", ROW)
    for words in (
        "scores.py:score",
        "'raise' to line:7",
        "KeyError: 'no such thing'",
        f"scores.py:{RAISES_AT}",
        "9 of 9",
    ):
        assert words in str(caught.value)


def test_few_faults_among_many_responses_are_borne(checker: AnswerVerifier) -> None:
    # One in 25 is below the tolerated share of one in 20; one in 10 is not.
    rare, frequent = ["raise", *["56"] * 24], ["raise", *["56"] * 9]
    verdicts = checker.verify_many([(response, ROW) for response in rare * 20])
    assert sum(verdict.fault for verdict in verdicts) == 20
    assert sum(verdict.passed for verdict in verdicts) == 20 * 24
    with pytest.raises(DataError, match="failed on"):
        checker.verify_many([(response, ROW) for response in frequent * 40])


@pytest.mark.slow
def test_a_batch_that_only_hangs_is_ended_early(folder: Path) -> None:
    config = Verifier(kind="python:scores.py:score", timeout_seconds=0.2)
    started = time.monotonic()
    with build_verifier(config, base=folder) as verifier, pytest.raises(DataError, match=r"time limit of 0\.2 s"):
        verifier.verify_many([("hang", ROW)] * 200)
    # Not 200 * 0.2 / 4 = 10 s.
    assert time.monotonic() - started < 6.0


def test_a_function_that_fails_on_the_data_itself_is_refused_before_the_training(folder: Path) -> None:
    rows = [Example(f"line:{number}", "q", "raise") for number in range(10)]
    config = Verifier(kind="python:scores.py:score")
    with build_verifier(config, base=folder) as verifier:
        with pytest.raises(DataError) as caught:
            refuse_hopeless_data(verifier, config, rows, dataset="jsonl:my.jsonl")
        refuse_hopeless_data(verifier, config, [*rows[:3], ROW], dataset="jsonl:my.jsonl")
    for words in ("jsonl:my.jsonl", "python:scores.py:score", "line:0", "KeyError: 'no such thing'"):
        assert words in str(caught.value)


@pytest.mark.parametrize("response", ["hang", "loop in C"])
def test_a_call_over_the_time_limit_scores_zero_and_is_ended(checker: AnswerVerifier, response: str) -> None:
    started = time.monotonic()
    verdict = checker.verify(response, ROW)
    assert time.monotonic() - started < 4.0
    assert (verdict.score, verdict.passed, verdict.note) == (0.0, False, "time limit of 0.7 s")
    assert verdict.fault
    assert checker.verify("56", ROW).passed


def test_the_child_stays_between_calls_and_ends_with_close(folder: Path) -> None:
    config = Verifier(kind="python:scores.py:score")
    with build_verifier(config, base=folder) as verifier:
        first, second = (verifier.verify("pid", ROW).score for _ in range(2))
        assert first == second
        child = round(1 / first)
        assert Path(f"/proc/{child}").exists()
    assert not Path(f"/proc/{child}").exists()


def test_standard_input_is_not_the_channel(checker: AnswerVerifier) -> None:
    assert checker.verify("read", ROW).passed
    assert checker.verify("56", ROW).passed


def test_an_interrupted_call_leaves_no_answer_for_the_next(folder: Path) -> None:
    config = Verifier(kind="python:scores.py:score")

    def interrupt(*_: object) -> None:
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with build_verifier(config, base=folder) as verifier:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(InterruptedError):
                verifier.verify("hang", ROW)
            assert verifier.verify("56", ROW).passed
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_a_batch_reports_each_verdict_and_can_be_ended(checker: AnswerVerifier) -> None:
    beats: list[int] = []
    checker.verify_many([("56", ROW)] * 20, on_each=lambda: beats.append(1))
    assert len(beats) == 20

    def stop() -> None:
        raise StopAsyncIteration

    with pytest.raises(StopAsyncIteration):
        checker.verify_many([("56", ROW)] * 20, on_each=stop)
    assert [verdict.passed for verdict in checker.verify_many([("56", ROW), ("57", ROW)])] == [True, False]


def test_a_batch_is_spread_over_children_in_order(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import time\n\ndef score(response, row):\n    time.sleep(0.5)\n    return response == 'a'\n"
    )
    scorers = scorer.Scorers(
        {"kind": "python", "path": str(folder / "slow.py"), "function": "score"}, timeout=5.0, workers=4
    )
    try:
        started = time.monotonic()
        replies = list(scorers.replies([{"response": letter, "row": {}} for letter in "abaabbab"]))
        elapsed = time.monotonic() - started
    finally:
        scorers.close()
    assert [reply.values and reply.values["value"] for reply in replies] == [1, 0, 1, 1, 0, 0, 1, 0]
    # One after the other: 8 * 0.5 = 4 s.
    assert elapsed < 3.5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "import no_such_module_at_all\n",
            ["ModuleNotFoundError: No module named 'no_such_module_at_all'", "bad.py:1"],
        ),
        ("x = 1\ndef score(:\n", ["SyntaxError: invalid syntax", "bad.py:2"]),
        ("raise RuntimeError('set KEY first')\n", ["RuntimeError: set KEY first", "bad.py:1"]),
        ("import sys\nsys.exit(2)\n", ["SystemExit: 2", "bad.py:2"]),
        ("import os\nos._exit(5)\n", ["exit code 5", "bad.py"]),
        ("def other(response, row): return 1\n", ["AttributeError", "'score'", "bad.py"]),
    ],
)
def test_a_file_that_does_not_import(tmp_path: Path, content: str, words: list[str]) -> None:
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(DataError, match="cannot be imported") as caught:
        build_verifier(Verifier(kind="python:bad.py:score"), base=tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no verifier file"):
        build_verifier(Verifier(kind="python:nowhere.py:score"), base=tmp_path)


@pytest.mark.parametrize(
    "kind", ["python:", "python:scores.py", "python:scores.py:", "python::score", "python:a.py:b c"]
)
def test_functions_that_are_named_wrongly(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"python:FILE\.py:FUNCTION"):
        Verifier(kind=kind)


@pytest.mark.slow
def test_a_child_whose_parent_is_gone_ends_by_itself(folder: Path) -> None:
    (folder / "sleepy.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\n\ndef score(response, row):\n    time.sleep(60)\n"
    )
    program = (
        "import os, pathlib, threading\nfrom agent.tasks import scorer\n"
        "s = scorer.function_scorers(pathlib.Path('sleepy.py'), 'score', timeout=0.2)\n"
        "threading.Timer(0.1, os._exit, [0]).start()\ns.score({'response': '', 'row': {}})\n"
    )
    repository = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    child = Path("/proc") / (folder / "pid").read_text()
    deadline = time.monotonic() + 6.0
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists()


# math-verify ------------------------------------------------------------------------------------------------

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="math-verify is not installed (pip install raft-agent[math])",
)


@pytest.fixture(scope="module")
def mathematician() -> Iterator[AnswerVerifier]:
    with build_verifier(Verifier(kind="math", timeout_seconds=20.0), base=Path()) as verifier:
        yield verifier


@needs_math_verify
@pytest.mark.parametrize(
    ("response", "answer", "passed", "formatted", "near"),
    [
        ("so $\\boxed{\\frac{1}{2}}$.", "0.5", True, True, False),
        ("we get 3/6", "1/2", True, True, False),
        ("$1,234$", "1234", True, True, False),
        ("$x^2+2x+1$", "(x+1)^2", True, True, False),
        ("the set is $\\{1,2\\}$", "\\{2,1\\}", True, True, False),
        ("I think 5 or 6", "5", False, True, True),
        ("no idea", "5", False, False, False),
        ("", "5", False, False, False),
        ("$\\boxed{__import__('os').system('true')}$", "0", False, True, False),
    ],
)
def test_math(
    mathematician: AnswerVerifier, response: str, answer: str, passed: bool, formatted: bool, near: bool
) -> None:
    verdict = mathematician.verify(response, Example("row", "q", answer))
    assert (verdict.passed, verdict.formatted, verdict.near) == (passed, formatted, near)


@pytest.mark.slow
@needs_math_verify
def test_math_that_takes_for_ever_is_wrong_and_the_next_is_checked(
    in_thread: Callable[[Callable[[], Any]], Any],
) -> None:
    """In a thread, where math-verify's own limit, an alarm, would not work."""
    row = Example("row", "q", "5")
    with build_verifier(Verifier(kind="math", timeout_seconds=3.0), base=Path()) as verifier:
        verdicts = in_thread(lambda: verifier.verify_many([("$9^{9^{9^{9}}}$", row), ("$5$", row)]))
    assert [(verdict.passed, verdict.note) for verdict in verdicts] == [(False, "time limit of 3 s"), (True, None)]


@needs_math_verify
def test_a_right_answer_that_is_no_mathematics(mathematician: AnswerVerifier) -> None:
    verdict = mathematician.verify("5", Example("line:3", "q", ""))
    assert (verdict.score, verdict.fault) == (0.0, True)
    assert "cannot read the right answer ''" in (verdict.note or "")


def test_math_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"raft-agent\[math\]"):
        build_verifier(Verifier(kind="math"), base=Path())


# Regular expressions ----------------------------------------------------------------------------------------


def read_by(pattern: str, response: str, answer: str = "56", **settings: object) -> Verdict:
    config = Verifier.model_validate({"kind": "regex", "pattern": pattern, "timeout_seconds": 0.5, **settings})
    with build_verifier(config, base=Path()) as verifier:
        return verifier.verify(response, Example("row", "q", answer))


@pytest.mark.parametrize(
    ("pattern", "response", "answer", "passed", "extracted"),
    [
        (r"ANSWER: *(.*)", "ANSWER: 7\nno, ANSWER: 56.0", "56", True, "56.0"),
        (r"ANSWER: *(.*)", "ANSWER: 56\nno, ANSWER: 7", "56", False, "7"),
        (r"(?i)answer: *(.*)", "Answer: Paris ", "Paris", True, "Paris"),
        (r"ANSWER: *(.*)", "ANSWER: paris", "Paris", False, "paris"),
        (r"\\boxed\{(?P<it>[^}]*)\}", r"so \boxed{1,056}", "1056", True, "1,056"),
        # An alternative without the group is no answer, and neither is an empty one.
        (r"none|= (\d+)", "= 56 or none", "56", True, "56"),
        (r"<(.*?)>", "<>", "56", False, None),
        (r"= (\d+)", "fifty-six", "56", False, None),
    ],
)
def test_regex(pattern: str, response: str, answer: str, passed: bool, extracted: str | None) -> None:
    verdict = read_by(pattern, response, answer)
    assert (verdict.passed, verdict.formatted, verdict.answer) == (passed, extracted is not None, extracted)


def test_regex_with_tolerance_and_near() -> None:
    assert read_by("= (.*)", "= 3.13", "3.14", tolerance=0.01).passed
    assert not read_by("= (.*)", "= 3.12", "3.14", tolerance=0.01).passed
    verdict = read_by("= (.*)", "56, so = 7")
    assert (verdict.passed, verdict.near) == (False, True)


def test_a_pattern_that_backtracks_for_ever_meets_the_limit_and_the_next_response_is_checked() -> None:
    started = time.monotonic()
    config = Verifier(kind="regex", pattern="((?:a+)+)b", timeout_seconds=0.5)
    row = Example("row", "q", "aa")
    with build_verifier(config, base=Path()) as verifier:
        verdicts = verifier.verify_many([("a" * 60, row), ("aab", row)])
    assert time.monotonic() - started < 5.0
    assert [(verdict.passed, verdict.fault, verdict.note) for verdict in verdicts] == [
        (False, True, "time limit of 0.5 s"),
        (True, False, None),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "regex"}, "verifier.pattern is needed"),
        ({"kind": "regex", "pattern": "(a"}, "must be a regular expression"),
        ({"kind": "regex", "pattern": "a"}, "has 0"),
        ({"kind": "regex", "pattern": "(a)(b)"}, "has 2"),
        ({"kind": "exact", "pattern": "(a)"}, "not read by exact"),
        ({"kind": "math", "tolerance": 0.1}, "not read by math"),
        ({"kind": "python:a.py:f", "open": "["}, "not read by python:a.py:f"),
        ({"kind": "exact", "environment": ["A_KEY"]}, "verifier.environment is needed for kind: python:FILE.py:"),
        ({"kind": "python:a.py:f", "environment": ["A_KEY"], "untrusted": True}, "does not go with verifier.untrusted"),
        ({"kind": "python:a.py:f", "environment": ["A KEY=1"]}, "environment"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Verifier.model_validate(settings)


# Keys of the user's ------------------------------------------------------------------------------------------

HAS_KEYS = """
import os
def score(response, row):
    return sorted(name for name in os.environ if name.endswith("_KEY")) == row["keys"]
"""


def test_a_function_gets_the_keys_that_the_recipe_names_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUDGE_KEY", "OTHER_KEY"):
        monkeypatch.setenv(name, "0123456789")
    (tmp_path / "judge.py").write_text(HAS_KEYS)
    for named in ([], ["JUDGE_KEY"]):
        example = Example("1", "", "", row={"keys": named})
        with build_verifier(Verifier(kind="python:judge.py:score", environment=named), base=tmp_path) as verifier:
            assert verifier.verify("", example).passed, named


def test_a_key_that_is_not_set_is_missed_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    (tmp_path / "judge.py").write_text(HAS_KEYS)
    with pytest.raises(UsageError, match="JUDGE_KEY is not set") as caught:
        build_verifier(Verifier(kind="python:judge.py:score", environment=["JUDGE_KEY"]), base=tmp_path)
    assert "task.verifier.environment" in str(caught.value)


# A function that is not trusted -----------------------------------------------------------------------------

UNTRUSTED = """
import os, socket, sys, time
import neighbour

ATTEMPTS = {
    "read": lambda: open(SECRET).read(),
    "write beside": lambda: open(os.path.join(os.path.dirname(__file__), "left"), "w"),
    "write outside": lambda: open(SECRET, "a"),
    "connect": lambda: socket.create_connection(("127.0.0.1", PORT), 1),
    "fork": os.fork,
    "run": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(-1, 9),
    "environment": lambda: os.environ["SOME_API_TOKEN"],
    "log": lambda: os.ftruncate(2, 0),
}

def score(response, row):
    if response in ATTEMPTS:
        ATTEMPTS[response]()
    if response == "hang":
        time.sleep(60)
    return neighbour.right(response, row)
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, socket.socket]]:
    """A folder with a verifier that is marked untrusted, and a listener that it must not reach."""
    monkeypatch.setenv("SOME_API_TOKEN", "canary")
    (tmp_path / "secret").write_text("canary")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "neighbour.py").write_text(NEIGHBOUR)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        words = f"SECRET, PORT = {str(tmp_path / 'secret')!r}, {listener.getsockname()[1]}\n"
        (folder / "scores.py").write_text(words + UNTRUSTED)
        yield tmp_path, listener


def test_an_untrusted_function_scores_and_gets_nothing_else(
    stranger: tuple[Path, socket.socket], walls: Layers
) -> None:
    base, listener = stranger
    config = Verifier(kind="python:theirs/scores.py:score", timeout_seconds=1.0, untrusted=True)
    attempts = re.findall(r'^    "([a-z ]+)":', UNTRUSTED, re.MULTILINE)
    assert len(attempts) == 9
    notes = {}
    # Few enough at a time to be borne.
    for some in (attempts[:5], [*attempts[5:], "hang"]):
        with build_verifier(config, base=base) as verifier:
            assert "rlimits" in (verifier.kept_in_by() or "")
            for attempt in some:
                verdict = verifier.verify(attempt, ROW)
                assert (verdict.score, verdict.fault) == (0.0, True)
                notes[attempt] = verdict.note or ""
                assert verifier.verify("56", ROW) == Verdict(1.0, True, True, False, None)
                assert verifier.verify("57", ROW).score == 0.0
    assert notes.pop("hang") == "time limit of 1 s"
    assert notes.pop("environment").startswith("KeyError")
    refused = r"Error.*(No such file|ermission denied|not permitted|Read-only|Invalid)"
    assert [note for note in notes.values() if not re.search(refused, note)] == []
    assert sorted(path.name for path in base.rglob("*") if path.suffix != ".pyc") == [
        *["neighbour.py", "scores.py", "secret", "theirs"]
    ]
    assert (base / "secret").read_text() == "canary"
    with pytest.raises(BlockingIOError):
        listener.accept()


MEDDLES = """
import os

def score(response, row):
    if response != "56":
        for number in range(3, 10):
            try:
                while os.write(number, SAID) and b"FLOOD" in SAID: pass
            except OSError: pass
    return response == "56"
"""


@pytest.mark.parametrize(
    "said", [b'{"value": 1.0}\n', b'{"value": 1.0, "number": 2}\n', b'{"error": 1}\n', b"[]\n\xff\n\n"]
)
def test_what_an_untrusted_function_writes_to_the_pipe_is_no_answer(tmp_path: Path, walls: Layers, said: bytes) -> None:
    (tmp_path / "scores.py").write_text(f"SAID = {said!r}\n{MEDDLES}")
    config = Verifier(kind="python:scores.py:score", timeout_seconds=20.0, untrusted=True)
    with build_verifier(config, base=tmp_path) as verifier:
        assert verifier.verify("56", ROW).score == 1.0
        # It may forge what it says of this one, which is its own to say, and never what it says of the next.
        verifier.verify("57", ROW)
        for _ in range(3):
            assert verifier.verify("56", ROW) == Verdict(1.0, True, True, False, None)
            assert verifier.verify("57", ROW).score == 0.0


@pytest.mark.slow
def test_an_untrusted_function_that_writes_without_end_meets_its_limit(tmp_path: Path, walls: Layers) -> None:
    (tmp_path / "scores.py").write_text(f"SAID = {b'FLOOD' * 10_000!r}\n{MEDDLES}")
    config = Verifier(kind="python:scores.py:score", timeout_seconds=1.0, untrusted=True)
    with build_verifier(config, base=tmp_path) as verifier:
        before = psutil.Process().memory_info().rss
        assert verifier.verify("57", ROW).note == "time limit of 1 s"
        assert psutil.Process().memory_info().rss - before < 200 << 20
        assert verifier.verify("56", ROW).score == 1.0


def test_an_untrusted_function_needs_the_flag_where_there_are_no_walls(
    stranger: tuple[Path, socket.socket], bare: Layers
) -> None:
    config = Verifier(kind="python:theirs/scores.py:score", untrusted=True)
    with pytest.raises(UsageError, match=r"task\.verifier\.untrusted.*no seccomp") as caught:
        build_verifier(config, base=stranger[0])
    assert "--allow-untrusted-code" in str(caught.value)
    with build_verifier(config, base=stranger[0], allow_untrusted_code=True) as verifier:
        assert verifier.verify("56", ROW).passed


def test_untrusted_is_for_functions() -> None:
    with pytest.raises(
        ValidationError, match=r"verifier.untrusted is needed for kind: python:FILE.py:FUNCTION, and not"
    ):
        Verifier(kind="exact", untrusted=True)
