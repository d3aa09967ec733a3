"""RAFT: sample, verify, keep the best, fine-tune on them, and again with the model that came out.

What it does not do, and another trainer would: no critic, no reference model and no KL term; no advantage (a kept
sample counts 1, whatever its reward; under `reinforce_rej` a failure counts -1); no importance ratio under plain
`raft`, because one update on fresh samples has the ratio 1; nothing is decoded and tokenized again; no sample
outlives its cycle; the model is never reloaded, nor its optimizer rebuilt.

`Training.cycle` is the algorithm. Cycle 0 measures the untrained model, and its samples are those that cycle 1 trains
on: they come from the same weights, so nothing is sampled for the statistics alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agent.contract import DECLINE, NO_STEP, STOP_GRACE_SECONDS, CycleRow, Seconds, SelectRow, Split
from agent.raft import state as files
from agent.raft.budget import Spending
from agent.raft.early_stop import Decline
from agent.raft.evaluate import Examiner, Measured, sample_scores
from agent.raft.learner import Trainer, TrainReport
from agent.raft.measure import Batch, batch_row, peak_memory_gb
from agent.raft.microbatch import TrainingSample
from agent.raft.policy import Policy
from agent.raft.pulse import EndTraining, Pulse
from agent.raft.rollout import Completion, OnFinished, Request, Row, fits, generate
from agent.raft.sampling import Sampling
from agent.raft.seeds import seed_of
from agent.raft.selection import Chosen, select
from agent.raft.verification import Verification
from agent.recipe.schedules import learning_rate, temperature, threshold
from agent.recipe.schema import Recipe
from agent.tasks.rewards import shape
from agent.tasks.tasks import Example, PromptSource, Splits

EVALUATION_MARGIN = 1.25
"""Final evaluations take this much longer than `final_seconds` predicts, at most."""
FORGET = 0.7
"""How much of an earlier, slower estimate of the evaluation's speed is believed the next time."""
FINISH_SECONDS = 2.0
"""For the checkpoint and the summary of a small model."""
STOP_SAVE_SECONDS = STOP_GRACE_SECONDS / 5
"""A state is saved after SIGTERM where that takes no longer: the checkpoint and the summary come first."""
STATE_TO_WEIGHTS = 4
"""A state has at most about so many times the trained weights' bytes: they, two moments, the best weights."""
FUTILE_SHARE, FUTILE_CYCLES = 1 / 3, 3
"""Without an optimizer step in this share of the budget, and in so many cycles, the model is still the untrained one
and samples as it did: if the first step were just about to come, two more would be expected until the end."""
ROUNDING = 1e-9
EMPTY_CYCLES = 50
"""Cycles without a single token, for want of a prompt that fits, cost next to nothing of any budget and would go on."""


@dataclass
class Best:
    """The cycle that will be delivered."""

    cycle: int = 0
    metric: float | None = None
    weights: dict[str, Any] | None = None


@dataclass(frozen=True)
class SelectMeasure:
    """One measurement on the `select` split; without a metric where none was due."""

    metric: float | None = None
    seconds: float = 0.0


@dataclass
class Totals:
    optimizer_steps: int = 0
    kept: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0


class Training:
    """One training: the model, its data, and what has been spent."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        policy: Policy,
        examiner: Examiner,
        splits: Splits,
        seed: int,
        out: Path,
        pulse: Pulse,
        save_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.recipe = recipe
        self.policy = policy
        self.examiner = examiner
        self.splits = splits
        self.seed = seed
        self.out = out
        self.pulse = pulse
        self.clock = clock
        self.started = clock()
        self.trainer = Trainer(policy, recipe.learner, compile_step=recipe.backend.compile)
        self.source = PromptSource(splits.train, mix=recipe.task.mix, curriculum=recipe.task.curriculum, seed=seed)
        self.spending = Spending(recipe.budget)
        self.best = Best()
        evaluation = recipe.evaluation
        self.decline = Decline(recipe.learner.early_stop, metric=evaluation.metric, maximize=not evaluation.minimize)
        self.declined: str | None = None
        """Why the early stop ends the training."""
        self.totals = Totals()
        self.state = files.StateFolder(out, save_seconds=save_seconds)
        self.store = files.SampleStore(self.state.folder, save_seconds=save_seconds)
        self.carried: Batch | None = None
        """Samples of cycle 0, which cycle 1 trains on."""
        self.limit_at: float | None = None
        """On `clock`: when the process must be done."""
        self.final_samples = 0
        """Samples of the evaluation at the end."""
        self.reload_seconds = 0.0
        """Until its process has loaded what it evaluates."""
        self.rung: float | None = None
        """Share of the budget after which `search` is measured once."""
        self.rung_seconds: float | None = None
        self.select_seconds = 0.0
        """On the `select` split, by all starts."""
        self.seconds_per_sample = 0.0
        """Of a measurement on `select`."""
        self.seconds_per_batch = 0.0
        """Of drawing and verifying the samples of one cycle."""
        self.last_cycle_seconds = 0.0
        self.starts = 1
        """Of the trainer, that this training was made in."""
        self.earlier_memory_gb = 0.0
        """The most that an earlier start of it took."""
        self.finished = False
        self.settled: dict[str, Any] | None = None
        """Where the training stood at the end of the last cycle; None while the weights are no longer those."""
        self.released = False
        """Weights and optimizer are gone: nothing can be saved any more."""

    # The algorithm --------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Cycles until the budget is spent. Returns what ended it, as in `Summary.ended_by`."""
        try:
            self.pulse.check()
            self._resume()
            if not self.finished and self.spending.cycles == 0:
                self._measure_untrained()
            while not self.finished and self._goes_on():
                self._leave_room()
                self.cycle(self.spending.cycles + 1)
        except EndTraining as end:
            if end.reason == "sigterm":
                self._save_for_later()
            return end.reason
        self.finished = True
        if self.declined is not None and self.spending.affords_cycle():
            print(f"early stop after cycle {self.spending.cycles}: {self.declined}", file=sys.stderr, flush=True)
            return DECLINE
        return NO_STEP if self.spending.affords_cycle() else "budget"

    def cycle(self, cycle: int) -> None:
        """One round of RAFT."""
        began = self.clock()
        batch = self.carried or self.sample(cycle)
        fresh, self.carried = self.carried is None, None
        if fresh:
            self._charge_samples(batch)
        chosen = self.choose(batch, cycle)
        report = self.train(batch, chosen, cycle)
        self._charge_training(report, len(chosen))
        measured = self._measure_select(cycle)
        self._deliver_if_best(cycle, measured.metric)
        self._record(cycle, batch, report, measured, fresh=fresh, kept=len(chosen))
        self.last_cycle_seconds = self.clock() - began
        self.settled = self._standing()
        if self._measure_rung(cycle) or self.state.due():
            self.pulse.beat("save")
            self.save()

    def sample(self, cycle: int) -> Batch:
        """Draw prompts, complete each several times, have the answers verified and rewarded."""
        rollout = self.recipe.rollout
        examples = self.source.draw(rollout.prompts_per_cycle)
        sampling = self._sampling()
        asked = [self.examiner.prompt_of(example) for example in examples]
        places = [place for place, prompt in enumerate(asked) if fits(prompt, sampling)]
        batch = Batch(
            examples=[examples[place] for place in places],
            prompts=[asked[place] for place in places],
            completions=[],
            dropped_prompts=len(asked) - len(places),
            temperature=sampling.temperature,
        )
        requests = [
            Request(asked[place], rollout.samples_per_prompt, seed_of("sample", self.seed, cycle, place))
            for place in places
        ]
        began = self.clock()
        with Verification(self.examiner, batch.examples) as verification:
            batch.completions, batch.whole = self._generate(requests, sampling, cycle, on_finished=verification.add)
            # what earlier starts took for the samples that are read back is time of this training too
            batch.generate_seconds = self.store.seconds_before + self.clock() - began
            began = self.clock()
            batch.verdicts = verification.verdicts(batch.completions, on_step=lambda: self.pulse.beat("verify"))
        batch.rewards = [
            [
                shape(
                    self.recipe.task.reward,
                    verdict,
                    tokens=len(completion.tokens),
                    max_new_tokens=rollout.max_new_tokens,
                )
                for verdict, completion in zip(*group, strict=True)
            ]
            for group in zip(batch.verdicts, batch.completions, strict=True)
        ]
        batch.verify_seconds = self.clock() - began
        self._note_speed(batch)
        self._note_pass_rates(examples, batch)
        return batch

    def _note_speed(self, batch: Batch) -> None:
        if batch.whole and not batch.dropped_prompts:
            seconds = batch.generate_seconds + batch.verify_seconds
            self.seconds_per_batch = max(seconds, FORGET * self.seconds_per_batch)
            self._set_deadline()

    def _note_pass_rates(self, examples: list[Example], batch: Batch) -> None:
        """Tell the source of prompts how each went; a prompt without room for an answer has been tried in vain."""
        told = {example.id: (0, 0) for example in examples}
        for example, group in zip(batch.examples, batch.verdicts, strict=True):  # some may have been drawn twice
            passed, samples = told[example.id]
            told[example.id] = passed + sum(verdict.passed for verdict in group), samples + len(group)
        for name, (passed, samples) in told.items():
            self.source.record(name, passed, samples)

    def choose(self, batch: Batch, cycle: int) -> list[Chosen]:
        """The samples to train on; none where they are fewer than `min_samples`."""
        selection = self.recipe.selection
        reward_threshold = threshold(selection.reward_threshold, selection.threshold_schedule, self.spending.share())
        chosen = select(
            batch.graded(),
            selection.model_copy(update={"reward_threshold": reward_threshold}),
            seed=seed_of("select", self.seed, cycle),
            with_negatives=self.recipe.learner.algorithm == "reinforce_rej",
        )
        return chosen if len(chosen) >= selection.min_samples else []

    def train(self, batch: Batch, chosen: list[Chosen], cycle: int) -> TrainReport:
        """Update the weights on the chosen samples, ids as they were sampled."""
        samples = [training_sample(batch, choice) for choice in chosen]
        tokens = self.recipe.learner.epochs_per_cycle * sum(len(sample.completion) for sample in samples)
        began = self.clock()

        def rate(of_cycle: float) -> float:
            now = self.spending.share(of_cycle=of_cycle, seconds=self.clock() - began, tokens=of_cycle * tokens)
            return learning_rate(self.recipe, cycle=cycle, spent=now, first=self.spending.first_update or 0.0)

        self.settled = None
        if not samples:
            return TrainReport()
        if self.spending.first_update is None:
            self.spending.first_update = self.spending.share()
        self.pulse.beat(self._train_phase())
        return self.trainer.train(
            samples,
            learning_rate=rate,
            seed=seed_of("train", self.seed, cycle),
            on_step=lambda: self.pulse.beat(self._train_phase()),
        )

    # What surrounds it ----------------------------------------------------------------------------------------

    def _sampling(self) -> Sampling:
        rollout, prompt = self.recipe.rollout, self.recipe.prompt
        return Sampling(
            temperature=temperature(rollout.temperature, rollout.temperature_schedule, self.spending.share()),
            max_new_tokens=rollout.max_new_tokens,
            max_total=self.policy.room(rollout.max_total_sequence_length),
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            slots=rollout.slots,
            stop=tuple(prompt.stop),
            response_prefix=prompt.response_prefix,
            engine=self.policy.engine_for(rollout.engine),
        )

    def _generate(
        self, requests: list[Request], sampling: Sampling, cycle: int, *, on_finished: OnFinished
    ) -> tuple[list[list[Completion]], bool]:
        """Completions by request, and whether all were drawn now: samples that an interrupted process finished are
        taken from its file."""
        known = self.store.begin(self._fingerprint(cycle))
        for row, completion in known.items():
            on_finished(row, completion)

        def finished(row: Row, completion: Completion) -> None:
            self.store.keep(row, completion)
            on_finished(row, completion)

        completions = generate(
            self.policy,
            requests,
            sampling,
            on_step=lambda: self.pulse.beat("generate"),
            on_finished=finished,
            known=known,
        )
        return completions, not known

    def _fingerprint(self, cycle: int) -> str:
        """Names everything that decides the samples of a cycle, the weights included."""
        weights = sum(float(p.detach().sum(dtype=torch.float64)) for p in self.policy.trainable().values())
        return f"{self.recipe.signature()}/{self.seed}/{cycle}/{self.trainer.updates}/{weights!r}"

    def _train_phase(self) -> Any:
        return "compile" if self.recipe.backend.compile and self.trainer.updates == 0 else "train"

    def _measure_untrained(self) -> None:
        """Cycle 0: sampled and measured, not trained."""
        began = self.clock()
        self.pulse.cycle = 0
        batch = self.sample(0)
        self._charge_samples(batch)
        measured = self._measure_select(0)
        self._deliver_if_best(0, measured.metric)
        self._record(0, batch, TrainReport(), measured, fresh=True, kept=0)
        self.carried = batch
        self.last_cycle_seconds = self.clock() - began

    def _measure_select(self, cycle: int) -> SelectMeasure:
        """The metric on `select`, in the cycles in which it is due and in the last one."""
        evaluation = self.recipe.evaluation
        if cycle % evaluation.select_every and self.spending.affords_cycle():
            return SelectMeasure()
        began = self.clock()
        measured = self.examiner.measure(
            self.splits.select,
            split="select",
            samples=evaluation.select_samples,
            on_step=lambda: self.pulse.beat("evaluate"),
            passing=cycle > 0,
        )
        seconds = self.clock() - began
        self.select_seconds += seconds
        self.declined = self.decline.add(measured.rows)
        # One slow measurement on a busy machine must not cut the training; one quick one must not either.
        self.seconds_per_sample = max(measured.seconds / len(measured.rows), FORGET * self.seconds_per_sample)
        self._set_deadline()
        files.append_select(self.out, self._row_of(measured, cycle))
        return SelectMeasure(measured.metric, seconds)

    def _measure_rung(self, cycle: int) -> bool:
        """The `search` split with the present weights, once, at the end of the first cycle by which `rung` is spent:
        whether it was now. Whoever asks for it may pause the training here, so that it is worth saving."""
        if self.rung is None or self.spending.share() < self.rung - ROUNDING or files.rung_measured(self.out):
            return False
        began = self.clock()
        measured = self.examiner.measure(
            self.splits.search,
            split="search",
            samples=self.recipe.evaluation.samples_per_prompt,
            on_step=lambda: self.pulse.beat("evaluate"),
            passing=True,
        )
        self.rung_seconds = self.clock() - began
        files.append_rung(self.out, self._row_of(measured, cycle))
        return True

    def _row_of(self, measured: Measured, cycle: int) -> SelectRow:
        return SelectRow(
            cycle=cycle,
            budget_spent=self.spending.share(),
            elapsed_s=self.clock() - self.started,
            scores=sample_scores(measured.rows, self.recipe.evaluation.metric),
        )

    def _deliver_if_best(self, cycle: int, metric: float | None) -> None:
        """Of equal cycles the later one, which has more training behind it, is delivered."""
        if metric is None:
            return
        self.pulse.select_metric = metric
        sign = -1 if self.recipe.evaluation.minimize else 1
        if self.best.metric is None or sign * metric >= sign * self.best.metric:
            self.best = Best(cycle, metric, self.policy.snapshot())

    def _charge_samples(self, batch: Batch) -> None:
        tokens = batch.generated_tokens
        self.spending.add(seconds=batch.generate_seconds + batch.verify_seconds, tokens=tokens)
        self.totals.generated_tokens += tokens

    def _charge_training(self, report: TrainReport, kept: int) -> None:
        self.spending.add(seconds=report.seconds, tokens=report.tokens, cycles=1)
        self.totals.trained_tokens += report.tokens
        self.totals.optimizer_steps += report.steps
        self.totals.kept += kept

    def _record(
        self,
        cycle: int,
        batch: Batch,
        report: TrainReport,
        measured: SelectMeasure,
        *,
        fresh: bool,
        kept: int,
    ) -> None:
        """Append the cycle's row. The samples of cycle 0 are counted there, not again in cycle 1."""
        seconds = Seconds(
            generate=batch.generate_seconds if fresh else 0.0,
            verify=batch.verify_seconds if fresh else 0.0,
            train=report.seconds,
            evaluate=measured.seconds,
        )
        row = CycleRow(
            cycle=cycle,
            **{**batch_row(batch), **report.row()},
            kept=kept,
            select_metric=measured.metric,
            generated_tokens=batch.generated_tokens if fresh else 0,
            train_tokens_per_s=report.tokens / report.seconds if report.tokens and report.seconds else None,
            seconds=seconds,
            peak_memory_gb=self.peak_memory_gb(),
            elapsed_s=self.clock() - self.started,
            budget_spent=self.spending.share(),
        )
        files.append_cycle(self.out, row)
        self.pulse.cycle, self.pulse.budget_spent = cycle + 1, self.spending.share()

    # The clock ------------------------------------------------------------------------------------------------

    def final_seconds(self) -> float:
        """What the evaluation at the end and the writing of the results will take.

        A few samples take nearly as long as many that are drawn together, so that what one sample took on the small
        `select` split may be many times too much, and what one took in a cycle's batch is nearer.
        """
        known = [one for one in (self.final_samples * self.seconds_per_sample, self._like_a_batch()) if one]
        return EVALUATION_MARGIN * (min(known, default=0.0) + self.reload_seconds) + FINISH_SECONDS

    def _like_a_batch(self) -> float:
        """Seconds of the evaluation at the end, if it goes as the cycles' samples do: at least as long as one batch."""
        rollout, evaluation = self.recipe.rollout, self.recipe.evaluation
        batches = max(1.0, self.final_samples / (rollout.prompts_per_cycle * rollout.samples_per_prompt))
        longer = max(1.0, evaluation.max_new_tokens / rollout.max_new_tokens)
        return batches * longer * self.seconds_per_batch

    def _set_deadline(self) -> None:
        if self.limit_at is not None:
            self.pulse.deadline = self.limit_at - self.final_seconds()

    def _goes_on(self) -> bool:
        return self.spending.affords_cycle() and self.declined is None and not self._is_futile()

    def _is_futile(self) -> bool:
        """The training has not begun to change the model and will hardly do so."""
        spent = self.spending
        drawn = spent.cycles * self.recipe.rollout.prompts_per_cycle
        if self.totals.generated_tokens == 0 and spent.cycles >= EMPTY_CYCLES and drawn >= len(self.splits.train):
            return True
        return self.totals.optimizer_steps == 0 and spent.cycles >= FUTILE_CYCLES and spent.share() >= FUTILE_SHARE

    def _leave_room(self) -> None:
        """Begin no cycle that the time limit would cut."""
        deadline = self.pulse.deadline
        if deadline is not None and self.clock() + self.last_cycle_seconds > deadline:
            raise EndTraining("time_limit")

    # Going on after a kill ------------------------------------------------------------------------------------

    def save(self) -> None:
        """At the end of a cycle, or when the training is finished."""
        self._save(self._standing())

    def release(self) -> None:
        """Let go of the optimizer and of all weights; counters stay."""
        self.released = True
        self.trainer.release()
        self.best.weights = self.carried = self.settled = None

    def saves_quickly(self) -> bool:
        """Whether a state can be saved within the time that SIGTERM leaves."""
        weights = sum(p.numel() * p.element_size() for p in self.policy.trainable().values())
        return self.state.seconds_to_save(STATE_TO_WEIGHTS * weights) <= STOP_SAVE_SECONDS

    def _save_for_later(self) -> None:
        """Stopped in the middle of a cycle: what a later start need not do again.

        Once the cycle has begun to change the weights, only the last state that was saved before can be gone on with.
        """
        self.store.write()
        if self.settled is not None and self.saves_quickly():
            self._save(self.settled)

    def _save(self, standing: dict[str, Any]) -> None:
        weights = {name: p.detach() for name, p in self.policy.trainable().items()}
        self.state.save({**standing, "weights": weights, "trainer": self.trainer.state_dict()})

    def _standing(self) -> dict[str, Any]:
        """All of a state but the weights and the optimizer; nothing in it changes when the training goes on."""
        # The best weights are often the present ones, which need not be written twice.
        older = self.best.weights if self.best.cycle != self.spending.cycles else None
        return {
            "made_by": self._identity(),
            "source": self.source.state(),
            "spending": self.spending.state(),
            "totals": dict(vars(self.totals)),
            "best": {"cycle": self.best.cycle, "metric": self.best.metric, "weights": older},
            "decline": {**self.decline.state(), "declined": self.declined},
            "select_seconds": self.select_seconds,
            "seconds_per_sample": self.seconds_per_sample,
            "seconds_per_batch": self.seconds_per_batch,
            "last_cycle_seconds": self.last_cycle_seconds,
            "starts": self.starts,
            "peak_memory_gb": self.peak_memory_gb(),
            "finished": self.finished,
        }

    def peak_memory_gb(self) -> float:
        """The most that any start of this training took, GB. The last one alone may have had little left to do."""
        return max(peak_memory_gb(), self.earlier_memory_gb)

    def _identity(self) -> str:
        return f"{self.recipe.signature()}/{self.seed}"

    def _resume(self) -> None:
        """Go back to the saved state of this recipe and seed, if there is one; else begin with no rows."""
        saved = self.state.load()
        if saved is None or saved["made_by"] != self._identity():
            files.keep_cycles(self.out, -1)
            self.pulse.budget_before = 0.0
            return
        self.policy.restore(saved["weights"])
        self.trainer.load_state_dict(saved["trainer"])
        self.source.restore(saved["source"])
        self.spending.restore(saved["spending"])
        self.totals = Totals(**saved["totals"])
        self.best = Best(**saved["best"])
        self.decline.restore(saved["decline"])
        self.declined = saved["decline"]["declined"]
        if self.best.weights is None:
            self.best.weights = self.policy.snapshot()
        self.select_seconds = saved.get("select_seconds", 0.0)
        self.seconds_per_sample = saved["seconds_per_sample"]
        self.seconds_per_batch = saved.get("seconds_per_batch", 0.0)
        self.last_cycle_seconds = saved["last_cycle_seconds"]
        self.earlier_memory_gb = saved.get("peak_memory_gb", 0.0)
        self.finished = saved["finished"]
        self.starts = saved.get("starts", 1) + (not self.finished)
        self._set_deadline()
        files.keep_cycles(self.out, self.spending.cycles)
        self.pulse.cycle, self.pulse.select_metric = self.spending.cycles + 1, self.best.metric
        self.pulse.budget_before = self.pulse.budget_spent = self.spending.share()
        self.settled = self._standing()


def training_sample(batch: Batch, choice: Chosen) -> TrainingSample:
    """The chosen sample with exactly the ids that were sampled, the stop token included."""
    completion = batch.completions[choice.prompt][choice.sample]
    return TrainingSample(
        prompt=batch.prompts[choice.prompt],
        completion=completion.tokens,
        logprobs=completion.logprobs,
        sign=choice.sign,
    )


def final_sample_count(recipe: Recipe, splits: Splits, names: list[Split]) -> int:
    """Samples that evaluating these splits will draw."""
    return sum(len(getattr(splits, name)) for name in names) * recipe.evaluation.samples_per_prompt
