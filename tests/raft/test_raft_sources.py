"""What a model brings along: no code of its own runs unasked, and no pickle is read."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import small_recipe

from agent.errors import AgentError, Unavailable, UsageError
from agent.raft import let_in, tiny
from agent.raft.llama import TinyLlama
from agent.raft.model import load_policy
from agent.raft.pulse import Pulse
from agent.recipe.schema import Model
from agent.recipe.trust import code_of

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import {parent}
class {name}({parent}):
    model_type = "evil"
"""


class Marks:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return (eval, (f"open({self.marker!r}, 'w').write('ran')",))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whoever runs code of the model leaves it; and nobody asks on the terminal."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asked on the terminal"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "marker"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A healthy model's folder, in the current folder."""
    folder = tmp_path / "ws" / "model"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tiny.save_model(TinyLlama(tiny.SHAPE), folder)
    tiny.CharTokenizer().save_pretrained(str(folder))
    monkeypatch.chdir(folder.parent)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def load(tmp_path: Path, *, confirmed: str | None = None, checkpoint: Path | None = None, **model: Any) -> Any:
    recipe = small_recipe({"model": {"source": "./model", **model}})
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    beat = Pulse(out).beat
    return load_policy(recipe, cache=tmp_path / "cache", seed=0, beat=beat, confirmed=confirmed, checkpoint=checkpoint)


def with_code_of_its_own(folder: Path, marker: Path, *, kind: str = "evil") -> None:
    for name, parent in (
        ("config", "PretrainedConfig"),
        ("modeling", "LlamaForCausalLM"),
        ("tok", "PreTrainedTokenizerFast"),
    ):
        text = CODE.format(marker=str(marker), parents=parent, parent=parent, name=f"X{name}")
        (folder / f"{name}.py").write_text(
            text.replace('    model_type = "evil"\n', "    pass\n") if name != "config" else text
        )
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(
        f"open({str(marker)!r}, 'w').write('ran')\ndef generate(*a, **k): pass\n"
    )
    auto = {"AutoConfig": "config.Xconfig", "AutoModelForCausalLM": "modeling.Xmodeling"}
    edit_json(folder / "config.json", auto_map=auto, model_type=kind)
    edit_json(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Xtok", "tok.Xtok"]}, tokenizer_class="Xtok"
    )


def test_a_healthy_folder_loads(tmp_path: Path, model: Path) -> None:
    assert load(tmp_path).native is False


def test_code_of_an_unknown_architecture_is_refused_with_what_to_do(tmp_path: Path, model: Path, marker: Path) -> None:
    with_code_of_its_own(model, marker)
    with pytest.raises(Unavailable, match="Python files of its own") as caught:
        load(tmp_path)
    assert "--trust-remote-code" in str(caught.value)
    assert not marker.exists()


def test_code_beside_a_known_architecture_is_passed_over(tmp_path: Path, model: Path, marker: Path) -> None:
    with_code_of_its_own(model, marker, kind="llama")
    edit_json(model / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    load(tmp_path)
    assert not marker.exists()


def test_a_recipe_alone_cannot_trust_it(tmp_path: Path, model: Path, marker: Path) -> None:
    with_code_of_its_own(model, marker)
    for confirmed in (None, "", "0" * 64):
        with pytest.raises(UsageError, match="not what was confirmed"):
            load(tmp_path, trust_remote_code=True, confirmed=confirmed)
    assert not marker.exists()


def test_confirmed_code_runs_until_it_changes(tmp_path: Path, model: Path, marker: Path) -> None:
    (model / "modeling.py").write_text(
        "from transformers import LlamaForCausalLM\n"
        f"open({str(marker)!r}, 'w').write('ran')\n"
        "class Own(LlamaForCausalLM):\n    pass\n"
    )
    edit_json(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    code = code_of(Model(source="./model", trust_remote_code=True), base=Path.cwd())
    assert code is not None
    policy = load(tmp_path, trust_remote_code=True, confirmed=code.digest)
    assert type(policy.inner).__name__ == "Own"
    assert marker.read_text() == "ran"

    policy.save(tmp_path / "checkpoint")
    weights = policy.snapshot()
    (tmp_path / "checkpoint" / "modeling.py").write_text(f"open({str(tmp_path / 'other')!r}, 'w')\n")
    again = load(tmp_path, trust_remote_code=True, confirmed=code.digest, checkpoint=tmp_path / "checkpoint")
    assert all(torch.equal(weight, weights[name]) for name, weight in again.snapshot().items())
    assert not (tmp_path / "other").exists(), "the code beside a checkpoint was not confirmed"

    marker.unlink()
    (model / "modeling.py").write_text((model / "modeling.py").read_text() + "# changed\n")
    with pytest.raises(UsageError):
        load(tmp_path, trust_remote_code=True, confirmed=code.digest)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "other/repo--modeling.X"}}, "another repository"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "other/repo--tok.X"]}}, "another repository"),
        ("config.json", {"transformers_weights": "adapter_model.bin"}, "no safetensors"),
        ("config.json", {"transformers_weights": "../other.safetensors"}, "no safetensors"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "code of the hub"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "code of the hub"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}, "no safetensors"),
        ("model.safetensors.index.json", {"weight_map": {"a": "evil.bin"}}, "no safetensors"),
        ("adapter_config.json", {"base_model_name_or_path": "other/repo"}, "adapters"),
    ],
)
def test_a_configuration_may_not_lead_elsewhere(
    tmp_path: Path, model: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    edit_json(model / file, **changes)
    with pytest.raises(Unavailable, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "x.ckpt", "x.pth"]
)
def test_a_model_of_pickles_is_refused_unread(tmp_path: Path, model: Path, marker: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(Unavailable, match="pickle") as caught:
        load(tmp_path)
    assert "save_pretrained(b)" in str(caught.value), "it says how to convert"
    assert not marker.exists()


def test_pickles_beside_safetensors_are_passed_over(tmp_path: Path, model: Path, marker: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(marker)))
    (model / "training_args.bin").write_bytes(pickle.dumps(Marks(marker)))
    load(tmp_path)
    assert not marker.exists()


def test_adapters_that_are_a_pickle_are_refused_unread(tmp_path: Path, model: Path, marker: Path) -> None:
    policy = load(tmp_path, lora={"rank": 2})
    policy.save(tmp_path / "checkpoint")
    assert load(tmp_path, lora={"rank": 2}, checkpoint=tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "adapter_model.safetensors").unlink()
    (tmp_path / "checkpoint" / "adapter_model.bin").write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(Unavailable, match="not safetensors"):
        load(tmp_path, lora={"rank": 2}, checkpoint=tmp_path / "checkpoint")
    assert not marker.exists()


def test_a_checkpoint_of_pickles_is_refused_unread(tmp_path: Path, model: Path, marker: Path) -> None:
    shutil.copytree(model, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    (tmp_path / "checkpoint" / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(Unavailable, match="pickle"):
        load(tmp_path, checkpoint=tmp_path / "checkpoint")
    assert not marker.exists()


def test_whatever_a_library_does_no_pickle_is_read_while_a_model_loads(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(AgentError, match="pickle"), let_in.no_pickles():
        torch.load(path, weights_only=False)
    assert not marker.exists()
    torch.save({"a": torch.ones(2)}, path)
    assert torch.load(path)["a"].tolist() == [1, 1], "afterwards torch is as it was"


def test_a_chat_template_is_in_a_sandbox(tmp_path: Path, model: Path, marker: Path) -> None:
    """transformers renders it with jinja2's ImmutableSandboxedEnvironment; a test, because it may change its mind."""
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (model / "chat_template.jinja").write_text(escape)
    policy = load(tmp_path)
    with pytest.raises(Exception, match=r"unsafe|SecurityError"):
        policy.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    write = "{{ messages.append({'role': 'x', 'content': 'y'}) }}"
    with pytest.raises(Exception, match=r"unsafe|not callable|SecurityError"):
        policy.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=write, tokenize=False)


def test_a_link_in_the_workspace_to_a_model_outside_is_refused(tmp_path: Path, model: Path) -> None:
    outside = tmp_path / "outside"
    model.rename(outside)
    model.symlink_to(outside)
    with pytest.raises(AgentError, match="leads out of the workspace"):
        load(tmp_path)
    assert load(tmp_path, source=str(outside))
