"""`python -m agent.raft.export`: a run's checkpoint as a folder that transformers loads by itself.

Adapters are merged into their base, in the arithmetic that they were trained and measured in; a checkpoint of all
weights is copied. What was written is then loaded as anybody would load it, and has to give the checkpoint's logits
and greedy samples on a few prompts. The answer, or the error, is a JSON file; `agent.run.child` starts it.

A quantized base is dequantized first, to the very weights that its adapters were trained on. A model with Python files
of its own is refused: the exported folder would run code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import AgentError, InvalidFile, ResourceError, Unsupported
from agent.files import sync_files, write_atomic
from agent.recipe.files import load_recipe
from agent.recipe.reading import read_yaml
from agent.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from agent.raft.policy import Policy

PROMPTS = 4
"""Of the training rows: what is held out stays out of a model card."""
NEW_TOKENS = 32
MARGIN, SPARE_BYTES = 1.02, 64 * 2**20
"""Room on the disk beside the weights: names and shapes, and tokenizer and configuration."""
PLACES = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file")
"""Keys of configurations that name a place on this machine."""
WEIGHTS = re.compile(r"[^/]+\.safetensors")
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
UNEXPECTED_EXIT_CODE = 1


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        answer, code = export(options), 0
    except AgentError as error:
        told = {"exception": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        answer, code = {"error": told}, error.exit_code
    except Exception as error:
        traceback.print_exc()
        answer = {"error": {"exception": type(error).__name__, "message": str(error) or "no message"}}
        code = UNEXPECTED_EXIT_CODE
    write_atomic(options.answer, json.dumps(answer) + "\n")
    return code


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent.raft.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True, help="resolved recipe of the run")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="empty folder to write into")
    parser.add_argument("--answer", type=Path, required=True, help="file for the answer")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models")
    parser.add_argument("--commit", help="of a model of the hub")
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Write the folder and look at it. Raises AgentErrors that say what is in the way."""
    recipe = load_recipe(options.recipe, edited=False)
    if recipe.model.trust_remote_code:
        raise Unsupported(
            "model.trust_remote_code: a model that needs code of its own is not exported",
            hint="the checkpoint can be used as it is, with that code beside it",
        )
    from agent.raft.environment import apply_environment

    apply_environment(recipe.backend, cache=options.cache)
    from agent.raft.let_in import ADAPTER_CONFIG
    from agent.raft.model import load_policy, policy_of

    recipe = _pinned(recipe, options.commit)
    checkpoint: Path = options.checkpoint
    policy = load_policy(recipe, cache=options.cache, seed=0, beat=_no_beat, checkpoint=checkpoint)
    prompts = _prompts(recipe, policy)
    wanted = ask(policy, prompts, recipe)
    adapted = (checkpoint / ADAPTER_CONFIG).exists()
    dtype = policy.compute if adapted else _dtype_of(policy)
    parameters = policy.parameter_counts()[0]
    if adapted:
        parameters = _merge(policy, recipe, checkpoint, options)
    else:
        _copy(checkpoint, options.out)
        policy.release()
    _forget_places(options.out)
    written = policy_of(options.out, like=policy, dtype=dtype)
    checks = compare(wanted, written, recipe)
    sync_files([*options.out.iterdir(), options.out])
    return {
        "merged": adapted,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": parameters,
        "checks": checks,
        "example": _example(written, prompts[0], min(NEW_TOKENS, recipe.evaluation.max_new_tokens)),
        "versions": _versions(),
        "license": _license(recipe, options),
    }


def _pinned(recipe: Recipe, commit: str | None) -> Recipe:
    if commit is None:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": commit})})


def _no_beat(*_: Any, **__: Any) -> None:
    """Nobody watches."""


def _dtype_of(policy: Policy) -> Any:
    return next(iter(policy.model.parameters())).dtype


# --- what is written ---------------------------------------------------------------------------------------


def _merge(policy: Policy, recipe: Recipe, checkpoint: Path, options: argparse.Namespace) -> int:
    """Save the model with the adapters in its weights; how many weights it has. The policy is used up."""
    from agent.raft.model import load_dequantized

    model = policy.model
    if recipe.model.quantize is not None:
        policy.release()
        model = load_dequantized(recipe, cache=options.cache, beat=_no_beat, like=policy, adapter=checkpoint)
    merged = model.merge_and_unload(safe_merge=True)
    weights = {id(weight): weight for weight in merged.parameters()}.values()
    _refuse_without_room(options.out, sum(weight.numel() * weight.element_size() for weight in weights))
    _save(merged, options.out)
    policy.tokenizer.save_pretrained(str(options.out))
    del model, merged
    policy.release()
    return sum(weight.numel() for weight in weights)


def _save(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    try:
        model.save_pretrained(folder)
    except ValueError as error:  # settings for sampling that contradict each other, as some models come with
        if "generation" not in str(error).lower():
            raise
        known = model.generation_config
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(known, name, None) for name in names})
        model.save_pretrained(folder)


def _copy(checkpoint: Path, folder: Path) -> None:
    """Weights, configuration and tokenizer, and nothing else that may lie there; no link is followed."""
    from agent.raft.hub import BESIDE_WEIGHTS

    found = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*"))}
    wanted = {name: path for name, path in found.items() if WEIGHTS.fullmatch(name) or BESIDE_WEIGHTS.fullmatch(name)}
    linked = [name for name, path in wanted.items() if path.is_symlink() or not path.is_file()]
    if linked:
        raise InvalidFile(f"{linked[0]} is no plain file", where=str(checkpoint), hint="a trainer writes none such")
    _refuse_without_room(folder, sum(path.stat().st_size for path in wanted.values()))
    for name, path in wanted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def _refuse_without_room(folder: Path, size: int) -> None:
    needed, free = MARGIN * size + SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"the exported model needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free",
            where=str(folder.parent),
            hint="make room, or name a folder on another disk",
        )


def _forget_places(folder: Path) -> None:
    """Configurations are not to tell where on this machine the model came from."""
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith("config.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {key: value for key, value in content.items() if key not in PLACES}
            if known != content:
                write_atomic(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")


# --- whether it is the same model --------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt, what was answered greedily, and the logits that led there (answer tokens, V)."""

    prompt: list[int]
    tokens: list[int]
    logits: Tensor


def _prompts(recipe: Recipe, policy: Policy) -> list[list[int]]:
    """As the model was asked in training; a few plain words where the data cannot be had any more."""
    from agent.tasks.prompts import render, shots_for
    from agent.tasks.tasks import load_splits

    try:
        splits = load_splits(recipe.task, recipe.evaluation, base=Path.cwd())
        shots = shots_for(recipe.prompt, splits.train, seed=recipe.task.split_seed)
        rows = splits.train[:PROMPTS]
        found = [render(recipe.prompt, row, shots=shots, tokenizer=policy.tokenizer) for row in rows]
    except AgentError as error:
        print(f"the training rows cannot be had, other prompts are used: {error.message}", file=sys.stderr)
        found = [list(map(int, policy.tokenizer.encode(text))) for text in ("1+1=", "The answer is")]
    room = policy.room(recipe.rollout.max_total_sequence_length)
    fitting = [ids for ids in found if 0 < len(ids) < room and max(ids) < policy.vocabulary]
    return fitting or [[int(policy.pad_id)]]


def ask(policy: Policy, prompts: Sequence[list[int]], recipe: Recipe) -> list[Asked]:
    from agent.raft.rollout import Request, generate
    from agent.raft.sampling import Sampling

    sampling = Sampling(
        temperature=0.0,
        max_new_tokens=min(NEW_TOKENS, recipe.evaluation.max_new_tokens),
        max_total=policy.max_length,
        engine=policy.engine_for(recipe.rollout.engine),
    )
    answers = generate(policy, [Request(prompt, 1, 0) for prompt in prompts], sampling)
    return [
        Asked(prompt, group[0].tokens, _logits(policy, prompt, group[0].tokens))
        for prompt, group in zip(prompts, answers, strict=True)
    ]


def _logits(policy: Policy, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Behind the prompt and behind each token of the answer but its last."""
    import torch

    with policy.sampling():
        row = torch.tensor([[*prompt, *tokens]], device=policy.device)
        logits: Tensor = policy.inner(row).logits[0, len(prompt) - 1 : len(prompt) + len(tokens) - 1]
        return logits.float().cpu()


def compare(wanted: Sequence[Asked], written: Policy, recipe: Recipe) -> dict[str, Any]:
    """How far the written model is from what it was made of. Raises InvalidFile where that is too far."""
    from agent.raft.tryout import TOLERANCE

    allowed = TOLERANCE[written.compute]
    worst, positions, ties = 0.0, 0, 0
    for one in wanted:
        logits = _logits(written, one.prompt, one.tokens)
        scale = max(float(one.logits.std()), 1e-3)
        worst = max(worst, float((logits - one.logits).square().mean(-1).sqrt().max()) / scale)
        chosen = logits.argmax(-1)
        lost = one.logits.max(-1).values - one.logits.gather(1, chosen[:, None])[:, 0]
        others = chosen != one.logits.argmax(-1)
        positions += len(one.tokens)
        ties += int((others & (lost <= allowed * scale)).sum())
        if worst > allowed or bool((others & (lost > allowed * scale)).any()):
            raise InvalidFile(
                f"the exported model is not the one that was measured: its logits differ by {worst:.2g} standard "
                f"deviations, {allowed:g} is what {str(written.compute).removeprefix('torch.')} explains",
                hint="nothing was left behind; the checkpoint itself can be used with peft and its base",
            )
    again = ask(written, [one.prompt for one in wanted], recipe)
    same = sum(one.tokens == other.tokens for one, other in zip(wanted, again, strict=True))
    if same < len(wanted) and not ties:
        raise InvalidFile(f"the exported model answers {len(wanted) - same} of {len(wanted)} prompts otherwise")
    return {
        "prompts": len(wanted),
        "positions": positions,
        "difference": worst,
        "allowed": allowed,
        "same_samples": same,
        "ties": ties,
    }


# --- for the model card ------------------------------------------------------------------------------------


def _example(written: Policy, prompt: list[int], most: int) -> dict[str, Any]:
    """A training prompt, and what transformers' own `generate` answers to it."""
    import torch

    tokenizer = written.tokenizer
    text = str(tokenizer.decode(prompt))
    whole = list(tokenizer(text, add_special_tokens=False).input_ids) == prompt
    written.model.eval()
    row = torch.tensor([prompt], device=written.device)
    with torch.no_grad():
        out = written.model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=most, do_sample=False, pad_token_id=written.pad_id
        )
    answer = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
    return {"text": text if whole else None, "ids": prompt, "max_new_tokens": most, "answer": str(answer)}


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers", "peft")}}


def _license(recipe: Recipe, options: argparse.Namespace) -> str | None:
    """What the base's own model card says, where one lies beside it."""
    from agent.raft import sources
    from agent.raft.used import folder_of

    try:
        folder = folder_of(sources.fetch(recipe.model, cache=options.cache, beat=_no_beat))
        text = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
        front = read_yaml(text.split("---", 2)[1], where="README.md") if text.startswith("---") else {}
        found = front.get("license") if isinstance(front, dict) else None
    except (AgentError, OSError, ValueError, IndexError):
        return None
    return found if isinstance(found, str) and LICENSE.fullmatch(found) else None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
