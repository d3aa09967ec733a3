"""The shipped playbook loads and applies; a broken one is refused with file, key path and the nearest valid name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from plan_fixtures import BOOK, ROOT, machine, shipped, tiny

from agent.contract import CRASH_CLASSES
from agent.errors import PlaybookError
from agent.plan.fit import build_change, fill, lacking
from agent.plan.memory import below
from agent.plan.playbook import check_playbook, load_playbook
from agent.plan.schema import CrashRule, Hypothesis, Playbook
from agent.recipe.files import load_recipe
from agent.recipe.schema import leaf_keys

RECIPES = {path.stem: load_recipe(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}


def hypothesis(**fields: object) -> Hypothesis:
    base = {"id": "h", "claim": "c", "what": "w", "variants": [{"name": "v", "set": {"learner.packing": True}}]}
    return Hypothesis.model_validate(base | fields)


# --- the shipped files -------------------------------------------------------------------------------------


def test_every_hypothesis_applies_to_every_shipped_recipe_that_it_claims_to_fit() -> None:
    assert RECIPES
    assert [str(problem) for problem in check_playbook(BOOK, RECIPES)] == []


def test_every_variant_fits_some_recipe_once_machine_and_recipe_have_what_it_requires() -> None:
    """A form that could never be tried would be a dead line of the playbook."""
    prepared = [
        *RECIPES.values(),
        *(tiny(**keys) for keys in STATES),
        *(shipped("smollm2-strict", **keys) for keys in STATES),
        *(shipped("smollm2-arithmetic", **keys) for keys in STATES),
        shipped("smollm2-arithmetic", task__verifier__kind="exact"),
        shipped("smollm2-arithmetic", task__verifier={"kind": "python:v.py:f"}, selection__reward_threshold=0.5),
    ]
    packages = ("flash_attn", "megatron", "nemo_automodel", "bitsandbytes")
    # What is measured to be slow on gfx1151 is not tried there.
    everything = [machine(8, packages=packages, arch=arch) for arch in ("gfx1151", "gfx942")]
    facts = {"weakest_tag": "a", "strongest_tag": "b"}
    dead = [
        f"{h.id} ({v.name})"
        for h in BOOK.hypotheses.values()
        for v in h.variants
        if not any(
            lacking(h, v, recipe, machine=where) is None and build_change(v, recipe, facts=facts).change is not None
            for recipe in prepared
            for where in everything
        )
    ]
    assert dead == []


STATES: list[dict[str, object]] = [
    {"rollout__temperature": 1.3, "task__reward__scale": 2.0},
    {
        "prompt__system": "You are helpful.",
        "prompt__template": "Q: {question}",
        "prompt__examples": 2,
        "prompt__stop": ["x"],
    },
    {"prompt__response_prefix": "<answer>", "model__lora": {"rank": 8, "dropout": 0.1}, "model__dtype": "float16"},
    {"model__lora": {"rank": 8}, "model__quantize": "4bit"},
    {"model__dtype": "float32", "learner__gradient_accumulation": 8, "learner__gradient_checkpointing": True},
    {
        "learner__packing": False,
        "backend__compile": True,
        "backend__attention": "eager",
        "rollout__engine": "hf",
    },
    {
        "learner__algorithm": "raft++",
        "learner__epochs_per_cycle": 4,
        "learner__warmup": 0.1,
        "learner__optimizer": "sgd",
    },
    {"learner__algorithm": "reinforce_rej", "learner__lr_schedule__kind": "linear", "learner__weight_decay": 0.1},
    {"execution__mode": "async", "execution__max_trajectory_age_steps": 4, "selection__reward_threshold": 1.5},
    {"selection__reward_threshold": 0.5, "selection__truncated_as_positive": True, "selection__drop_solved": True},
    {
        "selection__keep_top_percent": 20.0,
        "selection__min_samples": 9,
        "selection__dedup": False,
        "task__train_prompts": 50,
    },
    {"task__reward__clip": [0.0, 2.0], "task__reward__length_penalty": 0.1, "task__reward__format_bonus": 0.3},
    {"selection__threshold_schedule": {"end": 1.0}, "task__curriculum": {"target": 0.3}},
    {"task__mix": {"a": 2.0}, "rollout__temperature": 0.5, "rollout__temperature_schedule": {"end": 0.5}},
    {
        "rollout__top_p": 0.9,
        "rollout__top_k": 5,
        "rollout__samples_per_prompt": 1,
        "learner__beta2": 0.9,
        "learner__max_grad_norm": 0.1,
    },
    {"backend__env": {"A": "b"}, "backend__environment": "none", "backend__trainer": "dtensor"},
    {"backend__trainer": "dtensor", "backend__tensor_parallel": 2, "task__reward__graduated__near": 0.5},
]


def test_no_hypothesis_names_a_locked_key() -> None:
    locked = {key for key, is_locked in leaf_keys().items() if is_locked}
    for entry in BOOK.hypotheses.values():
        for variant in entry.variants:
            for key in [*variant.set, *variant.scale, *variant.toggle]:
                assert not any(
                    key == leaf or leaf.startswith(f"{key}.") or key.startswith(f"{leaf}.") for leaf in locked
                )


def test_every_symptom_has_an_answer_and_every_reading_a_symptom() -> None:
    answered = {
        s for h in BOOK.hypotheses.values() for fits in (h.answers, *(v.answers for v in h.variants)) for s in fits
    }
    answered |= {symptom for action in BOOK.actions.values() for symptom in action.answers}
    assert set(BOOK.symptoms) - answered == set()
    assert {symptom.reading for symptom in BOOK.symptoms.values()} == set(BOOK.readings)
    assert list(BOOK.readings) == ["accuracy", "stability", "utilization", "transfer"]


def test_numeric_knobs_go_both_ways() -> None:
    """Whatever one form of a hypothesis scales up, a form of some hypothesis scales down, and the reverse."""
    ways: dict[str, set[bool]] = {}
    for entry in BOOK.hypotheses.values():
        for variant in entry.variants:
            for key, factor in variant.scale.items():
                ways.setdefault(key, set()).add(factor > 1)
    one_way = {key for key, seen in ways.items() if len(seen) == 1}
    by_set = {"task.train_prompts", *(key for key in one_way if key.startswith("backend."))}  # the way back is `set`
    assert one_way - by_set == set()


def test_every_schedule_names_the_constant_rate_as_comparator() -> None:
    for entry in BOOK.hypotheses.values():
        kinds = {variant.set.get("learner.lr_schedule.kind") for variant in entry.variants} - {None, "constant"}
        if kinds:
            assert entry.comparator == {"learner.lr_schedule.kind": "constant"}


def test_what_a_hypothesis_moves_has_a_premise_beside_it() -> None:
    """But for the two that only say which variables the process gets."""
    groups = [premise.keys for premise in BOOK.premises.values() if premise.crash_class is None]
    alone = {
        key
        for entry in BOOK.hypotheses.values()
        for variant in entry.variants
        for key in [*variant.set, *variant.scale, *variant.toggle]
        if not any(below(key, keys) for keys in groups)
    }
    assert alone == {"backend.environment", "backend.env"}


# --- what it refuses ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "hypotheses", tmp_path / "hypotheses")
    return tmp_path / "hypotheses"


def add(folder: Path, text: str) -> str:
    (folder / "zz.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PlaybookError) as caught:
        load_playbook(folder)
    return str(caught.value)


HEAD = "axis: batch\nhypotheses:\n  - id: mine\n    claim: c\n    what: w\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            HEAD + "    variants: [{name: v, set: {learner.pakking: true}}]\n",
            [
                "zz.yaml",
                "hypotheses.0 (mine).variants.v.set",
                "learner.pakking: unknown recipe key",
                "did you mean learner.packing?",
            ],
        ),
        (HEAD + "    variants: [{name: v, scale: {learner.packing: 2}}]\n", ["learner.packing is no number"]),
        (HEAD + "    variants: [{name: v, set: {evaluation.min_effect: 0}}]\n", ["evaluation.min_effect is locked"]),
        (HEAD + "    variants: [{name: v, set: {budget: {cycles: 3}}}]\n", ["budget is locked"]),
        (
            HEAD + "    variants: [{name: v, set: {learner.packing: true}, toggle: [learner.packing]}]\n",
            ["zz.yaml: hypotheses.0.variants.0", "each key once"],
        ),
        (HEAD + "    variants: [{name: v}]\n", ["a change must change something"]),
        (HEAD + "    variants: []\n", ["zz.yaml: hypotheses.0.variants"]),
        (
            HEAD + "    answers: {truncated_completion: 0.5}\n    variants: [{name: v, toggle: [learner.packing]}]\n",
            ["truncated_completion: unknown symptom", "did you mean truncated_completions?"],
        ),
        (
            HEAD + "    watch: [trunkation]\n    variants: [{name: v, toggle: [learner.packing]}]\n",
            ["unknown watch", "did you mean truncation?"],
        ),
        (
            HEAD + "    variant: []\n    variants: [{name: v, toggle: [learner.packing]}]\n",
            ["zz.yaml: hypotheses.0.variant: unknown key", "did you mean variants?"],
        ),
        (
            HEAD + "    variants: [{name: v, set: {prompt.system: '{observed.mood}'}}]\n",
            ["mood: unknown observed fact"],
        ),
        (
            HEAD + "    variants: [{name: v, set: {prompt.system: '{recipe.prompt.systm}'}}]\n",
            ["prompt.systm: unknown recipe key", "prompt.system?"],
        ),
        (
            HEAD + "    variants: [{name: v, toggle: [learner.packing]}, {name: v, toggle: [backend.compile]}]\n",
            ["the same name"],
        ),
        (
            HEAD + "    variants: [{name: v, set: {rollout.temperature: 1.1}, scale: {learner.learning_rate: 2}}]\n",
            ["may not change together"],
        ),
        (
            "symptoms:\n  - {id: s, means: m, reading: accuracy, when: {signal: pass_rat, above: 1}}\n",
            ["zz.yaml: symptoms.0 (s).when", "pass_rat: unknown signal", "did you mean pass_rate?"],
        ),
        (
            "symptoms:\n  - {id: s, means: m, reading: accuracy, when: {signal: pass_rate, above: 1, below: 0}}\n",
            ["symptoms.0.when", "exactly one of above, below"],
        ),
        (
            "symptoms:\n  - {id: s, means: m, reading: accuracy, when: {signal: pass_rate, above: 0.5, full: 0.4}}\n",
            ["full must be greater than above"],
        ),
        (
            "symptoms:\n  - {id: low_diversity, means: m, reading: accuracy, when: {signal: pass_rate, above: 1}}\n",
            ["'low_diversity' is already in", "symptoms.yaml"],
        ),
        (
            "premises:\n  - {id: p, says: s, keys: [learner.packin]}\n",
            ["zz.yaml: premises.0 (p).keys", "learner.packin: unknown recipe key", "did you mean learner.packing?"],
        ),
        ("premises:\n  - {id: p, says: s, keys: []}\n", ["zz.yaml: premises.0.keys"]),
        (
            "premises:\n  - {id: p, says: s, keys: [learner.packing], order: {learner.packing: [true, false]}}\n",
            ["zz.yaml: premises.0", "order goes with crash_class"],
        ),
        (
            "premises:\n  - {id: p, says: s, keys: [learner], crash_class: oom, order: {model.dtype: [a, b]}}\n",
            ["premises.0 (p).order", "model.dtype: unknown key of this premise"],
        ),
        (
            HEAD + "    premise: [rollout.temprature]\n    variants: [{name: v, toggle: [learner.packing]}]\n",
            ["hypotheses.0 (mine).premise", "did you mean rollout.temperature?"],
        ),
        (
            "crashes:\n  - {id: c, crash_class: oom, says: s, first: f, fixes: 1}\n",
            ["zz.yaml: crashes.0 (c).crash_class", "oom has a rule already, out-of-memory"],
        ),
        ("symptom: []\n", ["zz.yaml: symptom: unknown key", "did you mean symptoms?"]),
        (
            "watches:\n  - {id: w, read: r, probe: [{name: p, set: {rollout.top_k: 3}}]}\n",
            ["a probe may only reword the prompt"],
        ),
        ("axis: [\n", ["zz.yaml:2:1", "not valid YAML"]),
        ("- 1\n", ["a playbook file is a mapping"]),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(folder: Path, text: str, parts: list[str]) -> None:
    message = add(folder, text)
    for part in parts:
        assert part in message


def test_a_folder_without_hypotheses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlaybookError, match="no hypotheses there"):
        load_playbook(tmp_path)


def test_a_file_of_ones_own_adds_to_an_axis(folder: Path) -> None:
    (folder / "zz.yaml").write_text(HEAD + "    variants: [{name: v, toggle: [learner.packing]}]\n")
    book = load_playbook(folder)
    assert book.axis_of["mine"] == "batch"
    assert book.axes["batch"].title == BOOK.axes["batch"].title
    assert book.watches_of("mine") == BOOK.axes["batch"].watch


def test_check_names_a_change_that_does_not_apply(folder: Path) -> None:
    (folder / "zz.yaml").write_text(HEAD + "    variants: [{name: v, set: {rollout.temperature: 9.0}}]\n")
    problems = check_playbook(load_playbook(folder), {"tiny": tiny()})
    assert [(p.hypothesis, p.recipe) for p in problems] == [("mine", "tiny")]
    assert "rollout.temperature" in str(problems[0])


# --- fitting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "machine_has", "reason"),
    [
        ({"accelerators": 2}, machine(1), "needs 2 accelerators or more, this machine has 1"),
        ({"accelerators": 2}, None, "needs 2 accelerators or more, this machine has 0"),
        ({"machine": ["rocm"]}, machine(0), "is for rocm, this machine is cpu"),
        ({"packages": ["megatron"]}, machine(2), "needs the package megatron, which is not installed"),
        ({"bf16": True}, machine(0), "needs a device that computes bfloat16"),
        ({"chat_template": True}, machine(0), "needs a chat template, the built-in model has none"),
        ({"when": [{"key": "model.dtype", "is": "float16"}]}, None, "needs model.dtype to be 'float16', it is 'auto'"),
        ({"when": [{"key": "model.dtype", "one_of": ["float16", "bfloat16"]}]}, None, "needs model.dtype to be one of"),
        ({"when": [{"key": "model.lora", "is_not": None}]}, None, "needs model.lora to be other than none"),
        ({"when": [{"key": "rollout.top_p", "below": 1}]}, None, "needs rollout.top_p below 1, it is 1"),
        ({"when": [{"key": "model.lora.rank", "above": 4}]}, None, "needs model.lora.rank above 4, it is none"),
    ],
)
def test_what_is_lacking_is_said(requires: dict, machine_has: object, reason: str) -> None:
    entry = hypothesis(requires=requires)
    said = lacking(entry, entry.variants[0], tiny(), machine=machine_has)  # type: ignore[arg-type]  # Machine or None
    assert said is not None
    assert said.startswith(reason)


def test_what_is_there_lacks_nothing() -> None:
    entry = hypothesis(requires={"accelerators": 2, "bf16": True, "machine": ["rocm"], "packages": ["megatron"]})
    assert lacking(entry, entry.variants[0], tiny(), machine=machine(2, packages=("megatron",))) is None


def test_delimiters_need_a_verifier_that_has_them() -> None:
    entry = hypothesis(variants=[{"name": "v", "set": {"prompt.stop": ["{verifier.close}"]}}])
    assert (
        lacking(entry, entry.variants[0], tiny(), machine=None) == "needs a verifier with delimiters, this one is exact"
    )
    strict = shipped("smollm2-strict")
    assert lacking(entry, entry.variants[0], strict, machine=None) is None
    change = build_change(entry.variants[0], strict, facts={}).change
    assert change is not None
    assert change.values(strict) == {"prompt.stop": ([], ["</answer>"])}


def test_references_are_filled_and_other_braces_stay() -> None:
    recipe = shipped("smollm2-strict", prompt__template="Q: {question}")
    value = {
        "{observed.weakest_tag}": ["{verifier.open}{answer}", "{recipe.prompt.template}!", "{recipe.prompt.system}", 3]
    }
    filled = fill(value, recipe, facts={"weakest_tag": "hard"})
    assert filled == {"hard": ["<answer>{answer}", "Q: {question}!", "", 3]}


def test_fixes_are_those_of_the_class_else_of_any_else_three() -> None:
    def book(**fixes: int | None) -> Playbook:
        rules = [CrashRule(id=name, crash_class=name, says="s", first="f", fixes=of) for name, of in fixes.items()]
        return Playbook(folder=ROOT, crashes={rule.id: rule for rule in rules})

    assert [book(any=5, oom=0).fixes_after(name) for name in ("oom", "typo")] == [0, 5]
    assert [book(oom=None).fixes_after("oom"), book(oom=None, any=1).fixes_after("oom")] == [3, 1]
    assert {BOOK.fixes_after(name) for name in CRASH_CLASSES} == {3}


def test_of_two_rules_for_a_class_both_are_named_by_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# mine\ncrashes:\n- crash_class: typo\n  id: own\n  says: s\n  first: f\n")
    (tmp_path / "b.yaml").write_text("crashes:\n  - {id: own-2, crash_class: typo, says: s, first: f}\n")
    with pytest.raises(PlaybookError) as error:
        load_playbook(tmp_path)
    assert error.value.hint == (
        f"a class has one rule: delete the entry own-2 at {tmp_path}/b.yaml:2 or the entry own at {tmp_path}/a.yaml:4"
    )


def test_each_class_has_words_of_its_own_and_any_has_none_for_them() -> None:
    rules = [BOOK.crash_rule(name) for name in CRASH_CLASSES]
    assert [rule.crash_class for rule in rules if rule] == list(CRASH_CLASSES)
    anything = CrashRule(id="x", crash_class="any", says="s", first="f", fixes=2)
    assert Playbook(folder=ROOT, crashes={"x": anything}).crash_rule("numeric") is None


def test_an_unknown_fact_is_a_reason_not_a_crash() -> None:
    entry = hypothesis(variants=[{"name": "v", "set": {"task.mix": {"{observed.weakest_tag}": 3.0}}}])
    built = build_change(entry.variants[0], tiny(), facts={})
    assert built.change is None
    assert built.why_not == "needs weakest tag, which the last run does not tell"


def test_a_change_that_changes_nothing_is_none() -> None:
    entry = hypothesis(variants=[{"name": "v", "set": {"learner.packing": True}}])
    assert (
        build_change(entry.variants[0], tiny(), facts={}).why_not
        == "the recipe has it already: learner.packing is True"
    )


def test_keys_that_belong_together_move_together_or_not_at_all() -> None:
    """Accumulation is at its least already: halving it would leave a larger microbatch alone."""
    entry = hypothesis(
        variants=[{"name": "v", "scale": {"learner.microbatch_tokens": 2.0, "learner.gradient_accumulation": 0.5}}]
    )
    built = build_change(entry.variants[0], tiny(learner__gradient_accumulation=1), facts={})
    assert built.why_not == "learner.gradient_accumulation is at the end of its range, 1"


def test_strength_narrows_a_numeric_step() -> None:
    entry = hypothesis(variants=[{"name": "v", "scale": {"learner.learning_rate": 4.0}}])
    change = build_change(entry.variants[0], tiny(), facts={}, strength=0.5).change
    assert change is not None
    assert change.values(tiny()) == {"learner.learning_rate": (2e-4, 4e-4)}
