"""What the hardware notes say decides: rules by kind of machine, and what is not tried on an architecture, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_fixtures import BOOK, machine, named, run, shipped, tiny

from agent.errors import PlaybookError
from agent.hardware.probe import Machine
from agent.plan.planner import Ranking, plan
from agent.plan.playbook import check_playbook, load_playbook
from agent.plan.signals import Observation
from agent.recipe.schema import Recipe

BNB = ("bitsandbytes",)
CARD = {"kind": "cuda", "arch": "sm_90", "unified_memory": False}
MACHINES = {
    "strix halo": machine(1, packages=BNB),
    "card": machine(1, packages=BNB, **CARD),
    "processor": machine(packages=BNB),
}
LORA = {"model__lora": {"rank": 16, "alpha": 32.0}}


def ranked(where: Machine | None, recipe: Recipe, observation: Observation | None = None) -> Ranking:
    return plan(BOOK, recipe=recipe, observation=observation, machine=where)


def factor(where: Machine | None, recipe: Recipe, form: str) -> list[str]:
    """What `why` tells of the rules for a form."""
    hypothesis, _, variant = form.partition("/")
    return [line for line in named(ranked(where, recipe), hypothesis, variant).why if "(rule " in line]


def skipped(where: Machine | None, recipe: Recipe, hypothesis: str, observation: Observation | None = None) -> str:
    return {s.hypothesis: s.reason for s in ranked(where, recipe, observation).skipped}.get(hypothesis, "")


# --- rules by kind -----------------------------------------------------------------------------------------


def test_the_rules_of_the_seed_go_by_count_alone() -> None:
    counts = {rule.id: (rule.at_least, rule.at_most, rule.factor) for rule in BOOK.resources.values()}
    assert counts["one-accelerator"] == (0, 1, 1.15)
    assert counts["two-to-four-accelerators"] == (2, 4, 1.4)
    assert counts["eight-accelerators"] == (8, None, 1.6)
    for name in ("one-accelerator", "two-to-four-accelerators", "eight-accelerators", "lockstep-up-to-four"):
        rule = BOOK.resources[name]
        assert [rule.machine, rule.arch, rule.when, rule.defer] == [[], [], [], []]


@pytest.mark.parametrize(
    ("form", "slots", "where", "rule"),
    [
        ("batch-gradient-checkpointing/off", 256, "strix halo", "x1.30 strix-halo-arithmetic"),
        ("batch-gradient-checkpointing/off", 256, "card", None),
        ("batch-gradient-checkpointing/off", 256, "processor", None),
        ("batch-gradient-checkpointing/on", 256, "strix halo", None),
        ("batch-slots/more", 64, "strix halo", "x1.30 strix-halo-rows"),
        ("batch-slots/more", 141, "strix halo", "x0.77 strix-halo-enough-rows"),
        ("batch-slots/more", 64, "card", None),
        ("batch-slots/more", 64, "processor", "x0.77 processor-enough-rows"),
        ("batch-slots/more", 16, "processor", None),
        ("batch-slots/fewer", 64, "processor", None),
        ("batch-packing/on", 64, "processor", "x1.30 processor-avoided-work"),
        ("batch-packing/on", 64, "strix halo", "x1.30 strix-halo-arithmetic"),
        ("batch-packing/on", 64, "card", "x1.15 one-accelerator"),
    ],
)
def test_a_rule_counts_on_its_kind_of_machine_and_is_named(form: str, slots: int, where: str, rule: str | None) -> None:
    checkpointing = True if form.endswith("checkpointing/off") else "auto"
    recipe = tiny(rollout__slots=slots, learner__packing=False, learner__gradient_checkpointing=checkpointing)
    found = factor(MACHINES[where], recipe, form)
    if rule is None:
        assert found == []
    else:
        times, _, name = rule.partition(" ")
        (line,) = found
        assert line.startswith(times)
        assert line.endswith(f"(rule {name})")


def test_an_unknown_machine_is_of_no_kind() -> None:
    assert factor(None, tiny(rollout__slots=64), "batch-slots/more") == []


def test_the_rule_for_one_strix_halo_is_not_for_two() -> None:
    recipe = tiny(learner__packing=False, learner__gradient_checkpointing=True)
    assert factor(machine(2), recipe, "batch-gradient-checkpointing/off") == []


def test_the_same_run_is_answered_in_another_order_on_each_kind_of_machine() -> None:
    """Slow sampling and padding at once: rows first where they wait for weights, avoided work where they do not."""
    recipe = shipped("smollm2-arithmetic", rollout__slots=64, learner__packing=False)
    sick = run(recipe=recipe, padding_share=0.42, seconds={"generate": 0.97, "train": 0.02, "wait": 0.01})

    def order(where: Machine) -> dict[str, float]:
        found = ranked(where, recipe, replace(sick, machine=where))
        return {form: named(found, *form.split("/")).score for form in ("batch-slots/more", "batch-packing/on")}

    halo, processor, card = (order(MACHINES[name]) for name in ("strix halo", "processor", "card"))
    assert halo["batch-slots/more"] > card["batch-slots/more"] > processor["batch-slots/more"]
    assert processor["batch-packing/on"] > card["batch-packing/on"]
    assert halo["batch-slots/more"] > halo["batch-packing/on"]
    assert processor["batch-packing/on"] > processor["batch-slots/more"]


# --- what is not tried there --------------------------------------------------------------------------------


def test_quantized_weights_are_an_answer_to_tight_memory_on_a_card_and_refused_with_figures_on_gfx1151() -> None:
    recipe = tiny(**LORA)
    card = ranked(MACHINES["card"], recipe)
    assert named(card, "batch-quantized-base", "8bit").recipe.model.quantize == "8bit"
    assert named(card, "batch-quantized-base", "4bit").subject == ("batch: bits of the frozen weights, none -> 4bit")
    reason = skipped(MACHINES["strix halo"], recipe, "batch-quantized-base")
    assert "is not for gfx1151: an 8-bit LoRA run took 41 minutes there where bfloat16 took 5" in reason
    assert "4-bit weights are about twice as slow as bfloat16 there (halo-forge notes)" in reason


def test_tight_memory_asks_for_it() -> None:
    recipe, where = tiny(**LORA), replace(MACHINES["card"], accelerator_memory_gb=8.0)
    base = run(recipe=recipe)
    assert base.summary is not None
    full = replace(base, machine=where, summary=base.summary.model_copy(update={"peak_memory_gb": 8.2}))
    assert named(ranked(where, recipe, full), "batch-quantized-base", "4bit").symptom == "memory_tight"


def test_what_it_needs_is_told() -> None:
    assert "needs model.lora to be other than none" in skipped(MACHINES["card"], tiny(), "batch-quantized-base")
    bare = machine(1, **CARD)
    assert "needs the package bitsandbytes" in skipped(bare, tiny(**LORA), "batch-quantized-base")


def test_back_from_quantized_weights_is_possible_everywhere() -> None:
    recipe = tiny(**LORA, model__quantize="8bit")
    for where in MACHINES.values():
        assert named(ranked(where, recipe), "batch-quantized-base", "whole").recipe.model.quantize is None
        back = named(ranked(where, recipe), "batch-lora", "all-weights").recipe.model
        assert (back.lora, back.quantize) == (None, None)


def test_nothing_leaves_bfloat16_on_gfx1151_unless_a_symptom_asks_for_a_check_of_arithmetic() -> None:
    recipe = tiny(model__dtype="bfloat16", **LORA)
    where = MACHINES["strix halo"]

    def leaving(observation: Observation | None) -> set[str]:
        found = ranked(where, recipe, observation).proposals
        wide = [p for p in found if p.recipe.model.dtype != "bfloat16" or p.recipe.model.quantize is not None]
        return {f"{p.hypothesis}/{p.variant}" for p in wide}

    assert leaving(None) == leaving(run(recipe=recipe)) == set()
    unsteady = run(recipe=recipe, grad_norm=50.0, loss=3.0)
    assert leaving(unsteady) == set()
    assert "3.5 times slower" in skipped(where, recipe, "batch-precision")
    assert "tried there only for non_finite or logprob_mismatch" in skipped(where, recipe, "batch-precision")
    apart = run(recipe=recipe, logprob_gap=0.3)
    assert leaving(apart) == {"batch-precision/to-fp32", "backend-logprob-path/plain"}
    why = named(ranked(where, recipe, apart), "batch-precision", "to-fp32").why
    assert any(
        line.startswith("because of logprob_mismatch, in spite of this: float32 products are 3.5 times slower")
        for line in why
    )
    assert leaving(run(recipe=recipe, grad_norm=float("inf"))) == {"batch-precision/to-fp32"}


def test_elsewhere_the_notes_on_gfx1151_say_nothing() -> None:
    recipe = tiny(model__dtype="bfloat16")
    for name in ("card", "processor"):
        proposal = named(ranked(MACHINES[name], recipe), "batch-precision", "to-fp32")
        assert not any("in spite of" in line for line in proposal.why)


def test_the_check_of_the_playbook_knows_the_machine() -> None:
    recipes = {"lora": tiny(**LORA), "quantized": tiny(**LORA, model__quantize="4bit")}
    for where in (None, *MACHINES.values()):
        assert check_playbook(BOOK, recipes, where) == []


# --- what a user may write ----------------------------------------------------------------------------------

AXIS = """
axis: batch
hypotheses:
  - id: mine
    claim: c
    what: w
    {requires}
    variants: [{{name: up, set: {{seed: 1}}}}]
"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("resources: [{id: r, says: s, prefer: [batch-slot]}]", "did you mean batch-slots"),
        ("resources: [{id: r, says: s, defer: [batch-slots/most]}]", "did you mean batch-slots/more"),
        ("resources: [{id: r, says: s}]", "needs prefer or defer"),
        ("resources: [{id: r, says: s, machine: [gpu], prefer: [batch]}]", "'cpu', 'cuda' or 'rocm'"),
        ("resources: [{id: r, says: s, when: [{key: rollout.slot, above: 1}], prefer: [batch]}]", "rollout.slots"),
        (AXIS.format(requires="requires: {unless: [non_finite]}"), "unless goes with not_arch"),
        (AXIS.format(requires="requires: {not_arch: {gfx1151: slow}, unless: [nonfinite]}"), "did you mean non_finite"),
        (AXIS.format(requires="requires: {not_arch: {gfx1151: ''}}"), "at least 1 character"),
    ],
)
def test_a_mistake_in_a_rule_is_named(tmp_path: Path, content: str, said: str) -> None:
    for path in BOOK.folder.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "zz-mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(PlaybookError) as error:
        load_playbook(tmp_path)
    shown: Any = f"{error.value} {error.value.hint}"
    assert said in shown
    assert "zz-mine.yaml" in shown
