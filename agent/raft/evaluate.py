"""Measuring a model on a held-out split, so that two runs can be compared prompt by prompt.

The random numbers of a prompt's samples depend on the split and the prompt alone, not on the training seed: two runs
that are compared meet the same prompts with the same luck. No prompt is ever dropped; one that leaves no room for an
answer counts as failed. `rollout`'s temperature and token limits play no part here, `evaluation`'s do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from agent.contract import SAMPLED_PROMPTS, EvalRow, Split
from agent.errors import DataError
from agent.raft.answers import KEPT, AnswerCache
from agent.raft.measure import mean
from agent.raft.policy import Policy
from agent.raft.rollout import Completion, OnFinished, Request, Row, fits, generate
from agent.raft.sampling import Sampling
from agent.raft.seeds import seed_of
from agent.raft.verification import Verification
from agent.recipe.schema import Recipe
from agent.tasks.prompts import render
from agent.tasks.rewards import shape
from agent.tasks.tasks import Example
from agent.tasks.verifiers import AnswerVerifier, Verdict


@dataclass(frozen=True)
class Measured:
    """Rows in prompt and sample order, and the metric of the recipe on them."""

    rows: list[EvalRow]
    metric: float
    tokens: int
    seconds: float
    """That drawing and judging takes; where the completions came from the cache, that drawing them took then. So
    whoever plans the next evaluation, of other weights, is not misled."""
    firsts: Sequence[Completion] = ()
    """First samples of the first prompts, for people to read (`agent.raft.samples`)."""


@dataclass(frozen=True)
class Examiner:
    """Asks a model questions and has the answers verified."""

    recipe: Recipe
    policy: Policy
    verifier: AnswerVerifier
    shots: Sequence[Example]
    answers: AnswerCache | None = None
    """Completions of earlier evaluations; None draws all anew."""
    _prompts: dict[str, list[int]] = field(default_factory=dict, repr=False)
    """Requests by id of the held-out row: they are asked again and again."""

    def prompt_of(self, example: Example) -> list[int]:
        """Ids of the request for a row. Raises DataError where the model cannot read them."""
        ids = render(self.recipe.prompt, example, shots=self.shots, tokenizer=self.policy.tokenizer)
        if max(ids) >= self.policy.vocabulary:
            raise DataError(
                f"the prompt of row {example.id} has the token id {max(ids)} "
                f"({self.policy.tokenizer.decode([max(ids)])!r}), and the model embeds {self.policy.vocabulary} ids",
                where="model.source",
                hint="This tokenizer has more tokens than its model: take the model's own, or leave the token out.",
            )
        return ids

    def response_of(self, completion: Completion) -> str:
        """What the verifier sees: the response prefix and the text."""
        return self.recipe.prompt.response_prefix + self.text_of(completion)

    def text_of(self, completion: Completion) -> str:
        """Without the end-of-turn token."""
        tokens = completion.tokens
        if tokens and tokens[-1] in self.policy.stop_ids:
            tokens = tokens[:-1]
        return self.policy.decode(tokens)

    def measure(
        self,
        examples: Sequence[Example],
        *,
        split: Split,
        samples: int,
        on_step: Callable[[], None],
        on_prompt: Callable[[list[EvalRow]], None] = lambda rows: None,
        passing: bool = False,
    ) -> Measured:
        """The split's rows and metric under `evaluation`.

        `on_prompt` is given the rows of each prompt as soon as all its samples are judged, in another thread.
        `passing` says that nobody will ask these weights again, so that their answers are neither kept nor looked for.
        """
        for example in examples:
            if example.id not in self._prompts:
                self._prompts[example.id] = self.prompt_of(example)
        requests = [
            Request(self._prompts[example.id], samples, seed_of("evaluate", split, example.id)) for example in examples
        ]
        began = time.monotonic()
        rows: dict[Row, EvalRow] = {}

        def judged(row: Row, completion: Completion, verdict: Verdict) -> None:
            rows[row] = self._row(split, examples[row.request], row.sample, completion, verdict)
            group = [rows.get(Row(row.request, sample)) for sample in range(samples)]
            if None not in group:
                on_prompt(cast(list[EvalRow], group))

        with Verification(self, examples, on_verdict=judged) as verification:
            cache = self.answers if split in KEPT and not passing else None
            completions, drawing = self._answers(requests, cache, on_finished=verification.add, on_step=on_step)
            verification.verdicts(completions, on_step=on_step)
        ordered = [rows[Row(place, sample)] for place in range(len(examples)) for sample in range(samples)]
        return Measured(
            ordered,
            metric_of(ordered, self.recipe.evaluation.metric),
            sum(row.tokens for row in ordered),
            max(drawing, time.monotonic() - began),
            [group[0] for group in completions[:SAMPLED_PROMPTS]],
        )

    def _answers(
        self,
        requests: Sequence[Request],
        cache: AnswerCache | None,
        *,
        on_finished: OnFinished,
        on_step: Callable[[], None],
    ) -> tuple[list[list[Completion]], float]:
        """Completions by prompt and sample, from the cache where these weights have been asked the same before, and
        the seconds of drawing them."""
        sampling = self._sampling()
        places = [place for place, request in enumerate(requests) if fits(request.prompt, sampling)]
        fitting = [requests[place] for place in places]
        key = cache.key(self.policy, fitting, sampling) if cache else ""
        known = cache.get(key) if cache else None
        if known is not None:
            answered, seconds = known
        else:
            began = time.monotonic()

            def finished(row: Row, completion: Completion) -> None:
                on_finished(Row(places[row.request], row.sample), completion)

            answered = generate(self.policy, fitting, sampling, on_step=on_step, on_finished=finished)
            seconds = time.monotonic() - began
            if cache:
                cache.put(key, answered, seconds=seconds)
        unanswered = Completion([], [], [], "length")
        by_place = dict(zip(places, answered, strict=True))
        groups = [by_place.get(place, [unanswered] * request.samples) for place, request in enumerate(requests)]
        for place, group in enumerate(groups):
            for sample, completion in enumerate(group):
                if known is not None or place not in by_place:
                    on_finished(Row(place, sample), completion)
        return groups, seconds

    def _sampling(self) -> Sampling:
        evaluation, prompt = self.recipe.evaluation, self.recipe.prompt
        return Sampling(
            temperature=evaluation.temperature,
            max_new_tokens=evaluation.max_new_tokens,
            max_total=self.policy.max_length,
            slots=self.recipe.rollout.slots,
            stop=tuple(prompt.stop),
            response_prefix=prompt.response_prefix,
            engine=self.policy.engine_for(self.recipe.rollout.engine),
        )

    def _row(self, split: Split, example: Example, sample: int, completion: Completion, verdict: Verdict) -> EvalRow:
        reward = shape(
            self.recipe.task.reward,
            verdict,
            tokens=len(completion.tokens),
            max_new_tokens=self.recipe.evaluation.max_new_tokens,
        )
        answered = bool(completion.tokens)
        return EvalRow(
            split=split,
            id=example.id,
            sample=sample,
            reward=reward if answered else 0.0,
            passed=verdict.passed and answered,
            formatted=verdict.formatted and answered,
            near=verdict.near and answered,
            tokens=len(completion.tokens),
            finish_reason=completion.finish,
            tag=example.tag,
            digest=digest_of(completion.tokens) if answered else None,
        )


def digest_of(tokens: Sequence[int]) -> str:
    """Eight hexadecimal digits, the same in every process and on every machine."""
    return hashlib.blake2b(np.asarray(tokens, dtype="<u4").tobytes(), digest_size=4).hexdigest()


def sample_scores(rows: Sequence[EvalRow], metric: str) -> dict[str, list[float]]:
    """What the metric is made of, by prompt and sample."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row.id, []).append(row.reward if metric == "mean_reward" else float(row.passed))
    return by_prompt


def metric_of(rows: Sequence[EvalRow], metric: str) -> float:
    """pass_rate and mean_reward are means over samples; pass_at_k is the share of prompts with a passing sample."""
    if metric == "pass_at_k":
        solved: dict[str, bool] = {}
        for row in rows:
            solved[row.id] = solved.get(row.id, False) or row.passed
        value = mean(solved.values())
    elif metric == "mean_reward":
        value = mean(row.reward for row in rows)
    else:
        value = mean(row.passed for row in rows)
    assert value is not None, "a held-out split has at least one prompt"
    return value
