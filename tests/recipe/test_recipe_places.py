"""What a recipe names lies in its workspace, or is refused with the key at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.campaign.session import collect_files, inside
from agent.errors import RecipeError, WorkspaceError
from agent.recipe import places
from agent.recipe.files import load_recipe, recipe_from
from agent.recipe.places import kind_of, model_place, refuse_outside
from agent.recipe.shapes import shape_of

BASE = {"model": {"source": "builtin:tiny"}, "task": {"dataset": "builtin:addition"}, "budget": {"cycles": 1}}
LEADS_OUT = [
    "../x", "a/../../x", "a/..", "/etc/passwd", "~/x", "~root/x", "a\0b", "a\nb", "a\x1bb", "a\u202eb", "a\u200b", " ",
    "x" * 300, "a/" * 2500 + "x",
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """With links that lead out, and one that leads nowhere."""
    root, outside = tmp_path / "ws", tmp_path / "outside"
    for folder in (root / "recipes", root / "hypotheses", root / "data", outside / "model"):
        folder.mkdir(parents=True)
    (outside / "base.yaml").write_text("seed: 1\n")
    (outside / "rows.jsonl").write_text("{}\n")
    (root / "data" / "rows.jsonl").write_text("{}\n")
    (root / "data" / "link.jsonl").symlink_to(outside / "rows.jsonl")
    (root / "data" / "near.jsonl").symlink_to("rows.jsonl")
    (root / "out").symlink_to(outside)
    (root / "circle").symlink_to("circle")
    (root / "recipes" / "link.yaml").symlink_to(outside / "base.yaml")
    return root


def recipe_with(**sections: object) -> object:
    return recipe_from({**BASE, **sections}, where="test")


@pytest.mark.parametrize("name", LEADS_OUT)
def test_a_name_that_leads_out_is_no_valid_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match=r"task\.dataset"):
        recipe_with(task={"dataset": f"jsonl:{name}"})
    if name.strip():
        with pytest.raises(RecipeError, match="kind"):
            recipe_with(task={"dataset": "builtin:addition", "verifier": {"kind": f"python:{name}/v.py:f"}})
    if not name.startswith(("/", "~")):
        with pytest.raises(RecipeError, match=r"model\.source"):
            recipe_with(model={"source": name})


@settings(max_examples=200)
@given(st.text(st.sampled_from("abÄ./~ \0\n\\"), max_size=12))
def test_no_accepted_name_leads_out(name: str) -> None:
    base = Path("/nowhere/ws")
    try:
        found = places.inside(base, name, key="k")
    except RecipeError:
        return
    assert found.resolve().is_relative_to(base)


def test_spaces_and_other_letters_are_names_like_any_other(workspace: Path) -> None:
    for name in ("my rows.jsonl", "größe/行.jsonl", "a..b.jsonl", "-x.jsonl", ".hidden", "..."):
        assert places.inside(workspace, name, key="k") == workspace / name


@pytest.mark.parametrize("name", ["data/link.jsonl", "out/rows.jsonl", "out", "circle", "circle/x"])
def test_a_link_that_leads_out_is_refused_whatever_it_is_called(workspace: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="leads"):
        places.inside(workspace, name, key="task.dataset")
    with pytest.raises(RecipeError, match=r"task\.dataset"):
        refuse_outside(recipe_with(task={"dataset": f"jsonl:{name}"}), base=workspace)  # type: ignore[arg-type]
    with pytest.raises(WorkspaceError):
        inside(workspace, name)


def test_a_link_that_stays_inside_is_followed(workspace: Path) -> None:
    assert places.inside(workspace, "data/near.jsonl", key="k").read_text() == "{}\n"


def test_a_model_may_lie_elsewhere_only_openly(workspace: Path) -> None:
    elsewhere = workspace.parent / "outside" / "model"
    assert model_place(workspace, str(elsewhere)) == elsewhere
    assert model_place(workspace, "~/models/x") == Path.home() / "models" / "x"
    for name in ("out/model", "./out/model", "../outside/model", "circle", "~nobody-of-this-name/x"):
        with pytest.raises(RecipeError, match=r"model\.source"):
            model_place(workspace, name)
        # estimating memory must not read it either, and must not fail
        if ".." not in name:
            model = recipe_with(model={"source": name}).model  # type: ignore[attr-defined]
            assert shape_of(model, cache=workspace, base=workspace).shape is None


def test_what_a_source_is(workspace: Path) -> None:
    (workspace / "org" / "name").mkdir(parents=True)
    kinds = {
        "builtin:tiny": "builtin", "pypi:x": "pypi", "x.gguf": "gguf", "/a": "folder", "./a": "folder", "~/a": "folder",
        "org/name": "folder", "org/other": "hub", "gpt2": "hub", "a b/c": "folder", "a/b/c": "folder", "out": "folder",
    }  # fmt: skip
    assert {source: kind_of(source, base=workspace) for source in kinds} == kinds


# --- extends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../../outside/base.yaml", "../out/base.yaml", "link.yaml", "/etc/passwd", "~/base.yaml", "a\u202eb", "../circle"],
)
def test_extends_stays_in_the_workspace(workspace: Path, name: str) -> None:
    path = workspace / "recipes" / "mine.yaml"
    path.write_text(f"extends: {name!r}\n" if name.isprintable() else f'extends: "{name}"\n')
    with pytest.raises(RecipeError, match="extends"):
        load_recipe(path)
    with pytest.raises(RecipeError):
        collect_files(workspace, "recipes/mine.yaml")


def test_a_recipe_that_is_a_link_to_outside_is_refused(workspace: Path) -> None:
    with pytest.raises(RecipeError, match="leads out of the workspace"):
        load_recipe(workspace / "recipes" / "link.yaml")
    with pytest.raises(RecipeError, match="workspace"):
        collect_files(workspace, "recipes/link.yaml")


def test_extends_may_go_upward_inside_the_workspace(workspace: Path) -> None:
    import yaml

    (workspace / "recipes" / "base.yaml").write_text(yaml.safe_dump(BASE))
    (workspace / "recipes" / "sub dir").mkdir()
    path = workspace / "recipes" / "sub dir" / "é.yaml"
    path.write_text("extends: ../base.yaml\nseed: 7\n")
    assert load_recipe(path).seed == 7
    assert set(collect_files(workspace, "recipes/sub dir/é.yaml")) == {"recipes/sub dir/é.yaml", "recipes/base.yaml"}


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "XDG_CONFIG_HOME", "RAFT_AGENT_CACHE", "A=B", "a b"]
)
def test_a_recipe_sets_no_variable_that_decides_what_is_run(name: str) -> None:
    with pytest.raises(RecipeError, match=r"backend\.env"):
        recipe_with(backend={"env": {name: "x"}})
    assert recipe_with(backend={"env": {"PYTHONHASHSEED": "0", "HSA_ENABLE_SDMA": "0"}})
