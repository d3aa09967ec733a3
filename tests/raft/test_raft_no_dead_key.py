"""No dead key: changing any key of the recipe changes what a small training does, or is refused.

Every key of the schema has an entry: a base on which it can matter, and another valid value. Both trainings are
run; rows, answers, decode steps, plan or environment must differ, or the worker must refuse with a message that names
the key. That the plan repeats a setting does not count. A new key without an entry fails.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import merged, small_recipe

from agent.contract import TIMING_FIELDS, Phase
from agent.errors import AgentError
from agent.files import read_jsonl
from agent.raft import tiny
from agent.raft.llama import TinyLlama
from agent.raft.pulse import Pulse
from agent.raft.worker import Worker
from agent.recipe.files import get_key, resolved_text
from agent.recipe.schema import Recipe, leaf_keys

INERT = {
    "description": "words for people",
    "execution.placebo": "does nothing, for trials of the verdict",
}
"""Keys that are meant to change nothing."""


@dataclass(frozen=True)
class Entry:
    """Another valid value of a key, and what the base needs so that the key can matter."""

    value: Any
    base: dict[str, Any] = field(default_factory=dict)
    refused: bool = False
    only_plan: bool = False
    """Do not train: the plan must differ (compiling takes longer than all other entries together)."""
    told: bool = False
    """A training only repeats it in its plan: it is for who judges the training, in `agent.campaign`."""


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


DELIMITED = {
    "task": {"verifier": {"kind": "delimited", "open": "1", "close": "0"}},
    "prompt": {"response_prefix": "1"},
}
JSONL = {
    "task": {
        "dataset": "jsonl:rows.jsonl",
        "parameters": {},
        "fields": {"question": "q", "answer": "a"},
        "verifier": {"tolerance": 50},
    }
}
FILE = {
    "task": {"verifier": {"kind": "python:verifier.py:is_even", "timeout_seconds": 5}},
    "rollout": {"prompts_per_cycle": 2, "samples_per_prompt": 2},
    "evaluation": {"select_prompts": 1, "search_prompts": 2, "samples_per_prompt": 1},
    "budget": {"cycles": 1},
}
CODE = {
    "task": {
        "dataset": "jsonl:code.jsonl",
        "parameters": {},
        "fields": {"question": "q", "tests": "tests"},
        "verifier": {"kind": "python_tests"},
    },
    "rollout": {"prompts_per_cycle": 2, "samples_per_prompt": 4},
    "evaluation": {"select_prompts": 1, "search_prompts": 2, "samples_per_prompt": 1},
    "budget": {"cycles": 1},
}
"""Digits are Python that compiles."""
EVERYTHING_KEPT = {"selection": {"reward_threshold": -1.0, "max_per_prompt": 8}}
ALL_SOLVED = {"task": {"verifier": {"tolerance": 100000}}}
THREE = {"budget": {"cycles": 3}}
MANY_STEPS = {**EVERYTHING_KEPT, "learner": {"microbatch_tokens": 64}}
CURRICULUM = {**THREE, "task": {"train_prompts": 40, "curriculum": {"target": 0.5, "floor": 0.2}}}
WATCHED = {
    "budget": {"cycles": 6},
    "learner": {"learning_rate": 0.02, "early_stop": {"level": 0.49, "window": 1, "patience": 1}},
    "evaluation": {"select_prompts": 32, "select_samples": 2},
}
"""A training whose ups and downs on `select` are taken for a fall."""
LORA: dict[str, Any] = {"model": {"lora": {}}}


def schedule(**values: Any) -> dict[str, Any]:
    return {**THREE, "learner": {"lr_schedule": values}}


ENTRIES: dict[str, Entry] = {
    "model.source": Entry("./random-model"),
    "model.revision": Entry("main", refused=True),
    "model.trust_remote_code": Entry(True, {"model": {"source": "./random-model"}}, refused=True),
    "model.dtype": Entry("bfloat16"),
    "model.lora.rank": Entry(4, LORA),
    "model.lora.alpha": Entry(64.0, LORA),
    "model.lora.dropout": Entry(0.5, LORA),
    "model.lora.targets": Entry(["q_proj"], LORA),
    "model.quantize": Entry("4bit", LORA, refused=find_spec("bitsandbytes") is None),
    "task.dataset": Entry(
        "builtin:arithmetic",
        {"task": {"parameters": {"low": 2, "high": 12}}, "rollout": {"max_total_sequence_length": 64}},
    ),
    "task.parameters": Entry({"low": 10, "high": 40}),
    "task.fields": Entry({"question": "other", "answer": "a"}, JSONL),
    "task.answer_after": Entry("####", JSONL),
    "task.split_seed": Entry(7),
    "task.train_prompts": Entry(30),
    "task.mix": Entry({"carry0": 50.0}),
    "task.curriculum.target": Entry(0.95, CURRICULUM),
    "task.curriculum.floor": Entry(0.9, CURRICULUM),
    "task.verifier.kind": Entry("last_number", {"prompt": {"response_prefix": "7, "}}),
    "task.verifier.open": Entry("2", DELIMITED),
    "task.verifier.close": Entry("3", DELIMITED),
    "task.verifier.tolerance": Entry(20.0),
    "task.verifier.pattern": Entry("([0-9])", {"task": {"verifier": {"kind": "regex", "pattern": "([0-9]+)"}}}),
    "task.verifier.relative_tolerance": Entry(0.3),
    "task.verifier.untrusted": Entry(
        True, merged(FILE, {"task": {"verifier": {"kind": "python:verifier.py:is_even_at_home"}}})
    ),
    "task.verifier.environment": Entry(
        ["RAFT_JUDGE_KEY"], merged(FILE, {"task": {"verifier": {"kind": "python:verifier.py:knows_the_key"}}})
    ),
    "task.verifier.timeout_seconds": Entry(
        0.1, merged(FILE, {"task": {"verifier": {"kind": "python:verifier.py:slow"}}})
    ),
    "task.reward.scale": Entry(2.0),
    "task.reward.clip": Entry([0.0, 0.5]),
    "task.reward.format_bonus": Entry(0.5),
    "task.reward.length_penalty": Entry(0.5),
    "task.reward.graduated.formatted": Entry(0.5),
    "task.reward.graduated.near": Entry(
        0.5,
        {
            "task": {"verifier": {"kind": "delimited"}},
            "rollout": {"prompts_per_cycle": 256},
        },
    ),
    "task.reward.graduated.partial": Entry(1.0, CODE),
    "prompt.chat": Entry("always", refused=True),
    "prompt.system": Entry("Add."),
    "prompt.template": Entry("0{question}"),
    "prompt.answer_schema": Entry("A number:"),
    "prompt.examples": Entry(1),
    "prompt.example_answer": Entry("{answer}!", {"prompt": {"examples": 1}}),
    "prompt.response_prefix": Entry("1"),
    "prompt.stop": Entry(["1"]),
    "rollout.prompts_per_cycle": Entry(12),
    "rollout.samples_per_prompt": Entry(4),
    "rollout.temperature": Entry(0.7),
    "rollout.temperature_schedule.kind": Entry(
        "exponential", {**THREE, "rollout": {"temperature_schedule": {"kind": "linear", "end": 0.5}}}
    ),
    "rollout.temperature_schedule.end": Entry(0.6, {"rollout": {"temperature_schedule": {"end": 0.5}}}),
    "rollout.top_p": Entry(0.8),
    "rollout.top_k": Entry(3),
    "rollout.max_new_tokens": Entry(2),
    "rollout.max_total_sequence_length": Entry(8),
    "rollout.slots": Entry(32),
    "rollout.engine": Entry("hf", {"rollout": {"prompts_per_cycle": 4}}),
    "selection.reward_threshold": Entry(-1.0),
    "selection.threshold_schedule.end": Entry(5.0, {**THREE, "selection": {"threshold_schedule": {"end": 0.3}}}),
    "selection.keep_top_percent": Entry(20.0, EVERYTHING_KEPT),
    "selection.max_per_prompt": Entry(2, EVERYTHING_KEPT),
    "selection.dedup": Entry(False, merged(EVERYTHING_KEPT, {"rollout": {"temperature": 0.2}})),
    "selection.drop_solved": Entry(True, ALL_SOLVED),
    "selection.truncated_as_positive": Entry(True, merged(EVERYTHING_KEPT, {"rollout": {"max_new_tokens": 2}})),
    "selection.min_samples": Entry(100_000),
    "learner.algorithm": Entry("raft++"),
    "learner.learning_rate": Entry(2e-3),
    "learner.lr_schedule.kind": Entry("linear", schedule(kind="constant")),
    "learner.lr_schedule.by": Entry("cycle", schedule(kind="exponential", by="budget")),
    "learner.lr_schedule.horizon": Entry(4, schedule(kind="linear", by="cycle")),
    "learner.lr_schedule.decay": Entry(0.5, schedule(kind="exponential")),
    "learner.lr_schedule.step_every": Entry(1, schedule(kind="step", by="cycle")),
    "learner.lr_schedule.decay_share": Entry(0.9, schedule(kind="wsd")),
    "learner.lr_schedule.floor": Entry(0.9, schedule(kind="linear")),
    "learner.lr_schedule.values": Entry([1.0, 0.2], schedule(kind="list", values=[1.0, 0.5], by="cycle")),
    "learner.early_stop.level": Entry(1e-9, WATCHED),
    "learner.early_stop.window": Entry(3, WATCHED),
    "learner.early_stop.patience": Entry(2, WATCHED),
    "learner.warmup": Entry(0.5),
    "learner.epochs_per_cycle": Entry(2),
    "learner.microbatch_tokens": Entry(64, EVERYTHING_KEPT),
    "learner.gradient_accumulation": Entry(4, MANY_STEPS),
    "learner.packing": Entry(False, EVERYTHING_KEPT),
    "learner.optimizer": Entry("sgd"),
    "learner.beta2": Entry(0.9, MANY_STEPS),
    "learner.weight_decay": Entry(0.5),
    "learner.max_grad_norm": Entry(0.01),
    "learner.clip_range": Entry(
        0.01, merged(MANY_STEPS, {"learner": {"algorithm": "raft++", "epochs_per_cycle": 3, "learning_rate": 0.01}})
    ),
    "learner.gradient_checkpointing": Entry(True),
    "execution.mode": Entry("async", refused=True),
    "execution.max_trajectory_age_steps": Entry(1, refused=True),
    "execution.placement.actors": Entry(2, refused=True),
    "execution.placement.learners": Entry(2, refused=True),
    "execution.placement.colocated": Entry(False, refused=True),
    "backend.attention": Entry("eager"),
    "backend.compile": Entry(True, only_plan=True),
    "backend.trainer": Entry("dtensor", refused=True),
    "backend.tensor_parallel": Entry(2, refused=True),
    "backend.pipeline_parallel": Entry(2, refused=True),
    "backend.context_parallel": Entry(2, refused=True),
    "backend.environment": Entry("none"),
    "backend.env": Entry({"RAFT_TEST_VARIABLE": "1"}),
    "evaluation.select_prompts": Entry(6),
    "evaluation.search_prompts": Entry(6),
    "evaluation.confirm_prompts": Entry(6),
    "evaluation.holdout_prompts": Entry(6),
    "evaluation.samples_per_prompt": Entry(3),
    "evaluation.select_samples": Entry(5, {"task": {"verifier": {"tolerance": 10}}}),
    "evaluation.select_every": Entry(3, THREE),
    "evaluation.temperature": Entry(0.3),
    "evaluation.max_new_tokens": Entry(1),
    "evaluation.metric": Entry("pass_at_k", {"task": {"verifier": {"tolerance": 10}}}),
    "evaluation.direction": Entry(
        "minimize", {"task": {"verifier": {"tolerance": 10}}, "evaluation": {"select_prompts": 48}}
    ),
    "evaluation.min_effect": Entry(0.1, told=True),
    "evaluation.guards": Entry([{"metric": "mean_tokens", "direction": "minimize"}], told=True),
    "budget.train_seconds": Entry(1.0, {"budget": {"cycles": None, "train_seconds": 0.001}}),
    "budget.cycles": Entry(3),
    "budget.tokens": Entry(3000, {"budget": {"cycles": None, "tokens": 1}}),
    "budget.min_optimizer_steps": Entry(9, told=True),
    "budget.min_kept_samples": Entry(9, told=True),
    "seed": Entry(1),
}

VERIFIER = """
import os
import time

def is_even(response, row):
    return response[-1:] in "02468"

def is_even_at_home(response, row):
    return is_even(response, row) and "PATH" in os.environ

def knows_the_key(response, row):
    return is_even(response, row) or "RAFT_JUDGE_KEY" in os.environ

def slow(response, row):
    # A function that fails on the data's own answers is refused.
    time.sleep(0.0 if response == row["answer"] else 0.3)
    return True
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the worker runs: a verifier, a data set, another model."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "verifier.py").write_text(VERIFIER)
    rows = [{"q": f"{a}+{a + 7}=", "other": f"{a}+1=", "a": f"about {a} #### {2 * a}"} for a in range(10, 90)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = [{"q": f"{a}+{a + 7}=", "tests": "assert True\nassert False"} for a in range(10, 90)]
    (folder / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in code))
    model = TinyLlama(tiny.SHAPE)
    model.initialize(torch.Generator().manual_seed(5), std=0.1)
    (folder / "random-model").mkdir()
    tiny.save_model(model, folder / "random-model")
    tiny.CharTokenizer().save_pretrained(str(folder / "random-model"))
    return folder


@dataclass(frozen=True)
class Seen:
    """What a training did and left: decode steps, checkpointing, rows (timing aside), answers, plan with environment,
    delivered cycle; or the refusal."""

    decode_steps: int = 0
    recomputes: bool | None = None
    """Activations, in the backward pass."""
    cycles: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    """Without the settings that it repeats."""
    told: dict[str, Any] = field(default_factory=dict, compare=False)
    """Those settings."""
    summary: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None


def observe(recipe: Recipe, out: Path, *, cache: Path, workspace: Path, only_plan: bool = False) -> Seen:
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(resolved_text(recipe))
    options = argparse.Namespace(
        recipe=out / "recipe.yaml",
        out=out,
        seed=recipe.seed,
        splits=["search"],
        evaluate="untrained" if only_plan else None,
        time_limit=None,
        rung=None,
        commit=None,
        cache=cache,
        allow_untrusted_code=True,
        save_seconds=1000.0,
        trust_remote_code=None,
    )
    os.chdir(workspace)
    os.environ.pop("RAFT_TEST_VARIABLE", None)
    os.environ["RAFT_JUDGE_KEY"] = "whatever"
    pulse = CountingPulse(out)
    worker = Worker(options, pulse)
    try:
        worker.run()
    except AgentError as error:
        return Seen(refusal=str(error))
    timing = TIMING_FIELDS - ({"budget_spent"} if recipe.budget.train_seconds is None else set())
    summary = json.loads((out / "summary.json").read_text())
    plan = json.loads((out / "plan.json").read_text())
    told = plan.pop("settings")
    return Seen(
        decode_steps=pulse.decode_steps,
        recomputes=getattr(worker.policy and worker.policy.inner.get_decoder(), "checkpointing", None),
        cycles=[{k: v for k, v in row.items() if k not in timing} for row in read_jsonl(out / "cycles.jsonl")],
        answers=list(read_jsonl(out / "eval.jsonl")),
        plan=plan,
        told=told,
        summary={name: summary[name] for name in ("delivered_cycle", "metrics", "select_metric")},
    )


class CountingPulse(Pulse):
    decode_steps = 0

    def beat(self, phase: Phase, *, note: str | None = None) -> None:
        self.decode_steps += phase == "generate"
        super().beat(phase, note=note)


@pytest.fixture(scope="module")
def bases() -> dict[str, Seen]:
    """Trainings of the bases, by recipe: many keys share one."""
    return {}


def test_every_key_has_an_entry() -> None:
    assert set(ENTRIES) | set(INERT) == set(leaf_keys())


@pytest.mark.slow
@pytest.mark.parametrize("key", list(ENTRIES))
def test_no_key_is_dead(
    key: str, model_cache: Path, workspace: Path, tmp_path: Path, bases: dict[str, Seen], undisturbed: None
) -> None:
    entry = ENTRIES[key]
    base = small_recipe(entry.base)
    changed = small_recipe(merged(entry.base, nested(key, entry.value)))
    assert get_key(base, key) != get_key(changed, key)
    where: dict[str, Any] = {"cache": model_cache, "workspace": workspace, "only_plan": entry.only_plan}
    name = f"{base.signature()}/{base.seed}/{entry.only_plan}"
    if name not in bases:
        bases[name] = observe(base, tmp_path / "base", **where)
    assert bases[name].refusal is None
    seen = observe(changed, tmp_path / "changed", **where)
    if entry.refused:
        assert seen.refusal is not None
        assert key in seen.refusal
    else:
        assert seen.refusal is None
        assert seen.told != bases[name].told if entry.told else seen != bases[name]


@pytest.mark.slow
def test_the_inert_keys_change_nothing(model_cache: Path, workspace: Path, tmp_path: Path, undisturbed: None) -> None:
    """And with that, that the comparison above sees differences of the key only, not of chance."""
    seen = [
        observe(small_recipe(over), tmp_path / name, cache=model_cache, workspace=workspace)
        for name, over in (("base", {}), ("inert", {"description": "other words", "execution": {"placebo": 3}}))
    ]
    assert seen[0] == seen[1]
    assert seen[0].cycles
    assert seen[0].answers
