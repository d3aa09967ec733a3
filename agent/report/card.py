"""The model card of an exported model, from what `agent.campaign.export` has gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.report.markdown import filled, front_matter

HOLDOUT = "holdout"


@dataclass(frozen=True)
class Measured:
    """A metric on one split. What is not known is None."""

    arm: str
    split: str
    value: str
    interval: str
    """95%, in words."""
    n: int | None


@dataclass(frozen=True)
class Kept:
    """One idea that is in the model."""

    number: int
    subject: str
    hypothesis: str
    gain: str
    """With its 95% interval."""
    verdict: str
    commit: str


@dataclass(frozen=True)
class Example:
    """A prompt, and what the exported folder answers to it greedily."""

    text: str | None
    """None where the tokenizer does not read the prompt back from its text."""
    ids: Sequence[int]
    max_new_tokens: int
    answer: str


@dataclass(frozen=True)
class Card:
    name: str
    headline: str
    provisional: str
    """Why it is not the end of a campaign; empty where it is."""
    base: str
    base_revision: str | None
    license: str | None
    how: str
    """Adapters or all weights, dtype, parameters."""
    metric: str
    score: float | None
    """Of this very checkpoint, where it was measured."""
    score_on: str
    dataset: str
    measured: Sequence[Measured]
    gains: Sequence[str]
    kept: Sequence[Kept]
    unchanged: str
    """What to say where nothing was kept."""
    judged: Sequence[str]
    limits: Sequence[str]
    data: Sequence[tuple[str, str]]
    recipe: str
    origin: Sequence[tuple[str, str]]
    """Campaign, experiment, commit, run, seed."""
    versions: Sequence[tuple[str, str]]
    machine: str
    checks: Sequence[str]
    example: Example
    commands: Sequence[str]
    tags: Sequence[str] = field(default=("raft", "reward-ranked-fine-tuning", "raft-agent"))


def card_text(card: Card) -> str:
    """`README.md` of the folder."""
    return front_matter(_front(card)) + "\n" + filled("model_card.md.j2", card=card, snippet=snippet(card.example))


def _front(card: Card) -> Mapping[str, Any]:
    dataset: dict[str, Any] = {"name": card.dataset, "type": card.dataset}
    results: list[dict[str, Any]] = []
    if card.score is not None:
        metric = {"type": card.metric, "name": f"{card.metric} on {card.score_on}", "value": round(card.score, 6)}
        task = {"type": "text-generation", "name": "Text Generation"}
        results.append({"task": task, "dataset": {**dataset, "split": card.score_on}, "metrics": [metric]})
    return {
        "base_model": card.base,
        "license": card.license or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(card.tags),
        "datasets": [card.dataset],
        "model-index": [{"name": card.name, "results": results}],
    }


def snippet(example: Example) -> str:
    """Python that loads the folder and asks it; `FOLDER` is where it lies."""
    if example.text is not None:
        asked = f'inputs = tokenizer({example.text!a}, add_special_tokens=False, return_tensors="pt")'
    else:
        asked = (
            f"ids = torch.tensor([{list(example.ids)}])\ninputs = {{'input_ids': ids, 'attention_mask': ids * 0 + 1}}"
        )
    imports = "" if example.text is not None else "import torch\n"
    return (
        f"{imports}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this README lies\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f"{asked}\n"
        f"output = model.generate(**inputs, max_new_tokens={example.max_new_tokens}, do_sample=False)\n"
        'asked = inputs["input_ids"].shape[1]\n'
        "print(tokenizer.decode(output[0, asked:], skip_special_tokens=True))\n"
    )
