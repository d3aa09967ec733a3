"""`bench machine`: what this machine can do at most, what the trainer makes of it, and whether it looks healthy.

It does not: stress the machine for minutes, read clock frequencies, or know what a model of processor should reach.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agent.hardware import doctor_amd, processor
from agent.hardware.findings import Finding as Found
from agent.hardware.presets import resolve
from agent.hardware.probe import MACHINE, Machine, probe_machine
from agent.hardware.processor import usable_cores
from agent.hardware.sensors import graphics, host_memory_gib, hottest
from agent.raft.bench_arithmetic import spread
from agent.raft.bench_products import Product, bandwidth, fastest_products, seconds_of, square_flops, square_size
from agent.raft.bench_settings import BenchSettings, recipe_of
from agent.raft.device import choose_device, facts_of, resolve_attention
from agent.recipe.memory import arithmetic
from agent.recipe.schema import Recipe
from agent.recipe.shapes import ModelShape, shape_of

ROWS, QUICK_ROWS = (1, 8, 64, 256, 2048), (1, 8)
"""Row counts for the products of the model: decode steps with few and many rows in flight, and a training batch."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "sve", "bf16")
STEADY_SECONDS, QUICK_SECONDS = 2.0, 0.1
"""How long products run on end, to see whether they slow down."""
UNSTEADY = 1.3
"""Slowest over fastest repeat from which on something disturbs the measurement."""
SHARE_OF_CORES = 0.85
"""Processor time over wall-clock time and threads below which something else had the cores."""
LATE = 0.85
"""Speed of the last quarter over that of the first below which the machine slows down under load."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong, and what to do about it."""

    what: str
    do: str


class Watch:
    """How much of the cores a stretch of this process had. A context; then `cores_share`."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        """Load average when it began."""

    def __enter__(self) -> Watch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self._wall
        self.cores_share = (time.process_time() - self._cpu) / (wall * torch.get_num_threads())


def measure_machine(
    settings: BenchSettings, *, cache: Path, environment: Mapping[str, str], say: Say
) -> dict[str, Any]:
    """Speeds in operations and bytes a second, each with its repeats; `findings` in words, none where all is well."""
    recipe = recipe_of(settings)
    device, why = choose_device()
    machine = probe_machine(cache=cache / MACHINE)
    shape = shape_of(recipe.model, cache=cache, base=Path.cwd())
    load = os.getloadavg()[0]
    say("matrix products")
    types = [torch.float32, torch.bfloat16] + ([torch.float16] if device.type == "cuda" else [])
    repeats, quick = 2 * settings.repeats, settings.quick
    ways = {_name(dtype): square_flops(dtype, device, repeats=repeats, quick=quick) for dtype in types}
    square = {name: spread(found["torch"]) for name, found in ways.items()}
    onednn = {name: spread(found["onednn"]) for name, found in ways.items() if "onednn" in found}
    say("memory bandwidth")
    bytes_a_second = {name: spread(found) for name, found in bandwidth(device, repeats=repeats, quick=quick).items()}
    result: dict[str, Any] = {
        "machine": machine.summary,
        "device": str(device),
        "device_why": why,
        "torch": torch.__version__,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "flags": processor_flags(),
        "memory_gib": machine.memory_gb,
        "load_average": load,
        "square": {"size": square_size(device, quick=quick), "flops_per_s": square, "onednn_flops_per_s": onednn},
        "bytes_per_s": bytes_a_second,
        "peak_flops_per_s": {name: max(map(max, found.values())) for name, found in ways.items()},
        "peak_bytes_per_s": max(found["highest"] for found in bytes_a_second.values()),
        "trainer": trainer_choices(recipe, shape.shape, machine, environment),
    }
    say("the model's own products")
    result["model_products"] = _model_products(shape.shape, types, device, rows=QUICK_ROWS if quick else ROWS)
    result["model_products_why"] = shape.why
    say("whether it keeps its speed")
    dtype = getattr(torch, result["trainer"]["dtype"])
    with Watch() as watch:
        result["steady"] = _steady(dtype, device, quick=quick)
    result["cores_share"] = watch.cores_share if device.type == "cpu" else None
    findings = look_at(result, machine, shell=os.environ)
    result["findings"] = [vars(finding) for finding in findings]
    result["healthy"] = not findings
    return result


def processor_flags() -> list[str]:
    """Those of the processor's instruction sets that decide the speed of matrix products."""
    return [flag for flag in FLAGS if flag in processor.processor_flags()]


def trainer_choices(
    recipe: Recipe, shape: ModelShape | None, machine: Machine, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What `auto` means here."""
    device, _ = choose_device()
    preset, why = resolve(recipe.backend.environment, machine)
    return {
        "dtype": arithmetic(recipe.model.dtype, facts_of(device), parameters=shape.parameters if shape else None),
        "attention": resolve_attention(recipe.backend, device) or "packed rows; sdpa where a model has it",
        "environment_preset": preset,
        "environment_why": why,
        "environment": dict(environment),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _model_products(
    shape: ModelShape | None, types: Sequence[torch.dtype], device: torch.device, *, rows: Sequence[int]
) -> dict[str, dict[str, float]] | None:
    """By type and row count: operations a second of the products of all blocks, one after the other, the faster way."""
    if shape is None:
        return None
    found: dict[str, dict[str, float]] = {}
    sizes = list(shape.matrices().values())
    for dtype in types:
        wanted = {count: [Product(count, *size, dtype) for size in sizes] for count in rows}
        seconds = fastest_products({p for group in wanted.values() for p in group}, layers=shape.layers, device=device)
        found[_name(dtype)] = {
            str(count): sum(2 * p.rows * p.inputs * p.outputs for p in group) / sum(seconds[p] for p in group)
            for count, group in wanted.items()
        }
    return found


def _steady(dtype: torch.dtype, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Products on end: speed of the last quarter of the time over that of the first."""
    size, limit = square_size(device, quick=quick), QUICK_SECONDS if quick else STEADY_SECONDS
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds: list[float] = []
    while sum(seconds) < limit or len(seconds) < 8:
        seconds.append(seconds_of(lambda: left @ right, device))
    quarter = len(seconds) // 4
    return {"seconds": sum(seconds), "late_over_early": sum(seconds[:quarter]) / sum(seconds[-quarter:])}


# What it says --------------------------------------------------------------------------------------------------


def look_at(result: Mapping[str, Any], machine: Machine, *, shell: Mapping[str, str]) -> list[Finding]:
    """What looks wrong in a measurement of `measure_machine`; `shell` are the variables set around it."""
    return [
        *_disturbed(result),
        *_slows_down(result),
        *_set_up_wrong(result),
        *_strix_halo(result, machine),
        *map(_of_the_doctor, doctor_amd.shell_variables(shell, machine)),
        *([Finding(machine.note, "raft-agent finds its accelerator through torch")] if machine.note else []),
    ]


def _disturbed(result: Mapping[str, Any]) -> list[Finding]:
    """The share of the cores says it best; the load average lags, and counts a benchmark that has just ended."""
    cores, load, had = result["cores"], result["load_average"], result["cores_share"]
    speeds = {**result["square"]["flops_per_s"], **result["bytes_per_s"]}
    ratio = max(found["highest"] / found["lowest"] for found in speeds.values())
    if had is not None and had < SHARE_OF_CORES:
        return [
            Finding(
                f"this process had {had:.0%} of its {result['threads']} threads' time, something else the rest (load "
                f"{load:.1f} on {cores} cores when it began)",
                "see what runs beside it (top), end it, measure again; on a virtual machine it may be another guest",
            )
        ]
    if ratio > UNSTEADY:
        return [
            Finding(
                f"repeats of the same work differ by a factor of {ratio:.1f}",
                "measure again when nothing else runs, on mains power and in a performance profile",
            )
        ]
    return []


def _slows_down(result: Mapping[str, Any]) -> list[Finding]:
    late = result["steady"]["late_over_early"]
    if late >= LATE:
        return []
    warm = hottest()
    heat = f"; hottest sensor: {warm[0]} at {warm[1]:.0f} degrees" if warm else ""
    return [
        Finding(
            f"it slows down under load: after two seconds {late:.0%} of the speed it began with{heat}",
            "look at cooling, power limit and power profile; short measurements on it mislead",
        )
    ]


def _set_up_wrong(result: Mapping[str, Any]) -> list[Finding]:
    findings = []
    threads, cores = result["threads"], result["cores"]
    if result["device"] == "cpu" and threads != cores:
        findings.append(
            Finding(
                f"torch computes with {threads} threads on {cores} cores",
                "unset OMP_NUM_THREADS in your shell; the environment preset sets it",
            )
        )
    peak, chosen = result["peak_flops_per_s"], result["trainer"]["dtype"]
    fastest = max(peak, key=lambda name: peak[name])
    if peak[fastest] > 1.1 * peak.get(chosen, 0.0) and chosen != "float32":
        findings.append(
            Finding(
                f"{chosen}, which the trainer takes, is slower here than {fastest}",
                f"set model.dtype: {fastest} in your recipe, and compare",
            )
        )
    return findings


def _strix_halo(result: Mapping[str, Any], machine: Machine) -> list[Finding]:
    """As `raft-agent doctor` says it, of what was measured here at length."""
    if machine.arch != "gfx1151" or result["device"] == "cpu":
        return []
    found = [
        doctor_amd.slow_memory(result["peak_bytes_per_s"]),
        doctor_amd.slow_products(result["peak_flops_per_s"]["bfloat16"]),
    ]
    card = next((card for card in graphics() if card.arch == machine.arch), None)
    if card is not None:
        found.append(doctor_amd.gtt_limit(card, host_memory_gib()))
    return [_of_the_doctor(one) for one in found if one is not None and one.severity == "warning"]


def _of_the_doctor(found: Found) -> Finding:
    return Finding(f"{found.title}: {found.consequence}", found.fix.replace("\n", " ").replace("$ ", ""))
