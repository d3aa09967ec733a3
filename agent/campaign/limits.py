"""What ran out of memory on this machine, kept beyond the campaign that met it.

One line a limit in `limits.jsonl` of the user's cache folder, with the machine that it holds for. A limit binds a
recipe that needs at least as much in every key that decides memory, while no more memory is free than there was then.
One that a recipe which has run contradicts is not believed: what ran out was something else's doing.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from agent.contract import Phase
from agent.files import append_line
from agent.hardware.probe import Machine
from agent.recipe.files import field_at
from agent.recipe.schema import Recipe
from agent.run.diagnosis import Diagnosis
from agent.run.remedies import Limit

LIMITS = "limits.jsonl"
EXPIRES_DAYS = 30
"""A machine changes, and a recipe that is never started cannot show that a limit no longer holds."""
MORE_MEMORY = 1.15
"""With this much more memory free than when it ran out, a limit binds no more."""


@dataclass(frozen=True)
class KnownLimit:
    limit: Limit
    phase: Phase | None
    """In which memory ran out."""
    free_gb: float | None
    """Host memory that was free before that run, GiB."""
    campaign: str = ""
    when: str = ""

    def binds(self, recipe: Recipe, *, free_gb: float | None) -> bool:
        if self.free_gb is not None and free_gb is not None and free_gb > MORE_MEMORY * self.free_gb:
            return False
        return self.limit.forbids(recipe)

    def expired(self, today: datetime.date) -> bool:
        try:
            learned = datetime.date.fromisoformat(self.when)
        except ValueError:
            return False
        return (today - learned).days > EXPIRES_DAYS

    @property
    def words(self) -> str:
        where = f" ({self.campaign}, {self.when})" if self.campaign else ""
        return f"{self.limit.why}{where}"

    def diagnosis(self) -> Diagnosis:
        """As if it had run and died again."""
        return Diagnosis(
            "oom",
            f"known not to fit on this machine: {self.words}",
            self.limit.why,
            "limits",
            "known-limit",
            phase=self.phase,
            confidence=0.9,
        )


@dataclass
class Limits:
    """Those that are known for one machine."""

    path: Path
    machine: str
    known: list[KnownLimit] = field(default_factory=list)

    @classmethod
    def read(cls, cache: Path, machine: Machine) -> Limits:
        """Lines that cannot be understood are passed over: a limit that is lost is learned again."""
        limits = cls(cache / LIMITS, machine_name(machine))
        try:
            lines = limits.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return limits
        for line in lines:
            known = _known_of(line, machine=limits.machine)
            if known is not None and not known.expired(datetime.date.today()):
                limits.known.append(known)
        return limits

    def binding(self, recipe: Recipe, *, free_gb: float | None) -> KnownLimit | None:
        return next((one for one in self.known if one.binds(recipe, free_gb=free_gb)), None)

    def about(self, source: str) -> list[KnownLimit]:
        """Those of a model."""
        return [one for one in self.known if one.limit.context.get("model.source") == source]

    def learn(self, one: KnownLimit) -> bool:
        """Remember it here and on disk. False where it was known. A disk that is full only costs the memory of it."""
        if any(_same(one.limit, other.limit) for other in self.known):
            return False
        self.known.append(one)
        row = {
            "machine": self.machine,
            "key": one.limit.key,
            "below": one.limit.below,
            "context": one.limit.context,
            "why": one.limit.why,
            "phase": one.phase,
            "free_gb": one.free_gb,
            "campaign": one.campaign,
            "when": one.when or datetime.date.today().isoformat(),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(row))
        except OSError:
            pass
        return True


def machine_name(machine: Machine) -> str:
    """What decides how much fits: the kind, the part, its memory and the host's."""
    card = f"-{machine.accelerator_memory_gb:.0f}G" if machine.accelerator_memory_gb else ""
    return f"{machine.kind}-{machine.arch or machine.name}{card}-{machine.memory_gb:.0f}G"


def contradicted(limit: Limit, ran_well: Iterable[Recipe]) -> bool:
    return any(limit.forbids(recipe) for recipe in ran_well)


def _same(one: Limit, other: Limit) -> bool:
    return one.key == other.key and one.context == other.context and other.below <= one.below


def _known_of(line: str, *, machine: str) -> KnownLimit | None:
    """None for a line of another machine, of another version of the program, or that was torn."""
    try:
        row = json.loads(line)
        if row["machine"] != machine or not all(map(field_at, (row["key"], *row["context"]))):
            return None
        free = row.get("free_gb")
        return KnownLimit(
            Limit(str(row["key"]), float(row["below"]), dict(row["context"]), str(row.get("why", ""))),
            phase=row.get("phase") if row.get("phase") in get_args(Phase) else None,
            free_gb=float(free) if free is not None else None,
            campaign=str(row.get("campaign", "")),
            when=str(row.get("when", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
