"""An open campaign: everything its steps share. Holds no decisions."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.campaign.budget import BudgetClock, RunCost
from agent.campaign.limits import KnownLimit, Limits, contradicted
from agent.campaign.lockbox import Lockbox
from agent.campaign.observer import Board, Observer
from agent.campaign.past import lead_now
from agent.campaign.pausing import NOW, asked_to_pause
from agent.campaign.recipes import texts_of
from agent.campaign.seal import Seal
from agent.campaign.settings import Settings
from agent.campaign.standing import standing
from agent.contract import DECLINE, NO_STEP, TIME_LIMIT
from agent.errors import AgentError, RecipeError, ResourceError, WorkspaceError
from agent.files import Stamp, write_atomic
from agent.hardware.probe import Machine
from agent.ledger.consumed import Timekeeper
from agent.ledger.events import RunFinished
from agent.ledger.git import CampaignBranches, Repository
from agent.ledger.journal import CampaignState, Experiment, Journal
from agent.plan.memory import Moves
from agent.plan.schema import Playbook
from agent.plan.steer import Steering
from agent.recipe import places
from agent.recipe.files import EXTENDS, load_mapping, load_recipe, with_keys
from agent.recipe.reading import read_text, read_yaml
from agent.recipe.schema import Evaluation, Recipe
from agent.report.numbers import Numbers
from agent.report.snapshot import Snapshot
from agent.run.remedies import moved_keys
from agent.run.signatures import Rules, rules_of
from agent.text import keep_secret

FIRST_OVERHEAD_S = {"builtin:tiny": 8.0}
"""Start and load of a run before one was measured; other models take longer to load."""
OTHER_OVERHEAD_S = 30.0
FIRST_EVALUATION_SHARE = 0.15
EARLY = (NO_STEP, DECLINE)
"""Ways of a training to end that leave part of its budget."""
RENEWING = frozenset({"calibrated", "experiment_recorded", "campaign_paused", "campaign_finished"})
"""Events after which the report is renewed."""
GUESSED_TOKENS_PER_S = {"tiny": 10_000.0, "cpu": 200.0, "cuda": 4000.0, "rocm": 2000.0}


@dataclass
class Session:
    settings: Settings
    workspace: Path
    folder: Path
    """`.raft/campaigns/<name>`."""
    runs_folder: Path
    table: Path
    cache: Path
    journal: Journal
    repository: Repository
    machine: Machine
    playbook: Playbook
    observer: Observer
    clock: BudgetClock
    branches: CampaignBranches | None = None
    stop_request: Callable[[], str | None] = lambda: None
    """Why a signal wants the campaign to stop now, or None; `why_stop` knows of other ways to ask."""
    renew: Callable[[], None] = lambda: None
    """Told whenever the report should be renewed; returns at once."""
    only_reads: bool = False
    """It is of somebody who looks at a campaign beside it: the journal and the runs stay as they are."""
    estimate: float | None = None
    """The incumbent's metric from all its fresh runs, once there are enough; that of its verdict before."""
    table_trouble: str | None = None
    """Why results.tsv could not be written last, in words."""
    stood_on: Path | None = None
    """Checkout of the user's that was last seen on `best`."""
    steering: tuple[Stamp | None, Steering] | None = field(default=None, repr=False)
    """What `steer.md` said, and which writing of it that was (`steering.py`)."""
    _recipes: dict[tuple[tuple[str, str], ...], Recipe] = field(default_factory=dict, repr=False)
    _timekeeper: Timekeeper | None = field(default=None, repr=False)

    @property
    def state(self) -> CampaignState:
        """What the journal adds up to; what is told changes it."""
        return self.journal.current()

    def tell(self, kind: str, **fields: Any) -> None:
        """Append to the journal."""
        assert not self.only_reads, f"{kind} in the journal of a campaign that is only looked at"
        self.journal.append(kind, **fields)
        if kind in RENEWING:
            self.renew()

    def tell_if_possible(self, kind: str, **fields: Any) -> None:
        """For words that nothing depends on, where the disk may be what is wrong."""
        with contextlib.suppress(ResourceError):
            self.tell(kind, **fields)

    def why_stop(self) -> str | None:
        """Why a person or a signal wants the campaign to stop now, or None. Asked several times a second."""
        asked = self.stop_request()
        if asked is None and asked_to_pause(self.folder) == NOW:
            return NOW
        return asked

    def keep_time(self) -> None:
        """From now on the seconds consumed are on the disk at any moment; `close` ends it."""
        self._timekeeper = Timekeeper(self.journal.path, lambda: self.clock.consumed_s).start()

    def close(self) -> None:
        if self._timekeeper is not None:
            self._timekeeper.close()

    # --- recipes as the campaign's commits hold them --------------------------------------------------------

    @property
    def recipe_path(self) -> str:
        return self.settings.recipe_path

    def start_files(self) -> dict[str, str]:
        started = self.state.started
        if started is None:
            return collect_files(self.workspace, self.recipe_path)
        return started.files or {started.recipe_path: started.recipe}

    def files_of(self, experiment: int) -> dict[str, str]:
        """All recipe files as an experiment's branch holds them; 0 is the baseline."""
        return texts_of(self.state, experiment) or self.start_files()

    def recipe_of(self, experiment: int) -> Recipe:
        """The validated recipe of an experiment, without the shared layer. RecipeError where it is not valid."""
        return self.recipe_from(self.files_of(experiment), label=f"{experiment:03d}")

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """How every run of the campaign is measured."""
        return self.recipe_of(0).evaluation

    @property
    def numbers(self) -> Numbers:
        """How what is measured is written."""
        return Numbers(self.evaluation.metric)

    @functools.cached_property
    def lockbox(self) -> Lockbox:
        """What the campaign measures by. Ask for it once the journal says how it was started."""
        return Lockbox(self)

    @functools.cached_property
    def seal(self) -> Seal:
        """Digests of the journal."""
        return Seal(self.journal)

    def recipe_from(self, files: Mapping[str, str], *, label: str) -> Recipe:
        """Load a recipe from texts by path, through real files, so that messages name file and line. The same texts are
        loaded once."""
        content = tuple(sorted(files.items()))
        if content not in self._recipes:
            self._recipes[content] = self._load(files, label)
        return self._recipes[content]

    def _load(self, files: Mapping[str, str], label: str) -> Recipe:
        folder = self.folder / "recipes" / label
        shutil.rmtree(folder, ignore_errors=True)
        for path, text in files.items():
            write_atomic(inside(folder, path), text)
        try:
            recipe = load_recipe(folder / self.recipe_path, root=folder)
            keep_secret(recipe.task.verifier.environment)
            return recipe
        except RecipeError as error:
            error.where = (error.where or "").replace(f"{folder}/", "")
            raise

    def with_shared_layer(self, recipe: Recipe) -> Recipe:
        """The recipe as it will run: with the changes that a backend fault made for all runs."""
        values = self.state.shared_values
        return with_keys(recipe, values) if values else recipe

    @property
    def incumbent(self) -> int:
        """Experiment number of the best recipe so far; 0 is the baseline."""
        known = self.state.incumbent
        return known.experiment or 0 if known else 0

    @property
    def lead(self) -> int:
        """Experiment whose recipe the next ideas change; the incumbent where nothing leads."""
        return lead_now(self.state)

    def base_of(self, number: int) -> int:
        """The experiment whose recipe this one changes."""
        planned = self.state.experiments[number].planned
        return (planned.incumbent if planned else None) or 0

    def moves_between(self, before: int, after: int) -> Moves:
        """What an experiment's recipe has other than another's; nothing where one of the two is not valid."""
        try:
            return moved_keys(self.recipe_of(before), self.recipe_of(after))
        except AgentError:
            return {}

    # --- what crashes have taught ----------------------------------------------------------------------------

    @functools.cached_property
    def rules(self) -> Rules:
        """Of triage: the workspace's own before ours. Raises InvalidFile."""
        return rules_of(self.playbook.folder)

    @functools.cached_property
    def limits(self) -> Limits:
        """What is known not to fit on this machine, from all campaigns."""
        return Limits.read(self.cache, self.machine)

    def limit_against(self, recipe: Recipe, *, free_gb: float | None) -> KnownLimit | None:
        """A limit that says that this recipe does not fit here; None also where recipes that have run contradict it."""
        known = self.limits.binding(recipe, free_gb=free_gb)
        return None if known is None or contradicted(known.limit, self.ran_well()) else known

    def ran_well(self) -> list[Recipe]:
        """Recipes of this campaign of which a run has ended with a summary."""
        good = {
            run.experiment or 0
            for run in self.state.runs.values()
            if run.finished and run.finished.summary and run.words and run.words.arm not in ("probe", "untrained")
        }
        found = []
        for number in sorted(good):
            try:
                found.append(self.with_shared_layer(self.recipe_of(number)))
            except AgentError:
                continue
        return found

    # --- time -----------------------------------------------------------------------------------------------

    def cost(self, recipe: Recipe, *, else_of: Sequence[Recipe] = ()) -> RunCost:
        """Predicted seconds of a run of this recipe: medians of what was measured, of its own runs where it has any,
        else of those of the first of `else_of` that has, else of all. A first guess where nothing was measured."""
        told = self._in_one_go()
        trained = [(event, summary) for _, event, summary in told if summary.get("train_s")]
        for one in (recipe, *else_of):
            signature = self.with_shared_layer(one).signature()
            own = [(event, summary) for of, event, summary in told if of == signature and summary.get("train_s")]
            if any(summary.get("ended_by") not in EARLY for _, summary in own):
                trained = own
                break
        if not trained:
            overhead = FIRST_OVERHEAD_S.get(recipe.model.source, OTHER_OVERHEAD_S)
            train = recipe.budget.train_seconds or self._guessed_seconds(recipe)
            return RunCost(overhead, train, FIRST_EVALUATION_SHARE * train, guessed=True)
        evaluate = statistics.median(float(summary.get("evaluate_s") or 0.0) for _, summary in trained)
        rest = statistics.median(
            (event.elapsed_s or 0.0) - float(summary["train_s"]) - float(summary.get("rung_s") or 0.0)
            for event, summary in trained
        )
        whole = _trained_s(trained, but=(*EARLY, TIME_LIMIT)) or _trained_s(trained, but=EARLY)
        # Trainings that ended early say what a run costs beside its training, no more; and one that its time limit
        # ended tells what a training takes only where that ends all of them.
        train = statistics.median(whole) if whole else recipe.budget.train_seconds or self._guessed_seconds(recipe)
        evaluations = [(event, summary) for _, event, summary in told if summary.get("ended_by") == "evaluated"]
        alone = [(event.elapsed_s or 0.0, summary) for event, summary in evaluations]
        cost = RunCost(max(0.0, rest - evaluate), train, evaluate)
        return replace(cost, alone_s=evaluation_alone(recipe.evaluation, alone, most_s=cost.overhead_s))

    def _in_one_go(self) -> list[tuple[str, RunFinished, dict[str, Any]]]:
        """(signature of its recipe, end, summary) of each run that was neither stopped nor went on where another start
        had stopped: a part of a training does not tell what a whole one costs."""
        runs = [run for run in self.state.runs.values() if run.words]
        starts = Counter(run.words.out for run in runs if run.words)
        return [
            (run.words.recipe_signature or "", run.finished, run.finished.summary)
            for run in runs
            if run.words and starts[run.words.out] == 1 and run.words.arm != "probe"
            and run.finished and run.finished.summary and not run.finished.summary.get("stopped")
        ]  # fmt: skip

    def _guessed_seconds(self, recipe: Recipe) -> float:
        """Of a training whose budget is tokens or cycles. Only for a first plan; nothing is refused on a guess."""
        rollout, budget = recipe.rollout, recipe.budget
        a_cycle = rollout.prompts_per_cycle * rollout.samples_per_prompt * rollout.max_new_tokens
        tokens = budget.tokens or (budget.cycles or 1) * a_cycle
        if recipe.model.source == "builtin:tiny":
            return tokens / GUESSED_TOKENS_PER_S["tiny"]
        return tokens / GUESSED_TOKENS_PER_S[self.machine.kind]

    def board(self) -> Board:
        told, best = self.snapshot(), self.incumbent
        planned = self.state.experiments[best].planned if best else None
        return Board(
            campaign=self.settings.campaign,
            left_s=self.clock.left_s,
            consumed_s=self.clock.consumed_s,
            ideas=told.counts["ideas"],
            kept=told.counts["keep"],
            metric=told.metric,
            arms=told.arms,
            best_is=f"#{best} {planned.hypothesis if planned else ''}".strip() if best else "baseline",
            lead=told.lead,
            lead_is=f"#{told.lead_number}" if told.lead_number is not None else "",
            snapshot=told,
        )

    def snapshot(self) -> Snapshot:
        """For a live view."""
        name, now = self.settings.campaign, self.journal.clock()
        told = standing(self.state, name=name, at=now, process=os.getpid())
        left = self.clock.left_s
        return replace(
            told,
            used_s=self.clock.consumed_s,
            left_s=max(0.0, left) if math.isfinite(left) and told.state != "finished" else None,
        )


def _trained_s(runs: Sequence[tuple[RunFinished, Mapping[str, Any]]], *, but: Sequence[str]) -> list[float]:
    """Seconds of training of those that did not end in one of these ways."""
    return [float(summary["train_s"]) for _, summary in runs if summary.get("ended_by") not in but]


def evaluation_alone(
    evaluation: Evaluation, runs: Sequence[tuple[float, Mapping[str, Any]]], *, most_s: float
) -> float | None:
    """Seconds of a run that only evaluates search or holdout, whichever is larger, from (elapsed, summary) of others.

    Its start counts with at most `most_s`, what a training takes beside training and evaluation: the first evaluation
    of a campaign may have fetched or bootstrapped the model, which happens once. None without a run to go by.
    """
    if not runs:
        return None
    evaluate = statistics.median(float(summary.get("evaluate_s") or 0.0) for _, summary in runs)
    start = statistics.median(elapsed - float(summary.get("evaluate_s") or 0.0) for elapsed, summary in runs)
    larger = max(1.0, evaluation.holdout_prompts / evaluation.search_prompts)
    return min(start, most_s) + evaluate * larger


def inside(folder: Path, path: str) -> Path:
    """Where a file of the workspace lies below another folder. Raises WorkspaceError for a path that leaves it, by its
    name or by a link."""
    try:
        return places.inside(folder, path, key="path")
    except RecipeError:
        raise WorkspaceError("leaves the workspace", where=path, hint="name a file inside of it") from None


def collect_files(workspace: Path, recipe_path: str) -> dict[str, str]:
    """The recipe and everything it extends, as texts by path relative to the workspace.

    Raises RecipeError for an invalid chain, or one that leaves the workspace: its commits could not hold it.
    """
    load_mapping(workspace / recipe_path, root=workspace)  # refuses a missing parent, or a circle
    files: dict[str, str] = {}
    path = workspace / recipe_path
    while True:
        _refuse_link(path, workspace)
        path = path.resolve()
        if not path.is_relative_to(workspace.resolve()):
            raise RecipeError(
                "lies outside the workspace", where=str(path), hint="copy it into recipes/ and extend the copy"
            )
        text = read_text(path)
        files[path.relative_to(workspace.resolve()).as_posix()] = text
        parent = read_yaml(text, where=str(path)).get(EXTENDS)
        if parent is None:
            return files
        path = Path(os.path.normpath(path.parent / parent))


def _refuse_link(path: Path, workspace: Path) -> None:
    """A commit would hold the text, and what the link leads to would be the recipe."""
    for part in (path, *path.parents):
        if part == workspace or not part.is_relative_to(workspace):
            return
        if part.is_symlink():
            raise RecipeError(
                f"is a symbolic link (to {part.readlink()}), which could lead elsewhere in mid-campaign",
                where=str(part),
                hint="name the file itself, or copy it",
            )


def title(experiment: Experiment) -> str:
    """`#3 learning-rate: raise the rate, 0.0005 -> 0.001`."""
    planned = experiment.planned
    return f"#{experiment.number} {planned.subject if planned else ''}".strip()


def run_key(parts: Iterable[object]) -> str:
    """A name for a run and its folder: `003-search-s1003`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(str(part) for part in parts if part not in (None, "")))
