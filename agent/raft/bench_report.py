"""What `bench train` says of the two processes that it measured. No torch, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.raft.bench_arithmetic import share, training_flops
from agent.raft.bench_settings import BenchSettings
from agent.recipe.shapes import ModelShape

STEADY = 0.8
"""Of its highest, what the peak has at least in every repeat on a machine that does nothing else."""


def report_training(
    settings: BenchSettings,
    samples: Sequence[Mapping[str, Any]],
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any] | None,
    shape: ModelShape | None,
) -> dict[str, Any]:
    """Both side by side. Shares are of the peak that was measured between the repeats at the same arithmetic.

    `samples` as `agent.raft.bench_train.draw_samples` gives them; without a known `shape` no operations are counted as
    useful.
    """
    lengths = [(len(sample["prompt"]), len(sample["completion"])) for sample in samples]
    useful = training_flops(shape, lengths) if shape is not None else None
    seconds = ours["seconds"]["median"]
    possible = seconds * ours["peak_flops_per_s"]
    tokens = sum(map(sum, lengths))
    their_seconds = theirs["seconds"]["median"] if theirs else None
    needed = useful.total if useful else None
    return {
        "train_s": seconds,
        "transformers_train_s": their_seconds,
        "speedup": their_seconds / seconds if their_seconds else None,
        "share_of_peak": share(needed, possible),
        "computed_share_of_peak": share(ours["computed_flops"], possible),
        "transformers_share_of_peak": share(needed, their_seconds * ours["peak_flops_per_s"])
        if their_seconds
        else None,
        "peak_flops_per_s": ours["peak_flops_per_s"],
        "useful_flops": needed,
        "useful_flops_by_part": vars(useful) if useful else None,
        "computed_flops": ours["computed_flops"],
        "useful_tokens": tokens,
        "useful_tokens_per_s": tokens / seconds,
        "forward_tokens": ours["forward_tokens"],
        "completion_tokens": sum(completion for _, completion in lengths),
        "samples": len(samples),
        "prompts": len({tuple(sample["prompt"]) for sample in samples}),
        "peak_memory_gb": ours["peak_memory_gb"],
        "transformers_peak_memory_gb": theirs["peak_memory_gb"] if theirs else None,
        "dtype": ours["dtype"],
        "device": ours["device"],
        "model": settings.model,
        "limits": limits(ours, needed, possible),
        "ours": dict(ours),
        "transformers": dict(theirs) if theirs else None,
    }


def limits(ours: Mapping[str, Any], needed: int | None, possible: float) -> str:
    """In words what stands between an update and the peak."""
    computed = ours["computed_flops"]
    text = f"The hardware did {computed / possible:.0%} of what its peak allows."
    if needed is not None:
        text += (
            f" Beginnings that samples share are computed once: {computed / needed:.0%} of the useful operations were "
            "done."
        )
    lowest, highest = min(ours["peaks_flops_per_s"]), max(ours["peaks_flops_per_s"])
    if lowest < STEADY * highest:
        text += f" The peak itself moved from {lowest / 1e9:.0f} to {highest / 1e9:.0f} GFLOP/s: a busy machine."
    return text
