"""Why a training died: every class on saved log tails, the order of the evidence, and the shared corpus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_tails import TAILS
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.contract import CRASH_CLASSES, Failure
from agent.run.logtext import read_lines, strip_prefixes
from agent.run.signatures import our_rules
from agent.run.triage import Diagnosis, Evidence, triage

CORPUS = Path(__file__).parents[3] / "shared" / "data" / "crash_logs.jsonl"
FLOOR = 0.95
"""The corpus is known to its last line (85 of 85); the margin is for changes that trade a line for a rule."""

CASCADE = """
W1118 10:00:00.0 1 torch/distributed/elastic/multiprocessing/api.py:900] Sending process 11 closing signal SIGTERM
E1118 10:00:00.0 1 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1) local_rank: 0 (pid: 12)
Traceback (most recent call last):
  File "/usr/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
train.py FAILED
"""
BEFORE = """INFO: inference on, nan_guard on, killed=0, confidence infinite, dtype bfloat16
Loading checkpoint shards: 100%|##########| 2/2 [00:03<00:00,  1.5s/it]
{'loss': 1.23, 'grad_norm': 0.4}
{'loss': 1.11, 'grad_norm': 0.3}
"""


def each_line(prefix: str) -> Callable[[str], str]:
    return lambda log: "\n".join(prefix + line for line in log.split("\n"))


NOISE: dict[str, Callable[[str], str]] = {
    "as it is": lambda log: log,
    "rank": each_line("[rank3]: "),
    "stamp": each_line("2026-01-02 10:00:00,123 - ERROR - "),
    "actor": each_line("\x1b[36m(WorkerDict pid=123, ip=10.0.0.1)\x1b[0m "),
    "windows": lambda log: log.replace("\n", "\r\n"),
    "before": lambda log: BEFORE + log,
    "tracker behind": lambda log: log + "\nwandb:\nwandb: Run history:\nwandb: loss ####\n",
    "launcher behind": lambda log: log + CASCADE,
    "end only": lambda log: log[-1500:],
}


def corpus() -> list[dict[str, object]]:
    if not CORPUS.exists():
        pytest.skip("../shared/data/crash_logs.jsonl is not here: the corpus is not part of the repository")
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    return [{key: row[key] for key in ("log", "exit_code", "label")} for row in rows]  # never subtype or fix


@pytest.mark.parametrize("noise", NOISE)
def test_the_corpus_is_classified(noise: str) -> None:
    rows = corpus()
    wrong: Counter[tuple[object, str]] = Counter()
    for row in rows:
        exit_code = row["exit_code"]
        assert exit_code is None or isinstance(exit_code, int)
        found = triage(Evidence(log=NOISE[noise](str(row["log"])), exit_code=exit_code)).crash_class
        if found != row["label"]:
            wrong[row["label"], found] += 1
    assert 1 - sum(wrong.values()) / len(rows) >= FLOOR, dict(wrong)


@pytest.mark.parametrize("name", TAILS)
def test_our_own_tails_are_classified(name: str) -> None:
    crash_class, exit_code, log = TAILS[name]
    diagnosis = triage(Evidence(log=log, exit_code=exit_code))
    assert diagnosis.crash_class == crash_class, diagnosis


def test_the_tails_cover_every_class() -> None:
    assert {crash_class for crash_class, _, _ in TAILS.values()} == set(CRASH_CLASSES)
    assert min(Counter(crash_class for crash_class, _, _ in TAILS.values()).values()) >= 4


@pytest.mark.parametrize("name", [name for name, (crash_class, _, _) in TAILS.items() if crash_class != "unknown"])
def test_the_evidence_is_a_line_of_the_log(name: str) -> None:
    _, exit_code, log = TAILS[name]
    diagnosis = triage(Evidence(log=log, exit_code=exit_code))
    assert diagnosis.evidence in log or diagnosis.evidence.startswith("SIG"), diagnosis
    assert diagnosis.reason
    assert diagnosis.source != "nothing"


# --- the order of the evidence -----------------------------------------------------------------------------

OOM = "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 1.00 GiB.\n"
TYPO = "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\nNameError: name 'x' is not defined\n"


def found(**evidence: object) -> tuple[str, str]:
    diagnosis = triage(Evidence(**evidence))  # type: ignore[arg-type]  # fields by name
    return diagnosis.crash_class, diagnosis.source


def test_the_agents_word_counts_before_everything() -> None:
    failure = Failure(crash_class="data", message="m", exception="E")
    assert found(log=OOM, failure=failure, ended_by="hang", reason="r") == ("timeout", "the agent")
    assert found(log=OOM, ended_by="time_limit", reason="r") == ("timeout", "the agent")
    assert found(log=TYPO, ended_by="memory", reason="r") == ("oom", "the agent")
    assert found(log=TYPO, ended_by="stop", reason="r") == ("unknown", "the agent")


def test_the_trainers_word_counts_before_the_log_unless_it_knows_nothing() -> None:
    named = Failure(crash_class="data", message="row 3", exception="DataError", key="task.fields", suggestion="q")
    diagnosis = triage(Evidence(log=OOM, failure=named, exit_code=1))
    assert (diagnosis.crash_class, diagnosis.source) == ("data", "failure.json")
    assert (diagnosis.key, diagnosis.suggestion) == ("task.fields", "q")
    unnamed = Failure(crash_class="unknown", message="?", exception="RuntimeError")
    assert found(log=OOM, failure=unnamed, exit_code=1) == ("oom", "traceback")
    assert found(log="", failure=unnamed, exit_code=1) == ("unknown", "failure.json")


def test_sigkill_is_presumed_memory_but_gives_way_to_what_is_known() -> None:
    assert found(log="step 3\n", exit_code=-9) == ("oom", "exit")
    assert found(log="step 3\n", exit_code=137) == ("oom", "exit")
    assert found(log="step 3\n", exit_code=137, cgroup_oom=True) == ("oom", "kernel")
    assert found(log="RuntimeError: HIP error: invalid device function\n", exit_code=-9) == ("backend", "traceback")
    cancelled = "slurmstepd: error: *** JOB 1 ON n CANCELLED AT 2026-01-01T00:00:00 ***\n"
    assert found(log=cancelled, exit_code=-9) == ("unknown", "exit")


def test_a_memory_kill_of_a_helper_counts_before_the_error_it_caused() -> None:
    kernel = "Memory cgroup out of memory: Killed process 12 (python) total-vm:1kB\n"
    diagnosis = triage(Evidence(log=TYPO, exit_code=1, cgroup_oom=True, kernel=kernel))
    assert (diagnosis.crash_class, diagnosis.source) == ("oom", "kernel")
    assert "Killed process 12" in diagnosis.evidence


def test_the_kernel_log_names_a_device_when_the_training_says_nothing() -> None:
    kernel = "amdgpu 0000:c5:00.0: amdgpu: MES failed to respond to msg=REMOVE_QUEUE\n"
    assert found(log="step 3\n", exit_code=1, kernel=kernel) == ("backend", "kernel")
    assert found(log=TYPO, exit_code=1, kernel=kernel) == ("typo", "traceback")


def test_out_of_memory_is_the_root_of_what_follows_it() -> None:
    nccl = "RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error\n"
    assert found(log=OOM + nccl + TYPO, exit_code=1) == ("oom", "traceback")
    assert found(log=nccl + TYPO, exit_code=1) == ("typo", "traceback")


def test_an_error_long_before_the_end_is_not_the_cause() -> None:
    progress = "{'loss': 0.5}\n{'loss': 0.4}\n"
    assert found(log=OOM + progress + TYPO, exit_code=1) == ("typo", "traceback")
    assert found(log=TYPO + progress + OOM, exit_code=1) == ("oom", "traceback")


def test_a_destructor_or_a_tracker_does_not_end_a_training() -> None:
    destructor = "Exception ignored in: <function P.__del__ at 0x1>\n" + TYPO
    tracker = 'Traceback (most recent call last):\n  File "/x/wandb/sdk/send.py", line 1, in s\nTypeError: no\n'
    assert found(log=destructor, exit_code=1) == ("unknown", "nothing")
    assert found(log=tracker, exit_code=1) == ("unknown", "nothing")
    assert found(log=OOM + destructor, exit_code=1)[0] == "oom"


def test_words_alone_prove_nothing() -> None:
    for text in (
        "INFO: inference with nan_guard, killed=0, out of memory handling: on",
        "the docs say: RuntimeError: CUDA out of memory means that ...",
        "UserWarning: HIP out of memory happened before",
        "loss information: overflow protection enabled",
        "Segmentation fault (core dumped)",
    ):
        assert found(log=text + "\n", exit_code=1)[0] == "unknown", text


def test_the_context_of_an_import_or_a_key_decides() -> None:
    frame = 'Traceback (most recent call last):\n  File "{}", line 1, in f\n    {}\n'
    library, own = "/v/site-packages/peft/x.py", "train.py"
    missing = "ModuleNotFoundError: No module named '{}'\n"
    assert found(log=frame.format(library, "import y") + missing.format("y"))[0] == "backend"
    assert found(log=frame.format(own, "import y") + missing.format("y"))[0] == "typo"
    assert found(log=frame.format(own, "import flash_attn") + missing.format("flash_attn"))[0] == "backend"
    assert found(log=frame.format(own, 'example["answer"]') + "KeyError: 'answer'\n")[0] == "data"
    assert found(log=frame.format(own, 'options["rate"]') + "KeyError: 'rate'\n")[0] == "typo"


# --- reading lines -----------------------------------------------------------------------------------------


def test_prefixes_come_off_and_bars_are_split() -> None:
    assert strip_prefixes("[rank0]: (Engine pid=9) ERROR [core.py:1100] ValueError: x") == "ValueError: x"
    assert strip_prefixes("    raise ValueError(") == "    raise ValueError("
    lines = read_lines("a\rb\rc\n  0%|   | 0/2 [00:00<?, ?it/s]Killed\n")
    assert [line.text for line in lines] == ["a", "b", "c", "  0%|   | 0/2 [00:00<?, ?it/s]", "Killed", ""]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=400))
def test_any_text_gets_a_diagnosis(log: str) -> None:
    diagnosis = triage(Evidence(log=log, exit_code=1))
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis.crash_class in CRASH_CLASSES


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TAILS)), st.text(alphabet="abc .:/\n", max_size=200))
def test_talk_before_the_end_changes_nothing(name: str, talk: str) -> None:
    crash_class, exit_code, log = TAILS[name]
    assert triage(Evidence(log=talk + "\n" + log, exit_code=exit_code)).crash_class == crash_class


def test_every_signature_is_anchored_and_has_a_source() -> None:
    names = [rule.name for rule in our_rules()]
    assert len(names) == len(set(names))
    for rule in our_rules():
        assert rule.source, rule.name
        assert rule.meaning, rule.name
        assert rule.remedy, rule.name
        assert not rule.matches("the weather is fine: out of memory"), rule.name
