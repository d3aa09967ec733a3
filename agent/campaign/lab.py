"""What the loop needs of the world: runs of recipes, a clock, a journal, a planner.

The loop, calibration, experiments, confirmation and ablation decide; everything that they do to the world goes through
`Lab`. There are two: `workbench.py` trains, commits and writes; `agent.simulate` draws what a training would have
measured, so that thousands of nights go through the same decisions.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agent.campaign.budget import CONFIRM_SEEDS, BudgetClock, RunCost, holdout_seconds
from agent.campaign.levels import Terms, Used
from agent.campaign.past import Past, best_first, lead_of, promising
from agent.campaign.rules import Rules
from agent.campaign.scores import Scores
from agent.campaign.verdict import Judgement, Report
from agent.contract import Split, Summary
from agent.recipe.schema import Budget, Evaluation
from agent.report.numbers import Numbers

Arm = Literal["untrained", "baseline", "search", "candidate", "incumbent", "comparator"]
"""untrained: the model as it comes, evaluated. baseline: its calibrating repeats. search: the run that is filtered.
candidate: confirming runs of an idea. incumbent: fresh confirming runs of a recipe that others challenge.
comparator: the same idea without its schedule."""

MEASURED_ON: dict[Arm, tuple[Split, ...]] = {
    "untrained": ("search",),
    "baseline": ("search",),
    "search": ("search",),
    "candidate": ("confirm", "search"),
    "incumbent": ("confirm",),
    "comparator": ("confirm",),
}
"""A candidate's confirming runs are what its challengers are filtered against once it is kept. The incumbent's fresh
runs are not: a run that let an idea through, by being a bad one, must not also confirm it."""


MANY_IDEAS = 1000
MARGIN = 0.01
"""Non-inferiority margin of a simpler or cheaper recipe where min_effect names none, in units of the metric."""


class CutShort(Exception):
    """The campaign itself ended a run: a person's wish, or the end of the budget. The run proves nothing."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Order:
    """One run of an experiment's recipe. 0 is the baseline. The lab knows the seed that goes with it."""

    experiment: int
    arm: Arm
    index: int = 0
    beside: int | None = None
    """The idea on whose behalf the incumbent runs."""


@dataclass(frozen=True)
class Health:
    """What else a run shows on a held-out split."""

    samples: int
    truncated: float
    """Share of completions that were cut."""
    tokens: float
    """Mean length of a completion."""
    distinct: float | None
    """Distinct completions / samples; None where the trainer does not tell."""
    formatted: float | None
    """Share from which an answer could be extracted."""


class Measured(Protocol):
    """A run that has come to an end of its own."""

    @property
    def key(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def crash_words(self) -> str | None:
        """`oom: ran out of memory`; None for a run with a summary."""

    @property
    def gave_up(self) -> str | None:
        """Why it was ended early, where it had become hopeless."""

    @property
    def summary(self) -> Summary | None: ...
    @property
    def ended_s(self) -> float | None:
        """Consumed seconds of the campaign when it ended."""

    def scores(self, split: str, metric: str | None = None) -> Scores | None:
        """None where it was not measured there. `metric` instead of the evaluation's own."""

    def on_the_way(self) -> Scores | None:
        """By prompt of the `search` split, what was measured when the training had spent `screen_share` of its budget;
        None where nothing was."""

    def health(self, split: str) -> Health | None: ...
    def faults(self) -> list[str]:
        """What makes its numbers invalid."""


class Lab(abc.ABC):
    """The world of one campaign."""

    rules: Rules
    evaluation: Evaluation
    budget: Budget
    """Of one training; the same for every recipe of the campaign."""
    baseline_seeds: int
    max_experiments: int | None
    target: str | None

    @property
    @abc.abstractmethod
    def clock(self) -> BudgetClock: ...

    @property
    def numbers(self) -> Numbers:
        """How what is measured is written."""
        return Numbers(self.evaluation.metric)

    # --- for people -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def say(self, text: str) -> None: ...

    @abc.abstractmethod
    def warn(self, text: str) -> None: ...

    @abc.abstractmethod
    def stop_request(self) -> str | None:
        """Why a person or a signal wants the campaign to stop now, or None."""

    def wish_to_stop(self) -> str | None:
        """Why a person wants the search to end after the idea at hand, or None; the end of the campaign comes after
        it."""
        return None

    def wish_to_pause(self) -> str | None:
        """Why a person wants the campaign to pause between two ideas, or None. From then on it is `stop_request`'s
        answer."""
        return None

    def asked_for(self) -> bool:
        """Whether an idea waits that a person asked for; `next_idea` plans it before any other."""
        return False

    # --- what is known --------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def incumbent(self) -> int:
        """Experiment number of the best recipe so far; 0 is the baseline."""

    @property
    def lead(self) -> int:
        """Experiment number of the recipe that the next ideas change; the incumbent where nothing leads."""
        return lead_of(self.past(), self.incumbent)

    @abc.abstractmethod
    def stands(self, number: int) -> bool:
        """Whether the lead's recipe has what the idea changes as the idea found it, and has not run with it."""

    def promises(self) -> list[Past]:
        """Ideas that wait to be put together and still can be, the best first."""
        lead = self.lead
        return best_first([one for one in promising(self.past()) if one.base == lead or self.stands(one.number)])

    @abc.abstractmethod
    def outcomes(self) -> Sequence[tuple[int, str]]:
        """(number, outcome) of the ideas that were judged, in that order; the baseline is not among them."""

    @abc.abstractmethod
    def open_experiment(self) -> int | None:
        """An idea that was planned and has no outcome yet."""

    @abc.abstractmethod
    def best_metric(self) -> float | None:
        """The incumbent's confirmed metric (the baseline's from its repeats), in its own direction."""

    @abc.abstractmethod
    def paused(self, number: int) -> bool:
        """Whether the idea was screened and has not gone on since."""

    def begins_anew(self, number: int) -> bool:
        """Whether the training of a paused idea starts from nothing, as its recipe has changed since."""
        return False

    @abc.abstractmethod
    def planned_against(self, number: int) -> int:
        """The experiment whose recipe the idea changes: the incumbent, or the lead, of the time of its plan."""

    def open_batches(self) -> list[list[int]]:
        """Ideas that were planned to be screened together and have not all got their outcome: an earlier session was
        ended in the middle of it."""
        return []

    @abc.abstractmethod
    def waiting(self) -> int:
        """Ideas that could be planned now."""

    @abc.abstractmethod
    def past(self) -> Sequence[Past]:
        """The ideas that were judged, in that order."""

    @abc.abstractmethod
    def is_last(self, number: int) -> bool:
        """Whether it is an experiment of the end (`endgame.py`)."""

    @abc.abstractmethod
    def is_advance(self, number: int) -> bool:
        """Whether it puts together what was promising, for others to build on (`lead.py`)."""

    @abc.abstractmethod
    def margin(self, number: int) -> float:
        """How much worse the idea may be where it is simpler or cheaper, in units of the metric."""

    @abc.abstractmethod
    def used_levels(self) -> list[Used]:
        """Of the confirmations of all ideas that were judged."""

    @abc.abstractmethod
    def title(self, number: int) -> str: ...

    @abc.abstractmethod
    def cost(self, experiment: int) -> RunCost:
        """Predicted seconds of a run of its recipe."""

    @abc.abstractmethod
    def simpler(self, number: int) -> str | None:
        """In what it is simpler than the incumbent, or None."""

    @abc.abstractmethod
    def has_comparator(self, number: int) -> bool:
        """Whether it must also beat the same recipe at a constant rate."""

    def needs_comparator(self, number: int) -> bool:
        """Whether a recipe with the idea in it will have to, once it is confirmed."""
        return self.has_comparator(number)

    def seconds_to_confirm(self, numbers: Sequence[int], *, seeds: int) -> float:
        """So many runs of each arm, for a recipe that has these in it and costs what the dearest does."""
        ours, theirs = max(self.cost(number).total_s for number in numbers), self.cost(self.incumbent).total_s
        twice = any(self.needs_comparator(number) for number in numbers if number != self.incumbent)
        return seeds * (ours + theirs + (ours if twice else 0.0))

    @abc.abstractmethod
    def touches_speed(self, number: int) -> bool:
        """Whether the idea's change may make a training faster or slower."""

    def ideas_left(self) -> int:
        """How many more ideas the budget affords, or the user allows, after the one at hand."""
        by_wish = float("inf") if self.max_experiments is None else self.max_experiments - len(self.outcomes()) - 1
        return int(max(0.0, min(self._affordable(), by_wish, MANY_IDEAS)))

    def ideas_that_fit(self) -> int:
        """By the time that is left, as the stop rule has it."""
        return int(max(0.0, min(self._affordable(), MANY_IDEAS)))

    def confirmations_to_come(self) -> float:
        """How many are expected after the one at hand: of ideas that do nothing the filter lets its level through, as
        long as they are confirmed one by one; then the lead, and what was missed."""
        if self.max_experiments is not None:
            return self.rules.filter_alpha * self.ideas_left()
        return self.rules.to_come(waiting=self.waiting(), affordable=self._affordable())

    def _affordable(self) -> float:
        """Ideas that the time allows, each of them trained whole."""
        return (self.clock.left_s - self.reserve_s) / self.cost(self.lead).total_s

    @property
    def reserve_s(self) -> float:
        """Held back for the confirmation of what comes next, and the holdout."""
        lead = self.lead
        return self.seconds_to_confirm([lead], seeds=CONFIRM_SEEDS) + holdout_seconds(self.cost(lead))

    @property
    def screen_share(self) -> float | None:
        """Share of its budget that an idea is trained for a screening; None where nothing would be told by it."""
        return self.share_that_tells() if self.rules.screen_share is None else self.rules.screen_share

    @abc.abstractmethod
    def share_that_tells(self) -> float | None:
        """Share of its budget after which a training has made `rules.screen_way` of its way; None where that is not
        known."""

    def room_for_paused(self) -> int:
        """Paused trainings that there is room for."""
        return MANY_IDEAS

    def ideas_abound(self) -> bool:
        """Whether more ideas wait than the time allows to train whole, or nearly so."""
        return self._affordable() + 1 < self.rules.scarce * self.waiting()

    # --- what is done ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def next_idea(self, *, batch: int | None = None) -> tuple[int | None, str]:
        """Plan the next idea: its number, or None and why there is none. Ideas of one `batch` are screened together."""

    @abc.abstractmethod
    def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
        """Plan one experiment of what these change, as far as they go together, the first ones first; None where none
        is left to try. It changes the incumbent, and the lead among them brings all that it has; as an advance it
        changes the lead. `of_lead`: what led is put to its confirmation."""

    @abc.abstractmethod
    def plan_again(self, number: int) -> int | None:
        """Plan a screened idea once more, to be trained whole; None where it does not go with what leads now."""

    @abc.abstractmethod
    def plan_without(self, number: int, *, margin: float) -> int | None:
        """Plan the incumbent without a kept idea; None where the idea is in it no more."""

    @abc.abstractmethod
    def commit(self, number: int) -> None:
        """Make the idea durable before its first run."""

    @abc.abstractmethod
    def run(self, order: Order) -> Measured:
        """Execute it once, or read it back. Raises CutShort, and AgentErrors that no idea can mend."""

    @abc.abstractmethod
    def screen(self, number: int) -> Measured:
        """Begin the idea's search run and pause it at `screen_share` of its budget; `run` goes on with it."""

    @abc.abstractmethod
    def fix(self, number: int, terms: Terms) -> Terms:
        """Write down what the idea's confirmation may use. Where that was done before, what stands there."""

    def fixed(self, number: int) -> Terms | None:
        """What `fix` wrote down of the idea in an earlier session; None where no confirmation of it has begun."""
        return None

    def begun(self, order: Order) -> bool:
        """An earlier session has started this run: going on, the campaign comes by here again."""
        return False

    def once(self, number: int, question: str, answer: bool) -> bool:
        """The answer to a question about an idea that hangs on the clock or the machine. Where an earlier session has
        answered it, what it said stands."""
        return answer

    def seeds_planned(self) -> int | None:
        """Of the baseline, where an earlier session has calibrated."""
        return None

    def age_s(self, run: Measured) -> float | None:
        """Seconds since the run ended: of the campaign's own time, or more where the campaign has rested since."""
        return None if run.ended_s is None else self.clock.consumed_s - run.ended_s

    def set_aside(self, run: Measured, why: str) -> None:
        """Write down that the run of a confirmation counts for nothing, so that a later session knows."""
        self.say(f"  {run.key} does not count: {why}")

    @abc.abstractmethod
    def again(self, run: Measured, order: Order) -> Measured:
        """Evaluate what the run delivered once more, in a process of its own."""

    @abc.abstractmethod
    def calibrated(self, values: dict[str, Any]) -> None:
        """Write down what the baseline's repeats say."""

    @abc.abstractmethod
    def watch(self, number: int, search: Measured, *, probe: bool) -> list[Report]:
        """Read what the hypothesis says should be watched; `probe` allows evaluations for it."""

    @abc.abstractmethod
    def conclude(self, number: int, judgement: Judgement) -> None:
        """Write the outcome down where it lasts."""
