"""How far a training falls after its peak, measured so that noise alone is no fall.

The best of many noisy cycles is above the last ones by luck. So the `select` prompts are split in two halves, by a
hash of their ids: the peak is picked on one, and how far the end lies below it is measured on the other; then the other
way round, and the mean of both is taken. The end is the mean of the last `end_window` cycles; a peak that is one of
them is no fall, as the mean of a course that still rises lies below its last cycle. (Where half of a recipe's peaks
are, its late fall says nothing: `peaks_at_the_end`.) Two falls are told apart:

own fall    The peak is that of the same run: what keeping the last cycles instead of the best one loses. A policy
            that goes up and down from cycle to cycle has one, however level its course.
late fall   The peak is that of the mean course of the *other* seeds of the same arm: what the recipe does to a run
            after its peak. A course that is level in the mean has none, whatever single runs do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def first_half(ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which prompts are in the first half: those whose ids have the smaller SHA-256; equally many, or one more."""
    order = sorted(range(len(ids)), key=lambda place: hashlib.sha256(ids[place].encode()).digest())
    first = np.zeros(len(ids), dtype=bool)
    first[order[: (len(ids) + 1) // 2]] = True
    return first


@dataclass(frozen=True)
class Courses:
    """Held-out accuracy of one arm, seeds x cycles, on each half of the prompts and on all."""

    first: Floats
    second: Floats

    @classmethod
    def of(cls, counts: Sequence[NDArray[np.int64]], *, samples: int, first: NDArray[np.bool_]) -> Courses:
        """`counts`: by seed, passes as cycles x prompts."""
        shares = [one / samples for one in counts]
        return cls(
            np.array([one[:, first].mean(axis=1) for one in shares]),
            np.array([one[:, ~first].mean(axis=1) for one in shares]),
        )

    @property
    def whole(self) -> Floats:
        """Both halves alike."""
        return (self.first + self.second) / 2

    def directions(self) -> tuple[tuple[Floats, Floats], ...]:
        """(the half on which to pick, the half on which to measure), both ways."""
        return (self.first, self.second), (self.second, self.first)


def end_of(course: Floats, window: int) -> Floats:
    """By seed, the mean of the last cycles."""
    return np.asarray(course[..., -window:].mean(axis=-1))


def delivered(courses: Courses) -> Floats:
    """By seed, the accuracy of the run's best cycle, picked on one half and measured on the other."""
    rows = np.arange(len(courses.first))
    best = [measure[rows, _last_best(pick)] for pick, measure in courses.directions()]
    return np.asarray((best[0] + best[1]) / 2)


def own_falls(courses: Courses, window: int) -> Floats:
    """By seed; see above."""
    falls = [_falls(measure, _last_best(pick), window) for pick, measure in courses.directions()]
    return np.asarray((falls[0] + falls[1]) / 2)


def _last_best(course: Floats) -> NDArray[np.intp]:
    """By seed, the best cycle; of equal ones the last, which is the one that a training delivers. With greedy answers
    on half of the prompts many are equal."""
    return np.asarray(course.shape[1] - 1 - course[:, ::-1].argmax(axis=1))


def late_falls(courses: Courses, window: int) -> Floats | None:
    """By seed; None where there is no other seed."""
    if len(courses.first) < 2:
        return None
    both = zip(courses.directions(), _peaks_of_others(courses), strict=True)
    falls = [_falls(measure, peaks, window) for (_, measure), peaks in both]
    return np.asarray((falls[0] + falls[1]) / 2)


def peaks_at_the_end(courses: Courses, window: int) -> float | None:
    """Share of the peaks of the late falls that lie in the last cycles, where the fall is 0 because nothing comes
    after; None where there is no other seed."""
    if len(courses.first) < 2:
        return None
    peaks = np.concatenate(_peaks_of_others(courses))
    return float((peaks >= courses.first.shape[1] - window).mean())


def _peaks_of_others(courses: Courses) -> list[NDArray[np.intp]]:
    """By seed, for either half to pick on: where the mean course of the other seeds is highest."""
    return [
        np.asarray(((pick.sum(axis=0) - pick) / (len(pick) - 1)).argmax(axis=1)) for pick, _ in courses.directions()
    ]


def _falls(measure: Floats, peaks: NDArray[np.intp], window: int) -> Floats:
    """By seed, from its peak to the end."""
    falls = measure[np.arange(len(measure)), peaks] - end_of(measure, window)
    return np.where(peaks >= measure.shape[1] - window, 0.0, falls)


def peak_cycle(courses: Courses) -> int:
    """Of the mean course over all seeds and prompts: for people, not for measuring a fall from."""
    return int(courses.whole.mean(axis=0).argmax())
