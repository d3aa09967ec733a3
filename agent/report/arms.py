"""Words for untrained, baseline and best on one split (`Arms`): the same in `status` and at the end of `run`."""

from __future__ import annotations

from typing import Any

from agent.report.numbers import Numbers
from agent.report.snapshot import Arms


def gain_words(arms: Arms, numbers: Numbers) -> str:
    """`+27.3pp [+21.0, +33.5]`; nothing where it is not known."""
    if arms.gain is None:
        return ""
    return f"{numbers.difference(arms.gain.value)} {numbers.span(arms.gain)}".rstrip()


def path_words(arms: Arms, numbers: Numbers, *, number: int) -> str:
    """`on confirm: baseline 47.0% -> #1 74.2% (+27.3pp [+21.0, +33.5])`; nothing where nothing is known. `number`: of
    the best; 0 is the baseline."""
    path = [("untrained", arms.untrained), ("baseline", arms.baseline), (f"#{number}", arms.best if number else None)]
    told = " -> ".join(f"{name} {numbers.value(value)}" for name, value in path if value is not None)
    gain = gain_words(arms, numbers)
    return f"on {arms.split}: {told}{f' ({gain})' if gain else ''}" if told else ""


def arms_fields(arms: Arms) -> dict[str, Any]:
    """For programs: each number is of `split`."""
    gain = arms.gain
    return {
        "split": arms.split,
        "untrained": arms.untrained,
        "baseline": arms.baseline,
        "best": arms.best,
        "gain": gain.value if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
    }
