"""Code of a model is run only after its user has confirmed that very code, outside of the workspace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import RecipeError, UsageError
from agent.recipe.change import Change, ChangeRefused
from agent.recipe.files import recipe_from
from agent.recipe.schema import Model
from agent.recipe.trust import code_of, confirm, confirmed_in, refuse_unconfirmed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "ws" / "model"
    (found / "deep").mkdir(parents=True)
    (found / "modeling.py").write_text("import os\n")
    (found / "deep" / "more.py").write_text("x = 1\n")
    (found / "config.json").write_text("{}")
    return found


def wants(source: str, **more: object) -> Model:
    return Model(source=source, trust_remote_code=True, **more)  # type: ignore[arg-type]


def test_nothing_is_asked_of_a_recipe_that_does_not_ask(tmp_path: Path) -> None:
    assert refuse_unconfirmed(Model(source="org/name"), base=tmp_path, confirmed=tmp_path / "none") is None


def test_what_was_confirmed_is_that_code_in_that_folder(tmp_path: Path, folder: Path) -> None:
    kept, model, base = tmp_path / "kept.json", wants("model"), folder.parent
    with pytest.raises(UsageError, match=r"modeling\.py") as caught:
        refuse_unconfirmed(model, base=base, confirmed=kept, recipe="recipes/my own.yaml")
    assert "raft-agent check 'recipes/my own.yaml' --trust-remote-code" in str(caught.value)
    code = code_of(model, base=base)
    assert code is not None
    confirm(code, confirmed=kept)
    assert refuse_unconfirmed(model, base=base, confirmed=kept) == code
    assert confirm(code, confirmed=kept) == kept
    assert len(json.loads(kept.read_text())["trusted"]) == 1

    (folder / "config.json").write_text('{"a": 1}')  # no code
    assert refuse_unconfirmed(model, base=base, confirmed=kept)
    for change in (
        lambda: (folder / "modeling.py").write_text("import os  # changed\n"),
        lambda: (folder / "new.py").write_text(""),
        lambda: (folder / "deep" / "more.py").rename(folder / "deep" / "other.py"),
    ):
        before = {path: path.read_bytes() for path in folder.rglob("*.py")}
        change()
        with pytest.raises(UsageError, match="not confirmed"):
            refuse_unconfirmed(model, base=base, confirmed=kept)
        for path in folder.rglob("*.py"):
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        assert refuse_unconfirmed(model, base=base, confirmed=kept)


def test_the_same_code_elsewhere_was_not_confirmed(tmp_path: Path, folder: Path) -> None:
    kept = tmp_path / "kept.json"
    code = code_of(wants("model"), base=folder.parent)
    assert code is not None
    confirm(code, confirmed=kept)
    folder.rename(folder.with_name("other"))
    with pytest.raises(UsageError, match="not confirmed"):
        refuse_unconfirmed(wants("other"), base=folder.parent, confirmed=kept)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_code_of_the_hub_is_that_of_one_commit(tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(UsageError, match="may change its code") as caught:
        refuse_unconfirmed(wants("org/name", revision=revision), base=tmp_path, confirmed=tmp_path / "kept.json")
    assert "40 hexadecimal digits" in str(caught.value)


def test_a_commit_of_the_hub_can_be_confirmed(tmp_path: Path) -> None:
    model, kept = wants("org/name", revision=COMMIT), tmp_path / "kept.json"
    code = code_of(model, base=tmp_path)
    assert code is not None
    confirm(code, confirmed=kept)
    assert refuse_unconfirmed(model, base=tmp_path, confirmed=kept) == code
    other = wants("org/name", revision=COMMIT[::-1])
    with pytest.raises(UsageError, match="not confirmed"):
        refuse_unconfirmed(other, base=tmp_path, confirmed=kept)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"trusted": 3}', '{"trusted": [1, "x", null]}', "\0"])
def test_a_damaged_list_confirms_nothing(tmp_path: Path, folder: Path, content: str) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(content)
    with pytest.raises(UsageError, match="not confirmed"):
        refuse_unconfirmed(wants("model"), base=folder.parent, confirmed=kept)


def test_the_list_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert confirmed_in() == tmp_path / "config" / "raft-agent" / "trusted-code.json"


def test_only_a_model_that_can_have_code_can_be_trusted(tmp_path: Path) -> None:
    for source in ("builtin:tiny", "pypi:x", "x.gguf"):
        with pytest.raises(ValueError, match="trust_remote_code needs"):
            wants(source)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "link").symlink_to(outside)
    with pytest.raises(RecipeError, match="leads out"):
        code_of(wants("link"), base=tmp_path / "ws")


def test_no_experiment_moves_what_is_loaded() -> None:
    content = {"model": {"source": "builtin:tiny"}, "task": {"dataset": "builtin:addition"}, "budget": {"cycles": 1}}
    recipe = recipe_from(content, where="x")
    for key, value in {"source": "org/x", "revision": "main", "trust_remote_code": True}.items():
        with pytest.raises(ChangeRefused, match="locked"):
            Change(set={f"model.{key}": value}).apply(recipe)
    with pytest.raises(ChangeRefused, match="locked"):
        Change(set={"model": {"source": "org/x"}}).apply(recipe)
