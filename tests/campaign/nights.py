"""A small playbook, and campaigns in a real git repository driven by a trainer that trains nothing."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_raft
import yaml

from agent.campaign.finish import Ending
from agent.campaign.loop import run_campaign
from agent.campaign.observer import Silent
from agent.campaign.open import resume, start
from agent.campaign.rules import Rules
from agent.campaign.runs import Runner
from agent.campaign.session import Session
from agent.campaign.settings import Settings
from agent.campaign.workbench import Workbench
from agent.hardware.probe import Machine
from agent.ledger.create import create_workspace, shipped_folder
from agent.ledger.events import ExperimentJudged
from agent.ledger.table import read_rows
from agent.ledger.workspace import Workspace
from agent.recipe.files import resolved_text
from agent.run.launcher import contract_arguments, launch
from agent.run.processes import identify
from agent.run.request import RunRequest, RunResult
from agent.run.telemetry import read_summary

FAKE = (sys.executable, str(Path(__file__).with_name("fake_raft.py")))
MACHINE = Machine(
    kind="cpu", accelerators=0, arch=None, name="test", cores=2, memory_gb=8.0, accelerator_memory_gb=None,
    bf16=False, unified_memory=False, torch="2", packages=frozenset(),
)  # fmt: skip
RECIPE = """\
# a recipe for tests, comments stay
model: {source: builtin:tiny}
task: {dataset: "builtin:addition"}
learner:
  learning_rate: 5.0e-4  # the usual
evaluation:
  {select_prompts: 100, search_prompts: 200, confirm_prompts: 200, holdout_prompts: 200, samples_per_prompt: 1,
   temperature: 0}
budget: {train_seconds: 1}
"""


def hypothesis(name: str, prior: float, **variant: Any) -> dict[str, Any]:
    return {
        "id": name,
        "claim": f"{name} helps",
        "what": name.replace("-", " "),
        "prior": prior,
        "variants": [{"name": "up", **variant}],
    }


def trick(name: str, prior: float, **also: Any) -> dict[str, Any]:
    """An idea that sets off a trick of the fake trainer, and moves further keys."""
    settings = {"rollout.top_k": fake_raft.TRICKS[name], **{key.replace("__", "."): also[key] for key in also}}
    return hypothesis(name.replace(" ", "-").replace("@", "-at-"), prior, set=settings)


RATE_UP = hypothesis("rate-up", 0.9, scale={"learner.learning_rate": 4.0})
BETTER_RATE = hypothesis("better-rate", 0.9, set={"learner.learning_rate": 0.002})
"""The same gain as RATE_UP, with nothing left to try around it."""
NO_DEDUP = hypothesis("no-dedup", 0.85, set={"selection.dedup": False})
NO_PACKING = hypothesis("no-packing", 0.95, set={"learner.packing": False})
NOTHING = hypothesis("placebo", 0.8, set={"execution.placebo": 1})


@dataclass
class Recorder(Silent):
    """Remembers what it was told."""

    said: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Night:
    """A workspace and the campaigns that run in it."""

    workspace: Workspace
    observer: Recorder = field(default_factory=Recorder)
    stop_request: Callable[[], str | None] = lambda: None
    session: Session | None = None
    cache: Path | None = None
    """Of models, for nights that share one."""

    @property
    def models(self) -> Path:
        return self.cache or self.root / "models"

    @property
    def root(self) -> Path:
        return self.workspace.root

    def playbook(self, *hypotheses: dict[str, Any]) -> None:
        """Replace the playbook by one axis with these hypotheses, without symptoms."""
        for path in self.workspace.hypotheses.glob("*.yaml"):
            path.unlink()
        content = {"axis": "learning-rate", "title": "test", "hypotheses": list(hypotheses)}
        (self.workspace.hypotheses / "test.yaml").write_text(yaml.safe_dump(content))

    def open(self, **settings: Any) -> Session:
        chosen = Settings(
            **{
                "recipe_path": "recipes/test.yaml",
                "campaign": "night",
                "budget_s": 600.0,
                "baseline_seeds": 2,
                **settings,
            }
        )
        self.session = start(
            self.workspace, chosen, observer=self.observer, machine=MACHINE,
            model_cache=self.models, stop_request=self.stop_request,
        )  # fmt: skip
        return self.session

    def start(self, *, launcher: Any = None, rules: Rules | None = None, **settings: Any) -> Ending:
        return run_campaign(self.bench(self.open(**settings), launcher=launcher, rules=rules))

    def bench(self, session: Session, *, launcher: Any = None, rules: Rules | None = None) -> Workbench:
        return Workbench(session, Runner(session, launcher=launcher or forked_launch), rules=rules)

    def resume(self, *, launcher: Any = None, rules: Rules | None = None, **keys: Any) -> Ending:
        self.session = resume(
            self.workspace, None, observer=self.observer, machine=MACHINE,
            model_cache=self.models, stop_request=self.stop_request, **keys,
        )  # fmt: skip
        return run_campaign(self.bench(self.session, launcher=launcher, rules=rules))

    # --- what a night left ----------------------------------------------------------------------------------

    @property
    def rows(self) -> list[dict[str, str]]:
        """Of results.tsv, by number; it has them in the order in which the ideas were judged."""
        return sorted(read_rows(self.workspace.results), key=lambda row: int(row["index"]))

    def outcomes(self) -> list[tuple[str, str]]:
        """(hypothesis, status) of each row."""
        return [(row["hypothesis"], row["status"]) for row in self.rows]

    def judged(self, number: int) -> ExperimentJudged:
        assert self.session is not None
        judged = self.session.state.experiments[number].judged
        assert judged is not None
        return judged

    def folder(self, run: str) -> Path:
        """Of a run of the campaign `night`, by its key."""
        return self.root / ".raft" / "runs" / "night" / run

    def trained(self, run: str) -> str:
        """The cycles that were trained in a run's folder, in order of time."""
        path = self.folder(run) / "trained"
        return path.read_text() if path.exists() else ""

    def starts(self) -> dict[str, str]:
        """By run, a letter for each start of the trainer in its folder."""
        return {path.parent.name: path.read_text() for path in self.root.glob(".raft/runs/night/*/starts")}

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout


def new_night(folder: Path) -> Night:
    """In a workspace of its own."""
    created = create_workspace(folder / "ws", shipped=shipped_folder(), extra={"recipes/test.yaml": RECIPE})
    return Night(created.workspace)


def fake_launch(**keys: Any) -> Callable[..., Any]:
    return functools.partial(launch, command=FAKE, grace_s=1.0, idle_wait_s=0.0, poll_s=0.02, **keys)


def forked_launch(request: RunRequest, *, on_started: Any, stop: Any, **ignored: Any) -> RunResult:
    """The fake trainer in a forked process: as real as `fake_launch`, without a second of imports for each run.

    It is only asked to stop where FAKE_PACE makes it slow enough for that.
    """
    began = time.monotonic()
    request.out.mkdir(parents=True, exist_ok=True)
    for stale in ("failure.json", "summary.json"):
        (request.out / stale).unlink(missing_ok=True)
    (request.out / "recipe.yaml").write_text(resolved_text(request.recipe))
    fake_raft.draw_ahead()
    pid = os.fork()
    if pid == 0:
        _become_trainer(request)
    on_started(identify(pid))
    why = _stopped(pid, stop) if "FAKE_PACE" in os.environ else None
    _, status = os.waitpid(pid, 0)
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return RunResult(
        out=request.out,
        exit_code=None if signalled else os.WEXITSTATUS(status),
        signal=signalled,
        ended_by="stop" if why else "itself",
        reason=f"{why}; the trainer left" if why else "ended",
        elapsed_s=time.monotonic() - began,
        summary=read_summary(request.out),
        peak_rss_gb=None,
    )


class Dies(BaseException):
    """kill -9, as far as a test can tell."""


def dying_at(start: int) -> Callable[..., RunResult]:
    """Starts trainings until this one, at which the agent is gone."""
    started = 0

    def launcher(*arguments: Any, **keys: Any) -> RunResult:
        nonlocal started
        started += 1
        if started == start:
            raise Dies
        return forked_launch(*arguments, **keys)

    return launcher


def _stopped(pid: int, stop: Callable[[], str | None]) -> str | None:
    """Why the process was asked to end; None where it ended by itself."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        why = stop()
        if why is not None:
            os.kill(pid, signal.SIGTERM)
            return why
        time.sleep(0.005)
    return None


def _become_trainer(request: RunRequest) -> None:
    code = 1
    try:
        log = os.open(request.out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = fake_raft.main(contract_arguments(request))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
