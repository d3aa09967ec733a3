"""Which rule an exception falls under, where its type alone does not say: imports, keys, values, memory."""

from __future__ import annotations

import re

from agent.run.logtext import Thrown
from agent.run.signatures import Rules, Signature

ACCELERATION = frozenset(
    {
        "flash_attn", "flash_attn_2_cuda", "flash_attn_interface", "triton", "bitsandbytes", "xformers", "apex",
        "deepspeed", "transformer_engine", "megatron", "nemo_automodel",
        "vllm", "liger_kernel", "torchao", "aiter", "amp_C",
        "cut_cross_entropy", "fused_layer_norm_cuda", "mamba_ssm", "causal_conv1d", "flashinfer", "sgl_kernel",
        "auto_gptq", "torch_xla", "intel_extension_for_pytorch", "onnxruntime", "tensorrt", "nccl", "amdsmi",
    }
)  # fmt: skip
"""Packages that a recipe's back end needs and no experiment of one's own provides."""
LIBRARIES = frozenset(
    {
        "torch", "torchvision", "torchaudio", "transformers", "trl", "peft", "accelerate", "datasets",
        "tokenizers", "numpy", "scipy", "pandas", "safetensors", "huggingface_hub", "lightning",
        "pytorch_lightning", "ray", "sglang", "unsloth", "verl", "openrlhf", "torchtune", "diffusers", "jax",
        "jaxlib", "flax", "tensorflow", "keras", "pydantic", "click", "protobuf", "google", "pyarrow",
        "sklearn", "wandb", "hydra", "omegaconf", "fairseq", "timm", "einops",
    }
)  # fmt: skip
"""What they lack in the version that is installed is no mistake of one's own."""
ROWS = re.compile(
    r"(?i:\b(?:data_?set|datasets|dataloader|features?|examples?|rows?|batch|records?|columns?|samples?|collat\w+|inputs|instance)\b"
    r"|_dataset\b|dataset\[|/datasets/|/data/)|_KEY\]"
)


def judge(thrown: Thrown, rules: Rules) -> Signature | None:
    """The rule for one exception; some types mean one thing in one place and another elsewhere."""
    text = f"{thrown.type}: {thrown.message}" if thrown.message else thrown.type
    known = rules.match(text)
    match thrown.type:
        case "ModuleNotFoundError" | "ImportError":
            return known if known is not None and known.crash_class == "backend" else rules[_import(thrown)]
        case "KeyError" if known is None:
            return rules[_key_error(thrown)]
        case "OSError" | "RuntimeError" | "MemoryError" if "annot allocate memory" in thrown.message:
            return rules[_no_memory(thrown)]
        case "ValueError" | "Exception" if known is None:
            return _value_error(thrown, rules)
    return known


def _import(thrown: Thrown) -> str:
    """A package that does not fit its neighbour is the back end's fault; a module of one's own is a typo."""
    named = re.match(r"No module named '?([\w.]+)'?", thrown.message)
    from_library = re.match(
        r"cannot import name '\w+' from (?:partially initialized module )?'([\w.]+)'(.*)", thrown.message
    )
    inside_library = bool(thrown.frames) and _is_library(thrown.frames[-1])
    if named is not None:
        foreign = inside_library or named.group(1).split(".")[0] in ACCELERATION
    elif from_library is not None:
        package = from_library.group(1).split(".")[0]
        foreign = inside_library or package in LIBRARIES | ACCELERATION or _is_library(from_library.group(2))
    else:
        foreign = inside_library
    return "import-mismatch" if foreign else "own-import"


def _is_library(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


def _key_error(thrown: Thrown) -> str:
    """A column that a row lacks is data; any other key that is not there is the code's or the recipe's."""
    near = [text for text in thrown.above if text.strip()][-6:]
    of_a_table = any("pandas/" in frame for frame in thrown.frames)
    return "missing-field" if of_a_table or any(ROWS.search(text) for text in near) else "key"


def _no_memory(thrown: Thrown) -> str:
    """ENOMEM on gigabytes of weights is memory; on a small shared tensor or a fork it is a limit of the system."""
    size = re.search(r"unable to mmap (\d+) bytes", thrown.message)
    shared = any(re.search(r"shared_memory|reductions\.py|synchronize\.py|resource_sharer", f) for f in thrown.frames)
    small = size is not None and int(size.group(1)) < 64 * 1024 * 1024
    return "shared-memory-limit" if shared or small else "oom-host"


def _value_error(thrown: Thrown, rules: Rules) -> Signature | None:
    """A value that a command line or a constructor of the experiment's own refuses."""
    if re.match(
        r"(?:invalid literal for int|could not convert string to float"
        r"|[Uu]nknown (?:scheduler|optimizer|loss|model|task))",
        thrown.message,
    ):
        return rules["value"]
    return None
