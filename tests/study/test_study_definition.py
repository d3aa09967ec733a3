"""What a study file may say, and what is said where it may not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from study_made import STUDY, small, workspace_with

from agent.errors import InvalidFile
from agent.recipe.files import load_recipe, with_keys
from agent.study.definition import load_study, training_digest
from agent.tasks.tasks import load_splits

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_loads(name: str) -> None:
    study = load_study(ROOT / "studies" / f"{name}.yaml", root=ROOT)
    assert study.description
    for arm in study.arms:
        assert arm.recipe.budget.cycles == study.cycles
        assert arm.recipe.evaluation.select_every == 1
        assert arm.against is None or arm.against in {other.label for other in study.arms}


def test_every_study_is_in_the_package_and_has_its_place_in_the_documentation() -> None:
    assert len(SHIPPED) == 3
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    page = (ROOT / "docs/learning-rate-study.md").read_text()
    for name in SHIPPED:
        assert packaged["force-include"][f"studies/{name}.yaml"] == f"agent/shipped/studies/{name}.yaml"
        assert page.count(f"<!-- study:{name} begin -->") == page.count(f"<!-- study:{name} end -->") == 1


def test_the_narrow_study_has_few_sums_to_train_on_and_measures_as_the_tiny_one() -> None:
    narrow, tiny = (load_study(ROOT / f"studies/learning-rate-{name}.yaml", root=ROOT) for name in ("narrow", "tiny"))
    ours, theirs = narrow.arms[0].recipe, tiny.arms[0].recipe
    trained, asked = ours.task.train_prompts, load_splits(ours.task, ours.evaluation, base=ROOT)
    assert len(asked.train) == trained == 256
    assert ours.rollout.prompts_per_cycle == 2 * trained, "every one of them in every cycle"
    others = load_splits(theirs.task, theirs.evaluation, base=ROOT)
    assert len(others.train) > theirs.rollout.prompts_per_cycle
    assert [row.id for row in asked.select] == [row.id for row in others.select]
    assert ours.evaluation == theirs.evaluation
    assert [arm.levels["schedule"] for arm in narrow.arms] == [arm.levels["schedule"] for arm in tiny.arms]


def test_arms_are_all_combinations_and_seeds_come_round_by_round(tmp_path: Path) -> None:
    study = small(workspace_with(tmp_path))
    labels = ["low, constant", "low, x0.5", "high, constant", "high, x0.5"]
    assert [arm.label for arm in study.arms] == labels
    assert [arm.against for arm in study.arms] == [None, "low, constant", None, "high, constant"]
    assert [(arm.label, seed) for arm, seed in study.order()] == [
        (label, seed) for seed in (1, 2, 3) for label in labels
    ]
    assert study.arms[3].recipe.learner.learning_rate == 1e-3
    assert study.arms[3].recipe.learner.lr_schedule.decay == 0.5


def test_arms_may_be_listed(tmp_path: Path) -> None:
    text = """\
recipe: recipes/test.yaml
arms:
  - {label: a}
  - {label: b, set: {learner.learning_rate: 0.01}, against: a}
seeds: [7, 3]
cycles: 4
"""
    study = small(workspace_with(tmp_path, text))
    assert [(arm.label, arm.against) for arm in study.arms] == [("a", None), ("b", "a")]
    assert study.seeds == (7, 3)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cycles: 5", "cycle: 5", "small.yaml:12: cycle: unknown key\n  did you mean cycles?"),
        ("label: high,", "lable: high,", "factors.rate.1.lable: unknown key\n  did you mean label?"),
        ("label: high, set", "label: high, sett: {}, set", "unknown key\n  did you mean set?"),
        ("learning_rate: 1.0e-3", "learning_rat: 1.0e-3", "high: learner.learning_rat: unknown key\n  did you mean "
         "learner.learning_rate?"),
        ("learning_rate: 1.0e-3", "learning_rate: 5.0e-4", "and 'high, constant' are the same training"),
        ("learner.learning_rate: 1.0e-3", "evaluation.select_prompts: 50", "are measured differently"),
        ("learner.learning_rate: 1.0e-3", "budget.cycles: 9", "budget.cycles cannot be set here: `cycles` of"),
        ("learner.learning_rate: 1.0e-3", "learner.early_stop: {}", "learner.early_stop is on"),
        ("learner.learning_rate: 1.0e-3", "learner.lr_schedule: {kind: step}", "is set by rate.high too"),
        ("recipes/test.yaml", "recipes/tset.yaml", "did you mean"),
        ("recipes/test.yaml", "../test.yaml", "recipe"),
        ("label: high,", "label: low,", "factors.rate must have each label once"),
        ("{schedule: constant}", "{schedul: constant}", "no such factor; did you mean schedule?"),
        ("{schedule: constant}", "{schedule: konstant}", "did you mean constant?"),
        ("seeds: 3", "seeds: [1, 1]", "seeds must differ"),
        ("seeds: 3", "seeds: 0", "seeds must be at least one"),
        ("end_window: 2", "end_window: 6", "end_window must be at most cycles"),
        ("factors:", "arms: [{label: a}]\nfactors:", "either `factors` or `arms`, got both"),
        ("label: low,", 'label: "a, b",', "must be a short text without commas"),
        ("label: low,", "label: 0.1,", "should be a valid string"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in STUDY
    workspace = workspace_with(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(InvalidFile) as refused:
        small(workspace)
    assert said in str(refused.value)
    assert "small.yaml" in str(refused.value)


def test_a_training_is_named_by_what_it_is(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path)
    recipe = load_recipe(workspace.recipes / "test.yaml")
    known = training_digest(recipe)
    assert training_digest(with_keys(recipe, {"description": "other words", "seed": 9})) == known
    assert training_digest(with_keys(recipe, {"learner.lr_schedule.decay": 0.3})) == known  # a constant reads no decay
    assert training_digest(with_keys(recipe, {"learner.epochs_per_cycle": 1})) == known  # the default
    assert training_digest(with_keys(recipe, {"learner.epochs_per_cycle": 2})) != known
    assert training_digest(with_keys(recipe, {"model.lora": {}})) != known
    assert training_digest(with_keys(recipe, {"budget.train_seconds": None, "budget.cycles": 4})) != known
