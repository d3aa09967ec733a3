"""What the agent and the trainer say of an end themselves: why the launcher ended it, `failure.json`, a verifier's
exception in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.contract import CrashClass, Failure
from agent.run.diagnosis import Diagnosis
from agent.run.judging import judge
from agent.run.logtext import Line, Thrown
from agent.run.reading import CONFIDENCE, LONGEST_EVIDENCE, Reading
from agent.text import clean

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


def agents_word(reading: Reading) -> Diagnosis | None:
    reason = reading.evidence.reason
    match reading.evidence.ended_by:
        case "hang":
            said = stack(reading) or reason
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


def stack(reading: Reading) -> Line | None:
    """Innermost frame of the stack that Python's fault handler wrote, if it did."""
    for position, line in enumerate(reading.lines):
        if re.match(r"(?:Current thread|Thread) 0x\w+.*\(most recent call first\)", line.text):
            for frame in reading.lines[position + 1 : position + 3]:
                if frame.text.strip().startswith("File "):
                    return frame
    return None


def trainers_word(reading: Reading) -> Diagnosis | None:
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


def _verifiers_word(reading: Reading, failure: Failure) -> Diagnosis:
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


def raised_in(failure: Failure) -> Raised | None:
    """None where the verifier did not raise: it ran out of time, or ended its process."""
    found = RAISED.match(failure.message)
    if found is None:
        return None
    line = found["line"]
    return Raised(found["type"], found["said"].strip(), found["path"], int(line) if line else None)
