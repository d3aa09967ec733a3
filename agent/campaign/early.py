"""Ends a training before its time: paused after the first part of its budget, or given up because it cannot win; and
how long that part has to be.

Giving up is for the clear cases. A training is hopeless when, measured on the same `select` prompts at the same share
of the budget, it lies so far below the incumbent's runs that it would have to gain more than twice what they gained
from there to their end; or when, in its final evaluation, the prompts that were answered so far put it below them.
Both at a level of a few percent, at a few fixed places, because a late bloomer that is stopped is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agent.campaign.comparison import RunNoise, compare, group_noise
from agent.campaign.scores import FEWEST_PROMPTS, Scores, scores_of, select_scores
from agent.campaign.stopping import HOPELESS, PAUSED
from agent.contract import EvalRow, SelectRow
from agent.recipe.schema import Evaluation
from agent.report.numbers import Numbers
from agent.run.telemetry import Tail, follow_evals, follow_rung, follow_select

PLACES = (0.25, 0.5, 0.75)
"""Shares of the training budget, and of the held-out prompts, after which a training is looked at."""
LEVEL = 0.02
"""One-sided, of each look."""
WINDOW = 3
"""Measurements of `select` that are averaged at each place."""
LOOK_EVERY_S = 1.0
FEWEST_MEASUREMENTS = 5
STEPS = 20
ROUNDING = 1e-9


def share_that_tells(rows: Sequence[SelectRow], evaluation: Evaluation, *, way: float) -> float | None:
    """Share of its budget after which a training has made this part of its way, in twentieths; None where its
    measurements on `select` do not tell, or it went nowhere.

    The curve is the one of those that never fall which lies nearest (isotonic regression): each measurement is of few
    prompts.
    """
    known = [(row.budget_spent or 0.0, found.mean) for row in rows if (found := select_scores([row], evaluation))]
    if len(known) < FEWEST_MEASUREMENTS:
        return None
    shares, values = np.array(sorted(known)).T
    from scipy import optimize

    curve = optimize.isotonic_regression(values).x
    if curve[-1] - curve[0] <= ROUNDING:
        return None
    reached = shares[np.argmax(curve >= curve[0] + way * (curve[-1] - curve[0]) - ROUNDING)]
    return math.ceil(float(reached) * STEPS - ROUNDING) / STEPS


class Pause:
    """Ends a training once it has measured the `search` split on its way, at this share of its budget."""

    is_pause = True

    def __init__(self, share: float):
        self.share = share
        self._rung: Tail[SelectRow] | None = None

    def why(self, out: Path) -> str | None:
        if self._rung is None:
            self._rung = follow_rung(out)
        self._rung.read()
        return f"{PAUSED} at {self.share:.0%} of its budget" if self._rung.rows else None


class Hopeless:
    """Gives a training up that cannot win against the incumbent's runs any more."""

    is_pause = False

    def __init__(
        self,
        evaluation: Evaluation,
        *,
        curves: Sequence[Sequence[SelectRow]],
        scores: Sequence[Scores],
        noise: RunNoise | None,
        margin: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`curves`: what each of the incumbent's runs measured on `select`; `scores`: on search. `margin`: by how much
        the training may be worse and still be kept, for being simpler or cheaper."""
        self.evaluation = evaluation
        self.numbers = Numbers(evaluation.metric)
        self.curves = [list(curve) for curve in curves if curve]
        self.scores = list(scores)
        self.noise = noise
        self.margin = margin
        self.clock = clock
        self._looked_at: set[tuple[str, float]] = set()
        self._next = 0.0
        self._select: Tail[SelectRow] | None = None
        self._evals: Tail[EvalRow] | None = None

    def why(self, out: Path) -> str | None:
        if self.clock() < self._next:
            return None
        self._next = self.clock() + LOOK_EVERY_S
        return self._in_training(out) or self._in_evaluation(out)

    # --- while it trains ------------------------------------------------------------------------------------

    def _in_training(self, out: Path) -> str | None:
        if self._select is None:
            self._select = follow_select(out)
        if len(self.curves) < 2 or not self._select.read():
            return None
        rows = sorted(self._select.rows.values(), key=lambda row: row.cycle)
        spent = rows[-1].budget_spent or 0.0
        place = max((place for place in PLACES if place <= spent), default=None)
        if place is None or ("train", place) in self._looked_at:
            return None
        self._looked_at.add(("train", place))
        ours = window(rows, spent, self.evaluation)
        theirs = [one for curve in self.curves if (one := window(curve, spent, self.evaluation)) is not None]
        ends = [one for curve in self.curves if (one := window(curve, 1.0, self.evaluation)) is not None]
        if ours is None or len(theirs) < 2 or not ends:
            return None
        still_to_come = max(0.0, _mean(ends) - _mean(theirs))
        found = compare([ours], theirs, group_noise(theirs))
        if found.upper(LEVEL) >= -still_to_come - self.margin:
            return None
        behind, gain = self.numbers.difference(found.delta), self.numbers.difference(still_to_come)
        return (
            f"{HOPELESS}: given up at {spent:.0%} of the training budget, {behind} on select where the incumbent's "
            f"runs gain {gain} from there"
        )

    # --- while it is evaluated ------------------------------------------------------------------------------

    def _in_evaluation(self, out: Path) -> str | None:
        if self._evals is None:
            self._evals = follow_evals(out)
        if not self.scores or not self._evals.read():
            return None
        ours = scores_of(list(self._evals.rows.values()), split="search", evaluation=self.evaluation)
        if ours is None or len(ours.ids) < FEWEST_PROMPTS:
            return None
        share = len(ours.ids) / self.evaluation.search_prompts
        place = max((place for place in PLACES if place <= share), default=None)
        if place is None or share >= 1 or ("evaluate", place) in self._looked_at:
            return None
        self._looked_at.add(("evaluate", place))
        found = compare([ours], self.scores, self.noise)
        if found.upper(LEVEL) >= -self.margin:
            return None
        answered = f"{found.prompts} of {self.evaluation.search_prompts} held-out prompts"
        return f"{HOPELESS}: given up after {answered}, {self.numbers.difference(found.delta)}"


def window(rows: Sequence[SelectRow], spent: float, evaluation: Evaluation) -> Scores | None:
    """The last WINDOW measurements up to this share of the budget, cycle 0 left out."""
    known = [row for row in rows if row.cycle > 0 and (row.budget_spent or 0.0) <= spent + 1e-9]
    return select_scores(known[-WINDOW:], evaluation)


def _mean(runs: Sequence[Scores]) -> float:
    return sum(run.mean for run in runs) / len(runs)
