"""A checkpoint as a folder of its own: the same logits, the same answers, and a snippet that really runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import save_random_model

from agent.raft import export
from agent.raft.model import load_policy
from agent.recipe.files import resolved_text
from agent.report import markdown
from agent.report.card import Example, snippet

LORA = {"rank": 4, "alpha": 8.0}


def checkpoint(folder: Path, cache: Path, model: dict[str, Any]) -> tuple[Path, Path]:
    """(recipe, checkpoint) of a training that has moved every trained weight a little."""
    recipe = small_recipe({"model": model})
    policy = load_policy(recipe, cache=cache, seed=0, beat=no_beat)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    (folder / "recipe.yaml").write_text(resolved_text(recipe))
    policy.save(folder / "checkpoint")
    return folder / "recipe.yaml", folder / "checkpoint"


def exported(folder: Path, cache: Path, model: dict[str, Any], *, code: int = 0) -> dict[str, Any]:
    recipe, weights = checkpoint(folder, cache, model)
    return run_export(folder, cache, recipe, weights, code=code)


def run_export(folder: Path, cache: Path, recipe: Path, weights: Path, *, code: int = 0) -> dict[str, Any]:
    (folder / "out").mkdir()
    arguments = ["--recipe", str(recipe), "--checkpoint", str(weights), "--out", str(folder / "out")]
    assert export.main([*arguments, "--answer", str(folder / "a.json"), "--cache", str(cache)]) == code
    told: dict[str, Any] = json.loads((folder / "a.json").read_text())
    return told


@pytest.fixture
def llama(tmp_path: Path) -> str:
    save_random_model(tmp_path / "llama", kind="llama", chat=True)
    (tmp_path / "llama/README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    return str(tmp_path / "llama")


@pytest.mark.slow
@pytest.mark.usefixtures("undisturbed")
def test_adapters_are_merged_and_the_snippet_of_the_card_runs(tmp_path: Path, model_cache: Path, llama: str) -> None:
    told = exported(tmp_path, model_cache, {"source": llama, "lora": LORA})
    out = tmp_path / "out"
    assert (told["merged"], told["dtype"], told["license"]) == (True, "float32", "apache-2.0")
    assert told["checks"]["difference"] < 1e-4
    assert told["checks"]["same_samples"] == told["checks"]["prompts"] == 4
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "chat_template.jinja" in names
    for path in out.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name
    assert told["example"]["text"] == "[user]13+42=~[a]"
    assert ran(snippet(Example(**told["example"])), out) == f"{told['example']['answer']}\n"
    unread = told["example"] | {"text": None}
    assert ran(snippet(Example(**unread)), out) == f"{told['example']['answer']}\n"


def ran(code: str, folder: Path) -> str:
    """What it prints, in the exported folder."""
    before, printed = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "card", "exec"), {})
    finally:
        os.chdir(before)
    return printed.getvalue()


@pytest.mark.usefixtures("undisturbed")
def test_all_weights_are_copied_without_what_else_lies_there(tmp_path: Path, model_cache: Path) -> None:
    recipe, weights = checkpoint(tmp_path, model_cache, {"source": "builtin:tiny"})
    (weights / "optimizer.pt").write_bytes(b"pickle")
    (weights / "modeling.py").write_text("raise SystemExit\n")
    told = run_export(tmp_path, model_cache, recipe, weights)
    assert (told["merged"], told["checks"]["difference"] < 1e-5) == (False, True)
    out = tmp_path / "out"
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"}
    assert (out / "model.safetensors").read_bytes() == (weights / "model.safetensors").read_bytes()
    assert ran(snippet(Example(**told["example"])), out) == f"{told['example']['answer']}\n"


@pytest.mark.usefixtures("undisturbed")
def test_a_model_that_came_out_otherwise_is_not_delivered(
    tmp_path: Path, model_cache: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that goes wrong: here it forgets the adapters."""
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    told = exported(tmp_path, model_cache, {"source": llama, "lora": LORA | {"alpha": 800.0}}, code=3)
    assert "the exported model is not the one that was measured: its logits differ by" in told["error"]["message"]


@pytest.mark.usefixtures("undisturbed")
def test_a_full_disk_and_code_of_its_own_are_refused_with_words(
    tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=10 * 2**20)
    monkeypatch.setattr("agent.raft.export.shutil.disk_usage", lambda path: usage)
    told = exported(tmp_path, model_cache, {"source": "builtin:tiny"}, code=9)
    assert told["error"]["message"] == "the exported model needs 0.06 GiB, 0.01 GiB are free"
    (tmp_path / "recipe.yaml").write_text(
        resolved_text(small_recipe({"model": {"source": "./x", "trust_remote_code": True}}))
    )
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--checkpoint", str(tmp_path / "checkpoint")]
    arguments += ["--out", str(tmp_path / "out"), "--answer", str(tmp_path / "a.json"), "--cache", str(model_cache)]
    assert export.main(arguments) == 11
    assert "model.trust_remote_code" in json.loads((tmp_path / "a.json").read_text())["error"]["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3"])
def test_every_architecture_is_merged(tmp_path: Path, model_cache: Path, kind: str, dtype: str) -> None:
    save_random_model(tmp_path / kind, kind=kind)
    lora = LORA | {"targets": "all-linear"}
    told = exported(tmp_path, model_cache, {"source": str(tmp_path / kind), "lora": lora, "dtype": dtype})
    assert told["dtype"] == dtype
    assert told["checks"]["difference"] < told["checks"]["allowed"]


@pytest.mark.slow
@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_quantized_base_is_dequantized_before_the_merge(
    tmp_path: Path, model_cache: Path, llama: str, bits: str
) -> None:
    told = exported(tmp_path, model_cache, {"source": llama, "lora": LORA, "quantize": bits})
    assert told["checks"]["difference"] < 1e-3
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "adapters"])
def test_a_training_is_exported_and_measures_the_same(tmp_path: Path, model_cache: Path, lora: Any) -> None:
    """As a user does it: train, export, eval, and the snippet in a process of its own."""
    root = tmp_path / "ws"
    raft(tmp_path, model_cache, "init", "ws")
    recipe = small_recipe({"model": {"lora": lora}, "learner": {"learning_rate": 1e-2}})
    (root / "recipes/short.yaml").write_text(resolved_text(recipe))
    trained = json.loads(raft(root, model_cache, "train", "short", "--out", "run", "--json"))
    told = json.loads(raft(root, model_cache, "export", "--run", "run", "--out", "model", "--json"))
    assert told["checks"]["same_samples"] == told["checks"]["prompts"]
    measured = json.loads(raft(root, model_cache, "eval", "model", "--recipe", "short", "--json"))
    assert measured["metrics"] == trained["metrics"]
    text = (root / "model/README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root / "model", capture_output=True, text=True, check=True)
    assert f"this prints {markdown.code(done.stdout)}." in text
    assert str(tmp_path) not in text


def raft(folder: Path, cache: Path, *arguments: str) -> str:
    variables = {**os.environ, "RAFT_AGENT_CACHE": str(cache)}
    command = [sys.executable, "-m", "agent.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
