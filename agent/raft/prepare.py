"""From a resolved recipe to a loaded model, its rows and its plan: what a training and an evaluation begin with.

Modules that import torch are imported inside: the environment that it reads is settled first.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.contract import HELD_OUT, PLAN, UNTRAINED, RunPlan, Split
from agent.errors import DataError
from agent.files import write_atomic
from agent.raft.pulse import Pulse
from agent.recipe.schema import Recipe
from agent.recipe.yardstick import code_digest
from agent.text import redacted_values

if TYPE_CHECKING:
    from agent.raft.evaluate import Examiner
    from agent.raft.let_in import Source
    from agent.raft.policy import Policy
    from agent.tasks.tasks import Splits

SPLITS: tuple[Split, ...] = ("train", "select", *HELD_OUT)
MOST_THREADS_OF_TINY = 2


class Preparation:
    """What is settled before the first step."""

    def __init__(self, options: argparse.Namespace, pulse: Pulse):
        self.options = options
        self.pulse = pulse
        self.started = time.monotonic()
        self.recipe: Recipe
        self.checkpoint: Path | None = None
        """What is evaluated instead of a training."""
        self.model_files: dict[str, Any] = {}
        """Stamps of the files that the model was loaded from, by folder and name."""
        self.commit: str | None = options.commit
        """Of a model of the hub: what this process uses once it has found it, whatever is pushed or downloaded then."""
        self.policy: Policy | None = None
        self.splits: Splits | None = None
        self.load_seconds: float | None = None
        self.reload_seconds = 0.0
        """Of the last load, without what had to be fetched or built first."""
        self.environment: dict[str, str] = {}
        self.checkpointing: tuple[bool, str] = (False, "not settled")

    def _settle(self) -> None:
        """The environment, which torch reads when it is imported, and the imports."""
        from agent.raft.environment import apply_environment
        from agent.raft.support import refuse_unsupported

        refuse_unsupported(self.recipe)
        self.environment = apply_environment(self.recipe.backend, cache=self.cache)
        self.pulse.beat("load")
        code_digest()
        from agent.raft.standby import import_for

        import_for(self.options.recipe)

    def _open_task(self) -> Any:
        """The rows and the verifier."""
        from agent.tasks.tasks import load_splits
        from agent.tasks.verifiers import build_verifier

        base = Path.cwd()
        self.splits = load_splits(self.recipe.task, self.recipe.evaluation, base=base)
        if refusal := self.splits.refusal():
            print(refusal, file=sys.stderr, flush=True)
        verifier = build_verifier(
            self.recipe.task.verifier,
            base=base,
            allow_untrusted_code=self.options.allow_untrusted_code,
            count_assertions=self.recipe.task.reward.graduated.partial > 0,
        )
        if kept_in := verifier.kept_in_by():
            print(f"untrusted code is kept in by {kept_in}", file=sys.stderr, flush=True)
        return verifier

    @functools.cached_property
    def cache(self) -> Path:
        """Folder for models."""
        from agent.raft.sources import default_cache

        named: Path | None = self.options.cache
        return named or default_cache()

    def _prepare(self, verifier: Any) -> Examiner:
        """Load the model and write the plan."""
        from agent.tasks.verifiers import refuse_hopeless_data

        assert self.splits is not None
        self.pulse.beat("load")
        task = self.recipe.task
        refuse_hopeless_data(verifier, task.verifier, self.splits.train, dataset=task.dataset)
        examiner = self._load(verifier)
        assert self.policy is not None
        plan = self._plan()
        if plan.engine == "hf" and self.recipe.rollout.engine == "auto":
            why = f"rollout.engine: auto is hf here, which is slower: {self.policy.layout_why_not}"
            print(why, file=sys.stderr, flush=True)
        write_atomic(self.options.out / PLAN, plan.model_dump_json(indent=1) + "\n")
        self._check_prompts(examiner)
        return examiner

    def _load(self, verifier: Any, *, as_before: dict[str, Any] | None = None) -> Examiner:
        """The model, and who asks it. `as_before`: stamps of the files that have to be the same still, by folder."""
        began = time.monotonic()
        from agent.raft.answers import AnswerCache
        from agent.raft.evaluate import Examiner
        from agent.raft.leaks import refuse_leaked_questions
        from agent.raft.measure import device_memory
        from agent.raft.model import load_policy
        from agent.raft.used import refuse_changed, stamps_of
        from agent.tasks.prompts import shots_for

        assert self.splits is not None
        self.pulse.device_memory = device_memory
        refuse_leaked_questions(self.recipe.prompt, self.splits)
        named = self.options.evaluate
        self.checkpoint = Path(named) if named not in (None, UNTRAINED) else None
        folders = {str(folder): stamps_of(folder) for folder in self._folders()}
        fetched = time.monotonic()
        folders.update({name: stamps for name, stamps in (as_before or {}).items() if name in folders})
        self.policy = load_policy(
            self._pinned(),
            cache=self.cache,
            seed=self.options.seed,
            beat=self.pulse.beat,
            checkpoint=self.checkpoint,
            checkpointing=named is None and self._checkpointing(),
            confirmed=self.options.trust_remote_code,
        )
        for name, stamps in folders.items():
            refuse_changed(stamps, Path(name), what=self.recipe.model.source)
        self.model_files = folders
        self.reload_seconds = time.monotonic() - fetched
        if self.policy.native:
            self._use_few_threads()
        shots = shots_for(self.recipe.prompt, self.splits.train, seed=self.recipe.task.split_seed)
        answers = AnswerCache(self.cache / "answers")
        examiner = Examiner(self.recipe, self.policy, verifier, shots, answers)
        # What there is now stays until the end: looking for garbage in it took a tenth of a small training.
        gc.collect()
        gc.freeze()
        self.load_seconds = time.monotonic() - began
        return examiner

    def _folders(self) -> list[Path]:
        """Whose files the model is loaded from: the recipe's, or a run's checkpoint, or both for adapters."""
        from agent.raft.let_in import ADAPTER_CONFIG
        from agent.raft.used import folder_of

        found: list[Path | None] = [self.checkpoint]
        if self.checkpoint is None or (self.checkpoint / ADAPTER_CONFIG).exists():
            found.append(folder_of(self._fetched()))
        return [folder for folder in found if folder is not None and folder.is_dir()]

    def _fetched(self) -> Source:
        """The recipe's model, on this machine."""
        from agent.raft import sources

        confirmed = self.options.trust_remote_code
        source = sources.fetch(self._pinned().model, cache=self.cache, beat=self.pulse.beat, confirmed=confirmed)
        self.commit = source.revision
        return source

    def _pinned(self) -> Recipe:
        """The recipe, with the commit that its model was found at for a revision."""
        if self.commit is None:
            return self.recipe
        model = self.recipe.model.model_copy(update={"revision": self.commit})
        return self.recipe.model_copy(update={"model": model})

    def _use_few_threads(self) -> None:
        """Threads spend most of their time waiting for each other on matrices as small as the built-in model's.

        40 cycles of tiny-addition took 7.6 and 8.6 s on two threads of two quiet cores, 9.3 and 10.5 s on one.
        """
        import torch

        torch.set_num_threads(min(MOST_THREADS_OF_TINY, torch.get_num_threads()))

    def _checkpointing(self) -> bool:
        """Whether activations are recomputed: as the recipe says, or, under `auto`, where memory asks for it."""
        from agent.raft.device import choose_device, facts_of, free_memory
        from agent.recipe.memory import GIB, needs_checkpointing
        from agent.recipe.shapes import shape_of

        wanted = self.recipe.learner.gradient_checkpointing
        if wanted != "auto":
            self.checkpointing = wanted, "the recipe says so"
            return wanted
        device, _ = choose_device()
        # A model that is here is one whose size is known: else the first run might choose other than the next.
        self._fetched()
        found = shape_of(self._pinned().model, cache=self.cache, base=Path.cwd())
        if found.shape is None:
            self.checkpointing = False, found.why
        else:
            self.checkpointing = needs_checkpointing(
                self.recipe, found.shape, facts_of(device), available_gb=free_memory(device) / GIB
            )
        return self.checkpointing[0]

    def _plan(self) -> RunPlan:
        from agent.raft.microbatch import choose_shape

        assert self.policy is not None
        assert self.splits is not None
        recipe, policy = self.recipe, self.policy
        parameters, trainable = policy.parameter_counts()
        shape, shape_why = choose_shape(policy, recipe.learner, compile_step=recipe.backend.compile)
        return RunPlan(
            device=str(policy.device),
            dtype=str(policy.compute).removeprefix("torch."),
            attention=policy.attention,
            engine=policy.engine_for(recipe.rollout.engine),
            compile=recipe.backend.compile,
            trainer=recipe.backend.trainer,
            environment=redacted_values(self.environment),
            parameters=parameters,
            trainable_parameters=trainable,
            rows={name: len(getattr(self.splits, name)) for name in SPLITS},
            refused_rows=self.splits.refused,
            settings={
                "device_why": policy.device_why,
                "implementation": "agent.raft.llama" if policy.native else "transformers",
                "engine_why": policy.layout_why_not,
                "slots": recipe.rollout.slots,
                "microbatch_tokens": recipe.learner.microbatch_tokens,
                "gradient_accumulation": recipe.learner.gradient_accumulation,
                "microbatches": shape,
                "microbatches_why": shape_why,
                "gradient_checkpointing": self.checkpointing[0],
                # Without it there is nothing to explain, and how much memory is free differs from run to run.
                "gradient_checkpointing_why": self.checkpointing[1] if self.checkpointing[0] else None,
                "min_optimizer_steps": recipe.budget.min_optimizer_steps,
                "min_kept_samples": recipe.budget.min_kept_samples,
                "min_effect": recipe.evaluation.min_effect,
                "guards": [guard.model_dump() for guard in recipe.evaluation.guards],
                "splits": self.options.splits,
                "evaluate": self.options.evaluate,
            },
        )

    def _check_prompts(self, examiner: Examiner) -> None:
        """At least one training prompt must leave room for an answer."""
        assert self.splits is not None
        assert self.policy is not None
        limit, positions = self.recipe.rollout.max_total_sequence_length, self.policy.max_length
        shortest: int | None = None
        for example in self.splits.train:
            tokens = len(examiner.prompt_of(example))
            if tokens < self.policy.room(limit):
                return
            shortest = min(tokens, shortest or tokens)
        assert shortest is not None, "a training split has at least one row"
        if positions is not None and shortest >= positions:
            raise DataError(
                f"no prompt fits the {positions} positions of the model (the shortest has {shortest} tokens)",
                where="model.source",
                hint="Shorten the prompts (prompt.examples, prompt.system, prompt.template), or take another model.",
            )
        raise DataError(
            f"no prompt fits rollout.max_total_sequence_length: {limit} (the shortest has {shortest} tokens)",
            hint=f"Raise it above {shortest + self.recipe.rollout.max_new_tokens}.",
        )
