"""Why a training died: every class on saved log tails, the order of the evidence, and the shared corpus."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import log_noise
import pytest
from crash_tails import TAILS
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.contract import CRASH_CLASSES, Failure
from agent.run.diagnosis import Diagnosis, Evidence
from agent.run.logfile import read_stream
from agent.run.logtext import read_lines, strip_prefixes
from agent.run.signatures import our_rules
from agent.run.triage import triage

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


def plainly(change: Callable[[str], str]) -> Callable[[str, random.Random], str]:
    return lambda log, rng: change(log)


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    **log_noise.NOISE,
    "rank": plainly(each_line("[rank3]: ")),
    "stamp": plainly(each_line("2026-01-02 10:00:00,123 - ERROR - ")),
    "actor": plainly(each_line("\x1b[36m(WorkerDict pid=123, ip=10.0.0.1)\x1b[0m ")),
    "container": plainly(each_line("trainer-1  | ")),
    "windows": plainly(lambda log: log.replace("\n", "\r\n")),
    "talk before": plainly(lambda log: BEFORE + log),
    "tracker behind": plainly(lambda log: log + "\nwandb:\nwandb: Run history:\nwandb: loss ####\n"),
    "launcher behind": plainly(lambda log: log + CASCADE),
    "end only": plainly(lambda log: log[-1500:]),
}


def corpus() -> list[dict[str, object]]:
    if not CORPUS.exists():
        pytest.skip("../shared/data/crash_logs.jsonl is not here: the corpus is not part of the repository")
    rows = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    return [{key: row[key] for key in ("log", "exit_code", "label")} for row in rows]  # never subtype or fix


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("200 ") else name for name in CHANGES]
)
def test_the_corpus_is_classified_whatever_stands_around_it(change: str) -> None:
    rows = corpus()
    wrong: Counter[tuple[object, str]] = Counter()
    for number, row in enumerate(rows):
        exit_code = row["exit_code"]
        assert exit_code is None or isinstance(exit_code, int)
        log = CHANGES[change](str(row["log"]), random.Random(number))
        found = triage(Evidence(log=log, exit_code=exit_code)).crash_class
        if found != row["label"]:
            wrong[row["label"], found] += 1
    assert 1 - sum(wrong.values()) / len(rows) >= FLOOR, dict(wrong)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("change", log_noise.NOISE)
@pytest.mark.parametrize("name", TAILS)
def test_noise_does_not_change_the_class_of_our_own_tails(name: str, change: str) -> None:
    crash_class, exit_code, log = TAILS[name]
    noisy = log_noise.NOISE[change](log, random.Random(name))
    diagnosis = triage(Evidence(log=noisy, exit_code=exit_code))
    assert diagnosis.crash_class == crash_class, diagnosis


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


def test_sigkill_with_counters_that_stood_still_is_somebody_elses() -> None:
    assert found(log="step 3\n", signal=9, memory_events="still") == ("unknown", "exit")
    assert found(log="step 3\n", signal=9, memory_events="unreadable") == ("oom", "exit")
    low = {"free_gb": 0.3, "total_gb": 24.0}
    diagnosis = triage(Evidence(log="step 3\n", signal=9, memory_events="still", **low))
    assert (diagnosis.crash_class, diagnosis.signature) == ("oom", "sigkill-low-memory")
    assert "0.30 of 24.0 GiB" in diagnosis.reason
    plenty = triage(Evidence(log="step 3\n", signal=9, memory_events="still", free_gb=9.0, total_gb=24.0))
    assert (plenty.crash_class, plenty.signature) == ("unknown", "outside-kill")


def test_a_sigterm_that_was_not_ours_is_somebody_elses_or_memorys() -> None:
    """earlyoom sends it at a tenth of the memory, and kills only later."""
    left = Evidence(log="step 3\n", exit_code=0, terminated=True)
    diagnosis = triage(left)
    assert (diagnosis.crash_class, diagnosis.signature) == ("unknown", "outside-kill")
    assert diagnosis.reason == "was ended (SIGTERM) from outside"
    low = triage(replace(left, free_gb=1.9, total_gb=24.0))
    assert (low.crash_class, low.signature) == ("oom", "sigterm-low-memory")
    assert low.confidence < 0.8, "nothing is remembered of it beyond the campaign"
    assert triage(replace(left, free_gb=9.0, total_gb=24.0)).signature == "outside-kill"


def test_what_the_experiment_changed_is_looked_through_for_the_cause() -> None:
    changed = {
        "learner.learning_rate": (1e-4, 1e-3),
        "learner.microbatch_tokens": (4096, 16384),
        "rollout.slots": (64, 512),
        "model.dtype": ("bfloat16", "float16"),
    }

    def of(log: str, **evidence: object) -> tuple[str, ...]:
        return triage(Evidence(log=log, exit_code=1, changed=changed, **evidence)).suspects  # type: ignore[arg-type]

    assert of(OOM, phase="train") == ("learner.microbatch_tokens", "rollout.slots")
    assert of(OOM, phase="generate") == ("rollout.slots", "learner.microbatch_tokens")
    assert of("RuntimeError: Function 'MulBackward0' returned nan values in its 0th output.\n") == (
        "learner.learning_rate",
        "model.dtype",
    )
    assert of("RuntimeError: HIP error: invalid device function\n") == ("model.dtype",)
    assert of("TypeError: learning_rate must be a float\n")[0] == "learner.learning_rate"
    assert triage(Evidence(log=OOM, exit_code=1)).suspects == ()


def test_a_verifier_that_fails_is_a_slip_a_missing_field_or_data() -> None:
    def of(message: str) -> tuple[str, str | None]:
        failure = Failure(crash_class="data", message=message, exception="VerifierError", where="check.py:score")
        diagnosis = triage(Evidence(failure=failure, exit_code=3))
        return diagnosis.crash_class, diagnosis.signature

    on = "the verifier failed on 9 of 20 responses, at last on the response '12' to a-1: "
    assert of(on + "NameError: name 'respnse' is not defined (/w/check.py:3)") == ("typo", "verifier-name")
    assert of(on + "ValueError: operands could not be broadcast together (/w/c.py:3)") == ("typo", "verifier-shape")
    assert of(on + "KeyError: 'answr' (/w/check.py:3)") == ("data", "verifier-missing-field")
    assert of(on + "its process ended by signal 11") == ("data", "verifier")
    imported = "the verifier file cannot be imported: ModuleNotFoundError: No module named 'jsn' (/w/check.py:1)"
    assert of(imported) == ("typo", "verifier-own-import")


def test_exit_code_zero_without_a_summary_says_what_is_wrong_with_it() -> None:
    diagnosis = triage(Evidence(log="done\n", exit_code=0, problems=("summary.json: not JSON (Expecting value)",)))
    assert diagnosis.crash_class == "unknown"
    assert "exit code 0" in diagnosis.reason
    assert "summary.json: not JSON" in diagnosis.reason


def test_the_line_is_that_of_the_log_and_confidence_follows_the_evidence() -> None:
    log = "a\nb\rc\n" + OOM + "d\n"
    diagnosis = triage(Evidence(log=log, exit_code=1))
    assert diagnosis.line == 3
    assert log.split("\n")[diagnosis.line - 1] + "\n" == OOM
    sure, unsure = diagnosis.confidence, triage(Evidence(log="x\n", exit_code=1)).confidence
    assert unsure < triage(Evidence(log=TYPO, exit_code=1)).confidence < sure <= 1.0


def test_the_first_line_of_a_flood_is_shown() -> None:
    first = "amdgpu 0000:c5:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1, emitted seq=3"
    flood = "".join(f"amdgpu 0000:c5:00.0: amdgpu: Failed to evict queue {n}\n" for n in range(9))
    assert triage(Evidence(log=f"step 3\n{first}\n{flood}")).evidence == first


def test_what_programs_guess_is_no_evidence() -> None:
    guess = (
        "A worker died or was killed by an unexpected system error. There are some potential root causes. "
        "(1) The process is killed by SIGKILL by OOM killer due to high memory usage.\n"
    )
    assert found(log=guess, exit_code=1)[0] == "unknown"


def test_the_words_of_an_unknown_error_are_the_last_resort() -> None:
    assert found(log="E xla/client.cc:96] agent in error status: DEADLINE_EXCEEDED: late\n") == ("timeout", "said")
    assert found(log="RuntimeError: gremlins: the allocation failed on the device\n")[0] == "oom"
    assert found(log="INFO: recovered from an error: out of memory\n")[0] == "unknown"
    assert found(log="errors: 0, out of memory events: none\n")[0] == "unknown"


def test_an_environment_that_a_log_prints_is_no_evidence() -> None:
    shell = {
        "ERROR_URL": "x",
        "PATH": "/bin",
        "_": "/usr/bin/timeout",
        "LANG": "C",
        "NCCL_NOTE": "timed out",
        "X_RUN": "1",
    }
    for dump in (f"error, environment: {shell}", "failed with " + " ".join(f"{k}={v}" for k, v in shell.items())):
        assert found(log=f"{dump}\nbye", exit_code=1)[0] == "unknown", dump
    ranks = "RANK=3 LOCAL_RANK=3 WORLD_SIZE=8 NODE_RANK=0"
    assert found(log=f"error: rendezvous timed out, {ranks}", exit_code=1)[0] == "timeout"
    assert found(log=f"ERROR {ranks} torch.OutOfMemoryError: HIP out of memory. Tried to", exit_code=1)[0] == "oom"
    assert found(log="ERROR: RANK: 0 GPU: 0 HOST: box PID: 9 STEP: 12 CUDA error: out of memory")[0] == "oom"
    assert found(log=f"error: {ranks} loss is nan at step 4", exit_code=1)[0] == "numeric"


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


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=2000))
def test_binary_garbage_gets_a_diagnosis(data: bytes) -> None:
    text = read_stream(io.BytesIO(data)).text
    assert triage(Evidence(log=text, exit_code=1)).crash_class in CRASH_CLASSES


def test_every_signature_is_anchored_and_has_a_source() -> None:
    names = [rule.name for rule in our_rules()]
    assert len(names) == len(set(names))
    for rule in our_rules():
        assert rule.source, rule.name
        assert rule.meaning, rule.name
        assert rule.remedy, rule.name
        assert not rule.matches("the weather is fine: out of memory"), rule.name
