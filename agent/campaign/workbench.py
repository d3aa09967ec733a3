"""The lab that trains: every order becomes a process, a line in the journal, a commit, a row.

Decides nothing. The loop asks for runs and says what came of them; how a run is repaired is in `repair.py`, how an
outcome is written in `record.py`, which idea comes next in `choose.py`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

from agent.campaign import announce, choose, steering
from agent.campaign.budget import BudgetClock, RunCost
from agent.campaign.calibration import known_better
from agent.campaign.direction import as_measured
from agent.campaign.done import Done
from agent.campaign.early import Hopeless, Pause, share_that_tells
from agent.campaign.endgame import last_chance
from agent.campaign.evidence import Evidence, arm_scores
from agent.campaign.finish import tidy_checkpoints
from agent.campaign.health import unmeasured
from agent.campaign.jobs import arm_of, confirming, second_look, seed_of, untrained, words_for
from agent.campaign.lab import MANY_IDEAS, MARGIN, MEASURED_ON, Arm, Lab, Measured, Order
from agent.campaign.levels import Terms, Used
from agent.campaign.past import Past, past_of
from agent.campaign.pausing import asked_to_pause
from agent.campaign.record import bring_rows_in, judge, record
from agent.campaign.repair import (
    commit_experiment,
    evaluate_with_repairs,
    refuse_what_every_run_meets,
    train_with_repairs,
)
from agent.campaign.rules import Rules
from agent.campaign.runs import Early, Runner, key_of
from agent.campaign.search import EXHAUSTED
from agent.campaign.session import Session, title
from agent.campaign.stairs import number_in
from agent.campaign.stopping import PAUSED
from agent.campaign.taint import note_pace
from agent.campaign.verdict import Judgement, Report
from agent.campaign.watches import watch
from agent.contract import CHECKPOINT
from agent.errors import AgentError, TrainingFailed
from agent.hardware.sensors import GIB, disk_free
from agent.ledger.events import RunPlanned, RunStarted
from agent.plan.planner import Ranking
from agent.recipe.change import touches_speed
from agent.recipe.schema import Recipe

SPARE_DISK_GB = 5.0
"""Left free by trainings that are paused."""
PAUSED_TO_CHECKPOINT = 6
"""A paused training takes at most so many times the bytes of what it delivers: it, and a state of its weights, the
optimizer's moments and the best weights in full precision."""


class Workbench(Lab):
    def __init__(self, session: Session, runner: Runner | None = None, *, rules: Rules | None = None):
        self.session = session
        self.runner = runner or Runner(session)
        self.rules = rules or Rules()
        self.evidence: Evidence[Done] = Evidence()
        self._pausing: str | None = None
        """Why a person wants a pause that has begun."""
        self._first: Done | None = None
        """Of the baseline."""
        self._ranked: tuple[tuple[Any, ...], Ranking] | None = None
        self.last_ranking: choose.Ranked | None = None
        """The one that was made last, for the report's thread."""
        self._known: tuple[int, list[Past], list[Past] | None] | None = None
        """What was judged and what waits, as of a line of the journal."""
        self.evaluation = session.evaluation
        self.budget = session.recipe_of(0).budget
        self.baseline_seeds = session.settings.baseline_seeds
        self.max_experiments = session.settings.max_experiments
        self.target = session.settings.target

    def close(self) -> None:
        """No further run will come."""
        self.runner.close()
        self.session.close()

    @property
    def clock(self) -> BudgetClock:
        return self.session.clock

    # --- for people -----------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self.session.observer.say(text)

    def warn(self, text: str) -> None:
        self.session.observer.warn(text)

    def stop_request(self) -> str | None:
        return self.session.why_stop() or self._pausing

    def wish_to_stop(self) -> str | None:
        steering.tell_changes(self.session)
        return steering.stop(self.session)

    def wish_to_pause(self) -> str | None:
        steering.tell_changes(self.session)
        self._pausing = asked_to_pause(self.session.folder) or steering.pause(self.session)
        return self._pausing

    def asked_for(self) -> bool:
        steering.tell_changes(self.session)
        return bool(steering.to_do(self.session, "try"))

    # --- what is known --------------------------------------------------------------------------------------

    @property
    def incumbent(self) -> int:
        return self.session.incumbent

    def recipe_of(self, experiment: int) -> Recipe:
        return self.session.recipe_of(experiment)

    def outcomes(self) -> Sequence[tuple[int, str]]:
        state = self.session.state
        return [(number, state.experiments[number].outcome or "") for number in state.judged_order if number > 0]

    def has_baseline(self) -> bool:
        baseline = self.session.state.experiments.get(0)
        return baseline is not None and baseline.judged is not None

    def open_experiment(self) -> int | None:
        for number, experiment in sorted(self.session.state.experiments.items()):
            if number > 0 and experiment.planned and experiment.judged is None:
                return number
        return None

    def best_metric(self) -> float | None:
        """Better known with each fresh run of the incumbent, which were not chosen for their result."""
        number = self.incumbent
        runs = self.evidence.fresh_incumbent(number) if number else self.evidence.baseline()
        scores = arm_scores(runs, "confirm" if number else "search")
        if number and len(scores) < self.rules.confirm_seeds:
            judged = self.session.state.experiments[number].judged
            return judged.row.get("metric_value") if judged else None
        if not scores:
            return None
        return as_measured(statistics.fmean(run.mean for run in scores), minimize=self.evaluation.minimize)

    def used_levels(self) -> list[Used]:
        state = self.session.state
        judged = [state.experiments[number].judged for number in state.judged_order]
        told = [(event.numbers.get("level"), event.outcome == "keep") for event in judged if event]
        return [Used(float(level), kept) for level, kept in told if level is not None]

    def title(self, number: int) -> str:
        return title(self.session.state.experiments[number])

    def cost(self, experiment: int) -> RunCost:
        """By its own runs; before it has any, by those of what it changes: its idea may cost more, and the rest of what
        it has does."""
        chain = [experiment]
        while chain[-1]:
            chain.append(self.session.base_of(chain[-1]))
        first, *others = (self.recipe_of(number) for number in chain)
        return self.session.cost(first, else_of=others)

    def simpler(self, number: int) -> str | None:
        without = self._planned(number).get("without")
        if without is not None:
            return f"without #{without}"
        fewer = overrides(self.recipe_of(self.incumbent)) - overrides(self.recipe_of(number))
        return f"{fewer} setting{'s' if fewer > 1 else ''} fewer that differ from the defaults" if fewer > 0 else None

    def margin(self, number: int) -> float:
        return float(self._planned(number).get("margin") or self.evaluation.min_effect or MARGIN)

    def is_last(self, number: int) -> bool:
        planned = self._planned(number)
        return (bool(planned.get("together")) and not planned.get("advance")) or planned.get("without") is not None

    def is_advance(self, number: int) -> bool:
        return bool(self._planned(number).get("advance"))

    def past(self) -> Sequence[Past]:
        seq = self.session.state.last_seq
        if self._known is None or self._known[0] != seq:
            self._known = seq, past_of(self.session.state), None
        return self._known[1]

    def promises(self) -> list[Past]:
        past = self.past()
        if self._known is None or self._known[2] is None:
            self._known = self.session.state.last_seq, list(past), super().promises()
        return list(self._known[2] or ())

    def paused(self, number: int) -> bool:
        experiment = self.session.state.experiments[number]
        ended = [run.finished for run in experiment.attempt if run.finished]
        in_batch = self._planned(number).get("batch") is not None
        return in_batch and bool(ended) and ended[-1].ended_by == "stop" and ended[-1].reason.startswith(PAUSED)

    def begins_anew(self, number: int) -> bool:
        started = [run.words for run in self.session.state.experiments[number].attempt if run.words]
        now = self.session.with_shared_layer(self.recipe_of(number)).signature()
        return bool(started) and started[-1].recipe_signature != now

    def planned_against(self, number: int) -> int:
        return self.session.base_of(number)

    def stands(self, number: int) -> bool:
        return announce.stands(self.session, number, self.recipe_of(self.lead))

    def open_batches(self) -> list[list[int]]:
        batches: dict[int, list[int]] = {}
        for number in sorted(self.session.state.experiments):
            batch = self._planned(number).get("batch")
            if batch is not None:
                batches.setdefault(batch or number, []).append(number)
        experiments = self.session.state.experiments
        return [batch for batch in batches.values() if any(experiments[number].judged is None for number in batch)]

    def waiting(self) -> int:
        return len({proposal.hypothesis for proposal in self._ranking().proposals})

    def _ranking(self) -> Ranking:
        """The planner takes up to a second, and the loop asks several times an idea: once a state of the journal, and a
        writing of steer.md."""
        known = (self.session.state.last_seq, self.evidence.count, steering.in_force(self.session))
        if self._ranked is None or self._ranked[0] != known:
            self._ranked = known, choose.rank(self.session, self.evidence)
            self._rank_for_report(self._ranked[1])
        return self._ranked[1]

    def rank_anew(self) -> None:
        """So that `last_ranking` is of things as they stand. That it fails fails nothing: it is for the report."""
        with contextlib.suppress(Exception):
            self._ranking()

    def _rank_for_report(self, ranking: Ranking) -> None:
        """A report is never worth a night either."""
        before = self.last_ranking
        with contextlib.suppress(Exception):
            self.last_ranking = choose.rank_for_report(self.session, ranking)
            if before is None or before.judged != self.last_ranking.judged:
                self.session.renew()  # the report that came with the verdict could not say yet what is next

    def room_for_paused(self) -> int:
        """By the disk, and what the incumbent's runs have delivered; without any the first save will tell."""
        for run in self.evidence.search_runs(self.incumbent):
            size = sum(file.stat().st_size for file in (run.record.out / CHECKPOINT).glob("*") if file.is_file())
            if size:
                free = disk_free(self.session.runs_folder)
                return int(max(0.0, free - SPARE_DISK_GB) * GIB / (PAUSED_TO_CHECKPOINT * size))
        return MANY_IDEAS

    def has_comparator(self, number: int) -> bool:
        return bool(self._planned(number).get("comparator"))

    def needs_comparator(self, number: int) -> bool:
        return announce.needs_comparator(self.session, number)

    def touches_speed(self, number: int) -> bool:
        """Where the budget is tokens or cycles, speed changes nothing that is measured."""
        if self.recipe_of(0).budget.train_seconds is None:
            return True
        planned = self.session.state.experiments[number].planned
        fixed = bool(self.session.state.experiments[number].fixes)
        return fixed or planned is None or touches_speed(planned.changes)

    def _planned(self, number: int) -> dict[str, Any]:
        planned = self.session.state.experiments[number].planned
        return dict(planned.model_extra or {}) if planned else {}

    # --- before the first idea ------------------------------------------------------------------------------

    def plan_baseline(self) -> None:
        """The baseline is experiment 0: the null change, a row like any other."""
        session = self.session
        if 0 not in session.state.experiments or session.state.experiments[0].planned is None:
            session.tell(
                "experiment_planned",
                experiment=0,
                hypothesis="baseline",
                axis="baseline",
                slug="baseline",
                subject="baseline",
                files={},
                recipe_signature=session.recipe_of(0).signature(),
            )
        self.commit(0)

    def gather(self) -> None:
        """Read back what earlier sessions of the campaign measured, in the order of time. What was measured for the
        verdict on an idea that is still open is read back when the verdict comes to it again. A session that only reads
        leaves out what was changed since; the campaign's own writes that down."""
        told = [note.model_extra or {} for note in self.session.state.notes]
        stands = self._stands()
        self.evidence.aside |= {note["set_aside"]: note["why"] for note in told if "set_aside" in note}
        for key, words in self.runner.finished_well():
            arm = arm_of(words)
            number = number_in(key)
            if arm is None or self._is_of_open_verdict(number, arm, words):
                continue
            run = self.runner.read_back(key)
            if arm != "baseline" and not (arm == "search" and self._is_open(number)):
                note_pace(self, self.evidence, number, run)
            if not self._counts(number, arm, key):
                continue
            if unmeasured(run, MEASURED_ON[arm][0]) is None:
                self.evidence.add(run, experiment=number, arm=arm)
                self._keep_scores_alone(number, stands)
        self.session.estimate = self.best_metric()

    def _is_of_open_verdict(self, number: int, arm: Arm, words: RunPlanned | RunStarted) -> bool:
        """An incumbent's run is of the confirmation that was the last to begin before it."""
        if arm != "incumbent":
            return arm in ("candidate", "comparator") and self._is_open(number)
        begun = [note for note in self.session.state.notes if "confirmation_of" in (note.model_extra or {})]
        beside = [note for note in begun if note.seq < words.seq]
        return bool(beside) and self._is_open((beside[-1].model_extra or {})["confirmation_of"])

    def _counts(self, number: int, arm: Arm, key: str) -> bool:
        """Not what was set aside, nor a search run whose speed was off and that was repeated; that of an open idea is
        looked at when its turn comes."""
        if arm != "search":
            return key not in self.evidence.aside
        judged = self.session.state.experiments[number].judged if not self._is_open(number) else None
        told = (judged.numbers.get("runs") or {}).get("search") if judged else []
        return told is None or key in told

    def _is_open(self, number: int) -> bool:
        experiment = self.session.state.experiments.get(number)
        return experiment is None or experiment.judged is None

    def settle(self) -> None:
        """Write down what an earlier session judged and did not record, and what the table has lost since."""
        for number in list(self.session.state.judged_order):
            if self.session.state.experiments[number].recorded is None:
                record(self.session, number)
        bring_rows_in(self.session)

    # --- what is done ---------------------------------------------------------------------------------------

    def next_idea(self, *, batch: int | None = None) -> tuple[int | None, str]:
        steering.tell_changes(self.session)
        asked = self._asked_idea() if batch is None else None
        if asked is not None:
            return asked, ""
        ranking = self._ranking()
        proposal = choose.first_other(ranking, self.session)
        if proposal is None:
            return None, f"{EXHAUSTED}: {ranking.note}"
        if not batch:
            self.say(choose.explain(ranking))
        under = steering.planned_under(self.session)
        return announce.announce(self.session, proposal, base=self.lead, batch=batch, **under), ""

    def _asked_idea(self) -> int | None:
        """The first idea that a person asks for and that may be tried, planned. Those before it are refused in words;
        either way each is done with."""
        for instruction in steering.to_do(self.session, "try"):
            proposal, why_not = choose.asked_of(self.session, self.evidence, instruction)
            if proposal is not None:
                self.say(f"{instruction.words}: {proposal.subject}")
                return announce.announce(
                    self.session, proposal, base=self.lead, **{steering.DONE: instruction.text}
                )  # fmt: skip
            words = f"{instruction.words} is not tried: {why_not}"
            self.warn(words)
            steering.is_done(self.session, instruction, words)
        return None

    def plan_together(self, numbers: Sequence[int], *, advance: bool = False, of_lead: bool = False) -> int | None:
        return announce.announce_together(self.session, numbers, advance=advance, of_lead=of_lead)

    def plan_again(self, number: int) -> int | None:
        planned = self.session.state.experiments[number].planned
        wish = steering.in_force(self.session)
        if planned and (wish.against(planned.hypothesis, planned.axis) or wish.against_keys(planned.changes)):
            return None
        return announce.announce_again(self.session, number)

    def plan_without(self, number: int, *, margin: float) -> int | None:
        return announce.announce_without(self.session, number, margin=margin)

    def commit(self, number: int) -> None:
        commit_experiment(self.session, number)

    def screen(self, number: int) -> Done:
        """The journal knows it as a run that was stopped; `run` finds its folder and goes on."""
        return self._repaired(Order(number, "search"), early=Pause(self.screen_share or 1.0))

    def run(self, order: Order) -> Done:
        if order.arm == "untrained":
            done = evaluate_with_repairs(self.session, self.runner, untrained(self.session))
        elif order.arm == "baseline":
            done = self._repaired(order)
        elif order.arm == "search":
            done = self._repaired(order, early=self._hopeless(order.experiment))
        else:
            done = self.runner.run(confirming(self.session, order))
            refuse_what_every_run_meets(self.session, order.experiment, done)
        first = order.arm == "untrained" or (order.arm == "baseline" and order.index == 0)
        if first and not done.ok:
            raise _failed(done)
        if order == Order(0, "baseline", 0):
            self._first = done
            self._tell_what_is_not_trained_on(done)
        return done

    def _tell_what_is_not_trained_on(self, done: Done) -> None:
        refused = done.record.plan.refused_rows if done.record.plan else 0
        if refused:
            self.say(f"{refused} training rows are near-duplicates of held-out ones, and are not trained on")

    def _repaired(self, order: Order, *, early: Early | None = None) -> Done:
        baseline = order.arm == "baseline"
        return train_with_repairs(
            self.session,
            self.runner,
            experiment=order.experiment,
            key="baseline" if baseline else f"{order.experiment:03d}-search",
            what=words_for(self.session, order),
            seed=seed_of(self.session, order),
            role="baseline" if baseline else "experiment",
            rung="calibrate" if baseline else "screen" if early is not None and early.is_pause else "full",
            arm=None if baseline else "candidate",
            rung_at=self._rung_at(order, early),
            early=early,
            time_for_more=lambda: self._time_to_repair(order.experiment),
        )

    def _time_to_repair(self, number: int) -> bool:
        """For another whole run of an idea: what waits to be confirmed goes before it. It costs what the recipe that it
        changes does: its own may be one that nobody can read."""
        needed = self.cost(self.planned_against(number)).total_s
        return number == 0 or self.is_last(number) or not last_chance(self, needed)

    def _hopeless(self, number: int) -> Early | None:
        runs = self.evidence.search_runs(self.incumbent)
        if len(runs) < 2:
            return None
        return Hopeless(
            self.evaluation,
            curves=[run.record.select for run in runs],
            scores=arm_scores(runs, "search"),
            noise=self.evidence.noise,
            margin=self.margin(number),
        )

    def _rung_at(self, order: Order, early: Early | None) -> float | None:
        """Ideas are screened by what they and the recipe that they change measure on the way; nobody else needs to."""
        screened = early is not None and early.is_pause
        least, most = self.rules.least_batch, self.max_experiments
        number = order.experiment
        reference = order.arm == "baseline" or self.is_advance(number) or self.is_last(number)
        beside = reference and self.rules.batch > 0 and (most is None or most >= least)
        return self.screen_share if screened or beside else None

    def share_that_tells(self) -> float | None:
        """By the baseline's first run; the others, and what is screened, are measured there."""
        first = self._first or next(iter(self.evidence.baseline()), None)
        return share_that_tells(first.record.select, self.evaluation, way=self.rules.screen_way) if first else None

    def fix(self, number: int, terms: Terms) -> Terms:
        """A campaign that was killed in a confirmation, or given more time since, goes on under its first terms."""
        known = self.fixed(number)
        if known is not None:
            return known
        self.session.tell(
            "note",
            text=f"confirmation of #{number}: level {terms.level:.4f}",
            confirmation_of=number,
            level=terms.level,
            shares={str(seeds): share for seeds, share in terms.shares.items()},
        )
        return terms

    def fixed(self, number: int) -> Terms | None:
        for note in self.session.state.notes:
            told = note.model_extra or {}
            if told.get("confirmation_of") == number:
                return Terms(told["level"], {int(seeds): share for seeds, share in told["shares"].items()})
        return None

    def begun(self, order: Order) -> bool:
        key = confirming(self.session, order).key
        return key not in self.evidence.aside and self.runner.knows(key)

    def once(self, number: int, question: str, answer: bool) -> bool:
        for note in self.session.state.notes:
            told = note.model_extra or {}
            if told.get("asked_of") == number and told.get("question") == question:
                return bool(told["answer"])
        words = f"#{number}: {question}: {'yes' if answer else 'no'}"
        self.session.tell("note", text=words, asked_of=number, question=question, answer=answer)
        return answer

    def seeds_planned(self) -> int | None:
        return self.session.state.calibration.get("seeds_planned")

    def age_s(self, run: Measured) -> float | None:
        """By the wall clock too: a campaign that is resumed after days meets another machine."""
        ended = [
            one.finished.time for one in self.session.state.runs.values() if one.finished and key_of(one) == run.key
        ]
        by_clock = self.session.journal.clock() - max(ended) if ended else 0.0
        consumed = super().age_s(run)
        return None if consumed is None else max(consumed, by_clock)

    def set_aside(self, run: Measured, why: str) -> None:
        super().set_aside(run, why)
        self.session.tell("note", text=f"{run.key} is set aside: {why}", set_aside=run.key, why=why)

    def again(self, run: Measured, order: Order) -> Done:
        done = self.runner.run(second_look(self.session, run.key, order))
        refuse_what_every_run_meets(self.session, order.experiment, done, checkpoint=True)
        return done

    def calibrated(self, values: dict[str, Any]) -> None:
        """A session that goes on has less time; what was promised before the search stands."""
        told = self.session.state.calibration
        promised = ("smallest_detectable", "run_share", "ideas_affordable", "most_seeds", "to_come")
        values = values | {key: told[key] for key in promised if key in told}
        if self.session.state.calibration != values:
            self.session.tell("calibrated", values=values)
        self.session.observer.board(self.session.board())

    def calibrate_better(self) -> None:
        """Before the night is summed up: it must not claim to have seen what its noise would have hidden."""
        told = self.session.state.calibration
        better = known_better(told, self, self.evidence)
        if better:
            self.session.tell("calibrated", values=told | better)

    def watch(self, number: int, search: Measured, *, probe: bool) -> list[Report]:
        assert isinstance(search, Done)
        return watch(self.session, self.evidence, number, search, runner=self.runner if probe else None)

    def conclude(self, number: int, judgement: Judgement) -> None:
        if self.session.state.experiments[number].judged is None:
            judge(self.session, number, judgement, rules=self.rules, told=self._of_what_stands(number, judgement))
        self.session.estimate = self.best_metric()
        record(self.session, number)
        if number:
            tidy_checkpoints(self.session, self.evidence, self.session.incumbent)
        self._keep_scores_alone(number, self._stands())
        self.session.observer.board(self.session.board())

    def _stands(self) -> set[int]:
        """What ideas build on. To find it may take a look at all that was judged."""
        return {0, self.session.incumbent, self.session.lead}

    def _keep_scores_alone(self, number: int, stands: set[int]) -> None:
        """Of an idea on which nothing builds: of a night of thousands of runs the rows of all would take gigabytes."""
        experiment = self.session.state.experiments.get(number)
        if experiment is not None and experiment.outcome in ("discard", "crash") and number not in stands:
            self.evidence.replace_runs(number, Done.scores_alone)

    def _of_what_stands(self, number: int, judgement: Judgement) -> dict[str, Any]:
        """For the report: each arm by itself, and what is kept against the baseline. With each confirmation anew, as
        what was kept has run once more beside the idea: these runs do not favour it as those do that it was kept for.
        """
        kept = judgement.verdict.outcome == "keep"
        if not kept and not judgement.beside:
            return {}
        of = number if kept else self.incumbent
        minimize = self.evaluation.minimize
        told: dict[str, Any] = {
            "arms": {str(one): self.evidence.arms(one, minimize=minimize) for one in dict.fromkeys((0, of))}
        }
        if of:
            told |= {"over_baseline": self.evidence.over_baseline(of), "over_baseline_of": of}
        return told


def _failed(run: Done) -> AgentError:
    """The trainer's own error where it named one (no such model, a bad data row), else what triage found."""
    if run.named_error is not None:
        return run.named_error
    return TrainingFailed(
        f"the baseline does not run, so there is nothing to improve ({run.crash_words})",
        where=run.key,
        hint=f"raft-agent diagnose {run.key} shows its log",
    )


def overrides(recipe: Recipe) -> int:
    """Number of tunable settings that differ from the schema's defaults."""
    return _count(
        recipe.model_dump(mode="json", exclude_defaults=True, exclude={"evaluation", "budget", "description"})
    )


def _count(value: Any) -> int:
    return sum(_count(inner) for inner in value.values()) if isinstance(value, dict) else 1
