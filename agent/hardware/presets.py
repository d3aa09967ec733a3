"""Environment variables for the training process, by machine, each with its source. Never the user's shell.

A preset says as much about what it leaves alone: half of the advice that circulates for Strix Halo is about old
wheels, and does harm with new ones. `LEFT_ALONE` keeps those with the reason. Where published figures contradict each
other or are of another stack, a setting is on only if `raft-agent doctor` has measured on this machine that it helps
(`MEASURED_HERE`); where they agree, it is on unless that measurement says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.hardware.measured import UNSET, WORTH, Comparison
from agent.hardware.probe import Machine

STRIX_HALO = frozenset({"gfx1151"})


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    why: str
    source: str


AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
STRIX_HALO_SETTINGS = (
    Setting(
        AOTRITON,
        "1",
        "without it scaled_dot_product_attention falls back to the math kernel: 44 ms instead of 2.3 ms, and up to "
        "20 times slower forward at 4096 tokens; it also ended a repeatable crash in LoRA training",
        "bkpaine1/amdsense 083e42b; lhl/strix-halo-testing 5ee14b5; ROCm/legacy-rocm-build#6034",
    ),
    Setting("TOKENIZERS_PARALLELISM", "false", "verifiers fork after the tokenizer has run", "huggingface/tokenizers"),
)

MEASURED_HERE = (
    Setting(
        "ROCBLAS_USE_HIPBLASLT",
        "",
        "bf16 matrix products 5.1 -> 36.9 TFLOP/s in May 2025; newer wheels may not need it",
        "kyuz0/amd-strix-halo-llm-finetuning 093a23c; mamf-finder runs of lhl (May 2025)",
    ),
    Setting(
        "TORCH_BLAS_PREFER_HIPBLASLT",
        "",
        "not always the faster side: one cold fp32 4096 product took 194 ms with it and 115 ms without",
        "ROCm#5643",
    ),
)
"""Left unset without a measurement of `raft-agent doctor`."""

LEFT_ALONE = (
    Setting(
        "HSA_OVERRIDE_GFX_VERSION",
        "",
        "a wheel with native gfx1151 code needs none, and 11.0.0 on it ended in memory access faults",
        "bkpaine1/amdsense 083e42b; ROCm#5824",
    ),
    Setting(
        "PYTORCH_HIP_ALLOC_CONF",
        "",
        "backend:malloc crashes; expandable_segments:True hangs for good in hsaKmtMemoryVaMap on one ROCm 7.2 set-up",
        "bkpaine1/amdsense 083e42b; pytorch#192259",
    ),
    Setting("PYTORCH_ALLOC_CONF", "", "the newer name of the same setting", "pytorch#192259"),
    Setting("HSA_ENABLE_SDMA", "", "=0 is worth a try after a hang, not before", "halo-forge c8f6548 HARDWARE_NOTES"),
    Setting(
        "FLASH_ATTENTION_TRITON_AMD_ENABLE",
        "",
        "only the ROCm fork of flash-attention reads it, and that is reported good for inference only",
        "kyuz0/amd-strix-halo-llm-finetuning 093a23c",
    ),
    Setting("MIOPEN_DEBUG_CONV_DIRECT", "", "for convolutions; a language model has none", "ROCm#6034"),
    Setting(
        "OMP_NUM_THREADS",
        "",
        "=1, which one trainer sets for this machine, throttles tokenizing and verification",
        "halo-forge c8f6548 utils/strix_halo.py",
    ),
)

CUDA_SETTINGS = (
    Setting(
        "PYTORCH_CUDA_ALLOC_CONF",
        "expandable_segments:True",
        "completions differ in length from batch to batch, which fragments fixed segments",
        "pytorch docs, notes/cuda: optimizing memory usage",
    ),
    Setting(
        "CUBLAS_WORKSPACE_CONFIG",
        ":4096:8",
        "cuBLAS gives the same bits twice only with a fixed workspace",
        "pytorch docs, notes/randomness",
    ),
    Setting("TOKENIZERS_PARALLELISM", "false", "verifiers fork after the tokenizer has run", "huggingface/tokenizers"),
)


def environment(
    preset: str, machine: Machine, *, measured: Sequence[Comparison] | None = None
) -> tuple[dict[str, str], str]:
    """(variables, why these). `preset` is a value of the recipe key `backend.environment`.

    `measured` is what `raft-agent doctor` has found out here; None takes what came with the machine.
    """
    chosen, why = settings(preset, machine, measured=measured)
    return {setting.name: setting.value for setting in chosen}, why


def settings(
    preset: str, machine: Machine, *, measured: Sequence[Comparison] | None = None
) -> tuple[tuple[Setting, ...], str]:
    """(variables with the reason of each, why this preset)."""
    known = {one.variable: one for one in (machine.measured if measured is None else measured)}
    name, why = resolve(preset, machine)
    if name == "strix-halo":
        return _strix_halo(known), why
    if name == "cuda":
        return CUDA_SETTINGS, why
    if name == "cpu":
        return _cpu(machine), why
    return (), why


def left_off(machine: Machine, *, measured: Sequence[Comparison] | None = None) -> list[str]:
    """In words: settings of the preset for Strix Halo that are not on, and why."""
    known = {one.variable: one for one in (machine.measured if measured is None else measured)}
    on = {setting.name for setting in _strix_halo(known)}
    return [
        f"{setting.name}: {known[setting.name].fastest[1] if setting.name in known else 'not measured here'}"
        for setting in (*STRIX_HALO_SETTINGS, *MEASURED_HERE)
        if setting.name not in on
    ]


def _strix_halo(known: Mapping[str, Comparison]) -> tuple[Setting, ...]:
    published = tuple(setting for setting in STRIX_HALO_SETTINGS if not _refuted(setting, known.get(setting.name)))
    found = []
    for setting in MEASURED_HERE:
        value, why = known[setting.name].fastest if setting.name in known else (UNSET, "")
        if value != UNSET:
            found.append(Setting(setting.name, value, why, "raft-agent doctor, on this machine"))
    return (*published, *found)


def _refuted(setting: Setting, comparison: Comparison | None) -> bool:
    """Whether the measurement here speaks against what is published: it fails with it, or is slower."""
    if comparison is None:
        return False
    if setting.value in comparison.failures:
        return not comparison.failures.keys() >= comparison.seconds.keys()  # where all fail it is not to blame
    slower = comparison.speed(UNSET, against=setting.value)
    return slower is not None and slower >= WORTH


def environment_over(
    shell: Mapping[str, str], machine: Machine, *, preset: str, own: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """(variables that a recipe sets on top of the shell's, where its preset comes from).

    A preset that `auto` chose only fills gaps: it is a guess, and what the user has set in the shell is not. A
    preset that the recipe names comes over the shell's variables, and the recipe's own (`backend.env`) over both.
    """
    variables, why = environment(preset, machine)
    if preset == "auto":
        variables = {name: value for name, value in variables.items() if name not in shell}
    return {**variables, **own}, why


def resolve(preset: str, machine: Machine) -> tuple[str, str]:
    """(name of the preset that applies, why). ValueError for a name that is none."""
    if preset in ("strix-halo", "cuda", "cpu", "none"):
        return preset, f"the recipe asks for the preset {preset}"
    if preset != "auto":
        raise ValueError(f"no such environment preset: {preset!r}; there are auto, none, cpu, cuda, strix-halo")
    if machine.kind == "rocm" and machine.arch in STRIX_HALO:
        return "strix-halo", f"auto: {machine.arch}"
    if machine.kind == "rocm":
        return "none", f"auto: no preset is known for {machine.arch or 'this AMD GPU'}, torch's own defaults stay"
    if machine.kind == "cuda":
        return "cuda", f"auto: {machine.arch or 'an NVIDIA GPU'}"
    return "cpu", f"auto: no accelerator, {machine.cores} cores"


def harmful(shell: Mapping[str, str], machine: Machine) -> list[Setting]:
    """Of `LEFT_ALONE`, what the user's shell sets on a Strix Halo, whether torch sees its card or not."""
    strix = machine.arch in STRIX_HALO or any(arch in words for words in machine.listed for arch in STRIX_HALO)
    if not strix:
        return []
    return [
        setting
        for setting in LEFT_ALONE
        if shell.get(setting.name) and (setting.name != "OMP_NUM_THREADS" or shell[setting.name] == "1")
    ]


def _cpu(machine: Machine) -> tuple[Setting, ...]:
    """As many threads as there are cores to use, and no accelerator even where there is one.

    torch takes its thread count from OMP_NUM_THREADS (pytorch docs, notes/cpu_threading_torchscript_inference);
    inside a container it would otherwise count the host's processors. How threads wait is left to the OpenMP library,
    which spins for some milliseconds and then sleeps: threads that sleep at once (OMP_WAIT_POLICY=passive) made a
    decode step of SmolLM2-135M take 3.5 times as long on two virtual cores, because waking one costs more than the
    small operations between two waits.

    Training allocates and frees gigabytes a step. With pages of 4 KiB the kernel hands them out one fault at a time:
    2.5 million in three updates of SmolLM2-135M. The tunable lets malloc ask for huge pages (glibc from 2.35 on, manual
    chapter "Memory Allocation Tunables"; others ignore it), which leaves a tenth of the faults.
    """
    chosen: tuple[Setting, ...] = (
        Setting("OMP_NUM_THREADS", str(machine.cores), "one thread for each core that it may use", "pytorch docs"),
        Setting(
            "TOKENIZERS_PARALLELISM", "false", "verifiers fork after the tokenizer has run", "huggingface/tokenizers"
        ),
        Setting(
            "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", "a tenth of the page faults of a training", "measured here"
        ),
    )
    if machine.kind != "cpu":
        hidden = "the recipe asks for the CPU"
        chosen += tuple(Setting(name, "", hidden, "") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    return chosen
