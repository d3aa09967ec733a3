"""Say why a training died: one of eight classes, with the line that proves it and where that line was found.

Evidence counts in this order: the agent's own signal and the trainer's own word; exit code and signal; memory
kills that the kernel or the control group counted; the last real traceback and what the devices said beside
it; the tail. A signal that is only a presumption (SIGKILL may be the kernel's memory killer) gives way to a
definite cause in the log. What cannot be said is `unknown`; nothing is guessed from a bare word.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.contract import CrashClass, Failure, Phase
from agent.run.launcher import EndedBy, RunResult
from agent.run.logtext import (
    Line,
    Thrown,
    exceptions,
    final_burst,
    got_over,
    is_exception,
    last_progress,
    read_lines,
)
from agent.run.signatures import Rank, Signature, match
from agent.run.telemetry import log_tail, read_failure, read_heartbeat

NEAR = 80
"""Lines around the final exceptions in which a device's message counts as part of the same failure."""
TAIL = 12


@dataclass(frozen=True)
class Evidence:
    """Everything that triage looks at. A field that is not known keeps its default."""

    log: str = ""
    exit_code: int | None = None
    """As the shell or subprocess gives it: negative, or above 128, is a signal."""
    signal: int | None = None
    failure: Failure | None = None
    ended_by: EndedBy = "itself"
    reason: str = ""
    """The launcher's own words for why it ended the training."""
    kernel: str = ""
    cgroup_oom: bool = False
    """The kernel killed a process of the training's control group for memory."""
    host_oom: bool = False
    """The kernel killed some process of this machine for memory meanwhile."""
    phase: Phase | None = None
    """Of the last heartbeat."""


@dataclass(frozen=True)
class Diagnosis:
    crash_class: CrashClass
    reason: str
    """One sentence for people."""
    evidence: str
    """The line that proves it, as it was written."""
    source: str
    """Where that line was found: `the agent`, `failure.json`, `exit`, `kernel`, `traceback`, `device`, `tail` or
    `nothing`."""
    signature: str | None
    """Name of the rule or signature."""
    key: str | None = None
    """Recipe key at fault, where the trainer named one."""
    suggestion: Any = None
    phase: Phase | None = None


def evidence_of(result: RunResult) -> Evidence:
    """What a finished run left in its folder and what the launcher saw."""
    heartbeat = read_heartbeat(result.out)
    return Evidence(
        log=log_tail(result.out),
        exit_code=result.exit_code,
        signal=result.signal,
        failure=read_failure(result.out),
        ended_by=result.ended_by,
        reason=result.reason,
        kernel=result.kernel,
        cgroup_oom=result.cgroup_oom_kills > 0,
        host_oom=result.host_oom_kills > 0,
        phase=heartbeat.phase if heartbeat else None,
    )


def triage(evidence: Evidence) -> Diagnosis:
    """Why it died. Pure: the same evidence gives the same diagnosis."""
    reading = _Reading(evidence)
    steps: tuple[Callable[[_Reading], Diagnosis | None], ...] = (
        _agents_word,
        _trainers_word,
        _exit_and_signal,
        _memory_events,
        _exceptions_and_devices,
        _tail,
        _nothing,
    )
    for step in steps:
        diagnosis = step(reading)
        if diagnosis is not None:
            return diagnosis
    raise AssertionError("the last step always answers")


class _Reading:
    """Evidence with its log read once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.lines = read_lines(evidence.log)
        self.signal = evidence.signal or _signal_of(evidence.exit_code)
        self.burst = final_burst(exceptions(self.lines), self.lines)
        self.root = self._root()

    def _root(self) -> tuple[Signature, str, str] | None:
        """(signature, line, source) of the failure at the root: lowest rank, exceptions first, the last of them."""
        found: list[tuple[Rank, int, int, Signature, str, str]] = []
        for one in self.burst:
            signature = judge(one)
            if signature is not None:
                found.append((signature.rank, 0, -one.line.number, signature, one.line.raw.strip(), "traceback"))
        for line in self._near_the_end():
            signature = match(line.text.strip())
            if signature is not None and signature.rank != Rank.GENERIC:
                found.append((signature.rank, 1, -line.number, signature, line.raw.strip(), "device"))
        if not found:
            return None
        best = min(found, key=lambda entry: entry[:3])
        return best[3:]

    def _near_the_end(self) -> list[Line]:
        """Lines that are no exception lines, close to the final exceptions or, without any, to the end.

        What the training said before it went on is not part of its end, nor what it got over.
        """
        first = min((one.line.number for one in self.burst), default=len(self.lines))
        begin = max(0, first - NEAR)
        if self.burst:
            begin = max(begin, last_progress(self.lines[:first]))
        return [line for line in self.lines[begin:] if not is_exception(line) and not got_over(self.lines, line.number)]

    def diagnosis(self, crash_class: CrashClass, reason: str, line: str, source: str, name: str) -> Diagnosis:
        return Diagnosis(crash_class, reason, line, source, name, phase=self.evidence.phase)


def _signal_of(exit_code: int | None) -> int | None:
    if exit_code is None:
        return None
    if exit_code < 0:
        return -exit_code
    return exit_code - 128 if 128 < exit_code < 128 + 65 else None


# --- 1. what the agent and the trainer say -----------------------------------------------------------------


def _agents_word(reading: _Reading) -> Diagnosis | None:
    reason = reading.evidence.reason
    match reading.evidence.ended_by:
        case "hang":
            return reading.diagnosis("timeout", f"it hung: {reason}", _stack(reading) or reason, "the agent", "hang")
        case "slow":
            return reading.diagnosis("timeout", f"it was too slow: {reason}", reason, "the agent", "slow")
        case "time_limit":
            return reading.diagnosis("timeout", f"it ran out of time: {reason}", reason, "the agent", "time_limit")
        case "memory":
            return reading.diagnosis("oom", f"it took too much memory: {reason}", reason, "the agent", "memory")
        case "stop":
            return reading.diagnosis("unknown", f"no crash, it was stopped: {reason}", reason, "the agent", "stop")
        case "itself":
            return None


def _stack(reading: _Reading) -> str | None:
    """Innermost frame of the stack that Python's fault handler wrote, if it did."""
    for position, line in enumerate(reading.lines):
        if re.match(r"(?:Current thread|Thread) 0x\w+.*\(most recent call first\)", line.text):
            for frame in reading.lines[position + 1 : position + 3]:
                if frame.text.strip().startswith("File "):
                    return frame.text.strip()
    return None


def _trainers_word(reading: _Reading) -> Diagnosis | None:
    """`failure.json`. A trainer that only knows that it failed (`unknown`) does not end the search."""
    failure = reading.evidence.failure
    if failure is None or failure.crash_class == "unknown":
        return None
    where = f" ({failure.where})" if failure.where else ""
    return Diagnosis(
        failure.crash_class,
        f"{failure.message}{where}",
        f"{failure.exception}: {failure.message}",
        "failure.json",
        f"failure-{failure.exception}",
        key=failure.key,
        suggestion=failure.suggestion,
        phase=failure.phase or reading.evidence.phase,
    )


# --- 2. exit code and signal -------------------------------------------------------------------------------


def _exit_and_signal(reading: _Reading) -> Diagnosis | None:
    name = _signal_name(reading.signal)
    if reading.signal == signals.SIGKILL:
        return _killed(reading)
    certain: dict[int, tuple[CrashClass, str]] = {
        signals.SIGBUS: ("resource", "bus error: shared memory or a mapped file could not be backed"),
        signals.SIGILL: ("backend", "illegal instruction: a library was built for another processor"),
        signals.SIGXCPU: ("timeout", "the processor time limit was reached"),
        signals.SIGXFSZ: ("resource", "the file size limit was reached"),
    }
    if reading.signal in certain and not _definite(reading):
        crash_class, reason = certain[reading.signal]
        return reading.diagnosis(crash_class, reason, name, "exit", name)
    return None


def _killed(reading: _Reading) -> Diagnosis | None:
    """SIGKILL comes from the memory killer unless something else is known: a scheduler, or a cause in the log."""
    evidence = reading.evidence
    cancelled = _first(reading.lines, CANCELLED)
    if cancelled is not None:
        limit = "TIME LIMIT" in cancelled or "walltime" in cancelled
        reason = "the scheduler's time limit" if limit else "somebody cancelled the job"
        return reading.diagnosis("timeout" if limit else "unknown", reason, cancelled, "exit", "cancelled")
    if evidence.cgroup_oom or evidence.host_oom:
        where = "of its control group" if evidence.cgroup_oom else "on this machine"
        counted = f"the kernel counted a memory kill {where}"
        return reading.diagnosis(
            "oom", f"killed: {counted}", _kernel_line(evidence.kernel) or counted, "kernel", "oom-kill"
        )
    if _definite(reading):
        return None
    reason = "killed (SIGKILL) by nobody we know of: presumably the kernel, for host memory"
    return reading.diagnosis("oom", reason, _last_word(reading), "exit", "sigkill")


CANCELLED = re.compile(
    r"^(?:slurmstepd: error: )?\*\*\* (?:JOB|STEP) \S+ ON .*CANCELLED AT|^=>> PBS: job killed|^TERM_RUNLIMIT|^scancel\b"
)


def _definite(reading: _Reading) -> bool:
    return reading.root is not None and reading.root[0].rank <= Rank.SPECIFIC


# --- 3. memory events --------------------------------------------------------------------------------------


def _memory_events(reading: _Reading) -> Diagnosis | None:
    """A kill inside the control group although the trainer itself was not the victim: a worker of it was."""
    if not reading.evidence.cgroup_oom:
        return None
    line = _kernel_line(reading.evidence.kernel) or "oom_kill count of the control group went up"
    return reading.diagnosis(
        "oom", "the kernel killed a process of the training for memory", line, "kernel", "oom-kill"
    )


def _kernel_line(kernel: str) -> str | None:
    return _first(read_lines(kernel), re.compile(r"(?:Memory cgroup out of memory|Out of memory): |oom-kill:"))


# --- 4. exceptions and devices -----------------------------------------------------------------------------


def _exceptions_and_devices(reading: _Reading) -> Diagnosis | None:
    if reading.root is not None:
        signature, line, source = reading.root
        return reading.diagnosis(signature.crash_class, _sentence(signature, line), line, source, signature.name)
    for said in read_lines(reading.evidence.kernel):
        found = match(said.text.strip())
        if found is not None and found.crash_class == "backend":
            return reading.diagnosis("backend", found.meaning, said.raw.strip(), "kernel", found.name)
    return _fatal_in_library(reading)


def _sentence(signature: Signature, line: str) -> str:
    return f"{signature.meaning}: {line[:160]}"


def judge(thrown: Thrown) -> Signature | None:
    """The signature of one exception; some types mean one thing in one place and another elsewhere."""
    text = f"{thrown.type}: {thrown.message}" if thrown.message else thrown.type
    match thrown.type:
        case "ModuleNotFoundError" | "ImportError":
            return match(text) if _binary(text) else _import(thrown)
        case "KeyError" | "KeyErrorKeyError":
            return _key_error(thrown)
        case "OSError" | "RuntimeError" | "MemoryError" if "annot allocate memory" in thrown.message:
            return _no_memory(thrown)
        case "ValueError" | "Exception" if not match(text):
            return _value_error(thrown)
    return match(text)


def _binary(text: str) -> bool:
    found = match(text)
    return found is not None and found.name in ("binary-mismatch", "attention")


ACCELERATION = frozenset(
    {
        "flash_attn", "flash_attn_2_cuda", "triton", "bitsandbytes", "xformers", "apex", "deepspeed",
        "transformer_engine", "megatron", "nemo_automodel", "vllm", "liger_kernel", "torchao", "aiter",
        "cut_cross_entropy",
    }
)  # fmt: skip
"""Packages that a recipe's back end needs and no experiment of one's own provides."""


def _import(thrown: Thrown) -> Signature:
    """A package that does not fit its neighbour is the back end's fault; a module of one's own is a typo."""
    named = re.match(r"No module named '([\w.]+)'", thrown.message)
    from_library = re.match(
        r"cannot import name '\w+' from (?:partially initialized module )?'([\w.]+)'(.*)", thrown.message
    )
    inside_library = bool(thrown.frames) and _is_library(thrown.frames[-1])
    if named is not None:
        foreign = inside_library or named.group(1).split(".")[0] in ACCELERATION
    elif from_library is not None:
        foreign = inside_library or _is_library(from_library.group(2))
    else:
        foreign = inside_library
    if foreign:
        return _context("import-mismatch", "backend", "an installed package does not fit another, or is missing")
    return _context("own-import", "typo", "an import of the experiment's own code fails")


def _is_library(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


ROWS = re.compile(
    r"(?i:\b(?:data_?set|datasets|dataloader|features?|examples?|rows?|batch|records?|columns?|samples?|collat\w+|inputs|instance)\b"
    r"|_dataset\b|dataset\[|/datasets/|/data/)|_KEY\]"
)


def _key_error(thrown: Thrown) -> Signature:
    """A column that a row lacks is data; any other key that is not there is the code's or the recipe's."""
    near = [text for text in thrown.above[-6:] if text.strip()]
    if any(ROWS.search(text) for text in near):
        return _context("missing-field", "data", "a data row lacks a field")
    return _context("key", "typo", "a key is not there")


def _no_memory(thrown: Thrown) -> Signature:
    """ENOMEM on gigabytes of weights is memory; on a small shared tensor or a fork it is a limit of the system."""
    size = re.search(r"unable to mmap (\d+) bytes", thrown.message)
    shared = any(
        re.search(r"shared_memory|reductions\.py|synchronize\.py|popen_fork|resource_sharer", f) for f in thrown.frames
    )
    small = size is not None and int(size.group(1)) < 64 * 1024 * 1024
    if shared or small:
        return _context(
            "shared-memory-limit", "resource", "the system refuses a small piece of memory: a limit is reached"
        )
    return _context("oom-host", "oom", "host memory is spent", rank=Rank.CAUSE)


def _value_error(thrown: Thrown) -> Signature | None:
    """A value that a command line or a constructor of the experiment's own refuses."""
    if re.match(
        r"(?:invalid literal for int|could not convert string to float|Unknown scheduler|unknown optimizer)",
        thrown.message,
    ):
        return _context("value", "typo", "a value cannot be read", rank=Rank.GENERIC)
    return None


def _context(name: str, crash_class: CrashClass, meaning: str, *, rank: Rank = Rank.GENERIC) -> Signature:
    return Signature(name, crash_class, re.compile(""), rank, meaning, "by where it was raised")


LIBRARY_FRAME = re.compile(
    r'^\s*File "[^"]*/(?:torch/(?:cuda|backends|_inductor|_dynamo|distributed)|triton|flash_attn|bitsandbytes'
    r"|aiter|xformers)/"
)


def _fatal_in_library(reading: _Reading) -> Diagnosis | None:
    """A fatal signal whose innermost Python frame lies in a device library, or that came on touching the device."""
    if reading.signal not in (signals.SIGSEGV, signals.SIGABRT, signals.SIGFPE):
        return None
    frame = _stack(reading)
    if frame is not None and LIBRARY_FRAME.match(frame):
        reason = f"{_signal_name(reading.signal)} inside a device library"
        return reading.diagnosis("backend", reason, frame, "traceback", "fatal-in-library")
    command = _first(reading.lines, re.compile(r"^\$?\s*\S*python\S* -c .*\bimport torch\b"))
    silent_start = reading.evidence.phase in ("start", None) and not any(line.text.strip() for line in reading.lines)
    if command is not None or (silent_start and reading.evidence.phase == "start"):
        reason = f"{_signal_name(reading.signal)} while torch first touched the device: a bad wheel or driver"
        return reading.diagnosis("backend", reason, command or "(empty log)", "exit", "fatal-at-device-init")
    return None


# --- 5. the tail -------------------------------------------------------------------------------------------


def _tail(reading: _Reading) -> Diagnosis | None:
    lines = [line for line in reading.lines if line.text.strip()]
    tail = _before_supervisors(lines)[-TAIL:]
    killed = _last(tail, re.compile(r"^[Kk]illed$|^\S+: line \d+:\s+\d+ Killed\b"))
    if killed is not None:
        return reading.diagnosis("oom", "killed: presumably by the kernel, for host memory", killed, "tail", "killed")
    rank_killed = _last(lines[-60:], re.compile(r".*\bfailed \(exitcode: -9\) local_rank\b"))
    if rank_killed is not None:
        reason = "a rank was killed (SIGKILL): presumably by the kernel, for host memory"
        return reading.diagnosis("oom", reason, rank_killed, "tail", "rank-killed")
    if _last(tail, re.compile(r"^Bus error\b")) is not None:
        return reading.diagnosis(
            "resource", "bus error: shared memory or a mapped file", "Bus error", "tail", "bus-error"
        )
    return _numbers_going_wrong(reading, tail)


SUPERVISOR = re.compile(r".*\btorch[./]distributed[./]elastic\b|^wandb:|^srun: |^Sending process \d+ closing signal")


def _before_supervisors(lines: list[Line]) -> list[Line]:
    """Without what launchers and trackers print when the training is already dead."""
    recent = range(max(0, len(lines) - 60), len(lines))
    first = next((number for number in recent if SUPERVISOR.match(lines[number].text)), len(lines))
    return lines[:first]


OVERFLOW = re.compile(r".*\bOVERFLOW! Rank \d+ Skipping step\. Attempted loss scale: ([\d.]+), reducing to ([\d.]+)")
RATIO = re.compile(r"^(?:\S+:\d+: )?(?:UserWarning: )?The average ratio of batch \([\d.]+\) exceeds threshold")
NAN_LOSS = re.compile(r"^.*?['\"]?\b(?:loss|grad_norm)['\"]?\s*[:=]\s*['\"]?(?:nan|-?inf)\b", re.IGNORECASE)


def _numbers_going_wrong(reading: _Reading, tail: list[Line]) -> Diagnosis | None:
    """No exception, but the last lines say again and again that the numbers are no good."""
    for pattern, name, meaning in (
        (OVERFLOW, "overflow", "step after step overflows and is skipped"),
        (RATIO, "ratio", "the policy's probability ratio explodes"),
        (NAN_LOSS, "nan-loss", "loss or gradient is not finite"),
    ):
        hits = [line for line in tail if pattern.match(line.text.strip())]
        if len(hits) >= 2:
            return reading.diagnosis("numeric", meaning, hits[-1].raw.strip(), "tail", name)
    return None


def _nothing(reading: _Reading) -> Diagnosis:
    failure = reading.evidence.failure
    if failure is not None:
        line = f"{failure.exception}: {failure.message}"
        return reading.diagnosis("unknown", failure.message, line, "failure.json", "unnamed")
    if reading.signal is not None:
        how = f"died of {_signal_name(reading.signal)} and says nothing of why"
    elif reading.evidence.exit_code == 0:
        how = "left with exit code 0 but wrote no summary"
    elif reading.evidence.exit_code is None:
        how = "nothing in the log is known to us"
    else:
        how = f"left with exit code {reading.evidence.exit_code}, and nothing in the log is known to us"
    return reading.diagnosis("unknown", how, _last_word(reading), "nothing", "none")


def _last_word(reading: _Reading) -> str:
    if reading.burst:
        return reading.burst[-1].line.raw.strip()
    spoken = [line.raw.strip() for line in reading.lines if line.text.strip()]
    return spoken[-1] if spoken else "(empty log)"


def _first(lines: list[Line], pattern: re.Pattern[str]) -> str | None:
    return next((line.raw.strip() for line in lines if pattern.match(line.text.strip())), None)


def _last(lines: list[Line], pattern: re.Pattern[str]) -> str | None:
    return _first(lines[::-1], pattern)


def _signal_name(number: int | None) -> str:
    if number is None:
        return "no signal"
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
