"""Reading, inheriting, validating and editing recipe files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import RecipeError
from agent.recipe.editing import REMOVE, edit_text, refuse_uneditable, set_in
from agent.recipe.files import load_recipe, recipe_from, resolved_text, with_keys
from agent.recipe.reading import read_yaml
from agent.recipe.schedules import lr_factor
from agent.recipe.schema import LOCKED, SCHEDULE_READS, LrSchedule, Recipe, leaf_keys

SMALL = """\
# the smallest recipe
model:
  source: builtin:tiny   # bootstraps itself
task: {dataset: "builtin:addition"}

rollout:
  temperature: 1.0  # the usual
  samples_per_prompt: 8
prompt:
  system: |
    first line
    second line
  # a comment between keys
  stop: ["</answer>", 'x']
budget:
  cycles: 3
# the end
"""


def small(**keys: Any) -> Recipe:
    return with_keys(recipe_from(read_yaml(SMALL, where="small"), where="small"), keys)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --- YAML 1.2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x1f", 31),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    for edited in (True, False):
        found = read_yaml(text, where="x", edited=edited)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("edited", [True, False])
def test_a_key_given_twice_is_refused_with_its_line(edited: bool) -> None:
    with pytest.raises(RecipeError, match=r"x:3:1: .*'a' is given twice"):
        read_yaml("a: 1\nb: 2\na: 3\n", where="x", edited=edited)


def test_both_parsers_read_the_shipped_files_alike() -> None:
    root = Path(__file__).parents[2]
    paths = [*root.glob("hypotheses/*.yaml"), *root.glob("recipes/*.yaml")]
    assert len(paths) > 10
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert read_yaml(text, where="x", edited=False) == read_yaml(text, where="x"), path.name


# --- messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"rollout.temprature": 1.0}, r"rollout\.temprature: unknown key\n.*did you mean rollout\.temperature\?"),
        ({"learning_rate": 1.0}, r"learning_rate: unknown key\n.*learner\.learning_rate"),
        ({"prompt.stop": ["a", 3]}, r"prompt\.stop\.1: .*string.*3"),
        ({"learner.learning_rate": "5e-5"}, r"learner\.learning_rate: expected a number, got '5e-5'"),
        ({"learner.learning_rate": -1.0}, r"learner\.learning_rate: .*greater than 0, got -1\.0"),
        ({"rollout.samples_per_prompt": 2.5}, r"rollout\.samples_per_prompt: .*integer.*2\.5"),
        ({"learner.packing": "yes"}, r"learner\.packing: .*boolean.*'yes'"),
        ({"learner.algorithm": "raftt"}, r"'raftt' is not one of .*\n.*did you mean raft\?"),
        ({"model.source": REMOVE}, r"model\.source: is missing"),
        ({"budget.tokens": 5}, r"exactly one of train_seconds, cycles, tokens; got cycles and tokens"),
        ({"prompt.template": "no place"}, r"prompt\.template must contain \{question\}"),
        ({"rollout.max_new_tokens": 2000}, r"max_new_tokens must be smaller than .*got 2000 and 1024"),
        ({"task.mix": {"a": -1}}, r"task\.mix\.a must be at least 0"),
    ],
)
def test_a_bad_recipe_names_file_key_and_remedy(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    content = read_yaml(SMALL, where="small")
    for key, value in edit.items():
        set_in(content, key, value)
    path = write(tmp_path, "bad.yaml", json.dumps(content))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "bad.yaml" in str(caught.value)


def test_the_line_of_the_key_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.yaml", SMALL.replace("temperature:", "temprature:"))
    with pytest.raises(RecipeError, match=r"bad\.yaml:7: rollout\.temprature"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- a\n- b\n", "mapping of keys, got a list"),
        ("a: [1\n", r"bad\.yaml:\d+:\d+: not valid YAML"),
        ("a:\n\tb: 1\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, "bad.yaml", text))


def test_a_missing_recipe_names_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path, "tiny-addition.yaml", SMALL)
    with pytest.raises(RecipeError, match=r"no such recipe\n.*tiny-addition\.yaml"):
        load_recipe(tmp_path / "tiny-adition.yaml")


def test_several_problems_are_all_listed(tmp_path: Path) -> None:
    text = SMALL.replace("temperature: 1.0", "temperature: -1").replace("cycles: 3", "cycels: 3")
    with pytest.raises(RecipeError, match=r"(?s)problems.*rollout\.temperature.*budget\.cycels") as caught:
        load_recipe(write(tmp_path, "bad.yaml", text))
    assert caught.value.key == "rollout.temperature"


# --- extends -----------------------------------------------------------------------------------------------


def test_extends_merges_sections_and_replaces_lists_and_free_mappings(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", SMALL + "selection: {max_per_prompt: 2}\n")
    path = write(
        tmp_path,
        "leaf.yaml",
        "extends: base.yaml\nprompt:\n  stop: [b]\nbudget: {train_seconds: 5}\ntask: {mix: {a: 1}}\n",
    )
    recipe = load_recipe(path)
    assert recipe.prompt.stop == ["b"]
    assert recipe.prompt.system == "first line\nsecond line\n"
    assert recipe.selection.max_per_prompt == 2
    assert (recipe.budget.train_seconds, recipe.budget.cycles) == (5, None)
    assert recipe.task.mix == {"a": 1}


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(write(tmp_path, "b.yaml", "extends: a.yaml\n"))


# --- editing -----------------------------------------------------------------------------------------------


def test_an_edit_changes_its_own_bytes_only() -> None:
    edited = edit_text(SMALL, {"rollout.temperature": 0.7})
    assert edited == SMALL.replace("temperature: 1.0", "temperature: 0.7")


def test_a_new_key_goes_to_the_end_of_its_section_and_a_new_section_to_the_end_of_the_file() -> None:
    edited = edit_text(SMALL, {"rollout.top_p": 0.9, "learner.learning_rate": 1e-4, "model.lora": {"rank": 4}})
    assert "  samples_per_prompt: 8\n  top_p: 0.9\nprompt:" in edited
    assert "source: builtin:tiny   # bootstraps itself\n  lora: {rank: 4}\n" in edited
    assert edited.endswith("# the end\nlearner:\n  learning_rate: 0.0001\n")
    assert all(line in edited.splitlines() for line in SMALL.splitlines())


def test_edits_of_literals_flow_and_removal() -> None:
    edited = edit_text(SMALL, {"prompt.system": "one line", "task.train_prompts": 5, "prompt.stop": REMOVE})
    assert "  system: one line\n" in edited.replace('"', "")
    assert 'task: {dataset: "builtin:addition", train_prompts: 5}\n' in edited
    assert "stop" not in edited
    assert "# a comment between keys" in edited


def test_windows_line_ends_stay() -> None:
    text = SMALL.replace("\n", "\r\n")
    edited = edit_text(text, {"rollout.temperature": 0.7, "rollout.top_p": 0.5, "seed": 3})
    assert "\n" not in edited.replace("\r\n", "")
    assert read_yaml(edited, where="x")["rollout"]["top_p"] == 0.5


def test_a_block_of_text_without_its_last_line_end_is_refused_by_name() -> None:
    text = "prompt:\n  system: |\n    hello"
    with pytest.raises(RecipeError) as refused:
        refuse_uneditable(text, where="recipes/mine.yaml")
    assert (refused.value.hint or "").endswith("and end the file with a newline")
    refuse_uneditable(text + "\n", where="recipes/mine.yaml")


def test_anchors_are_refused() -> None:
    with pytest.raises(RecipeError, match="anchors"):
        edit_text("a: &x {b: 1}\nc: *x\n", {"a.b": 2})


@pytest.mark.parametrize(
    "text",
    [
        SMALL + "evaluation: {search_prompts: &n 512}\n",
        "  learner: {beta2: 0.9}\n  seed: 3\n",
        "learner: {beta2: 0.9}\n...\n",
        "learner: !!map\n  beta2: 0.9\n",
    ],
)
def test_a_recipe_that_takes_no_idea_is_refused_before_there_is_one(text: str) -> None:
    with pytest.raises(RecipeError, match="edited"):
        refuse_uneditable(text, where="x")


def test_a_recipe_that_takes_ideas_is_not_refused() -> None:
    for text in (SMALL, SMALL.replace("\n", "\r\n"), "extends: base.yaml\n", '{"learner": {"beta2": 0.9}}', ""):
        refuse_uneditable(text, where="x")


values = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False),
    st.none(),
    st.text(max_size=30),
    st.lists(st.one_of(st.text(max_size=8), st.integers()), max_size=3),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=5), st.integers(), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(
    edits=st.dictionaries(
        st.sampled_from(sorted(leaf_keys())), st.one_of(values, st.just(REMOVE)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 1000),
)
def test_any_edit_reads_back_as_the_edited_mapping_and_keeps_every_comment(edits: dict[str, Any], seed: int) -> None:
    order = sorted(edits)
    random.Random(seed).shuffle(order)
    edited = edit_text(SMALL, {key: edits[key] for key in order})
    content = read_yaml(edited, where="x") or {}
    for key in order:
        node: Any = content
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        wanted = None if edits[key] is REMOVE else edits[key]
        assert node == wanted
        assert type(node) is type(wanted)
    assert edited.startswith("# the smallest recipe\n")
    assert "# the end\n" in edited


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_comment_beside_a_key_stays_where_its_lines_become_one(newline: str) -> None:
    text = newline.join(["prompt:", "  stop:  # as the template has it", "    - a  # the first", "  system: x", ""])
    edited = edit_text(text, {"prompt.stop": []})
    beside = "  # as the template has it  # the first"
    assert edited == newline.join(["prompt:", f"  stop: []{beside}", "  system: x", ""])


def test_resolved_text_reads_back_equal() -> None:
    recipe = small(**{"learner.learning_rate": 1e-7, "prompt.system": "no", "task.reward.clip": [0, 1]})
    assert recipe_from(read_yaml(resolved_text(recipe), where="x"), where="x") == recipe


# --- the schema itself -------------------------------------------------------------------------------------


def test_every_key_has_a_docstring_and_only_measurement_and_the_model_are_locked() -> None:
    keys = leaf_keys()
    locked_roots = {"evaluation", "budget", "seed"}
    locked_task = {"dataset", "parameters", "fields", "answer_after", "split_seed", "verifier"}
    locked_model = {
        "source",
        "revision",
        "trust_remote_code",
    }
    for key, locked in keys.items():
        root, *rest = key.split(".")
        expected = root in locked_roots or (root, rest[0] if rest else "") in {
            *(("task", name) for name in locked_task),
            *(("model", name) for name in locked_model),
        }
        assert locked == expected, key
    assert LOCKED == {"locked": True}


def test_the_signature_ignores_words_and_seed_only() -> None:
    assert small(seed=5, description="x").signature() == small().signature()
    assert small(**{"execution.placebo": 1}).signature() != small().signature()


BY_CYCLE = {"kind": "exponential", "by": "cycle", "horizon": 9}


@pytest.mark.parametrize(
    ("inert", "reader"),
    [
        ({"prompt.example_answer": "<{answer}>"}, {"prompt.examples": 2}),
        ({"learner.clip_range": 0.3}, {"learner.algorithm": "raft++"}),
        ({"learner.optimizer": "sgd", "learner.beta2": 0.9}, {"learner.optimizer": "adamw"}),
        ({"learner.lr_schedule.decay": 0.7}, {"learner.lr_schedule.kind": "exponential"}),
        ({"learner.lr_schedule.step_every": 3}, {"learner.lr_schedule.kind": "step"}),
        (
            {f"learner.lr_schedule.{name}": value for name, value in BY_CYCLE.items()},
            {"learner.lr_schedule.by": "budget"},
        ),
    ],
)
def test_a_key_that_nothing_reads_makes_no_new_experiment(inert: dict[str, Any], reader: dict[str, Any]) -> None:
    """Until another key is set that reads it."""
    before = {name: inert[name] for name in list(inert)[:-1]}
    assert small(**inert).signature() == small(**before).signature()
    assert small(**{**inert, **reader}).signature() != small(**{**before, **reader}).signature()


def test_schedules_read_what_the_signature_counts() -> None:
    """Each key that a kind is said to read changes its factors, and no other key does."""
    other = {"horizon": 5, "decay": 0.6, "step_every": 3, "decay_share": 0.5, "floor": 0.4, "values": [0.7, 0.9, 0.1]}
    for kind, reads in SCHEDULE_READS.items():
        start = LrSchedule(kind=kind, by="cycle", values=[1.0, 0.5] if kind == "list" else None)
        for name, value in other.items():
            if name == "values" and kind != "list":
                continue  # refused by the schema
            changed = start.model_copy(update={name: value})
            differs = any(
                lr_factor(start, cycle=cycle, spent=0) != lr_factor(changed, cycle=cycle, spent=0)
                for cycle in range(1, 20)
            )
            assert differs == (name in reads or (name == "floor" and kind not in ("constant", "list"))), (kind, name)
