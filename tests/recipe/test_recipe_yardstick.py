"""No change and no recipe text, however it is written, moves what decides a measurement; what that is has digests."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import AgentError, RecipeError
from agent.recipe.change import Change, ChangeRefused, refuse_moved_yardstick
from agent.recipe.files import load_recipe, recipe_from
from agent.recipe.schema import Recipe, Verifier, leaf_keys
from agent.recipe.yardstick import (
    JUDGING,
    LEAVES,
    Digests,
    code_files,
    data_file,
    digest_of_file,
    libraries,
    locked_values,
    moved_locks,
    present_code_digest,
    verifier_files,
)

CONTENT: dict[str, Any] = {
    "model": {"source": "builtin:tiny"},
    "task": {"dataset": "builtin:addition", "verifier": {"kind": "exact"}},
    "evaluation": {"samples_per_prompt": 2},
    "budget": {"cycles": 4},
    "seed": 3,
}
BASE = recipe_from(CONTENT, where="test")
LOCKED_TASK = ("dataset", "parameters", "fields", "answer_after", "split_seed", "verifier")
KEYS = sorted(leaf_keys())
SECTIONS = sorted({key.rsplit(".", depth)[0] for key in KEYS for depth in (1, 2) if key.count(".") >= depth})
VALUES = st.one_of(
    st.integers(-2, 6), st.floats(0, 4, allow_nan=False), st.booleans(), st.none(),
    st.sampled_from(["exact", "last_number", "maximize", "minimize", "pass_rate", "mean_reward", "pass_at_k",
                     "builtin:addition", "builtin:arithmetic", "raft", "raft++", "{question}", "auto", "constant"]),
    st.sampled_from([{}, [], {"low": 10}, {"kind": "last_number"}, {"samples_per_prompt": 1}, {"cycles": 9}]),
)  # fmt: skip
VALID = [
    "evaluation.samples_per_prompt", "evaluation.select_samples", "evaluation.max_new_tokens", "evaluation.temperature",
    "budget.cycles", "budget.min_optimizer_steps", "seed", "task.split_seed", "task.verifier.tolerance",
    "rollout.samples_per_prompt", "rollout.top_k", "learner.epochs_per_cycle", "selection.max_per_prompt",
    "prompt.examples", "execution.placebo", "learner.warmup",
]  # fmt: skip
"""Keys of which nearly every small number makes a valid recipe."""
MOVES = st.one_of(
    st.dictionaries(st.sampled_from(VALID), st.integers(1, 4), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
QUICK = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


def yardstick(recipe: Recipe) -> dict[str, Any]:
    """What may not move, put together without the code under test."""
    content = recipe.model_dump(mode="json")
    found = {name: content[name] for name in ("evaluation", "budget", "seed")}
    found["task"] = {name: content["task"][name] for name in LOCKED_TASK}
    found["model"] = {name: content["model"][name] for name in ("source", "revision", "trust_remote_code")}
    measured = [content["evaluation"]["metric"], *(guard["metric"] for guard in content["evaluation"]["guards"])]
    if "mean_reward" in measured:
        found["reward"] = content["task"]["reward"]
    return found


@QUICK
@given(
    base=st.sampled_from([BASE, recipe_from({**CONTENT, "evaluation": {"metric": "mean_reward"}}, where="test")]),
    values=st.one_of(
        st.dictionaries(st.sampled_from([*KEYS, *SECTIONS, "", "evaluation.", "task.verifier.kind.x"]), VALUES),
        st.dictionaries(st.sampled_from(VALID), st.integers(1, 4), max_size=3),
    ),
    scale=st.dictionaries(st.sampled_from(KEYS), st.floats(0.25, 4), max_size=2),
    toggle=st.lists(st.sampled_from(KEYS), max_size=2),
)
def test_no_change_moves_the_yardstick(base: Recipe, values: Any, scale: Any, toggle: Any) -> None:
    try:
        changed = Change(set=values, scale=scale, toggle=toggle).apply(base)
    except (AgentError, ValueError):
        return
    assert yardstick(changed) == yardstick(base)


def nested(moves: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in moves.items():
        *path, name = key.split(".")
        place = content
        for part in path:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[name] = value
    return content


def written(moves: dict[str, Any], way: str, folder: Path) -> Path:
    """A recipe with these values, come to in one of several ways."""
    over, path = nested(moves), folder / "recipe.yaml"
    base, loose = folder / "base.yaml", folder / "loose.yaml"
    base.write_text(yaml.safe_dump(CONTENT))
    if way == "plain":
        path.write_text(yaml.safe_dump({"extends": "base.yaml", **over}))
    elif way == "extends":
        loose.write_text(yaml.safe_dump({"extends": "base.yaml", **over}))
        path.write_text("extends: loose.yaml\n")
    elif way == "link":
        (folder / "elsewhere.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", **over}))
        loose.symlink_to(folder / "elsewhere.yaml")
        path.write_text("extends: loose.yaml\n")
    elif way == "flow":
        path.write_text(json.dumps({"extends": "base.yaml", **over}))
    else:  # the first key's value has an anchor, and the others are the same by aliases
        first, *others = moves
        text = json.dumps(nested({first: "@anchor", **dict.fromkeys(others, "@alias")}))
        text = text.replace('"@anchor"', f"&a {json.dumps(moves[first])}").replace('"@alias"', "*a ")
        path.write_text(f'{{"extends": "base.yaml", {text[1:]}')
    return path


@pytest.mark.slow
def test_no_text_gets_another_yardstick_past_the_comparison() -> None:
    counts = {True: 0, False: 0}

    @settings(QUICK, max_examples=400)  # most texts are no valid recipe
    @given(moves=MOVES, way=st.sampled_from(["plain", "extends", "link", "flow", "anchor"]))
    def holds(moves: dict[str, Any], way: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                recipe = load_recipe(written(moves, way, Path(folder)))
            except RecipeError:
                return
        moved = yardstick(recipe) != yardstick(BASE)
        counts[moved] += 1
        assert bool(moved_locks(BASE, recipe)) == moved
        if moved:
            with pytest.raises(ChangeRefused, match="is locked"):
                refuse_moved_yardstick(BASE, recipe)

    holds()
    assert min(counts.values()) >= 10, "most texts were no valid recipes"


def test_where_the_reward_is_measured_its_shaping_is_locked() -> None:
    assert not [key for key in locked_values(BASE) if key.startswith("task.reward")]
    shaped = recipe_from({**CONTENT, "evaluation": {"metric": "mean_reward"}}, where="test")
    assert "task.reward.format_bonus" in locked_values(shaped)
    guarded = {**CONTENT, "evaluation": {"guards": [{"metric": "mean_reward"}]}}
    assert "task.reward.scale" in locked_values(recipe_from(guarded, where="test"))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1", True),
        ("ROCBLAS_USE_HIPBLASLT", "0", True),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", True),
        ("OMP_NUM_THREADS", "2", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", True),
        ("TORCH_HOME", "x", False),
        ("TORCHINDUCTOR_CACHE_DIR", "x", False),
        ("HSA_TOOLS_LIB", "x.so", False),
        ("OMP_TOOL_LIBRARIES", "x.so", False),
        ("TORCH_LOGS", "../x", False),
        ("LD_LIBRARY_PATH", ".", False),
        ("PYTHONSTARTUP", "x.py", False),
        ("HF_HUB_OFFLINE", "1", False),
        ("PATH", ".", False),
        ("HOME", ".", False),
    ],
)
def test_an_idea_may_set_variables_that_tune_and_none_that_load(name: str, value: str, allowed: bool) -> None:
    change = Change(set={"backend.env": {name: value}})
    if allowed:
        assert change.apply(BASE).backend.env == {name: value}
    else:
        with pytest.raises(ChangeRefused, match=rf"backend.env.{name} is locked|backend.env must not set {name}"):
            change.apply(BASE)


def test_a_variable_of_the_user_s_own_recipe_stays_and_may_be_taken_out() -> None:
    own = recipe_from({**CONTENT, "backend": {"env": {"HF_HOME": "/models"}}}, where="test")
    assert Change(set={"backend.env": {"HF_HOME": "/models", "OMP_NUM_THREADS": "1"}}).apply(own)
    assert Change(set={"backend.env": {}}).apply(own).backend.env == {}


def test_the_files_of_a_verifier_are_those_that_it_imports_beside_it(tmp_path: Path) -> None:
    texts = {
        "v/check.py": "import json, helper\nfrom pack import part\n\ndef f():\n    from pack.deep.more import x\n",
        "v/helper.py": "import check\nfrom . import nothing\n",
        "v/pack/__init__.py": "",
        "v/pack/part.py": "from .sibling import y\nfrom . import other\n",
        "v/pack/sibling.py": "",
        "v/pack/other.py": "",
        "v/pack/deep/__init__.py": "",
        "v/pack/deep/more.py": "from ..far import z\n",
        "v/pack/far.py": "this is not Python(",
        "v/unrelated.py": "",
        "json.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = verifier_files(Verifier(kind="python:v/check.py:f"), base=tmp_path)
    assert found[0] == "v/check.py"
    assert set(found) == {name for name in texts if name.startswith("v/")} - {"v/unrelated.py"}
    assert verifier_files(Verifier(kind="exact"), base=tmp_path) == []
    assert verifier_files(Verifier(kind="python:gone.py:f"), base=tmp_path) == ["gone.py"]


def test_a_digest_is_read_again_only_where_somebody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests, path = Digests(), tmp_path / "file"
    assert digests.of(path) == "missing"
    path.write_text("one")
    first = digests.of(path)
    monkeypatch.setattr("agent.recipe.yardstick.digest_of_file", lambda _: "read again")
    assert digests.of(path) == first
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.of(path) == "read again", "size and time are as they were, and it was written to"


def test_our_own_code_and_the_libraries_are_named(tmp_path: Path) -> None:
    files = code_files()
    assert {"raft/evaluate.py", "tasks/scorer_child.py", "recipe/schema.py", "campaign/verdict.py"} <= files.keys()
    assert {*LEAVES, *JUDGING} <= files.keys(), "one that was renamed would be locked no more"
    assert not [name for name in files if name.startswith(("cli/", "report/"))]
    assert present_code_digest() == present_code_digest()
    assert "library torch" in libraries(BASE)
    assert data_file(BASE) is None
    assert data_file(recipe_from({**CONTENT, "task": {"dataset": "jsonl:x/y.jsonl"}}, where="t")) == "x/y.jsonl"
    (tmp_path / "f").write_bytes(b"abc")
    assert digest_of_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223"
