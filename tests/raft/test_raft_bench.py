"""The benchmarks: their arithmetic against counts by hand and against what torch really runs, and small real runs."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from raft_recipes import no_beat, small_recipe

from agent.errors import UsageError
from agent.hardware.probe import Machine
from agent.raft.bench_arithmetic import grid, interpolated, product_flops, share, spread, training_flops, useful_tokens
from agent.raft.bench_cycle import PHASES, measure_cycles
from agent.raft.bench_machine import look_at, measure_machine
from agent.raft.bench_products import (
    Product,
    ProductRecorder,
    faster_ways,
    fastest_products,
    timed_products,
    total_seconds,
)
from agent.raft.bench_report import report_training
from agent.raft.bench_rollout import limits, measure_rollout
from agent.raft.bench_settings import BenchSettings, config_of, known_shape, recipe_of
from agent.raft.bench_train import draw_samples, read_samples, train_ours, train_theirs
from agent.raft.learner import Trainer
from agent.raft.llama import LlamaShape, TinyLlama
from agent.raft.microbatch import TrainingSample
from agent.raft.policy import Policy
from agent.recipe.schema import Model
from agent.recipe.shapes import KNOWN, ModelShape, shape_from_config, shape_of
from agent.tasks.tasks import load_splits

SMALL = BenchSettings(
    model="builtin:tiny", prompts=3, samples=2, max_new_tokens=5, repeats=1, kept=6, trainer_rows=2, quick=True
)
SHAPE = ModelShape("llama", 4, 6, 2, 2, 1, 2, 10, tied=True)
"""hidden 4, intermediate 6, 2 layers, 2 heads of 2 with 1 for keys, vocabulary 10."""


def quiet(text: str) -> None:
    """Nobody reads the progress of a test."""


# Arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([5, 6, 9, 0, 0], 3), ([9], 1), ([5, 6, 7], 3), ([], 0), ([8, 9, 9], 1)],
    ids=["padded", "at once", "never ends", "empty", "two stop tokens"],
)
def test_useful_tokens_end_with_the_stop_token(tokens: list[int], expected: int) -> None:
    assert useful_tokens(tokens, {8, 9}) == expected


def test_training_flops_of_a_small_llama_counted_by_hand() -> None:
    # Weights of a layer: q 4*4, k 4*2, v 4*2, o 4*4, gate and up 4*6, down 6*4: 16 + 8 + 8 + 16 + 24 + 24 + 24 = 120.
    flops = training_flops(SHAPE, [(3, 2)])
    assert flops.linear == 3 * 2 * (2 * 120) * 5
    assert flops.head == 3 * 2 * 4 * 10 * 2
    # 5 tokens see 1 + 2 + 3 + 4 + 5 = 15; scores and values take 2 * (2 heads * 2) each, in both layers.
    assert flops.attention == 3 * (2 * 4 + 2 * 4) * 15 * 2
    assert flops.total == 7200 + 480 + 1440


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_training_flops_add_up_over_samples(samples: list[tuple[int, int]]) -> None:
    parts = [training_flops(SHAPE, [sample]) for sample in samples]
    assert training_flops(SHAPE, samples).total == sum(part.total for part in parts)


@given(st.sets(st.integers(1, 5000), min_size=1, max_size=60), st.integers(2, 12))
def test_a_grid_spans_the_row_counts(rows: set[int], most: int) -> None:
    chosen = grid(rows, most)
    assert set(chosen) <= rows
    assert len(chosen) <= most
    assert (chosen[0], chosen[-1]) == (min(rows), max(rows))


@given(st.sets(st.integers(1, 1000), min_size=2, max_size=8), st.floats(0, 10), st.floats(0, 10), st.data())
def test_interpolation_is_exact_on_a_line(places: set[int], slope: float, offset: float, data: st.DataObject) -> None:
    at = data.draw(st.integers(min(places), max(places)))
    known = {place: slope * place + offset for place in places}
    assert interpolated(known, at) == pytest.approx(slope * at + offset)
    assert interpolated(known, max(places) + 5) == known[max(places)]
    assert interpolated(known, min(places) - 1) == known[min(places)]


def test_spread_and_share() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "repeats": [3.0, 1.0, 2.0]}
    assert share(1.0, 4.0) == 0.25
    assert share(None, 4.0) is None
    assert share(1.0, 0.0) is None
    assert product_flops({(2, 3, 4): 5}) == 2 * 2 * 3 * 4 * 5


# What torch really runs --------------------------------------------------------------------------------------------


def model_shape(shape: LlamaShape) -> ModelShape:
    return shape_from_config(shape.config())


def test_the_recorder_counts_a_training_step_as_the_formula_does() -> None:
    sizes = LlamaShape(
        vocab_size=19,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = TinyLlama(sizes)
    model.initialize(torch.Generator().manual_seed(0), std=0.1)
    with ProductRecorder() as recorder:
        model(torch.arange(7)[None]).logits.logsumexp(-1).sum().backward()
    expected = training_flops(model_shape(sizes), [(0, 7)])
    assert recorder.product_flops == expected.linear + expected.head
    # sdpa computes all 7 x 7 pairs, and its backward the scores once more: 2 products forward, 5 backward, of 49 pairs.
    assert recorder.attention_flops == 3 * (2 + 5) * 2 * 49 * 8


@pytest.mark.slow
def test_the_learner_does_the_operations_that_are_counted_as_useful(policy: Policy) -> None:
    learner = small_recipe({"learner": {"packing": False}}).learner
    sample = TrainingSample(prompt=[3, 4, 5, 6], completion=[7, 8, 0], logprobs=[-1.0, -1.0, -1.0])
    trainer = Trainer(policy, learner)
    with ProductRecorder() as recorder:
        trainer.train([sample], learning_rate=lambda share: 1e-4, seed=0)
    expected = training_flops(model_shape(policy.model.shape), [(4, 3)])
    assert recorder.product_flops == expected.linear + expected.head


def test_products_are_recorded_under_autocast_and_without_gradient() -> None:
    layer = torch.nn.Linear(6, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), ProductRecorder() as recorder:
        layer(torch.randn(2, 3, 6))
        torch.randn(4, 2, 3) @ torch.randn(4, 3, 5)
    assert dict(recorder.products) == {Product(6, 6, 5, torch.bfloat16): 1}
    assert recorder.attention_flops == 2 * 4 * 2 * 3 * 5


def test_timed_products_have_a_time_each() -> None:
    products = {Product(rows, 16, 24, torch.float32): 2 for rows in range(1, 30)}
    seconds = timed_products(products, layers=2, device=torch.device("cpu"))
    assert set(seconds) == set(products)
    assert all(0 < value < 1 for value in seconds.values())
    assert total_seconds(products, seconds) == pytest.approx(2 * sum(seconds.values()))


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [4, 32, 100, 500])
def test_all_prompts_are_different(prompts: int) -> None:
    recipe = recipe_of(replace(SMALL, prompts=prompts))
    splits = load_splits(recipe.task, recipe.evaluation, base=Path.cwd())
    assert len({example.question for example in splits.train}) >= prompts
    if prompts <= 100:
        assert recipe.task.parameters["high"] == 12, "products of 2 to 12, as long as there are enough"


def test_settings_come_back_from_json_and_unknown_ones_are_refused() -> None:
    assert BenchSettings.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(UsageError, match="unknown benchmark settings: sampels"):
        BenchSettings.from_json('{"sampels": 3}')
    with pytest.raises(UsageError, match="max-new-tokens must be at least 1"):
        BenchSettings(max_new_tokens=0)
    with pytest.raises(UsageError, match="temperature"):
        BenchSettings(temperature=0.0)


@pytest.mark.parametrize("name", [name for name, shape in KNOWN.items() if not shape.fused])
def test_random_weights_have_the_shape_that_is_named(name: str) -> None:
    shape = known_shape(name)
    config = {"model_type": shape.architecture, **config_of(shape)}
    assert replace(shape_from_config(config), stored_bytes=shape.stored_bytes) == shape


def test_an_unknown_shape_names_those_that_there_are() -> None:
    with pytest.raises(UsageError) as refused:
        known_shape("qwen3-99b")
    assert "qwen2.5-0.5b" in str(refused.value)


# What is said ------------------------------------------------------------------------------------------------------


def test_limits_name_the_largest_part_and_a_disturbed_run() -> None:
    phases = dict.fromkeys(("prefill", "matrix_products", "attention", "rest_of_the_model", "rest"), 1.0)
    text = limits({**phases, "sampling": 5.0, "whole": 10.0}, 0.4, 0.5)
    assert text.startswith("Of our time: drawing tokens 50%")
    assert "40% of what the matrix products alone" in text
    assert "only 50% of the threads' time" in text


def test_shares_of_the_peak_are_of_the_useful_and_of_the_computed_operations() -> None:
    samples = [{"prompt": [1, 2, 3], "completion": [4, 5]}, {"prompt": [1, 2, 3], "completion": [6, 7]}]
    useful = 2 * (7200 + 480 + 1440)
    ours: dict[str, Any] = {
        "seconds": spread([2.0]),
        "peak_flops_per_s": useful,
        "peaks_flops_per_s": [useful],
        "computed_flops": useful * 3 // 4,
        "forward_tokens": 5,
        "peak_memory_gb": 1.0,
        "dtype": "float32",
        "device": "cpu",
    }
    theirs = {"seconds": spread([5.0]), "peak_memory_gb": 2.0}
    found = report_training(SMALL, samples, ours, theirs, SHAPE)
    assert found["useful_flops"] == useful
    assert found["share_of_peak"] == pytest.approx(1 / 2)
    assert found["computed_share_of_peak"] == pytest.approx(3 / 8)
    assert found["transformers_share_of_peak"] == pytest.approx(1 / 5)
    assert found["speedup"] == pytest.approx(2.5)
    assert (found["useful_tokens"], found["completion_tokens"], found["prompts"]) == (10, 4, 1)
    assert "38% of what its peak allows" in found["limits"]
    assert "busy" not in found["limits"]
    shaky = report_training(SMALL, samples, {**ours, "peaks_flops_per_s": [7e11, 1e12]}, theirs, SHAPE)
    assert "from 700 to 1000 GFLOP/s: a busy machine" in shaky["limits"]
    alone = report_training(SMALL, samples, ours, None, None)
    assert alone["speedup"] is None
    assert alone["share_of_peak"] is None


def test_of_two_ways_of_a_product_the_faster_one_counts() -> None:
    small, large = Product(8, 4, 4, torch.float32), Product(8, 4, 16, torch.float32)
    packed = {small: replace(small, packed=True), large: replace(large, packed=True)}
    timed = {small: 2.0, packed[small]: 1.0, large: 3.0, packed[large]: 4.0}
    assert faster_ways(timed) == {small: 1.0, large: 3.0}
    assert faster_ways({small: 2.0}) == {small: 2.0}
    cpu = torch.device("cpu")
    found = fastest_products([packed[small], large], layers=2, device=cpu)
    assert set(found) == {packed[small], large}
    assert min(found.values()) > 0


def machine_result(**over: Any) -> dict[str, Any]:
    """A healthy machine, as far as its findings are about."""
    even = {"highest": 1.05, "lowest": 1.0}
    healthy: dict[str, Any] = {
        "cores": 2,
        "threads": 2,
        "device": "cpu",
        "load_average": 0.1,
        "cores_share": 0.99,
        "square": {"flops_per_s": {"float32": even, "bfloat16": even}},
        "bytes_per_s": {"read": even},
        "steady": {"late_over_early": 1.0},
        "peak_flops_per_s": {"float32": 1e11, "bfloat16": 4e11},
        "peak_bytes_per_s": 1e10,
        "trainer": {"dtype": "bfloat16"},
    }
    return {**healthy, **over}


MACHINE = Machine(
    "cpu", 0, None, "a processor", 2, 16.0, None, True, False, torch="2.13.0", packages=frozenset(), note=""
)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({}, None),
        ({"cores_share": 0.5, "load_average": 3.0}, "50% of its 2 threads' time"),
        ({"bytes_per_s": {"read": {"highest": 2.0, "lowest": 1.0}}}, "differ by a factor of 2.0"),
        ({"steady": {"late_over_early": 0.6}}, "slows down under load"),
        ({"threads": 1}, "1 threads on 2 cores"),
        ({"peak_flops_per_s": {"float32": 4e11, "bfloat16": 1e11}}, "bfloat16, which the trainer takes, is slower"),
    ],
    ids=["healthy", "busy", "uneven", "throttled", "few threads", "slow bfloat16"],
)
def test_what_looks_wrong_is_said_with_what_to_do(over: dict[str, Any], said: str | None) -> None:
    findings = look_at(machine_result(**over), MACHINE, shell={})
    if said is None:
        assert findings == []
    else:
        assert [said in finding.what for finding in findings] == [True]
        assert findings[0].do


def test_half_the_known_speed_of_a_strix_halo_is_a_finding() -> None:
    halo = replace(MACHINE, kind="rocm", arch="gfx1151", accelerators=1, unified_memory=True)
    slow = {"float32": 1e12, "bfloat16": 5e12}
    result = machine_result(device="cuda:0", cores_share=None, peak_flops_per_s=slow, peak_bytes_per_s=80e9)
    findings = look_at(result, halo, shell={"HSA_OVERRIDE_GFX_VERSION": "11.0.0"})
    assert [finding.what.split(",")[0] for finding in findings[:2]] == ["80 GB/s", "5.0 TFLOP/s in bfloat16"]
    assert findings[2].what.startswith("HSA_OVERRIDE_GFX_VERSION=11.0.0 is set")


# Real runs ---------------------------------------------------------------------------------------------------------


def test_a_rollout_is_measured_beside_transformers(model_cache: Path) -> None:
    found = measure_rollout(SMALL, cache=model_cache, environment={}, say=quiet)
    json.dumps(found)
    assert set(found["contenders"]) == {"ours", "transformers_6_rows"}
    assert found["useful_tokens_per_s"] == found["contenders"]["ours"]["tokens_per_s"]["median"]
    assert found["speedup"] == pytest.approx(found["useful_tokens_per_s"] / found["transformers_tokens_per_s"])
    assert len(found["bound_repeats"]["repeats"]) == len(found["contenders"]["ours"]["seconds"])
    pairs = zip(found["contenders"]["ours"]["tokens_per_s"]["repeats"], found["bound_repeats"]["repeats"], strict=True)
    assert found["share_of_bound"] == pytest.approx(statistics.median(mine / bound for mine, bound in pairs))
    for contender in found["contenders"].values():
        assert all(6 <= tokens <= 30 for tokens in contender["tokens"]), "one to five tokens of each of six samples"
    tokens = found["contenders"]["ours"]["tokens"][0]
    rows = {int(rows): times for rows, times in found["steps_by_rows"].items()}
    assert sum(count * times for count, times in rows.items()) == tokens - 6, "the first token comes from the prompt"
    of_steps = sum(rows[int(count)] * seconds for count, seconds in found["step_products_s_by_rows"].items())
    assert 0 < of_steps < found["products_s"], "the rest is the prefill's"
    phases = dict(found["phases_s"])
    whole = phases.pop("whole")
    assert sum(phases.values()) == pytest.approx(whole)
    assert all(seconds > 0 for seconds in phases.values())
    assert found["products_s"] > 0


def test_one_update_is_measured(model_cache: Path, tmp_path: Path) -> None:
    samples = draw_samples(SMALL, cache=model_cache, say=quiet)
    assert len(samples) == SMALL.kept
    assert len({tuple(sample["prompt"]) for sample in samples}) == 3, "two of a prompt"
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(samples))
    ours = train_ours(SMALL, read_samples(path), cache=model_cache, say=quiet)
    assert ours["optimizer_steps"] == 1
    shape = shape_of(Model(source="builtin:tiny"), cache=model_cache).shape
    found = report_training(SMALL, samples, ours, None, shape)
    assert found["computed_flops"] > 0
    assert found["share_of_peak"] > 0
    assert found["forward_tokens"] < found["useful_tokens"], "shared prompts are computed once"


@pytest.mark.slow
@pytest.mark.alone
def test_transformers_trainer_is_measured_on_the_same_samples(model_cache: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, repeats=2)
    rows = [TrainingSample(**sample) for sample in draw_samples(settings, cache=model_cache, say=quiet)]
    theirs = train_theirs(settings, rows, cache=model_cache, scratch=tmp_path, say=quiet)
    assert theirs["optimizer_steps"] == 3, "one to warm up, and the repeats"
    assert len(theirs["seconds"]["repeats"]) == 2
    assert theirs["rows"] == 2


def test_whole_cycles_are_measured(model_cache: Path, tmp_path: Path) -> None:
    found = measure_cycles(SMALL, cache=model_cache, scratch=tmp_path, environment={}, say=quiet)
    json.dumps(found)
    assert found["kept"] == SMALL.kept, "the update has the size that was asked for, whatever passed"
    assert [cycle["optimizer_steps"] for cycle in found["cycles"]] == [1]
    assert set(PHASES) <= set(found)
    assert found["cycle_s"] == pytest.approx(sum(found[name] for name in PHASES if name != "cycle_s"))


@pytest.mark.slow
@pytest.mark.alone
def test_a_machine_is_measured(model_cache: Path) -> None:
    found = measure_machine(SMALL, cache=model_cache, environment={"OMP_NUM_THREADS": "1"}, say=quiet)
    json.dumps(found)
    assert found["square"]["size"] == 256
    assert set(found["bytes_per_s"]) == {"read", "copy", "triad"}
    assert set(found["model_products"]["float32"]) == {"1", "8"}
    assert found["trainer"]["dtype"] == "float32", "the built-in model is too small for bfloat16 on a CPU"
    assert found["trainer"]["environment"] == {"OMP_NUM_THREADS": "1"}
    assert found["healthy"] == (not found["findings"])


def test_the_policy_that_is_measured_is_left_as_it_was(model_cache: Path, policy: Policy) -> None:
    forward = Policy.forward
    measure_rollout(replace(SMALL, compare=False), cache=model_cache, environment={}, say=no_beat)
    assert Policy.forward is forward
