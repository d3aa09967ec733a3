"""Completions of evaluations that were drawn before, kept in the user's cache.

The untrained model begins every run, and the incumbent is asked the same held-out questions again and again: the same
weights, prompts and random numbers give the same completions. Only those are kept, not what a verifier said of them,
which is asked anew each time.

Anybody who may write into the user's cache could put better answers there. So nothing that a verdict rests on is taken
from it: search, confirm and holdout are drawn anew each time (`KEPT`). And a file is believed only as it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.contract import Split
from agent.files import write_atomic
from agent.raft.policy import Policy
from agent.raft.quantized import scales
from agent.raft.rollout import Completion, Request
from agent.raft.sampling import Sampling

KEPT: tuple[Split, ...] = ("train", "select")
"""Splits of which completions are kept."""
MOST_KEPT = 200
"""Files; the oldest go first. One of 512 prompts of 40 tokens has about 100 kB."""
VERSION = 1
"""Raised when the engine begins to draw other tokens from the same random numbers."""


class AnswerCache:
    """A folder of earlier completions by everything that decides them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._frozen: dict[int, bytes] = {}
        """By model: the digest of the weights that no training changes."""

    def key(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> str:
        asked = [[request.prompt, request.samples, request.seed] for request in requests]
        settings = {name: value for name, value in asdict(sampling).items() if name != "slots"}
        how = [policy.attention, str(policy.compute), str(policy.device), sorted(policy.stop_ids), VERSION]
        versions = [version(package) for package in ("torch", "transformers", "peft")]
        digest = hashlib.sha256(json.dumps([asked, settings, how, versions, _configuration(policy)]).encode())
        trained = policy.trainable()
        if id(policy.model) not in self._frozen:
            weights = dict(policy.model.named_parameters())
            frozen = {n: p for n, p in weights.items() if n not in trained} | scales(policy.model)
            self._frozen[id(policy.model)] = _digest(frozen)
        digest.update(self._frozen[id(policy.model)] + _digest(trained))
        return digest.hexdigest()[:32]

    def get(self, key: str) -> tuple[list[list[Completion]], float] | None:
        """Completions by request and sample, without log-probabilities, and the seconds that drawing them took; None
        where they are not known, or the file is not as it was written."""
        try:
            head, *lines = [json.loads(line) for line in (self.folder / f"{key}.jsonl").read_text().splitlines()]
            if head["digest"] != _written(key, head["seconds"], lines):
                return None
            groups = [[Completion(tokens, [], [], finish) for tokens, finish in line["completions"]] for line in lines]
            return (groups, float(head["seconds"])) if len(groups) == head["requests"] else None
        except (OSError, KeyError, TypeError, ValueError):
            return None

    def put(self, key: str, groups: Sequence[Sequence[Completion]], *, seconds: float) -> None:
        """A full disk or a read-only folder costs the next run some seconds, nothing else."""
        lines = [{"completions": [[c.tokens, c.finish] for c in group]} for group in groups]
        head = {"requests": len(groups), "seconds": seconds, "digest": _written(key, seconds, lines)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / f"{key}.jsonl", "".join(json.dumps(line) + "\n" for line in [head, *lines]))
            self._forget()
        except OSError:
            return

    def _forget(self) -> None:
        files = sorted(self.folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST_KEPT]:
            path.unlink(missing_ok=True)


def _written(key: str, seconds: float, lines: Sequence[Mapping[str, Any]]) -> str:
    """Tells a file that was cut, edited, or put under another name; who forges one on purpose can make this too."""
    return hashlib.sha256(json.dumps([key, seconds, list(lines)]).encode()).hexdigest()[:32]


def _configuration(policy: Policy) -> list[str]:
    """What decides the model's output besides its weights: positions, caps, the scale of adapters."""
    adapters = getattr(policy.model, "peft_config", {})
    return [
        "" if policy.native else policy.inner.config.to_json_string(use_diff=False),
        # Their target modules are a set, which has another order in every process.
        *(json.dumps(asdict(adapter), default=_sorted, sort_keys=True) for adapter in adapters.values()),
    ]


def _sorted(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _digest(weights: Mapping[str, Tensor]) -> bytes:
    """Names weights by their bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for name, parameter in weights.items():
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(-1).cpu().view(torch.uint8).numpy().data)
    return digest.digest()
