"""Quantized base weights under adapters: refusals, right gradients, and a whole training with resume."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from raft_recipes import no_beat, small_recipe
from random_models import save_random_model
from torch import Tensor, nn

from agent.errors import RecipeError, Unsupported
from agent.raft import tiny
from agent.raft.answers import AnswerCache
from agent.raft.learner import Trainer
from agent.raft.microbatch import TrainingSample
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.quantized import elements, quantized_layers, refuse_where_it_fails, scale_of, scales
from agent.raft.rollout import Request, generate
from agent.raft.sampling import Sampling
from agent.raft.state import StateFolder
from agent.raft.support import refuse_unsupported

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes (the extra `quantize`) is not installed"
)
BITS = ["8bit", "4bit"]
LORA = {"rank": 4, "alpha": 8.0}
CPU = torch.device("cpu")
SAMPLES = [TrainingSample([5, 6, 8], [7, 9, 20, 0], [0.0] * 4), TrainingSample([5, 30], [44, 0], [0.0] * 2)]


# Refused ----------------------------------------------------------------------------------------------------


def test_without_adapters_it_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"model\.quantize: 4bit needs model\.lora"):
        small_recipe({"model": {"quantize": "4bit"}})


def test_without_the_package_it_is_refused_with_the_command_that_installs_it() -> None:
    recipe = small_recipe({"model": {"quantize": "8bit", "lora": {}}})
    with pytest.raises(Unsupported, match=r"model\.quantize: 8bit needs the package bitsandbytes") as error:
        refuse_unsupported(recipe, installed=lambda package: package != "bitsandbytes")
    assert 'pip install "raft-agent[quantize]"' in str(error.value.hint)
    refuse_unsupported(recipe, installed=lambda package: True)
    refuse_unsupported(small_recipe({"model": {"lora": {}}}), installed=lambda package: False)


class Fake8bit(nn.Module):
    """A layer of a bitsandbytes that is not built for the device, or one that computes nonsense."""

    def __init__(self, factor: float | None, **_: Any) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is None:
            raise RuntimeError("Configured ROCm binary not found\nat length")
        return x * self.factor


def library(factor: float | None) -> Any:
    return SimpleNamespace(__version__="0.0", nn=SimpleNamespace(Linear8bitLt=lambda **how: Fake8bit(factor, **how)))


@pytest.mark.parametrize(
    ("factor", "said"), [(None, "Configured ROCm binary not found"), (float("nan"), "is not finite")]
)
def test_a_library_that_fails_on_the_device_is_told_before_a_model_is_loaded(factor: Any, said: str) -> None:
    with pytest.raises(Unsupported, match=rf"model\.quantize: 8bit does not work on cpu .*{said}"):
        refuse_where_it_fails("8bit", torch.float32, CPU, library(factor))
    refuse_where_it_fails("8bit", torch.float32, CPU, library(0.5))


# Loss and gradients -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2", "qwen3"):
        save_random_model(root / kind, kind=kind)
    return {path.name: path for path in root.iterdir()}


def load(folder: Path, cache: Path, quantize: str | None, dtype: str = "float32", **learner: Any) -> Policy:
    """With adapters that already say something, the same ones each time."""
    model = {"source": str(folder), "dtype": dtype, "lora": LORA, "quantize": quantize}
    recipe = small_recipe({"model": model, "learner": learner})
    checkpointing = recipe.learner.gradient_checkpointing is True
    policy = load_policy(recipe, cache=cache, seed=0, beat=no_beat, checkpointing=checkpointing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.trainable().items():
            if "lora_B" in name:  # an adapter begins as zero
                weight.normal_(0, 0.1, generator=generator)
    return policy


def loss_and_gradients(policy: Policy) -> tuple[float, Tensor]:
    """Of SAMPLES, through the learner: sgd at rate 1 leaves the gradient as the difference of the weights."""
    recipe = small_recipe({"learner": {"optimizer": "sgd", "max_grad_norm": 1e6}})
    before = policy.snapshot()
    report = Trainer(policy, recipe.learner).train(SAMPLES, learning_rate=lambda _: 1e-3, seed=0)
    gradients = torch.cat([(before[n] - p.detach()).flatten() / 1e-3 for n, p in policy.trainable().items()])
    policy.restore(before)
    return report.loss_sum, gradients


@torch.no_grad()
def round_base(full: Policy, quantized: Policy) -> None:
    """Give a model of whole weights the values that the quantized one computes with."""
    from bitsandbytes.functional import dequantize_4bit

    plain = dict(full.inner.named_modules())
    for name, module in quantized.inner.named_modules():
        if module not in set(quantized_layers(quantized.model)):
            continue
        weight, state = module.weight, getattr(module.weight, "quant_state", None)
        if state is not None:
            values = dequantize_4bit(weight.data, state)
        else:
            values = weight.data.float() * scale_of(module).unsqueeze(1) / 127
        target = plain[name]
        target.weight.copy_(values.t() if type(target).__name__ == "Conv1D" else values)  # GPT-2's lie the other way


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_loss_and_gradients_are_near_those_of_the_whole_weights(model_cache: Path, tmp_path: Path, bits: str) -> None:
    """Of the built-in model, which has learned something. Random weights leave nothing for rounding to spare."""
    whole, quantized = (loss_and_gradients(load(tiny.home(model_cache), tmp_path, how)) for how in (None, bits))
    assert bool(quantized[1].isfinite().all())
    assert quantized[0] == pytest.approx(whole[0], rel=0.01 if bits == "8bit" else 0.05)
    assert distance(quantized[1], whole[1]) < (0.03 if bits == "8bit" else 0.4)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["llama", "gpt2", pytest.param("qwen3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", BITS)
def test_loss_and_gradients_are_those_of_the_rounded_weights(
    folders: dict[str, Path], tmp_path: Path, kind: str, bits: str
) -> None:
    quantized = load(folders[kind], tmp_path, bits)
    assert len(quantized_layers(quantized.model)) == 2 * (4 if kind == "gpt2" else 7)
    assert quantized.layout_why_not is None
    assert quantized.head is not None
    whole = load(folders[kind], tmp_path, None)
    loss, gradients = loss_and_gradients(quantized)
    assert distance(gradients, loss_and_gradients(whole)[1]) > 0.01  # else the comparison would show nothing
    round_base(whole, quantized)
    rounded_loss, rounded = loss_and_gradients(whole)
    assert loss == pytest.approx(rounded_loss, rel=1e-4)
    assert distance(gradients, rounded) < 1e-3


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_in_bfloat16_too(folders: dict[str, Path], tmp_path: Path, bits: str) -> None:
    quantized = load(folders["llama"], tmp_path, bits, "bfloat16")
    assert {p.dtype for p in quantized.trainable().values()} == {torch.float32}
    exact_loss, exact = loss_and_gradients(load(folders["llama"], tmp_path, bits))
    loss, gradients = loss_and_gradients(quantized)
    assert loss == pytest.approx(exact_loss, rel=0.05)
    assert distance(gradients, exact) < 0.15


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", BITS)
def test_sampling_leaves_the_gradients_as_they_were_and_agrees_with_the_learner(
    folders: dict[str, Path], tmp_path: Path, bits: str, dtype: str
) -> None:
    """In evaluation mode bitsandbytes would rearrange 4-bit weights for good and cut the backward pass."""
    policy = load(folders["llama"], tmp_path, bits, dtype)
    before = loss_and_gradients(policy)
    prompt = [5, 6, 8]
    sampling = Sampling(temperature=1.0, max_new_tokens=20, max_total=60)
    completion = generate(policy, [Request(prompt, 1, 0)], sampling)[0][0]
    after = loss_and_gradients(policy)
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    assert distance(after[1], before[1]) < 1e-5
    sample = TrainingSample(prompt, completion.tokens, completion.logprobs)
    recipe = small_recipe()
    report = Trainer(policy, recipe.learner).train([sample], learning_rate=lambda _: 0.0, seed=0)
    assert report.gap is not None
    assert report.gap < (1e-4 if dtype == "float32" else 0.05)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_recomputed_activations_give_the_same_gradients(folders: dict[str, Path], tmp_path: Path, bits: str) -> None:
    plain = loss_and_gradients(load(folders["llama"], tmp_path, bits))
    recomputed = loss_and_gradients(load(folders["llama"], tmp_path, bits, gradient_checkpointing=True))
    assert recomputed[0] == pytest.approx(plain[0], rel=1e-5)
    assert distance(recomputed[1], plain[1]) < 1e-4


# Weights ----------------------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_weights_are_counted_whole_and_held_in_few_bits(folders: dict[str, Path], tmp_path: Path, bits: str) -> None:
    policy = load(folders["llama"], tmp_path, bits)
    assert policy.parameter_counts() == load(folders["llama"], tmp_path, None).parameter_counts()
    for layer in quantized_layers(policy.model):
        size = layer.weight.numel() * layer.weight.element_size() / elements(layer.weight)
        assert size == (1 if bits == "8bit" else 0.5)
    assert policy.inner.get_input_embeddings().weight.dtype == torch.float32
    assert type(policy.inner.get_output_embeddings()) is nn.Linear


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_checkpoint_is_the_adapters_and_comes_back_on_the_same_rounded_base(
    folders: dict[str, Path], tmp_path: Path, bits: str
) -> None:
    policy = load(folders["llama"], tmp_path, bits)
    frozen = {name: p.clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    recipe = small_recipe({"model": {"source": str(folders["llama"]), "lora": LORA, "quantize": bits}})
    trainer = Trainer(policy, recipe.learner)
    losses = [trainer.train(SAMPLES, learning_rate=lambda _: 0.02, seed=i).loss_sum for i in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in policy.model.named_parameters() if name in frozen)
    policy.save(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()
    again = load_policy(recipe, cache=tmp_path, seed=9, beat=no_beat, checkpoint=tmp_path / "checkpoint")
    assert len(quantized_layers(again.model)) == 14
    ids = torch.tensor([[5, 6, 7]])
    with policy.sampling(), again.sampling():
        torch.testing.assert_close(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_answers_are_remembered_by_the_scales_too(folders: dict[str, Path], tmp_path: Path, bits: str) -> None:
    policy = load(folders["llama"], tmp_path, bits)
    asked = [Request([5, 6, 8], 1, 0)], Sampling(temperature=1.0, max_new_tokens=4, max_total=60)
    before = AnswerCache(tmp_path).key(policy, *asked)
    assert len(scales(policy.model)) == 14
    assert AnswerCache(tmp_path).key(policy, *asked) == before
    scale_of(quantized_layers(policy.model)[3]).mul_(2)
    assert AnswerCache(tmp_path).key(policy, *asked) != before


# A training -------------------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_a_training_of_the_built_in_model_goes_on_after_a_stop_and_its_checkpoint_is_measured_alike(
    model_cache: Path, tmp_path: Path, bits: str
) -> None:
    from test_raft_worker import cycles, run, started, summary, wait_for, write_recipe

    over = {"model": {"lora": LORA, "quantize": bits}, "rollout": {"slots": 8}, "budget": {"cycles": 4}}
    for name in ("whole", "stopped"):
        write_recipe(tmp_path / name, over)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(whole, model_cache, "--split", "search")
    assert summary(whole).cycles == 4
    assert (whole / "checkpoint" / "adapter_model.safetensors").exists()
    assert all(row["loss"] is not None and row["logprob_gap"] < 1e-4 for row in cycles(whole)[1:])

    with started(stopped, model_cache, "--split", "search", "--save-seconds", "0") as process:
        wait_for(StateFolder(stopped, save_seconds=0.0).path.exists)
        process.kill()
        process.wait()
    assert not (stopped / "summary.json").exists()
    saved = StateFolder(stopped, save_seconds=0.0).load()
    assert saved is not None
    assert all("lora" in name for name in saved["weights"])
    run(stopped, model_cache, "--split", "search")
    for resumed, in_one in zip(cycles(stopped)[1:], cycles(whole)[1:], strict=True):
        assert resumed["loss"] == pytest.approx(in_one["loss"], rel=1e-5)
        assert resumed["pass_rate"] == in_one["pass_rate"]

    alone = tmp_path / "alone"
    write_recipe(alone, over)
    run(alone, model_cache, "--evaluate", str(whole / "checkpoint"), "--split", "search")
    assert summary(alone).metrics == summary(whole).metrics
