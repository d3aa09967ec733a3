"""Real crashes of the real trainer through the real loop: the right class and fix or row, and the campaign goes on.

Each campaign: `tiny-addition` in small, two baselines, an idea that breaks, and one that works.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nights import Night, hypothesis
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from agent.campaign.finish import Ending
from agent.campaign.loop import run_campaign
from agent.campaign.open import resume, start
from agent.campaign.runs import Runner
from agent.campaign.settings import Settings
from agent.campaign.workbench import Workbench
from agent.errors import AgentError, TrainingFailed
from agent.hardware.probe import probe_machine
from agent.ledger.create import create_workspace, shipped_folder
from agent.run.launcher import launch
from agent.run.standby import Standby
from agent.run.watchdog import Limits, Watchdog

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

FAULTS = Path(__file__).parent / "faults"
SMALL = {
    "extends": "tiny-addition.yaml",
    "rollout": {"prompts_per_cycle": 16, "slots": 128},
    "selection": {"reward_threshold": 0.2, "min_samples": 1},
    "evaluation": {
        "select_prompts": 16, "search_prompts": 64, "confirm_prompts": 64, "holdout_prompts": 32, "select_every": 1,
    },
    "budget": {"tokens": None, "cycles": 2, "min_optimizer_steps": 0, "min_kept_samples": 0},
}  # fmt: skip
WORKS = hypothesis("works", 0.5, scale={"learner.learning_rate": 2.0})
VERIFIER = """\
def score(response, row):
    text = response.strip()
    return 1.0 if text == row["answer"] else 0.25 if text[:1].isdigit() else 0.0
"""


class RealNight(Night):
    """A campaign of the real trainer."""

    model_cache: Path
    limits: Limits = Limits()
    rewrite: Callable[..., dict[str, Any]] | None = None

    def start(self, **settings: Any) -> Ending:  # type: ignore[override]  # no launcher, no rules
        chosen = Settings(
            **{
                "recipe_path": "recipes/test.yaml",
                "campaign": "night",
                "budget_s": 3000.0,
                "baseline_seeds": 2,
                "max_experiments": 2,
                **settings,
            }
        )
        self.session = start(
            self.workspace, chosen, observer=self.observer, machine=probe_machine(cache=self.root / "machine.json"),
            model_cache=self.model_cache, stop_request=self.stop_request,
        )  # fmt: skip
        if self.rewrite is not None:
            session, rewrite, tell = self.session, self.rewrite, self.session.tell
            session.tell = lambda kind, **fields: tell(kind, **rewrite(session, kind, fields))  # type: ignore[method-assign]
        return run_campaign(self._bench())

    def resume(self) -> Ending:  # type: ignore[override]  # no launcher, no rules
        self.session = resume(
            self.workspace, None, observer=self.observer, machine=probe_machine(cache=self.root / "machine.json"),
            model_cache=self.model_cache, stop_request=self.stop_request,
        )  # fmt: skip
        return run_campaign(self._bench())

    def _bench(self) -> Workbench:
        assert self.session is not None
        return Workbench(self.session, Runner(self.session, launcher=self._launch, standby=Standby()))

    def _launch(self, *arguments: Any, **keys: Any) -> Any:
        return launch(*arguments, **keys, watchdog=Watchdog(self.limits), grace_s=5.0)


@pytest.fixture
def night(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> RealNight:
    monkeypatch.setenv("RAFT_AGENT_CACHE", str(model_cache))
    recipe = yaml.safe_dump(SMALL)
    created = create_workspace(tmp_path / "ws", shipped=shipped_folder(), extra={"recipes/test.yaml": recipe})
    made = RealNight(created.workspace)
    made.model_cache = model_cache
    return made


def break_with(monkeypatch: pytest.MonkeyPatch, fault: str, *, run: str = "001-search", **also: str) -> None:
    monkeypatch.setenv("RAFT_FAULT", fault)
    monkeypatch.setenv("RAFT_FAULT_IN", run)
    for name, value in also.items():
        monkeypatch.setenv(f"RAFT_FAULT_{name.upper()}", value)
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))


def recipe(night: RealNight, **changes: Any) -> None:
    content = {**SMALL, **changes}
    (night.root / "recipes" / "test.yaml").write_text(yaml.safe_dump(content))
    night.git("commit", "-qam", "recipe")


def crashed(night: RealNight, number: int = 1) -> dict[str, str]:
    row = night.rows[number]
    assert row["status"] == "crash", row
    return row


def went_on(night: RealNight) -> None:
    """The idea after it was measured."""
    assert night.rows[2]["status"] in ("keep", "discard"), night.rows
    assert night.rows[2]["metric_value"]


def fixes(night: RealNight, number: int) -> str:
    assert night.session is not None
    branch = night.session.state.experiments[number].committed
    assert branch is not None
    return night.git("log", "--format=%B", branch.branch)


def own_verifier(night: RealNight, text: str) -> None:
    (night.root / "check.py").write_text(text)
    recipe(night, task={"dataset": "builtin:addition", "verifier": {"kind": "python:check.py:score"}})


def misspell_first_idea(night: RealNight, moves: dict[str, tuple[Any, Any]], *, as_key: str, value: Any) -> None:
    """Let the plan of the first idea hold a change that no recipe takes, as a bug of the planner would make it."""
    ((old, _),) = moves.values()

    def tell(session: Any, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if kind != "experiment_planned" or fields["experiment"] != 1:
            return fields
        path = session.recipe_path
        own = yaml.safe_load(session.start_files()[path])
        own.update({k: {**own.get(k, {}), **v} for k, v in _nested(as_key, value).items()})
        return {**fields, "files": {path: yaml.safe_dump(own)}, "changes": {as_key: [old, value]}}

    night.rewrite = tell


def _nested(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {section: {name: value}}


def diagnoses(night: RealNight) -> list[dict[str, Any]]:
    """Of the runs of the first idea that failed, oldest first."""
    lines = (night.root / ".raft" / "campaigns" / "night" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [
        one["diagnosis"]
        for one in events
        if one["kind"] == "run_finished" and one.get("diagnosis") and one["run"].startswith("001-")
    ]


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A memory control group (version 1) of this test's own; skips where none may be made."""
    group = Path(f"/sys/fs/cgroup/memory/raft-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        group.rmdir()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size on the folder; skips where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def command_line(night: RealNight, group: Path) -> subprocess.CompletedProcess[str]:
    """`raft-agent run` in a control group."""
    words = "run test --budget 50m --max-experiments 2 --seeds 2 --name night"
    join = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m agent.cli {words}"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["sh", "-c", join], cwd=night.root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


# --- the recipe's and the user's own mistakes ----------------------------------------------------------------


def idea(name: str, **values: Any) -> dict[str, Any]:
    return hypothesis(name, 0.9, set={key.replace("__", "."): value for key, value in values.items()})


def test_an_unknown_key_is_the_nearest_one(night: RealNight) -> None:
    """The playbook refuses it before the night; a plan that a newer program has written may still hold one."""
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    misspell_first_idea(night, {"learner.learning_rate": (1e-4, 5e-4)}, as_key="learner.lerning_rate", value=5e-4)
    night.start()
    assert "fix typo" in night.rows[1]["fixes"]
    assert "learner.learning_rate is meant" in night.rows[1]["fixes"]
    assert night.rows[1]["status"] in ("keep", "discard")
    assert "fix typo" in fixes(night, 1)
    went_on(night)


def test_a_wrong_type_is_made_the_right_one(night: RealNight) -> None:
    night.playbook(idea("breaks", rollout__samples_per_prompt=12), WORKS)
    misspell_first_idea(
        night, {"rollout.samples_per_prompt": (8, 12)}, as_key="rollout.samples_per_prompt", value="twelve"
    )
    night.start()
    assert crashed(night)["crash_class"] == "typo"
    went_on(night)


def test_a_slip_in_a_verifier_is_mended_on_the_branch_and_not_in_the_users_file(night: RealNight) -> None:
    broken = VERIFIER.replace("response.strip()", "respnse.strip()")
    own_verifier(night, broken)
    night.playbook(WORKS)
    night.start(max_experiments=1)
    assert night.rows[0]["status"] == "keep"
    assert "respnse -> response" in night.rows[0]["fixes"]
    said = fixes(night, 0)
    assert "fix typo: check.py:2: respnse -> response" in said
    assert "NameError: name 'respnse' is not defined" in said
    assert (night.root / "check.py").read_text() == broken
    assert "response.strip()" in night.git("show", "raft/night/exp/000-baseline:check.py")
    assert night.rows[1]["status"] in ("keep", "discard")


def test_a_mending_after_which_everything_is_right_is_refused(night: RealNight) -> None:
    own_verifier(night, "def score(response, row):\n    gold = row['answer']\n    return float(gold == glod)\n")
    night.playbook(WORKS)
    with pytest.raises(AgentError, match="responses of the untrained model pass: that is not what was meant"):
        night.start()


def test_a_slip_that_is_not_certain_ends_the_campaign_with_file_and_line(night: RealNight) -> None:
    own_verifier(night, VERIFIER.replace('row["answer"]', "expected_answer(row)"))
    night.playbook(WORKS)
    with pytest.raises(AgentError, match=r"expected_answer.* \(.*check\.py:3\)") as caught:
        night.start()
    assert type(caught.value).__name__ == "VerifierError"


def test_a_shape_mismatch_in_a_verifier_that_an_idea_brings_out(night: RealNight) -> None:
    """It compares character by character in an array of four, which longer answers do not fit."""
    own_verifier(
        night,
        "import numpy as np\n\n\n"
        "def score(response, row):\n"
        "    said = np.frombuffer(response.ljust(4).encode(), dtype=np.uint8)\n"
        "    right = np.frombuffer(row['answer'].ljust(4).encode(), dtype=np.uint8)\n"
        "    return float(np.mean(said == right + 0 * said))\n",
    )
    night.playbook(idea("breaks", rollout__max_new_tokens=12, rollout__temperature=5.0), WORKS)
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "typo"
    assert "operands could not be broadcast" in row["reason"]
    went_on(night)


def test_a_missing_module_in_a_verifier(night: RealNight) -> None:
    own_verifier(night, "import no_such_module_anywhere\n" + VERIFIER)
    night.playbook(WORKS)
    with pytest.raises(AgentError, match="No module named 'no_such_module_anywhere'") as caught:
        night.start()
    assert type(caught.value).__name__ == "VerifierError"
    (night.root / "check.py").write_text("import jsom\n" + VERIFIER)
    night.start(campaign="again", max_experiments=1)
    rows = [row for row in night.rows if row["campaign"] == "again"]
    assert "jsom -> json" in rows[0]["fixes"]


# --- memory --------------------------------------------------------------------------------------------------


def test_a_memory_limit_that_python_meets(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(idea("breaks", learner__microbatch_tokens=16384), WORKS)
    break_with(monkeypatch, "memory_limit")
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "oom"
    assert "fix oom: microbatch 16384 -> 8192 tokens, accumulation 1 -> 2 (the same step)" in row["fixes"]
    assert "recompute activations" in row["fixes"]
    assert "Evidence" in fixes(night, 1)
    went_on(night)


def test_a_memory_limit_that_the_kernel_enforces(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole campaign in a control group of its own, as in a container."""
    night.playbook(idea("breaks", learner__microbatch_tokens=8192), WORKS)
    with control_group(3_000_000_000) as group:
        break_with(monkeypatch, "memory")
        done = command_line(night, group)
    assert done.returncode == 0, done.stdout + done.stderr
    row = crashed(night)
    assert row["crash_class"] == "oom"
    told = diagnoses(night)
    assert {one["source"] for one in told} <= {"kernel", "the agent"}, told
    assert told[0]["crash_class"] == "oom"
    went_on(night)


# --- signals and numbers -------------------------------------------------------------------------------------


def test_sigkill_from_outside_is_no_out_of_memory(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "sigkill")
    night.start()
    assert crashed(night)["crash_class"] == "unknown"
    assert "from outside" in night.rows[1]["reason"]
    went_on(night)


def test_sigkill_once_is_repeated_and_forgotten(
    night: RealNight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "sigkill", once=str(tmp_path / "once"))
    night.start()
    assert night.rows[1]["status"] in ("keep", "discard")
    assert night.rows[1]["fixes"] == ""
    went_on(night)


def test_sigsegv_is_repeated_once_and_names_the_frame(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "sigsegv")
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "unknown"
    assert "SIGSEGV at File" in row["reason"]
    assert len(diagnoses(night)) == 2
    went_on(night)


def test_weights_that_are_not_finite(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "nan")
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "numeric"
    assert "learning rate 0.0005 -> 0.00025" in row["fixes"]
    went_on(night)


# --- time ----------------------------------------------------------------------------------------------------


def test_a_hang_with_a_silent_heartbeat(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.limits = Limits(floors=dict.fromkeys(Limits().floors, 4.0), first_step=6.0)
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "hang")
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "timeout"
    assert "no heartbeat for" in row["reason"]
    assert len(diagnoses(night)) == 2  # once more, since it looks like the machine
    went_on(night)


def test_a_crawl_with_a_heartbeat_that_goes_on(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(night, budget={"tokens": None, "cycles": 40, "min_optimizer_steps": 0, "min_kept_samples": 0})
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "crawl", at="generate")
    night.start(per_experiment_s=25.0)
    row = night.rows[1]
    assert row["status"] in ("crash", "discard"), row
    went_on(night)


# --- what is not there ---------------------------------------------------------------------------------------


def test_a_disk_that_is_full(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(WORKS)
    with small_disk(night.root / ".raft" / "runs", "12m") as disk:
        filler = disk / "filler"
        filler.write_bytes(b"x" * (11 << 20))
        with pytest.raises(AgentError) as caught:
            night.start()
        assert type(caught.value).__name__ == "ResourceError"
        assert "space" in str(caught.value) or "free" in str(caught.value)


def test_a_corrupt_safetensors_file(night: RealNight) -> None:
    broken = night.root / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\xff" * 500)
    (broken / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 20, "hidden_size": 64}))
    words = {word: number for number, word in enumerate([*"0123456789+= ", "<eos>"])}
    Tokenizer(WordLevel(words, unk_token="<eos>")).save(str(broken / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    recipe(night, model={"source": "./broken"})
    night.playbook(WORKS)
    with pytest.raises(TrainingFailed, match=r"\(data: a checkpoint is torn.*SafetensorError.*header too large"):
        night.start()


def test_a_data_set_that_is_gone_pauses_and_goes_on_when_it_is_back(night: RealNight) -> None:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 40) for b in range(10, 40)]
    data = night.root / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe(night, task={"dataset": "jsonl:sums.jsonl"})
    night.playbook(WORKS)
    night.start(max_experiments=1)
    hidden = data.rename(night.root / "elsewhere.jsonl")
    with pytest.raises(AgentError, match="sums") as caught:
        night.start(campaign="again")
    assert type(caught.value).__name__ in ("DataError", "Unavailable")
    hidden.rename(data)


def test_no_file_descriptors_left(night: RealNight, monkeypatch: pytest.MonkeyPatch) -> None:
    night.playbook(idea("breaks", learner__learning_rate=5e-4), WORKS)
    break_with(monkeypatch, "open_files")
    with pytest.raises(AgentError) as caught:
        night.start()
    assert type(caught.value).__name__ == "ResourceError"
    assert "Too many open files" in str(caught.value)
    monkeypatch.delenv("RAFT_FAULT")
    night.resume()
    went_on(night)


def test_cuda_where_there_is_none(night: RealNight) -> None:
    night.playbook(idea("breaks", backend__environment="cuda", learner__learning_rate=5e-4), WORKS)
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "backend"
    went_on(night)


def test_an_attention_implementation_that_is_not_installed(night: RealNight) -> None:
    night.playbook(idea("breaks", backend__attention="flash", model__lora={"rank": 4}), WORKS)
    night.start()
    row = crashed(night)
    assert row["crash_class"] == "backend"
    assert "flash" in row["reason"]
    went_on(night)
