"""Measuring a model on a held-out split, so that two runs can be compared prompt by prompt.

The random numbers of a prompt's samples depend on the split and the prompt alone, not on the training seed: two runs
that are compared meet the same prompts with the same luck. No prompt is ever dropped; one that leaves no room for an
answer counts as failed. `rollout`'s temperature and token limits play no part here, `evaluation`'s do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.contract import EvalRow, Split
from agent.raft.measure import mean
from agent.raft.model import Policy
from agent.raft.rollout import Completion, Request, Sampling, fits, generate
from agent.raft.seeds import seed_of
from agent.recipe.schema import Recipe
from agent.tasks.prompts import render
from agent.tasks.rewards import shape
from agent.tasks.tasks import Example
from agent.tasks.verifiers import Verdict

VERIFY_AT_ONCE = 64
"""Responses between two signs of life."""


@dataclass(frozen=True)
class Measured:
    """Rows in prompt and sample order, and the metric of the recipe on them."""

    rows: list[EvalRow]
    metric: float
    tokens: int


@dataclass(frozen=True)
class Examiner:
    """Asks a model questions and has the answers verified."""

    recipe: Recipe
    policy: Policy
    verifier: Any
    shots: Sequence[Example]

    def prompt_of(self, example: Example) -> list[int]:
        return render(self.recipe.prompt, example, shots=self.shots, tokenizer=self.policy.tokenizer)

    def response_of(self, completion: Completion) -> str:
        """What the verifier sees: the response prefix and the text, without the end-of-turn token."""
        tokens = completion.tokens
        if tokens and tokens[-1] in self.policy.stop_ids:
            tokens = tokens[:-1]
        return self.recipe.prompt.response_prefix + self.policy.decode(tokens)

    def verdicts(
        self,
        examples: Sequence[Example],
        completions: Sequence[Sequence[Completion]],
        *,
        on_step: Callable[[], None],
    ) -> list[list[Verdict]]:
        """By prompt and sample. `on_step` is called now and then: verifying code can take minutes."""
        pairs = [
            (self.response_of(completion), example)
            for example, group in zip(examples, completions, strict=True)
            for completion in group
        ]
        found: list[Verdict] = []
        for start in range(0, len(pairs), VERIFY_AT_ONCE):
            on_step()
            found += self.verifier.verify_many(pairs[start : start + VERIFY_AT_ONCE])
        flat = iter(found)
        return [[next(flat) for _ in group] for group in completions]

    def measure(
        self, examples: Sequence[Example], *, split: Split, samples: int, on_step: Callable[[], None]
    ) -> Measured:
        """The split's rows and metric under `evaluation`."""
        evaluation = self.recipe.evaluation
        sampling = Sampling(
            temperature=evaluation.temperature,
            max_new_tokens=evaluation.max_new_tokens,
            max_total=self.policy.max_length,
            slots=self.recipe.rollout.slots,
            stop=tuple(self.recipe.prompt.stop),
            response_prefix=self.recipe.prompt.response_prefix,
        )
        requests = [
            Request(self.prompt_of(example), samples, seed_of("evaluate", split, example.id)) for example in examples
        ]
        places = [place for place, request in enumerate(requests) if fits(request.prompt, sampling)]
        answered = generate(self.policy, [requests[place] for place in places], sampling, on_step=on_step)
        unanswered = Completion([], [], [], "length")
        completions = [[unanswered] * samples for _ in examples]
        for place, group in zip(places, answered, strict=True):
            completions[place] = group
        verdicts = self.verdicts(examples, completions, on_step=on_step)
        rows = [
            self._row(split, example, sample, completion, verdict)
            for example, group, judged in zip(examples, completions, verdicts, strict=True)
            for sample, (completion, verdict) in enumerate(zip(group, judged, strict=True))
        ]
        tokens = sum(row.tokens for row in rows)
        return Measured(rows, metric_of(rows, evaluation.metric), tokens)

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
            reward=reward,
            passed=verdict.passed and answered,
            formatted=verdict.formatted and answered,
            near=verdict.near and answered,
            tokens=len(completion.tokens),
            finish_reason=completion.finish,
            tag=example.tag,
        )


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
