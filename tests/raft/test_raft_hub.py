"""A model of the hub: what this machine has is used as it is; the hub is asked for what is not here whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from raft_recipes import small_recipe
from random_models import save_random_model

from agent.contract import Failure, Summary
from agent.recipe.files import resolved_text
from agent.recipe.yardstick import digest_of_file

pytestmark = pytest.mark.slow

NAME = "someone/model"
LOAD = """
import json, sys
from pathlib import Path
from agent.raft import sources
from agent.raft.model import load_policy
from agent.recipe.files import recipe_from
from agent.raft.pulse import Pulse
recipe = recipe_from(json.loads(sys.argv[1]), where="test")
source = sources.fetch(recipe.model, cache=Path("cache"), beat=lambda *_, **__: None)
policy = load_policy(recipe, cache=Path("cache"), seed=0, beat=lambda *_, **__: None)
weight = policy.inner.get_input_embeddings().weight
print(json.dumps({"commit": source.revision, "first": float(weight[0, 0]), "template": policy.tokenizer.chat_template,
                  "named": policy.inner.name_or_path, "files": sorted(p.name for p in source.snapshot.iterdir())}))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub().open() as hub:
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_random_model(tmp_path / "model", kind="llama", chat=True)
    return tmp_path / "model"


def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """Of a machine that has nothing of that hub yet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    return {**kept, **ours, "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2", "OMP_NUM_THREADS": "1"}


def load(hub: FakeHub, tmp_path: Path, **model: Any) -> dict[str, Any]:
    """What a process of its own finds."""
    recipe = small_recipe({"model": {"source": NAME, **model}}).model_dump(mode="json")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(recipe)],
        cwd=tmp_path, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def train(hub: FakeHub, tmp_path: Path, out: str, *arguments: str, code: int = 0) -> Path:
    """A run of the real worker, with adapters: so its evaluation loads the hub's model once more."""
    folder = tmp_path / out
    recipe = small_recipe({"model": {"source": NAME, "lora": {"rank": 2}}, "budget": {"cycles": 1}})
    folder.with_suffix(".yaml").write_text(resolved_text(recipe))
    command = [sys.executable, "-m", "agent.raft.worker", "--recipe", f"{out}.yaml", "--out", out, "--seed", "0"]
    done = subprocess.run(
        [*command, "--cache", "cache", *arguments],
        cwd=tmp_path, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return folder


def told(folder: Path) -> dict[str, Any]:
    """What a run tells of its model."""
    return dict(Summary(**json.loads((folder / "summary.json").read_text())).provenance["model"])


def digests(folder: Path) -> dict[str, str]:
    (snapshot,) = [Path(name) for name in told(folder)["folders"] if "snapshots" in name]
    return {name: digest_of_file(snapshot / name) for name in told(folder)["folders"][str(snapshot)]}


def test_a_push_between_runs_and_a_hub_that_is_gone_change_nothing(tmp_path: Path, model: Path) -> None:
    """Nor is the first download taken for files that were changed while they were in use."""
    save_random_model(tmp_path / "other", kind="qwen2")
    with FakeHub().open() as hub:
        first = hub.push(NAME, model)
        began = train(hub, tmp_path, "first")
        hub.push(NAME, tmp_path / "other")
        hub.asked.clear()
        again = train(hub, tmp_path, "again")
        assert hub.asked == [], hub.asked
    alone = train(hub, tmp_path, "alone", "--evaluate", "first/checkpoint")
    assert told(began)["commit"] == told(again)["commit"] == told(alone)["commit"] == first
    assert digests(began) == digests(again) == digests(alone)
    assert digests(began)["model.safetensors"] == digest_of_file(model / "model.safetensors")
    assert (
        (again / "eval.jsonl").read_text() == (began / "eval.jsonl").read_text() == (alone / "eval.jsonl").read_text()
    )
    adapter = json.loads((began / "checkpoint/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == NAME, "not a folder of this machine's cache"


def test_a_download_that_broke_off_is_completed_at_the_commit_that_it_began_with(
    tmp_path: Path, model: Path, hub: FakeHub
) -> None:
    first = hub.push(NAME, model)
    hub.broken = {"model.safetensors"}
    failure = train(hub, tmp_path, "broken", code=4) / "failure.json"
    assert NAME in Failure(**json.loads(failure.read_text())).message
    hub.broken = set()
    save_random_model(tmp_path / "other", kind="qwen2")
    second = hub.push(NAME, tmp_path / "other")
    hub.asked.clear()
    found = load(hub, tmp_path)
    assert found["commit"] == first
    assert f"GET /{NAME}/resolve/{first}/model.safetensors" in hub.asked
    assert not [one for one in hub.asked if second in one]
    hub.asked.clear()
    assert load(hub, tmp_path) == found
    assert hub.asked == []


@pytest.mark.parametrize("lost", ["tokenizer.json", "model-00002-of-00002.safetensors", "config.json"])
def test_what_is_not_here_whole_is_fetched(tmp_path: Path, model: Path, hub: FakeHub, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for part, inside in parts.items():
        save_file({name: weights[name] for name in inside}, model / part, metadata={"format": "pt"})
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "pytorch_model.bin").write_bytes(b"never fetched")
    commit = hub.push(NAME, model)
    found = load(hub, tmp_path, revision="main")
    assert found["commit"] == commit
    assert {*parts, "chat_template.jinja", "generation_config.json"} <= set(found["files"])
    assert "pytorch_model.bin" not in found["files"]
    (next((tmp_path / "home").rglob("snapshots")) / commit / lost).unlink()
    hub.asked.clear()
    assert load(hub, tmp_path, revision="main") == found
    assert hub.asked


def test_a_commit_that_the_hub_has_no_more_is_used_where_it_is_whole_and_else_the_next(
    tmp_path: Path, model: Path, hub: FakeHub
) -> None:
    first = hub.push(NAME, model)
    before = load(hub, tmp_path)
    save_random_model(tmp_path / "other", kind="llama")
    second = hub.push(NAME, tmp_path / "other")
    hub.forget(NAME, first)
    assert load(hub, tmp_path) == before
    (next((tmp_path / "home").rglob("snapshots")) / first / "model.safetensors").unlink()
    assert load(hub, tmp_path)["commit"] == second


def test_what_another_program_left_out_is_fetched_or_done_without(tmp_path: Path, model: Path, hub: FakeHub) -> None:
    """A client that knew no chat templates of their own, say. Nobody may find out in the middle of a night."""
    commit = hub.push(NAME, model)
    whole = load(hub, tmp_path)
    snapshot = next((tmp_path / "home").rglob("snapshots")) / commit
    (tmp_path / "cache/hub").joinpath(f"someone--model-{commit}.json").unlink()
    (snapshot / "chat_template.jinja").unlink()
    assert load(hub, tmp_path) == whole
    (tmp_path / "cache/hub").joinpath(f"someone--model-{commit}.json").unlink()
    (snapshot / "generation_config.json").unlink()
    repositories, hub.repositories = hub.repositories, {}
    assert load(hub, tmp_path)["commit"] == commit, "the hub cannot be asked, and what is needed is here"
    hub.repositories = repositories
    assert load(hub, tmp_path) == whole


def test_adapters_of_the_hub_are_refused_as_those_of_a_folder_are(tmp_path: Path, model: Path, hub: FakeHub) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "other/base"}))
    (model / "adapter_model.safetensors").write_bytes(b"never fetched")
    hub.push(NAME, model)
    failure = train(hub, tmp_path, "adapters", code=4) / "failure.json"
    assert "holds adapters" in Failure(**json.loads(failure.read_text())).message
    assert not [one for one in hub.asked if one.endswith(".safetensors")]


def test_a_commit_that_a_run_is_given_counts_before_what_the_branch_is_now(
    tmp_path: Path, model: Path, hub: FakeHub
) -> None:
    """What a campaign's first run has found holds for the night, whoever downloads meanwhile."""
    first = hub.push(NAME, model)
    load(hub, tmp_path)
    save_random_model(tmp_path / "other", kind="qwen2")
    second = hub.push(NAME, tmp_path / "other")
    (refs,) = (tmp_path / "home").rglob("refs/main")
    refs.write_text(second)
    folder = train(hub, tmp_path, "given", "--commit", first)
    assert told(folder)["commit"] == first
    assert all(first in name for name in told(folder)["folders"] if "snapshots" in name)


def test_a_large_file_that_is_none_of_the_models_is_left_alone(tmp_path: Path, model: Path, hub: FakeHub) -> None:
    for name in ("trainer_log.json", "dataset.txt", "model.onnx"):
        (model / name).write_text("large")
    hub.push(NAME, model)
    assert not {"trainer_log.json", "dataset.txt", "model.onnx"} & set(load(hub, tmp_path)["files"])


def test_a_commit_that_the_recipe_names_is_what_is_used(tmp_path: Path, model: Path, hub: FakeHub) -> None:
    first = hub.push(NAME, model)
    save_random_model(tmp_path / "other", kind="qwen2")
    second = hub.push(NAME, tmp_path / "other")
    assert load(hub, tmp_path)["commit"] == second
    assert load(hub, tmp_path, revision=first)["commit"] == first
    assert load(hub, tmp_path)["commit"] == second
