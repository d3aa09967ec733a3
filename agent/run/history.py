"""The samples of a run, as many as a file of a few megabytes holds: the last minutes dense, older ones one in N.

N doubles whenever there are too many, so that what is kept of the past is spread evenly over it, however long the run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.contract import Sample
from agent.files import append_line

MOST = 8192
"""Lines of `telemetry.jsonl`: some 3 MB, two hours and a quarter without thinning."""
DENSE = 600
"""Of which the last ones are never thinned: ten minutes."""


class History:
    """Samples in order. Not for several threads."""

    def __init__(self, earlier: Iterable[Sample] = (), *, most: int = MOST, dense: int = DENSE) -> None:
        """`earlier`: what earlier starts in the same folder have left. Raises ValueError where `dense` is more than a
        quarter of `most`."""
        if not 0 < 4 * dense <= most:
            raise ValueError(f"{dense} dense samples of at most {most}")
        self.most, self.dense = most, dense
        self.stride = 1
        """One in so many is kept of what is older than the dense part."""
        self._samples = list(earlier)
        self._thin()

    @property
    def samples(self) -> Sequence[Sample]:
        return self._samples

    @property
    def next_number(self) -> int:
        return self._samples[-1].n + 1 if self._samples else 0

    @property
    def starts(self) -> int:
        """How many starts of the trainer the samples are of."""
        return max((sample.start for sample in self._samples), default=0)

    def add(self, sample: Sample) -> bool:
        """True where older samples were thinned for it."""
        self._samples.append(sample)
        return self._thin()

    def since(self, t: float, *, start: int) -> list[Sample]:
        """Samples of that start from `t` on."""
        found = []
        for sample in reversed(self._samples):
            if sample.start != start or sample.t < t:
                break
            found.append(sample)
        return found[::-1]

    def _thin(self) -> bool:
        if len(self._samples) <= self.most:
            return False
        dense_from = self._samples[-self.dense].n
        self._keep(dense_from)
        while len(self._samples) > self.most - self.dense // 2:
            self.stride *= 2
            self._keep(dense_from)
        return True

    def _keep(self, dense_from: int) -> None:
        self._samples = [one for one in self._samples if one.n >= dense_from or one.n % self.stride == 0]


class TelemetryFile:
    """`telemetry.jsonl`. A disk that is full, or a folder that has gone, costs lines and is told; nothing is raised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the last line could not be written."""

    def append(self, sample: Sample) -> None:
        try:
            append_line(self.path, line_of(sample), durable=False)
            self.problem = None
        except OSError as error:
            self.problem = f"{self.path.name} cannot be written: {error.strerror or error}"

    def rewrite(self, samples: Iterable[Sample]) -> None:
        """Replace the file by these samples; where there is no room for that, it stays as it is."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text("".join(line_of(sample) + "\n" for sample in samples))
            temporary.replace(self.path)
        except OSError as error:
            self.problem = f"{self.path.name} cannot be thinned: {error.strerror or error}"
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def line_of(sample: Sample) -> str:
    return sample.model_dump_json(exclude_none=True, exclude_defaults=True)
