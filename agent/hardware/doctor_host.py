"""What the doctor says of processor, memory, disks and the night ahead. Functions of what was read."""

from __future__ import annotations

from collections.abc import Iterator

from agent.hardware.doctor_amd import compared, slow_products
from agent.hardware.facts import Facts
from agent.hardware.findings import Finding, Severity
from agent.hardware.presets import AOTRITON, left_off, resolve, settings
from agent.hardware.processor import BF16_FLAGS
from agent.hardware.trials import Attention

HUGE_PAGES_GLIBC = (2, 35)
"""The first with glibc.malloc.hugetlb (manual, Memory Allocation Tunables)."""
LITTLE_MEMORY_GIB = 2.0
"""A process with torch and the tiny model takes about one."""
LITTLE_DISK_GIB, NO_DISK_GIB = 20.0, 2.0
"""A 1.5B model's checkpoint is 6 GB in float32, and two exist while one replaces the other (docs/hardware.md)."""


def host_findings(facts: Facts) -> Iterator[Finding]:
    yield from _torch(facts)
    yield from _processor(facts)
    yield from _memory(facts)
    yield from _night(facts)
    yield from _disks(facts)
    yield from _unanswered(facts)


def _torch(facts: Facts) -> Iterator[Finding]:
    if facts.cards or facts.machine.kind != "cpu":
        return  # the card's own findings say it
    torch = facts.machine.torch
    if torch is None:
        yield Finding(
            "torch",
            "torch",
            "error",
            "torch does not answer",
            facts.problem or str(facts.answer.get("problem") or "no answer"),
            "No training can start.",
            "see what it ends with:\n$ python -m agent.raft.probe",
        )
        return
    yield Finding(
        "torch",
        "accelerator",
        "ok",
        "no accelerator: trainings run on the processor",
        f"torch {torch}; {facts.machine.name}",
    )


# Processor -------------------------------------------------------------------------------------------------


def _processor(facts: Facts) -> Iterator[Finding]:
    host, threads = facts.host, facts.answer.get("threads")
    quota = f"{host.cores} of {host.logical} processors may be used"
    own = facts.shell.get("OMP_NUM_THREADS")
    if facts.machine.kind == "cpu" and own and own != str(host.cores):
        yield Finding(
            "threads",
            "processor",
            "warning",
            f"OMP_NUM_THREADS={own} is set in your shell, and {host.cores} cores may be used",
            f"the environment of this command; {quota}",
            "A preset that was chosen by itself fills gaps only, so runs compute with that.",
            "$ unset OMP_NUM_THREADS",
        )
    elif facts.machine.kind == "cpu" and threads is not None:
        yield Finding(
            "threads",
            "processor",
            "ok",
            f"runs compute with {host.cores} threads",
            f"{quota}; torch by itself takes {threads}",
        )
    if facts.machine.kind == "cpu":
        yield _bf16(facts)
    if host.load is not None and host.load > max(1.0, 0.75 * host.logical):
        yield Finding(
            "load",
            "processor",
            "warning",
            f"other work is running: load {host.load:.1f} on {host.logical} processors",
            "/proc/loadavg, average of the last minute",
            "Runs get less than the machine, and by how much changes from run to run.",
            "see what it is, and end it before a campaign begins:\n$ top",
        )
    slow = host.governor == "powersave" and host.profile not in (None, "performance", "balanced-performance")
    if slow or host.profile in ("low-power", "quiet"):
        yield Finding(
            "power-profile",
            "processor",
            "note",
            f"power profile {host.profile or 'unknown'}, governor {host.governor}",
            "/sys/firmware/acpi/platform_profile, cpufreq/scaling_governor",
            "A lower power limit is a slower night; on gfx1151 the best memory bandwidth was measured with the tuned "
            "profile accelerator-performance.",
            "one of:\n$ powerprofilesctl set performance\n$ sudo tuned-adm profile accelerator-performance",
            "lhl/strix-halo-testing 5ee14b5",
        )


def _bf16(facts: Facts) -> Finding:
    flags = sorted(facts.host.flags & BF16_FLAGS)
    wide, narrow = (facts.trials.flops(name) if facts.trials else None for name in ("float32", "bfloat16"))
    speeds = f"; measured: float32 {wide / 1e9:.0f}, bfloat16 {narrow / 1e9:.0f} GFLOP/s" if wide and narrow else ""
    evidence = f"/proc/cpuinfo: {', '.join(flags) or 'no avx512_bf16, no amx_bf16'}{speeds}"
    if flags and wide and narrow and narrow < wide:
        return Finding(
            "bf16",
            "processor",
            "warning",
            "bfloat16 is slower than float32 here, though the processor has it",
            evidence,
            "Runs choose bfloat16 by the processor's flags.",
            "set model.dtype: float32 in your recipe, and compare; at length:\n$ raft-agent bench machine",
        )
    title = "bfloat16 is native" if flags else "bfloat16 is emulated: runs compute in float32"
    return Finding("bf16", "processor", "ok", title, evidence)


# Memory ----------------------------------------------------------------------------------------------------


def _memory(facts: Facts) -> Iterator[Finding]:
    host, memory = facts.host, facts.host.memory
    limit = ""
    if memory.limited_by:
        limit = f"; a control group (container, slice) allows {memory.total:.1f} GiB of {host.physical_gib:.1f}"
        yield Finding(
            "memory-limit",
            "memory",
            "note",
            f"this process may use {memory.total:.1f} of {host.physical_gib:.1f} GiB",
            "memory.max or memory.limit_in_bytes of its control group",
            "The kernel kills a training there long before the machine's memory is spent.",
            "raise the container's limit (docker run --memory), or leave it: the agent plans with it",
        )
    little = memory.available < LITTLE_MEMORY_GIB
    yield Finding(
        "memory",
        "memory",
        "error" if little else "ok",
        f"{memory.available:.1f} GiB of memory free",
        f"{host.physical_gib:.1f} GiB in all{limit}",
        "Even the smallest training does not fit." if little else "",
        "end what holds it:\n$ ps aux --sort=-rss | head" if little else "what one takes:\n$ raft-agent check RECIPE",
    )
    yield _swap(facts)
    if host.oom_kills:
        yield Finding(
            "memory-kills",
            "memory",
            "note",
            f"the kernel has killed {host.oom_kills} processes for memory since it was started",
            "oom_kill in /proc/vmstat",
            "Something here does not fit, a training or what runs beside it.",
            "see which:\n$ sudo dmesg | grep -i 'killed process'",
        )
    if host.daemons:
        yield Finding(
            "memory-daemon",
            "memory",
            "note",
            f"{', '.join(host.daemons)} may end a training for memory",
            "running processes, /proc/*/comm",
            "It kills with no kernel memory event, so such a death looks like a SIGKILL from outside.",
            "$ systemd-run --user --scope -p ManagedOOMPreference=avoid raft-agent run"
            if "systemd-oomd" in host.daemons
            else "earlyoom: add --avoid '^python' in /etc/default/earlyoom, and restart it",
            "systemd.resource-control(5); earlyoom(1)",
        )


def _swap(facts: Facts) -> Finding:
    size = facts.host.swap_gib
    if size is None:
        return Finding(
            "swap", "memory", "unknown", "swap cannot be read", "no SwapTotal in /proc/meminfo", fix="$ free -h"
        )
    if size == 0:
        words = "none: what does not fit is killed at once, and the agent goes on with less"
        return Finding("swap", "memory", "ok", "no swap", words)
    used = size - facts.host.memory.swap_free
    severity: Severity = "note" if used > 1.0 else "ok"
    return Finding(
        "swap",
        "memory",
        severity,
        f"{size:.1f} GiB of swap, {used:.1f} in use",
        "SwapTotal and SwapFree",
        "What is swapped out makes a run slow in a way that looks like its own fault." if severity == "note" else "",
        _empty_swap(used, facts.host.memory.available) if severity == "note" else "",
    )


def _empty_swap(used_gib: float, available_gib: float) -> str:
    """Emptying it into memory that is not there calls the memory killer."""
    room = available_gib > used_gib + SWAP_MARGIN_GIB
    return "end what holds memory" + (", then:\n$ sudo swapoff -a && sudo swapon -a" if room else "")


SWAP_MARGIN_GIB = 2.0

# The night -------------------------------------------------------------------------------------------------


def _night(facts: Facts) -> Iterator[Finding]:
    supply = facts.host.supply
    if supply.warning:
        text = supply.warning
        yield Finding("battery", "night", "warning", text.partition(":")[0], "/sys/class/power_supply", fix=text)
    elif supply.plugged:
        yield Finding("battery", "night", "ok", "on mains power", "/sys/class/power_supply")
    glibc = facts.software.glibc
    if facts.machine.kind == "cpu" and glibc and _version(glibc) < HUGE_PAGES_GLIBC:
        yield Finding(
            "glibc",
            "processor",
            "note",
            f"glibc {glibc} has no huge pages for malloc",
            "confstr CS_GNU_LIBC_VERSION; from 2.35 on",
            "GLIBC_TUNABLES of the preset has no effect: ten times the page faults, some time in the kernel.",
            "",
            "glibc manual, Memory Allocation Tunables",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _disks(facts: Facts) -> Iterator[Finding]:
    for folder, free in facts.host.disks:
        if free is None:
            yield Finding(
                "disk", "night", "unknown", f"free space of {folder} cannot be read", folder, fix=f"$ df -h {folder}"
            )
            continue
        severity: Severity = "error" if free < NO_DISK_GIB else "warning" if free < LITTLE_DISK_GIB else "ok"
        yield Finding(
            "disk",
            "night",
            severity,
            f"{free:.0f} GiB of disk free" if free >= 10 else f"{free:.1f} GiB of disk free",
            folder,
            "Checkpoints of a 1.5B model take 6 GB each; a full disk ends the campaign." if severity != "ok" else "",
            "free some; old campaigns under .raft/ are the largest files" if severity != "ok" else "",
        )


def _unanswered(facts: Facts) -> Iterator[Finding]:
    for words in facts.unanswered:
        yield Finding(
            "no-answer",
            "accelerator",
            "warning",
            "a driver does not answer",
            words,
            "Sensors are missing, and trainings may hang in the same place.",
            "if it stays so, reboot; the kernel may say more:\n$ sudo dmesg | tail",
        )


# What was measured, and what runs get ------------------------------------------------------------------------


def measured_findings(facts: Facts) -> Iterator[Finding]:
    trials = facts.trials
    if trials is not None:
        yield from _product(facts)
        yield from (_attention(one, facts) for one in trials.attention)
        yield from _attention_speed(trials.attention)
        yield from (compared(comparison) for comparison in trials.comparisons)
    yield from _settings(facts)


def _product(facts: Facts) -> Iterator[Finding]:
    trials = facts.trials
    assert trials is not None
    if trials.product_problem is not None:
        yield Finding(
            "products",
            "speed",
            "error",
            "a matrix product fails",
            trials.product_problem,
            "Every training would.",
            "see what it ends with:\n$ python -m agent.raft.doctor_checks product",
        )
        return
    wide, narrow = trials.flops("float32"), trials.flops("bfloat16")
    if facts.machine.arch == "gfx1151" and narrow:
        slow = slow_products(narrow)
        if slow is not None:
            yield slow
            return
    if wide and narrow:
        yield Finding(
            "products",
            "speed",
            "ok",
            f"matrix products: {_flops(wide)} in float32, {_flops(narrow)} in bfloat16",
            f"square, {trials.product['size']} rows, the fastest of some repeats, {trials.product['device']}",
        )


def _flops(number: float) -> str:
    return f"{number / 1e12:.1f} TFLOP/s" if number >= 1e12 else f"{number / 1e9:.0f} GFLOP/s"


def _attention(one: Attention, facts: Facts) -> Finding:
    if one.failure is None:
        error, allowed = one.answer["error"], one.answer["allowed"]
        evidence = f"output and gradients off by {error:.0e} from float32 on the processor, {allowed:.0e} is rounding"
        return Finding(
            f"attention-{_slug(one.name)}", "speed", "ok", f"attention {one.name}: finite and right", evidence
        )
    eager = one.name == "eager"
    others = "aotriton#179; unslothai/unsloth#3588" if facts.machine.kind == "rocm" else ""
    spare = (
        one.name == "sdpa"
        and facts.trials is not None
        and any(
            other.name != one.name and other.name.startswith("sdpa") and other.failure is None
            for other in facts.trials.attention
        )
    )
    return Finding(
        f"attention-{_slug(one.name)}",
        "speed",
        "error" if eager else "note" if spare else "warning",
        f"attention {one.name} fails",
        one.failure,
        "A training would end with NaN, a crash or a hang."
        if not spare
        else f"Runs are not concerned: their preset sets {AOTRITON}.",
        "see the findings on torch and firmware: even plain arithmetic is wrong"
        if eager
        else "set backend.attention: eager in your recipe",
        others,
    )


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def _attention_speed(attention: tuple[Attention, ...]) -> Iterator[Finding]:
    good = {one.name: one.seconds for one in attention if one.failure is None and one.seconds}
    if len(good) > 1:
        rows = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in good.items() if seconds)
        best = min(good, key=lambda name: good[name] or 0.0)
        yield Finding(
            "attention-speed",
            "speed",
            "note" if best == "eager" else "ok",
            f"fastest attention: {best}",
            f"forward and backward on a packed row: {rows}",
            "Runs take sdpa where nothing else is set." if best == "eager" else "",
            "compare backend.attention: eager in a recipe" if best == "eager" else "",
        )


def _settings(facts: Facts) -> Iterator[Finding]:
    """A preset that was chosen by itself only fills gaps, so what the shell sets comes first."""
    measured = facts.trials.comparisons if facts.trials and facts.trials.comparisons else facts.machine.measured
    chosen, why = settings("auto", facts.machine, measured=measured)
    told = [f"{one.name}={one.value}: {one.why}" for one in chosen if one.name not in facts.shell]
    kept = [f"{one.name}={facts.shell[one.name]}, which your shell sets" for one in chosen if one.name in facts.shell]
    strix = resolve("auto", facts.machine)[0] == "strix-halo"
    off = left_off(facts.machine, measured=measured) if strix else []
    yield Finding(
        "preset",
        "settings",
        "ok",
        f"runs get the environment preset {resolve('auto', facts.machine)[0]} ({why.removeprefix('auto: ')})",
        "; ".join(told + kept) or "no variables",
        "Left off: " + "; ".join(off) if off else "",
        "backend.environment and backend.env of a recipe change them; your shell is left alone",
    )
