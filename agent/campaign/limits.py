"""What ran out of memory on this machine, kept beyond the campaign that met it.

One line a limit in `limits.jsonl` of the user's cache folder, with the machine that it holds for. A limit binds a
recipe that needs at least as much in every key that decides memory, while no more memory is free than there was then.
One that a recipe which has run contradicts is not believed: what ran out was something else's doing.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.contract import Phase
from agent.hardware.probe import Machine
from agent.recipe.schema import Recipe
from agent.run.remedies import Limit
from agent.run.triage import Diagnosis

LIMITS = "limits.jsonl"
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
            row = _row(line)
            if row is not None and row["machine"] == limits.machine:
                limits.known.append(_known(row))
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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
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


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        float(row["below"])
        return row if isinstance(row["context"], dict) and isinstance(row["key"], str) and row["machine"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _known(row: dict[str, Any]) -> KnownLimit:
    limit = Limit(row["key"], float(row["below"]), row["context"], str(row.get("why", "")))
    fields = {name.name for name in dataclasses.fields(KnownLimit)} - {"limit"}
    return KnownLimit(limit, **{name: row[name] for name in fields if name in row})
