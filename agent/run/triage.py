"""Say why a training died: one of eight classes, with the line that proves it and where that line was found.

Evidence counts in this order: the agent's own signal and the trainer's own word; exit code and signal; memory kills
that the kernel or the control group counted; the last real traceback and what the devices said beside it; the tail. A
signal that is only a presumption (SIGKILL may be the kernel's memory killer) gives way to a definite cause in the
log, and to the kernel's counters where they can be read. What cannot be said is `unknown`; nothing is guessed from a
bare word. The words, the remedies and the patterns are data (`rules/*.yaml`).
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Callable
from dataclasses import replace

from agent.run.diagnosis import Diagnosis, Evidence
from agent.run.logtext import Line, got_over, is_code, read_lines, states_failure, without_guesses
from agent.run.reading import BY_RANK, Found, Reading
from agent.run.signatures import Rank, Rules, our_rules
from agent.run.suspects import suspects
from agent.run.told import agents_word, stack, trainers_word

TAIL = 12
"""Of the lines that tell numbers, the last ones say whether these go wrong at the end."""
LOW_MEMORY = 0.03
"""Share of the memory that was free below which a kill is put down to memory, whoever did it."""
LOW_FOR_A_DAEMON = 0.1
"""The same for SIGTERM: from there on earlyoom sends it, unless it is told otherwise."""
ONCE = 0.55
"""A number that is none, said a single time."""
FAR = 0.8
"""Factor for what does not stand at the end of the log."""


def triage(evidence: Evidence, *, rules: Rules | None = None) -> Diagnosis:
    """Why it died. Pure: the same evidence gives the same diagnosis. `rules` are ours where none are given."""
    reading = Reading(evidence, rules or our_rules())
    steps: tuple[Callable[[Reading], Diagnosis | None], ...] = (
        agents_word,
        trainers_word,
        _exit_and_signal,
        _memory_events,
        _exceptions_and_devices,
        _tail,
        _anywhere,
        _what_errors_say,
        _nothing,
    )
    for step in steps:
        diagnosis = step(reading)
        if diagnosis is not None:
            line = diagnosis.line + evidence.first_line - 1 if diagnosis.line is not None else None
            return replace(diagnosis, line=line, suspects=suspects(diagnosis, evidence.changed))
    raise AssertionError("the last step always answers")


# --- exit code and signal -------------------------------------------------------------------------------------

CERTAIN = {
    signals.SIGBUS: "SIGBUS",
    signals.SIGILL: "SIGILL",
    signals.SIGXCPU: "SIGXCPU",
    signals.SIGXFSZ: "SIGXFSZ",
}
CANCELLED = re.compile(
    r"^(?:slurmstepd: error: )?\*\*\* (?:JOB|STEP) \S+ ON .*CANCELLED AT|^=>> PBS: job killed: walltime"
    r"|^TERM_RUNLIMIT|^scancel\b"
)
KILLED = re.compile(
    r"^(?:\S+: )?[Kk]illed$|^\S+: line \d+:\s+\d+ Killed\b|^\[\d+\]\s+\+?\s*\d+ killed\b|^zsh: killed\b|^\d+ killed +\S"
)


def _exit_and_signal(reading: Reading) -> Diagnosis | None:
    if reading.evidence.terminated:
        return _terminated(reading)
    if reading.signal == signals.SIGKILL:
        return _killed(reading)
    if reading.signal in CERTAIN and not _definite(reading):
        name = CERTAIN[signals.Signals(reading.signal)]
        return reading.diagnosis(name, name, "exit", sure=0.9)
    return None


def _terminated(reading: Reading) -> Diagnosis:
    """The kernel's memory killer never asks; earlyoom does, while there is still a little."""
    low = _low_memory(reading.evidence, share=LOW_FOR_A_DAEMON)
    if low is not None:
        reason = f"ended (SIGTERM) from outside when {low}"
        return reading.diagnosis("sigterm-low-memory", low, "telemetry", reason=reason, sure=0.7)
    return reading.diagnosis("outside-kill", "SIGTERM", "exit", reason="was ended (SIGTERM) from outside")


def _killed(reading: Reading) -> Diagnosis | None:
    """SIGKILL comes from the memory killer unless something else is known: a scheduler, a cause in the log, counters of
    the kernel that did not move."""
    evidence = reading.evidence
    cancelled = _first(reading.lines, CANCELLED)
    if cancelled is not None:
        if "TIME LIMIT" in cancelled.raw or "walltime" in cancelled.raw:
            return reading.diagnosis("scheduler-limit", cancelled, "exit", sure=0.95)
        found = reading.diagnosis("cancelled", cancelled, "exit", reason="somebody cancelled the job")
        return replace(found, crash_class="unknown")
    if evidence.cgroup_oom or evidence.host_oom:
        where = "of its control group" if evidence.cgroup_oom else "on this machine"
        counted = f"the kernel counted a memory kill {where}"
        said = _kernel_line(evidence.kernel) or counted
        return reading.diagnosis("oom-kill", said, "kernel", reason=f"killed: {counted}")
    if _definite(reading):
        return None
    low = _low_memory(evidence)
    if low is not None:
        return reading.diagnosis("sigkill-low-memory", low, "telemetry", reason=f"killed (SIGKILL) when {low}")
    if evidence.memory_events == "still":
        reason = "was killed (SIGKILL) from outside; the kernel's counters of memory kills did not move"
        return reading.diagnosis("outside-kill", "SIGKILL", "exit", reason=reason)
    return reading.diagnosis("sigkill", _last(reading.lines, KILLED) or _last_word(reading), "exit")


def _low_memory(evidence: Evidence, *, share: float = LOW_MEMORY) -> str | None:
    """What was free just before the end, where that was next to nothing."""
    free, total = evidence.free_gb, evidence.total_gb
    if free is None or not total or free > share * total:
        return None
    return f"{free:.2f} of {total:.1f} GiB were free just before"


def _definite(reading: Reading) -> bool:
    return reading.root is not None and reading.root.signature.rank <= Rank.SPECIFIC


# --- memory events --------------------------------------------------------------------------------------------


def _memory_events(reading: Reading) -> Diagnosis | None:
    """A kill inside the control group although the trainer itself was not the victim: a worker of it was."""
    if not reading.evidence.cgroup_oom:
        return None
    line = _kernel_line(reading.evidence.kernel) or "oom_kill count of the control group went up"
    return reading.diagnosis(
        "oom-kill", line, "kernel", reason="the kernel killed a process of the training for memory"
    )


def _kernel_line(kernel: str) -> str | None:
    found = _first(read_lines(kernel), re.compile(r"(?:Memory cgroup out of memory|Out of memory): |oom-kill:"))
    return found.raw.strip() if found else None


# --- exceptions and devices -----------------------------------------------------------------------------------

LIBRARY_FRAME = re.compile(
    r'^\s*File "[^"]*/(?:torch/(?:cuda|backends|_inductor|_dynamo|distributed)|triton|flash_attn|bitsandbytes'
    r"|aiter|xformers)/"
)


def _exceptions_and_devices(reading: Reading) -> Diagnosis | None:
    if reading.root is not None:
        return _by_line(reading, reading.root, sure=_less_sure(reading, reading.root))
    for said in read_lines(reading.evidence.kernel):
        found = reading.rules.match(said.text.strip())
        if found is not None and found.crash_class == "backend":
            return reading.by(found, said.raw.strip(), "kernel", sure=0.85)
    return _fatal_in_library(reading)


def _less_sure(reading: Reading, root: Found) -> float | None:
    """Another exception came after it: what was caught may have been got over. None where that is not so."""
    last = reading.burst[-1].line.number if reading.burst else root.line.number
    later = root.source == "traceback" and last > root.line.number and root.signature.rank > Rank.CAUSE
    return FAR * BY_RANK[root.signature.rank] if later else None


def _by_line(reading: Reading, found: Found, *, sure: float | None = None) -> Diagnosis:
    sentence = f"{found.signature.meaning}: {found.line.text.strip()[:160]}"
    return reading.by(found.signature, found.line, found.source, reason=sentence, sure=sure)


def _fatal_in_library(reading: Reading) -> Diagnosis | None:
    """A fatal signal whose innermost Python frame lies in a device library, or that came on touching the device."""
    if reading.signal not in (signals.SIGSEGV, signals.SIGABRT, signals.SIGFPE):
        return None
    frame = stack(reading)
    if frame is not None and LIBRARY_FRAME.match(frame.text):
        reason = f"{_signal_name(reading.signal)} inside a device library"
        return reading.diagnosis("fatal-in-library", frame, "traceback", reason=reason)
    command = _first(reading.lines, re.compile(r"^\$?\s*\S*python\S* -c .*\bimport torch\b"))
    silent_start = reading.evidence.phase in ("start", None) and not any(line.text.strip() for line in reading.lines)
    if command is not None or (silent_start and reading.evidence.phase == "start"):
        reason = f"{_signal_name(reading.signal)} while torch first touched the device: a bad wheel or driver"
        return reading.diagnosis("fatal-at-device-init", command or "(empty log)", "exit", reason=reason)
    return None


# --- the tail -------------------------------------------------------------------------------------------------

OVERFLOW = re.compile(
    r".*(?:\bOVERFLOW! Rank \d+ Skipping step\. Attempted loss scale: ([\d.]+), reducing to ([\d.]+)"
    r"|\bGradient overflow\.\s+Skipping step, loss scaler)"
)
RATIO = re.compile(r"^(?:\S+:\d+: )?(?:UserWarning: )?The average ratio of batch \([\d.]+\) exceeds threshold")
NAN_LOSS = re.compile(
    r"^.*?['\"]?\b(?:\w*loss|grad[_ ]norm|perplexity|ppl|entropy|reward\w*|kl)['\"]?\s*[:=|]\s*"
    r"['\"]?(?:tensor\()?(?:nan|[-+]?inf)\b"
    r"|^.*\|\s*nan\s*(?:\||$)|^.*: nan\b.*: nan\b",
    re.IGNORECASE,
)
NUMBERS = re.compile(r"\b(?:\w*loss|grad_norm)['\"]?\s*[:=|]\s*['\"]?[-+]?\d", re.IGNORECASE)


def _tail(reading: Reading) -> Diagnosis | None:
    killed = _last(reading.lines, KILLED)
    if killed is not None:
        return reading.diagnosis("killed", killed, "tail")
    bus = _last(reading.lines, re.compile(r"^(?:\S+: line \d+: +\d+ )?(?:Signal: |Caught signal 7 \()?Bus error\b"))
    if bus is not None:
        return reading.diagnosis("SIGBUS", bus, "tail")
    return _numbers_going_wrong(reading)


def _numbers_going_wrong(reading: Reading) -> Diagnosis | None:
    """No exception, but the last lines that tell numbers say again and again that these are no good."""
    wrong = ((OVERFLOW, "overflow"), (RATIO, "ratio"), (NAN_LOSS, "nan-loss"))
    telling = [
        line
        for line in reading.lines
        if any(one.match(line.text.strip()) for one, _ in wrong) or NUMBERS.search(line.text)
    ]
    for pattern, name in wrong:
        hits = [line for line in telling[-TAIL:] if pattern.match(line.text.strip())]
        if hits:
            again = len(hits) >= 2 or _nans(hits[-1]) >= 3
            return reading.diagnosis(name, hits[-1], "tail", sure=None if again else ONCE)
    return None


def _nans(line: Line) -> int:
    """Numbers of one line that are none."""
    return len(re.findall(r"[:=|]\s*['\"]?nan\b", line.text, re.IGNORECASE))


# --- further up, and nothing ----------------------------------------------------------------------------------

VARIABLE = re.compile(r"(?<![\w-])[A-Z_][A-Z0-9_]*=\S*|'\w+': (?:'[^']*'|\"[^\"]*\")")
DUMP = 4
"""So many variables in one line are an environment, whose values say nothing of the error."""


def _anywhere(reading: Reading) -> Diagnosis | None:
    found = reading.anywhere()
    return _by_line(reading, found, sure=FAR * BY_RANK[found.signature.rank]) if found is not None else None


def _without_environment(text: str) -> str:
    rest, count = VARIABLE.subn("", text)
    return rest if count >= DUMP else text


def _what_errors_say(reading: Reading) -> Diagnosis | None:
    """No rule knows a line of it: phrases in what errors say, memory before everything else, else the last."""
    best: Found | None = None
    for line in reversed(reading.lines):
        if not line.text.strip() or not states_failure(line) or got_over(reading.lines, line.number):
            continue
        signature = reading.rules.said(without_guesses(_without_environment(line.text)))
        if signature is None or reading.harmless(line) or is_code(reading.lines, line.number):
            continue
        if best is None or signature.rank < best.signature.rank:
            best = Found(signature, line, "said")
    return _by_line(reading, best) if best is not None else None


def _nothing(reading: Reading) -> Diagnosis:
    evidence = reading.evidence
    failure = evidence.failure
    if failure is not None:
        line = f"{failure.exception}: {failure.message}"
        return reading.diagnosis("unnamed", line, "failure.json", reason=failure.message)
    if reading.signal is not None:
        how = f"died of {_signal_name(reading.signal)} and says nothing of why"
        frame = stack(reading)
        if frame is not None:
            how = f"died of {_signal_name(reading.signal)} at {frame.text.strip()}"
        return reading.diagnosis("fatal-signal", frame or _last_word(reading), "nothing", reason=how)
    if evidence.exit_code == 0:
        how = "left with exit code 0 but wrote no summary"
        how += f" that can be read ({'; '.join(evidence.problems)})" if evidence.problems else ""
    elif evidence.exit_code is None:
        how = "nothing in the log is known to us"
    else:
        how = f"left with exit code {evidence.exit_code}, and nothing in the log is known to us"
    return reading.diagnosis("none", _last_word(reading), "nothing", reason=how)


def _last_word(reading: Reading) -> Line | str:
    if reading.burst:
        return reading.burst[-1].line
    spoken = [line for line in reading.lines if line.text.strip()]
    return spoken[-1] if spoken else "(empty log)"


def _first(lines: list[Line], pattern: re.Pattern[str]) -> Line | None:
    return next((line for line in lines if pattern.match(line.text.strip())), None)


def _last(lines: list[Line], pattern: re.Pattern[str]) -> Line | None:
    return _first(lines[::-1], pattern)


def _signal_name(number: int | None) -> str:
    if number is None:
        return "no signal"
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
