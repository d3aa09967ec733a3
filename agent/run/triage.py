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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agent.contract import CrashClass, Failure, Phase
from agent.run.logtext import (
    PROGRESS,
    Line,
    Thrown,
    exceptions,
    final_burst,
    got_over,
    is_code,
    is_exception,
    last_progress,
    read_lines,
    states_failure,
    without_guesses,
)
from agent.run.request import RunResult
from agent.run.signatures import Rank, Rules, Signature, our_rules
from agent.run.suspects import suspects
from agent.run.telemetry import log_tail, read_failure, read_heartbeat
from agent.run.watching import EndedBy
from agent.text import clean

NEAR = 300
"""Lines before the final exceptions in which a device's message counts as part of the same failure."""
TAIL = 12
"""Of the lines that tell numbers, the last ones say whether these go wrong at the end."""
FLOOD = 40
"""Lines above a device's message in which the same rule counts as the same failure."""
WENT_ON = 100
"""Lines of progress after which a device's message is something that the training got over."""
LOW_MEMORY = 0.03
"""Share of the memory that was free below which a kill is put down to memory, whoever did it."""
LONGEST_EVIDENCE = 500

MemoryEvents = Literal["moved", "still", "unreadable"]

CONFIDENCE: dict[str, float] = {
    "the agent": 0.97,
    "failure.json": 0.95,
    "kernel": 0.95,
    "telemetry": 0.8,
    "exit": 0.7,
    "tail": 0.75,
    "said": 0.6,
    "nothing": 0.4,
}
BY_RANK: dict[Rank, float] = {Rank.CAUSE: 0.97, Rank.SPECIFIC: 0.93, Rank.GENERIC: 0.75, Rank.CASCADE: 0.6}
ONCE = 0.55
"""A number that is none, said a single time."""
FAR = 0.8
"""Factor for what does not stand at the end of the log."""


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
    memory_events: MemoryEvents = "unreadable"
    """What the kernel's counters of memory kills did meanwhile, where they can be read."""
    free_gb: float | None = None
    total_gb: float | None = None
    """Host memory just before the end, GiB."""
    phase: Phase | None = None
    """Of the last heartbeat."""
    problems: tuple[str, ...] = ()
    """Files of the run that could not be understood."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """What this experiment changed: recipe key -> (from, to)."""


@dataclass(frozen=True)
class Diagnosis:
    crash_class: CrashClass
    reason: str
    """One sentence for people."""
    evidence: str
    """The line that proves it, as it was written."""
    source: str
    """Where that line was found: `the agent`, `failure.json`, `exit`, `kernel`, `telemetry`, `traceback`, `device`,
    `tail`, `said` (in an error's words, that no rule knows) or `nothing`."""
    signature: str | None
    """Name of the rule: the subtype."""
    key: str | None = None
    """Recipe key at fault, where the trainer named one."""
    suggestion: Any = None
    phase: Phase | None = None
    line: int | None = None
    """Line of the log on which the evidence stands, from 1; None where it is not in the log."""
    confidence: float = 0.5
    """How likely the class is right, by the kind of evidence."""
    remedy: str = ""
    """What a person can do."""
    suspects: tuple[str, ...] = ()
    """Of what the experiment changed, the keys that could be the cause, likeliest first."""


def evidence_of(
    result: RunResult, *, changed: Mapping[str, tuple[Any, Any]] | None = None, problems: tuple[str, ...] = ()
) -> Evidence:
    """What a finished run left in its folder and what the launcher saw."""
    heartbeat = read_heartbeat(result.out)
    last = result.last_samples[-1] if result.last_samples else None
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
        memory_events=result.memory_events,
        free_gb=last.available_gb if last else None,
        total_gb=last.total_gb if last else None,
        phase=heartbeat.phase if heartbeat else None,
        problems=problems,
        changed=changed or {},
    )


def triage(evidence: Evidence, *, rules: Rules | None = None) -> Diagnosis:
    """Why it died. Pure: the same evidence gives the same diagnosis. `rules` are ours where none are given."""
    reading = _Reading(evidence, rules or our_rules())
    steps: tuple[Callable[[_Reading], Diagnosis | None], ...] = (
        _agents_word,
        _trainers_word,
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
            return replace(diagnosis, suspects=suspects(diagnosis, evidence.changed))
    raise AssertionError("the last step always answers")


@dataclass(frozen=True)
class _Found:
    """A rule that fits a line."""

    signature: Signature
    line: Line
    source: str


class _Reading:
    """Evidence with its log read once."""

    def __init__(self, evidence: Evidence, rules: Rules) -> None:
        self.evidence = evidence
        self.rules = rules
        self.lines = read_lines(evidence.log)
        self.signal = evidence.signal or _signal_of(evidence.exit_code)
        self.thrown = exceptions(self.lines)
        self.burst = final_burst(self.thrown, self.lines)
        self.root = self._root()

    def _root(self) -> _Found | None:
        """The failure at the root: lowest rank, exceptions first, the last of them."""
        found: list[tuple[Rank, int, int, _Found]] = []
        for one in self.burst:
            signature = judge(one, self.rules)
            if signature is not None:
                found.append((signature.rank, 0, -one.line.number, _Found(signature, one.line, "traceback")))
        for line in self._near_the_end():
            signature = self.rules.match(line.text.strip())
            if signature is not None and signature.rank != Rank.GENERIC:
                found.append((signature.rank, 1, -line.number, _Found(signature, line, "device")))
        return self._first_of(min(found, key=lambda entry: entry[:3])[3]) if found else None

    def _first_of(self, found: _Found) -> _Found:
        """Devices and drivers say the same thing many times, and what follows of it: the first of these lines."""
        if found.source != "device":
            return found
        first = found
        for line in reversed(self.lines[max(0, found.line.number - FLOOD) : found.line.number]):
            if self.rules.match(line.text.strip()) is found.signature and not is_exception(line):
                first = _Found(found.signature, line, found.source)
        return first

    def _near_the_end(self) -> list[Line]:
        """Lines that are no exception lines, close to the final exceptions or, without any, to the end.

        What the training said before it went on is not part of its end, nor what it got over.
        """
        first = min((one.line.number for one in self.burst), default=len(self.lines))
        begin = max(0, first - NEAR)
        if self.burst:
            begin = max(begin, last_progress(self.lines[:first]))
        return [line for line in self.lines[begin:] if not is_exception(line) and not got_over(self.lines, line.number)]

    def anywhere(self) -> _Found | None:
        """A device's message further up, where nothing at the end explains it: the last one of the lowest rank."""
        best: _Found | None = None
        progress = 0
        for line in reversed(self.lines):
            progress += bool(PROGRESS.search(line.text))
            if progress > WENT_ON:
                break
            signature = self.rules.match(line.text.strip()) if not is_exception(line) else None
            if signature is None or signature.rank == Rank.GENERIC or got_over(self.lines, line.number):
                continue
            if best is None or signature.rank < best.signature.rank:
                best = _Found(signature, line, "device")
        return self._first_of(best) if best is not None else None

    def diagnosis(
        self, name: str, evidence: Line | str, source: str, *, reason: str | None = None, sure: float | None = None
    ) -> Diagnosis:
        """By the name of a rule. `reason` instead of its own words, `sure` instead of the usual confidence."""
        return self.by(self.rules[name], evidence, source, reason=reason, sure=sure)

    def by(
        self,
        rule: Signature,
        evidence: Line | str,
        source: str,
        *,
        reason: str | None = None,
        sure: float | None = None,
    ) -> Diagnosis:
        line = evidence if isinstance(evidence, Line) else self.line_with(evidence)
        said = clean(evidence.raw.strip() if isinstance(evidence, Line) else evidence)
        return Diagnosis(
            crash_class=rule.crash_class,
            reason=clean(reason or rule.meaning),
            evidence=said[:LONGEST_EVIDENCE],
            source=source,
            signature=rule.name,
            phase=self.evidence.phase,
            line=line.row + 1 if line is not None else None,
            confidence=CONFIDENCE.get(source, BY_RANK[rule.rank]) if sure is None else sure,
            remedy=rule.remedy,
        )

    def harmless(self, line: Line) -> bool:
        """An exception that did not end the training: of a destructor, of a tracker."""
        return is_exception(line) and all(one.line is not line for one in self.thrown)

    def line_with(self, text: str) -> Line | None:
        return next((line for line in reversed(self.lines) if line.raw.strip() == text), None)


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
            said = _stack(reading) or reason
            return reading.diagnosis("hang", said, "the agent", reason=f"it hung: {reason}")
        case "slow":
            return reading.diagnosis("slow", reason, "the agent", reason=f"it was too slow: {reason}")
        case "time_limit":
            return reading.diagnosis("time_limit", reason, "the agent", reason=f"it ran out of time: {reason}")
        case "memory":
            return reading.diagnosis("memory", reason, "the agent", reason=f"it took too much memory: {reason}")
        case "disk":
            return reading.diagnosis("disk", reason, "the agent", reason=f"it filled the disk: {reason}")
        case "flood":
            return reading.diagnosis("flood", reason, "the agent", reason=f"it flooded its log: {reason}")
        case "stop":
            return reading.diagnosis("stop", reason, "the agent", reason=f"no crash, it was stopped: {reason}")
        case "itself":
            return None


def _stack(reading: _Reading) -> Line | None:
    """Innermost frame of the stack that Python's fault handler wrote, if it did."""
    for position, line in enumerate(reading.lines):
        if re.match(r"(?:Current thread|Thread) 0x\w+.*\(most recent call first\)", line.text):
            for frame in reading.lines[position + 1 : position + 3]:
                if frame.text.strip().startswith("File "):
                    return frame
    return None


def _trainers_word(reading: _Reading) -> Diagnosis | None:
    """`failure.json`. A trainer that only knows that it failed (`unknown`) does not end the search."""
    failure = reading.evidence.failure
    if failure is None or failure.crash_class == "unknown":
        return None
    if failure.exception == "VerifierError":
        return _verifiers_word(reading, failure)
    where = f" ({failure.where})" if failure.where else ""
    text = failure.exception if failure.message == failure.exception else f"{failure.exception}: {failure.message}"
    known = reading.rules.match(text)
    line = next((line for line in reversed(reading.lines) if failure.message[:60] in line.raw), None)
    return Diagnosis(
        failure.crash_class,
        clean(f"{failure.message}{where}"),
        clean(text)[:LONGEST_EVIDENCE],
        "failure.json",
        f"failure-{failure.exception}",
        key=failure.key,
        suggestion=failure.suggestion,
        phase=failure.phase or reading.evidence.phase,
        line=line.row + 1 if line else None,
        confidence=CONFIDENCE["failure.json"],
        remedy=failure.hint or (known.remedy if known and known.crash_class == failure.crash_class else ""),
    )


IN_VERIFIER = "verifier"
"""How the subtypes of crashes in a user's verifier begin."""
RAISED = re.compile(
    r"(?:^|.*?[:,] )(?P<type>[A-Z]\w*(?:Error|Exception|Exit|Interrupt)): (?P<said>.*?)"
    r"(?: \((?P<path>[^()\n]+\.py):(?P<line>\d+)\))?$",
    re.DOTALL,
)
IN_A_VERIFIER: frozenset[CrashClass] = frozenset({"typo", "data", "resource"})


@dataclass(frozen=True)
class Raised:
    """An exception of a user's verifier, out of the message of a VerifierError."""

    type: str
    message: str
    path: str | None
    line: int | None


def raised_in(failure: Failure) -> Raised | None:
    """None where the verifier did not raise: it ran out of time, or ended its process."""
    found = RAISED.match(failure.message)
    if found is None:
        return None
    line = found["line"]
    return Raised(found["type"], found["said"].strip(), found["path"], int(line) if line else None)


def _verifiers_word(reading: _Reading, failure: Failure) -> Diagnosis:
    """A user's verifier that fails is the user's slip, a field that the rows lack, or what the rules say of its
    exception."""
    raised = raised_in(failure)
    rule = None
    if raised is not None and raised.type == "KeyError":
        rule = reading.rules["missing-field"]
    elif raised is not None:
        line = Line(0, 0, "", "")
        rule = judge(Thrown(line, raised.type, raised.message, (raised.path or "",), ()), reading.rules)
    known = rule if rule is not None and rule.crash_class in IN_A_VERIFIER else None
    said = f"{raised.type}: {raised.message}" if raised else failure.message
    return Diagnosis(
        known.crash_class if known else "data",
        f"the verifier fails: {failure.message}",
        said[:LONGEST_EVIDENCE],
        "failure.json",
        f"{IN_VERIFIER}-{known.name}" if known else IN_VERIFIER,
        phase=failure.phase or reading.evidence.phase,
        confidence=CONFIDENCE["failure.json"],
        remedy=failure.hint or "",
    )


# --- 2. exit code and signal -------------------------------------------------------------------------------

CERTAIN = {
    signals.SIGBUS: "SIGBUS",
    signals.SIGILL: "SIGILL",
    signals.SIGXCPU: "SIGXCPU",
    signals.SIGXFSZ: "SIGXFSZ",
}


def _exit_and_signal(reading: _Reading) -> Diagnosis | None:
    if reading.signal == signals.SIGKILL:
        return _killed(reading)
    if reading.signal in CERTAIN and not _definite(reading):
        name = CERTAIN[signals.Signals(reading.signal)]
        return reading.diagnosis(name, name, "exit", sure=0.9)
    return None


def _killed(reading: _Reading) -> Diagnosis | None:
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


def _low_memory(evidence: Evidence) -> str | None:
    """What was free just before the end, where that was next to nothing."""
    free, total = evidence.free_gb, evidence.total_gb
    if free is None or not total or free > LOW_MEMORY * total:
        return None
    return f"{free:.2f} of {total:.1f} GiB were free just before"


CANCELLED = re.compile(
    r"^(?:slurmstepd: error: )?\*\*\* (?:JOB|STEP) \S+ ON .*CANCELLED AT|^=>> PBS: job killed: walltime"
    r"|^TERM_RUNLIMIT|^scancel\b"
)


def _definite(reading: _Reading) -> bool:
    return reading.root is not None and reading.root.signature.rank <= Rank.SPECIFIC


# --- 3. memory events --------------------------------------------------------------------------------------


def _memory_events(reading: _Reading) -> Diagnosis | None:
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


# --- 4. exceptions and devices -----------------------------------------------------------------------------


def _exceptions_and_devices(reading: _Reading) -> Diagnosis | None:
    if reading.root is not None:
        return _by_line(reading, reading.root, sure=_less_sure(reading, reading.root))
    for said in read_lines(reading.evidence.kernel):
        found = reading.rules.match(said.text.strip())
        if found is not None and found.crash_class == "backend":
            return reading.by(found, said.raw.strip(), "kernel", sure=0.85)
    return _fatal_in_library(reading)


def _less_sure(reading: _Reading, root: _Found) -> float | None:
    """Another exception came after it: what was caught may have been got over. None where that is not so."""
    last = reading.burst[-1].line.number if reading.burst else root.line.number
    later = root.source == "traceback" and last > root.line.number and root.signature.rank > Rank.CAUSE
    return FAR * BY_RANK[root.signature.rank] if later else None


def _by_line(reading: _Reading, found: _Found, *, sure: float | None = None) -> Diagnosis:
    sentence = f"{found.signature.meaning}: {found.line.text.strip()[:160]}"
    return reading.by(found.signature, found.line, found.source, reason=sentence, sure=sure)


def judge(thrown: Thrown, rules: Rules) -> Signature | None:
    """The rule for one exception; some types mean one thing in one place and another elsewhere."""
    text = f"{thrown.type}: {thrown.message}" if thrown.message else thrown.type
    known = rules.match(text)
    match thrown.type:
        case "ModuleNotFoundError" | "ImportError":
            return known if known is not None and known.crash_class == "backend" else rules[_import(thrown)]
        case "KeyError" if known is None:
            return rules[_key_error(thrown)]
        case "OSError" | "RuntimeError" | "MemoryError" if "annot allocate memory" in thrown.message:
            return rules[_no_memory(thrown)]
        case "ValueError" | "Exception" if known is None:
            return _value_error(thrown, rules)
    return known


ACCELERATION = frozenset(
    {
        "flash_attn", "flash_attn_2_cuda", "flash_attn_interface", "triton", "bitsandbytes", "xformers", "apex",
        "deepspeed", "transformer_engine", "megatron", "nemo_automodel",
        "vllm", "liger_kernel", "torchao", "aiter", "amp_C",
        "cut_cross_entropy", "fused_layer_norm_cuda", "mamba_ssm", "causal_conv1d", "flashinfer", "sgl_kernel",
        "auto_gptq", "torch_xla", "intel_extension_for_pytorch", "onnxruntime", "tensorrt", "nccl", "amdsmi",
    }
)  # fmt: skip
"""Packages that a recipe's back end needs and no experiment of one's own provides."""


def _import(thrown: Thrown) -> str:
    """A package that does not fit its neighbour is the back end's fault; a module of one's own is a typo."""
    named = re.match(r"No module named '?([\w.]+)'?", thrown.message)
    from_library = re.match(
        r"cannot import name '\w+' from (?:partially initialized module )?'([\w.]+)'(.*)", thrown.message
    )
    inside_library = bool(thrown.frames) and _is_library(thrown.frames[-1])
    if named is not None:
        foreign = inside_library or named.group(1).split(".")[0] in ACCELERATION
    elif from_library is not None:
        package = from_library.group(1).split(".")[0]
        foreign = inside_library or package in LIBRARIES | ACCELERATION or _is_library(from_library.group(2))
    else:
        foreign = inside_library
    return "import-mismatch" if foreign else "own-import"


LIBRARIES = frozenset(
    {
        "torch", "torchvision", "torchaudio", "transformers", "trl", "peft", "accelerate", "datasets",
        "tokenizers", "numpy", "scipy", "pandas", "safetensors", "huggingface_hub", "lightning",
        "pytorch_lightning", "ray", "sglang", "unsloth", "verl", "openrlhf", "torchtune", "diffusers", "jax",
        "jaxlib", "flax", "tensorflow", "keras", "pydantic", "click", "protobuf", "google", "pyarrow",
        "sklearn", "wandb", "hydra", "omegaconf", "fairseq", "timm", "einops",
    }
)  # fmt: skip
"""What they lack in the version that is installed is no mistake of one's own."""


def _is_library(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path


ROWS = re.compile(
    r"(?i:\b(?:data_?set|datasets|dataloader|features?|examples?|rows?|batch|records?|columns?|samples?|collat\w+|inputs|instance)\b"
    r"|_dataset\b|dataset\[|/datasets/|/data/)|_KEY\]"
)


def _key_error(thrown: Thrown) -> str:
    """A column that a row lacks is data; any other key that is not there is the code's or the recipe's."""
    near = [text for text in thrown.above if text.strip()][-6:]
    of_a_table = any("pandas/" in frame for frame in thrown.frames)
    return "missing-field" if of_a_table or any(ROWS.search(text) for text in near) else "key"


def _no_memory(thrown: Thrown) -> str:
    """ENOMEM on gigabytes of weights is memory; on a small shared tensor or a fork it is a limit of the system."""
    size = re.search(r"unable to mmap (\d+) bytes", thrown.message)
    shared = any(re.search(r"shared_memory|reductions\.py|synchronize\.py|resource_sharer", f) for f in thrown.frames)
    small = size is not None and int(size.group(1)) < 64 * 1024 * 1024
    return "shared-memory-limit" if shared or small else "oom-host"


def _value_error(thrown: Thrown, rules: Rules) -> Signature | None:
    """A value that a command line or a constructor of the experiment's own refuses."""
    if re.match(
        r"(?:invalid literal for int|could not convert string to float"
        r"|[Uu]nknown (?:scheduler|optimizer|loss|model|task))",
        thrown.message,
    ):
        return rules["value"]
    return None


LIBRARY_FRAME = re.compile(
    r'^\s*File "[^"]*/(?:torch/(?:cuda|backends|_inductor|_dynamo|distributed)|triton|flash_attn|bitsandbytes'
    r"|aiter|xformers)/"
)


def _fatal_in_library(reading: _Reading) -> Diagnosis | None:
    """A fatal signal whose innermost Python frame lies in a device library, or that came on touching the device."""
    if reading.signal not in (signals.SIGSEGV, signals.SIGABRT, signals.SIGFPE):
        return None
    frame = _stack(reading)
    if frame is not None and LIBRARY_FRAME.match(frame.text):
        reason = f"{_signal_name(reading.signal)} inside a device library"
        return reading.diagnosis("fatal-in-library", frame, "traceback", reason=reason)
    command = _first(reading.lines, re.compile(r"^\$?\s*\S*python\S* -c .*\bimport torch\b"))
    silent_start = reading.evidence.phase in ("start", None) and not any(line.text.strip() for line in reading.lines)
    if command is not None or (silent_start and reading.evidence.phase == "start"):
        reason = f"{_signal_name(reading.signal)} while torch first touched the device: a bad wheel or driver"
        return reading.diagnosis("fatal-at-device-init", command or "(empty log)", "exit", reason=reason)
    return None


# --- 5. the tail -------------------------------------------------------------------------------------------

KILLED = re.compile(
    r"^(?:\S+: )?[Kk]illed$|^\S+: line \d+:\s+\d+ Killed\b|^\[\d+\]\s+\+?\s*\d+ killed\b|^zsh: killed\b|^\d+ killed +\S"
)


def _tail(reading: _Reading) -> Diagnosis | None:
    killed = _last(reading.lines, KILLED)
    if killed is not None:
        return reading.diagnosis("killed", killed, "tail")
    bus = _last(reading.lines, re.compile(r"^(?:\S+: line \d+: +\d+ )?(?:Signal: |Caught signal 7 \()?Bus error\b"))
    if bus is not None:
        return reading.diagnosis("SIGBUS", bus, "tail")
    return _numbers_going_wrong(reading)


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


def _numbers_going_wrong(reading: _Reading) -> Diagnosis | None:
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


# --- 6. further up, and nothing ------------------------------------------------------------------------------


def _anywhere(reading: _Reading) -> Diagnosis | None:
    found = reading.anywhere()
    return _by_line(reading, found, sure=FAR * BY_RANK[found.signature.rank]) if found is not None else None


VARIABLE = re.compile(r"(?<![\w-])[A-Z_][A-Z0-9_]*=\S*|'\w+': (?:'[^']*'|\"[^\"]*\")")
DUMP = 4
"""So many variables in one line are an environment, whose values say nothing of the error."""


def _without_environment(text: str) -> str:
    rest, count = VARIABLE.subn("", text)
    return rest if count >= DUMP else text


def _what_errors_say(reading: _Reading) -> Diagnosis | None:
    """No rule knows a line of it: phrases in what errors say, memory before everything else, else the last."""
    best: _Found | None = None
    for line in reversed(reading.lines):
        if not line.text.strip() or not states_failure(line) or got_over(reading.lines, line.number):
            continue
        signature = reading.rules.said(without_guesses(_without_environment(line.text)))
        if signature is None or reading.harmless(line) or is_code(reading.lines, line.number):
            continue
        if best is None or signature.rank < best.signature.rank:
            best = _Found(signature, line, "said")
    return _by_line(reading, best) if best is not None else None


def _nothing(reading: _Reading) -> Diagnosis:
    evidence = reading.evidence
    failure = evidence.failure
    if failure is not None:
        line = f"{failure.exception}: {failure.message}"
        return reading.diagnosis("unnamed", line, "failure.json", reason=failure.message)
    if reading.signal is not None:
        how = f"died of {_signal_name(reading.signal)} and says nothing of why"
        frame = _stack(reading)
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


def _last_word(reading: _Reading) -> Line | str:
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
