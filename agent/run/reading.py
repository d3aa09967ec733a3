"""Evidence with its log read once: the exceptions at its end, the failure at the root, and how a line becomes a
diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from agent.run.diagnosis import Diagnosis, Evidence
from agent.run.judging import judge
from agent.run.logtext import PROGRESS, Line, exceptions, final_burst, got_over, is_exception, last_progress, read_lines
from agent.run.signatures import Rank, Rules, Signature
from agent.text import clean

NEAR = 300
"""Lines before the final exceptions in which a device's message counts as part of the same failure."""
FLOOD = 40
"""Lines above a device's message in which the same rule counts as the same failure."""
WENT_ON = 100
"""Lines of progress after which a device's message is something that the training got over."""
LONGEST_EVIDENCE = 500
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


@dataclass(frozen=True)
class Found:
    """A rule that fits a line."""

    signature: Signature
    line: Line
    source: str


class Reading:
    """Evidence with its log read once."""

    def __init__(self, evidence: Evidence, rules: Rules) -> None:
        self.evidence = evidence
        self.rules = rules
        self.lines = read_lines(evidence.log)
        self.signal = evidence.signal or _signal_of(evidence.exit_code)
        self.thrown = exceptions(self.lines)
        self.burst = final_burst(self.thrown, self.lines)
        self.root = self._root()

    def _root(self) -> Found | None:
        """The failure at the root: lowest rank, exceptions first, the last of them."""
        found: list[tuple[Rank, int, int, Found]] = []
        for one in self.burst:
            signature = judge(one, self.rules)
            if signature is not None:
                found.append((signature.rank, 0, -one.line.number, Found(signature, one.line, "traceback")))
        for line in self._near_the_end():
            signature = self.rules.match(line.text.strip())
            if signature is not None and signature.rank != Rank.GENERIC:
                found.append((signature.rank, 1, -line.number, Found(signature, line, "device")))
        return self._first_of(min(found, key=lambda entry: entry[:3])[3]) if found else None

    def _first_of(self, found: Found) -> Found:
        """Devices and drivers say the same thing many times, and what follows of it: the first of these lines."""
        if found.source != "device":
            return found
        first = found
        for line in reversed(self.lines[max(0, found.line.number - FLOOD) : found.line.number]):
            if self.rules.match(line.text.strip()) is found.signature and not is_exception(line):
                first = Found(found.signature, line, found.source)
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

    def anywhere(self) -> Found | None:
        """A device's message further up, where nothing at the end explains it: the last one of the lowest rank."""
        best: Found | None = None
        progress = 0
        for line in reversed(self.lines):
            progress += bool(PROGRESS.search(line.text))
            if progress > WENT_ON:
                break
            signature = self.rules.match(line.text.strip()) if not is_exception(line) else None
            if signature is None or signature.rank == Rank.GENERIC or got_over(self.lines, line.number):
                continue
            if best is None or signature.rank < best.signature.rank:
                best = Found(signature, line, "device")
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
