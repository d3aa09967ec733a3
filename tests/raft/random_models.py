"""Models of a few thousand random weights, one for each architecture that the engine is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agent.raft import tiny

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}~{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen2": COMMON,
    "qwen3": {**COMMON, "head_dim": 16},
    "gemma": {**COMMON, "num_key_value_heads": 1, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    # Scores that are capped, and every other layer sees only five positions.
    "gemma2": {**COMMON, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "mistral": {**COMMON, "sliding_window": 5},
    "gemma3_text": {**COMMON, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "phi3": {**COMMON, "sliding_window": None},
}
VOCABULARY = 97


def save_random_gemma3(folder: Path) -> None:
    """A language model inside a model that also sees: its sizes are not at the top of the configuration."""
    from transformers import AutoConfig

    text = {**ARCHITECTURES["gemma3_text"], "vocab_size": VOCABULARY, "eos_token_id": 96, "max_position_embeddings": 40}
    sees = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sees, "image_size": 28, "patch_size": 14}
    _save(folder, AutoConfig.for_model("gemma3", text_config=text, vision_config=vision))


def save_random_bloom(folder: Path) -> None:
    """ALiBi: a bias by distance, no attention interface, and no limit to positions."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
    _save(folder, AutoConfig.for_model("bloom", vocab_size=VOCABULARY, eos_token_id=0, **sizes))


def _save(folder: Path, config: Any) -> None:
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    tiny.CharTokenizer().save_pretrained(str(folder))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def save_random_model(folder: Path, *, kind: str, chat: bool = False, vocabulary: int = VOCABULARY) -> None:
    """A transformers model with a tokenizer that has a turn end of its own, id 96."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder.mkdir()
    tiny.CharTokenizer().save_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, eos_token_id=96, bos_token_id=0, pad_token_id=0, **ARCHITECTURES[kind]
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = [0, 96]
    model.save_pretrained(folder)
