"""Products by oneDNN: the numbers of torch's own, forward and backward, wherever they are put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_recipes import no_beat, small_recipe
from random_models import ARCHITECTURES, save_random_model
from torch import Tensor, nn

from agent.raft import cpu_products
from agent.raft.bench_products import ProductRecorder
from agent.raft.cpu_products import Products, possible_products, training_products, works, worth
from agent.raft.learner import Trainer
from agent.raft.microbatch import TrainingSample
from agent.raft.model import load_policy
from agent.raft.policy import Policy
from agent.raft.sampling_weights import sampling_weights
from agent.recipe.schema import Learner

SAMPLES = [
    TrainingSample(prompt, completion, [0.0] * len(completion))
    for prompt, completion in (([5, 6, 7], [3, 4, 5]), ([5, 6, 7], [20]), ([9], [21, 22, 23, 24]))
]


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where oneDNN wins."""
    monkeypatch.setattr(cpu_products, "faster", lambda dtype: dtype == torch.float32)


def replaced(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_the_operators_are_here() -> None:
    """Where torch is built with oneDNN they are used; this says so when a new torch takes them away."""
    assert works(torch.float32) is torch.backends.mkldnn.is_available()


@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    transposed=st.booleans(),
    even=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_layer_and_its_gradients_are_those_of_torch(
    rows: list[int], inputs: int, outputs: int, bias: bool, transposed: bool, even: bool
) -> None:
    """Of any number of rows; also for an input that is the transpose of another tensor, and for a gradient that is one
    number everywhere, which autograd hands down with strides of zero."""
    generator = torch.Generator().manual_seed(sum(rows) + 41 * inputs + 1681 * outputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(*rows, inputs, generator=generator)
    x = x.transpose(0, -1).contiguous().transpose(0, -1) if transposed else x
    weights = torch.ones(()) if even else torch.randn(*rows, outputs, generator=generator)

    def run(forward: Any) -> list[Tensor]:
        layer.zero_grad()
        leaf = x.detach().requires_grad_()
        out = forward(leaf)
        (out * weights).sum().backward() if not even else out.sum().backward()
        return [out.detach(), *(p.grad.clone() for p in (leaf, *layer.parameters()) if p.grad is not None)]

    plain, ours = run(layer), run(lambda leaf: cpu_products._through(layer, leaf))
    assert len(plain) == len(ours) == 3 + bias
    for wanted, found in zip(plain, ours, strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("lora", [{}, {"rank": 4, "alpha": 8.0}], ids=["all weights", "adapters"])
@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("qwen3", "gemma2") else pytest.param(kind, marks=pytest.mark.slow) for kind in ARCHITECTURES],
)
def test_a_training_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: dict[str, Any]
) -> None:
    """Weights after two steps; and the same number of operations, none of them done twice."""
    save_random_model(tmp_path / kind, kind=kind)
    policy = load(tmp_path / kind, tmp_path, **({"lora": lora} if lora else {}))
    start, seen = policy.snapshot(), []
    for wins in (False, True):
        monkeypatch.setattr(cpu_products, "faster", lambda dtype, wins=wins: wins)
        policy.restore(start)
        trainer = Trainer(policy, Learner(optimizer="sgd", max_grad_norm=1e6, epochs_per_cycle=2))
        with ProductRecorder() as recorder:
            report = trainer.train(SAMPLES, learning_rate=lambda _: 0.01, seed=0)
        packed = sum(times for product, times in recorder.products.items() if product.packed)
        assert (packed > 0) == wins
        seen.append((report.loss_sum, policy.snapshot(), recorder.product_flops))
    (loss, weights, flops), (other_loss, other_weights, other_flops) = seen
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert flops == other_flops
    for name in start:
        torch.testing.assert_close(weights[name], other_weights[name], atol=2e-5, rtol=1e-4)
    assert any(not torch.equal(weights[name], start[name]) for name in weights)


@pytest.mark.skipif(not works(torch.float32), reason="torch is built without oneDNN")
@pytest.mark.parametrize("began_with", ["torch", "onednn"])
def test_a_training_goes_on_with_the_products_that_it_began_with(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, began_with: Products
) -> None:
    """Also where the trial of the process that goes on says otherwise: its numbers are those of one go, to the bit."""

    def trainer(trial_says: Products) -> Trainer:
        monkeypatch.setattr(cpu_products, "faster", lambda dtype: trial_says == "onednn")
        return Trainer(policy, Learner(optimizer="sgd"))

    def train(trainer: Trainer) -> tuple[dict[str, Tensor], bool]:
        with ProductRecorder() as recorder:
            trainer.train(SAMPLES, learning_rate=lambda _: 0.01, seed=0)
        return policy.snapshot(), any(product.packed for product in recorder.products)

    in_one_go = trainer(began_with)
    middle, _ = train(in_one_go)
    state = in_one_go.state_dict()
    wanted, by_onednn = train(in_one_go)
    assert by_onednn == (began_with == "onednn")
    policy.restore(middle)
    again = trainer("torch" if began_with == "onednn" else "onednn")
    again.load_state_dict(state)
    found, by_onednn = train(again)
    assert by_onednn == (began_with == "onednn")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_state_of_before_there_was_a_choice_goes_on_with_torchs_own(policy: Policy, onednn: None) -> None:
    state = {name: value for name, value in Trainer(policy, Learner()).state_dict().items() if name != "products"}
    trainer = Trainer(policy, Learner())
    assert trainer.products == "onednn"
    trainer.load_state_dict(state)
    assert trainer.products == "torch"


def test_a_training_that_moves_takes_the_products_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert possible_products("onednn", cpu, torch.float32) == ("onednn" if works(torch.float32) else "torch")
    assert possible_products("torch", cpu, torch.float32) == "torch"
    assert possible_products("onednn", gpu, torch.float32) == "torch"
    assert possible_products("onednn", cpu, torch.bfloat16) == "torch"
    monkeypatch.setattr(cpu_products, "works", lambda dtype: False)
    assert possible_products("onednn", cpu, torch.float32) == "torch"


def load(folder: Path, cache: Path, **model: Any) -> Policy:
    recipe = small_recipe({"model": {"source": str(folder), "dtype": "float32", **model}})
    return load_policy(recipe, cache=cache, seed=0, beat=no_beat)


def test_checkpointing_computes_the_layers_again_the_same_way(policy: Policy, onednn: None) -> None:
    seen = []
    start = policy.snapshot()
    for checkpointing in (False, True):
        policy.restore(start)
        vars(policy.model.get_decoder())["checkpointing"] = checkpointing
        with ProductRecorder() as recorder:
            Trainer(policy, Learner(optimizer="sgd")).train(SAMPLES, learning_rate=lambda _: 0.01, seed=0)
        seen.append((policy.snapshot(), recorder.product_flops))
    assert seen[1][1] > seen[0][1], "the forward pass of the blocks once more"
    for name in start:
        torch.testing.assert_close(seen[0][0][name], seen[1][0][name], atol=1e-6, rtol=1e-5)


def test_layers_are_as_they_were_after_a_training_that_fails(policy: Policy, onednn: None) -> None:
    during: list[int] = []

    def stop() -> None:
        during.append(len(replaced(policy.model)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(policy, Learner()).train(SAMPLES, learning_rate=lambda _: 0.01, seed=0, on_step=stop)
    assert during[0] > 0
    assert replaced(policy.model) == []


def test_other_arithmetic_and_layers_that_are_replaced_already_are_left_alone(policy: Policy, onednn: None) -> None:
    assert cpu_products.choose_products(torch.device("cpu"), torch.bfloat16) == "torch"
    with training_products(policy.model, "torch"):
        assert replaced(policy.model) == []
    with sampling_weights(policy.model, dtype=torch.float32, rows=4, steps=64, free=1e12):
        before = replaced(policy.model)
        assert before
        with training_products(policy.model, "onednn"):
            assert replaced(policy.model) == before
        assert replaced(policy.model) == before


@pytest.mark.parametrize(
    ("plain", "onednn_s", "wins"),
    [
        ([2.0, 2.1, 9.0], [1.0, 7.0, 1.1], True),
        ([1.2, 1.3, 1.2], [1.0, 1.0, 1.0], False),
        ([1.0, 5.0, 5.0], [1.0, 1.0, 1.0], False),
    ],
    ids=["twice as fast, both disturbed", "a little faster", "as fast, torch's own disturbed"],
)
def test_the_best_of_each_decides(plain: list[float], onednn_s: list[float], wins: bool) -> None:
    assert worth([list(pair) for pair in zip(plain, onednn_s, strict=True)]) is wins
