"""What to do about a crash: pure functions from a diagnosis and two recipes to a changed recipe, or to why not.

Nothing here runs, commits or probes. Only so many remedies are tried on one idea. A remedy never
touches a locked key, and never gives back the parent: then nothing of the idea would be left to try.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from agent.contract import FIXES
from agent.errors import RecipeError
from agent.recipe.files import bounds_of, field_at, get_key, with_keys
from agent.recipe.schema import Recipe, leaf_keys, section_of
from agent.run.diagnosis import Diagnosis
from agent.run.suspects import (
    COSTS,
    SAMPLING,
    SIZES,
    expanding,
    expands,
    named_in,
    needs_less,
    phase_of,
)

SMALLEST_MICROBATCH = 64

Kind = Literal["fix", "shrink", "shared", "calm", "retry"]


@dataclass(frozen=True)
class Limit:
    """A size at which memory ran out, to be respected by later ideas."""

    key: str
    below: float
    """The key has to stay below this, unless the rest of the recipe needs less memory than it did then."""
    context: dict[str, Any]
    """The other keys that decide memory, as they were."""
    why: str

    def forbids(self, recipe: Recipe) -> bool:
        """The recipe needs at least as much memory as the one that ran out, in every key that decides it."""
        value = get_key(recipe, self.key)
        if not isinstance(value, int | float) or value < self.below:
            return False
        return all(not needs_less(key, _plain(get_key(recipe, key)), then) for key, then in self.context.items())


@dataclass(frozen=True)
class Remedy:
    kind: Kind
    values: dict[str, Any]
    """Recipe keys to set; empty for a plain retry."""
    env: dict[str, str]
    """Environment variables to set for the trainer."""
    why: str
    scope: Literal["experiment", "campaign"] = "experiment"
    """`campaign`: for all later runs, and only after a probe has shown that it helps."""
    limit: Limit | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of other files of the workspace to change, by path."""

    @property
    def needs_probe(self) -> bool:
        return self.scope == "campaign"


@dataclass(frozen=True)
class Response:
    """The answer to a crash. Without a remedy, `why` says why there is none."""

    remedy: Remedy | None
    why: str
    stops_campaign: bool = False
    """Every later run would meet the same."""
    missing: str | None = None
    """What a person has to supply."""
    limit: Limit | None = field(default=None)


def propose_remedy(
    diagnosis: Diagnosis, *, recipe: Recipe, parent: Recipe, history: Sequence[Remedy] = ()
) -> Remedy | None:
    """The remedy of `respond`, or None."""
    return respond(diagnosis, recipe=recipe, parent=parent, history=history).remedy


def respond(
    diagnosis: Diagnosis,
    *,
    recipe: Recipe,
    parent: Recipe,
    history: Sequence[Remedy] = (),
    ruled_out: Sequence[Remedy] = (),
    most: int = FIXES,
) -> Response:
    """What to do after `recipe`, made from `parent` (itself, for a baseline) and `history`, has crashed.

    `ruled_out`: remedies that a trial has shown not to help; they cost no attempt. `most`: attempts in all.
    """
    if diagnosis.signature == "stop":
        return Response(None, "it was stopped, it did not crash")
    case = _Case(diagnosis, recipe, parent, tuple(history), tuple(ruled_out))
    answer = _ANSWERS[diagnosis.crash_class](case)
    if answer.remedy is None:
        return answer
    if len(history) >= most:
        return Response(None, not_helped(len(history)), limit=answer.limit)
    if case.nothing_left(answer.remedy):
        return Response(None, f"nothing of the idea would be left: {answer.remedy.why}", limit=answer.limit)
    return answer


def not_helped(tried: int) -> str:
    return f"{tried} remed{'y has' if tried == 1 else 'ies have'} not helped" if tried else "no remedy is to be tried"


class _Case:
    def __init__(
        self,
        diagnosis: Diagnosis,
        recipe: Recipe,
        parent: Recipe,
        history: tuple[Remedy, ...],
        ruled_out: tuple[Remedy, ...] = (),
    ) -> None:
        self.diagnosis, self.recipe, self.parent, self.history = diagnosis, recipe, parent, history
        self.ruled_out = ruled_out
        self.moved = moved_keys(parent, recipe)

    def tried(self, kind: Kind) -> int:
        return sum(1 for remedy in self.history if remedy.kind == kind)

    def moves_any(self, *prefixes: str) -> list[str]:
        return [key for key in self.moved if key.startswith(prefixes)]

    def nothing_left(self, remedy: Remedy) -> bool:
        """After this remedy nothing of the idea differs from the parent; what remedies made smaller does not count."""
        if not self.moved or not remedy.values or remedy.scope == "campaign":
            return False
        shrunk = {key for one in (*self.history, remedy) if one.kind == "shrink" for key in one.values}
        moved = moved_keys(self.parent, with_keys(self.recipe, remedy.values))
        return not any(key not in shrunk or _still_the_idea(key, *pair) for key, pair in moved.items())


def _still_the_idea(key: str, parents: Any, value: Any) -> bool:
    """A key that a remedy has shrunk differs from the parent because of the idea still, and not of the remedy."""
    if key == "learner.gradient_accumulation":
        return False
    return expands(key, parents, value) if key in SIZES or key in COSTS else True


def moved_keys(parent: Recipe, recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Key -> (parent's value, recipe's value) where they differ. A section that one of them lacks is one key."""
    return _moved(parent.model_dump(mode="json"), recipe.model_dump(mode="json"), Recipe, "")


def _moved(old: Any, new: Any, section: type[BaseModel], prefix: str) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name, info in section.model_fields.items():
        before, after = old[name], new[name]
        inner = section_of(info.annotation)
        if inner is not None and isinstance(before, dict) and isinstance(after, dict):
            found |= _moved(before, after, inner, f"{prefix}{name}.")
        elif before != after:
            found[prefix + name] = (before, after)
    return found


# --- typo --------------------------------------------------------------------------------------------------


def _typo(case: _Case) -> Response:
    key = case.diagnosis.key
    if key is not None:
        return _mend_key(case, key)
    named = _implicated(case)
    if not named:
        return Response(None, "which of the changed keys is at fault cannot be told from the message")
    values = {name: case.moved[name][0] for name in named}
    why = f"back to the incumbent's value of {', '.join(named)}, which the message names"
    return Response(Remedy("fix", values, {}, why), why)


def _mend_key(case: _Case, key: str) -> Response:
    """The trainer named the key: its suggestion, the same value in the right type or range, or the parent's."""
    if leaf_keys().get(key, False):
        return Response(None, f"{key} is locked: it decides how results are measured", stops_campaign=not case.moved)
    if field_at(key) is None:
        return Response(None, f"{key} is no key of a recipe")
    current = _plain(get_key(case.recipe, key))
    before = _plain(get_key(case.parent, key))
    choices = [(case.diagnosis.suggestion, "as the trainer suggests"), (before, "back to the incumbent's value")]
    for value, reason in choices:
        if value is None or value == current or _invalid(case.recipe, {key: value}) is not None:
            continue
        why = f"{key}: {current!r} -> {value!r}, {reason}"
        return Response(Remedy("fix", {key: value}, {}, why), why)
    return Response(None, f"{key}: no other value is known to be right", stops_campaign=not case.moved)


def _implicated(case: _Case) -> list[str]:
    """Changed keys that the message mentions by name or by value; the only one that was changed."""
    named = named_in(f"{case.diagnosis.evidence} {case.diagnosis.reason}", case.moved)
    return named or (list(case.moved) if len(case.moved) == 1 else [])


def repair_values(values: Mapping[str, Any], *, parent: Recipe) -> tuple[dict[str, Any], str] | None:
    """Make a hypothesis' values valid on `parent`: nearest key, right type, into range, else without that key.

    (the values, what was mended in words), or None where nothing is left of them. Values that are valid come
    back as they are with empty words.
    """
    mended = dict(values)
    words: list[str] = []
    for _ in range(3 * len(values) + 1):
        problem = _invalid(parent, mended)
        if problem is None:
            return (mended, "; ".join(words)) if mended else None
        at = _entry(mended, problem.key)
        if at is None:
            return None
        words.append(_mend_entry(mended, at, problem, parent))
    return None


def _invalid(recipe: Recipe, values: Mapping[str, Any]) -> RecipeError | None:
    try:
        with_keys(recipe, values)
    except RecipeError as error:
        return error
    return None


def _entry(values: Mapping[str, Any], key: str | None) -> str | None:
    """Which of the values the key of an error belongs to; an error without a key may come from the last one."""
    if not values:
        return None
    if key is None:
        return list(values)[-1]
    return next(
        (name for name in values if key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")), None
    )


def _mend_entry(values: dict[str, Any], at: str, problem: RecipeError, parent: Recipe) -> str:
    """Change or drop one entry in place; what was done, in words."""
    value = values.pop(at)
    if field_at(at) is None:
        name = _nearest_key(at, problem.suggestion)
        if name is not None and name not in values:
            values[name] = value
            return f"{at} is no key, {name} is meant"
        return f"{at} is no key of a recipe and was left out"
    for better in (problem.suggestion, _as_type(value), _into_range(at, value)):
        if better is not None and better != value and _invalid(parent, {at: better}) is None:
            values[at] = better
            return f"{at}: {value!r} -> {better!r}"
    return f"{at}: {value!r} is not valid, the incumbent's {_plain(get_key(parent, at))!r} stays"


def _nearest_key(key: str, suggestion: object) -> str | None:
    if isinstance(suggestion, str) and field_at(suggestion) is not None:
        return suggestion
    near = difflib.get_close_matches(key, list(leaf_keys()), n=1, cutoff=0.75)
    return near[0] if near else None


def _as_type(value: Any) -> Any:
    """The number or switch that a text means; the whole number that a float is."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("true", "false", "yes", "no", "on", "off"):
            return text in ("true", "yes", "on")
        try:
            return int(text) if text.lstrip("+-").isdigit() else float(text)
        except ValueError:
            return None
    if isinstance(value, float) and math.isfinite(value):
        return round(value)
    return None


def _into_range(key: str, value: Any) -> Any:
    """The nearest value inside closed bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return None
    limits = bounds_of(key)
    inside = min(max(value, limits.get("ge", value)), limits.get("le", value))
    return int(inside) if isinstance(value, int) else inside


# --- oom ---------------------------------------------------------------------------------------------------


def _oom(case: _Case) -> Response:
    """What costs least first: the same step in pieces, recomputing, half of the idea's own change, fewer rows."""
    limit = _limit(case)
    for step in _oom_steps(case, limit):
        if step is not None and not _already(case, step.values, step.env):
            return Response(step, step.why, limit=limit)
    return Response(None, "there is nothing left to make smaller", limit=limit)


def _oom_steps(case: _Case, limit: Limit) -> Iterator[Remedy | None]:
    sampling = phase_of(case.diagnosis) == SAMPLING
    if case.tried("shrink") == 0:
        yield _fewer_rows(case, limit) if sampling else _smaller_pieces(case, limit)
    if not sampling:
        yield _recomputed(case, limit)
    yield _shrunk(case, limit)
    yield _fewer_rows(case, limit)
    if not sampling:
        yield _smaller_pieces(case, limit)


def _smaller_pieces(case: _Case, limit: Limit) -> Remedy | None:
    """The same optimizer step from microbatches of half the size."""
    learner = case.recipe.learner
    tokens, steps = learner.microbatch_tokens, learner.gradient_accumulation
    most = bounds_of("learner.gradient_accumulation").get("le", float("inf"))
    if tokens // 2 < max(SMALLEST_MICROBATCH, case.recipe.rollout.max_new_tokens) or 2 * steps > most:
        return None
    why = f"microbatch {tokens} -> {tokens // 2} tokens, accumulation {steps} -> {2 * steps} (the same step)"
    values = {"learner.microbatch_tokens": tokens // 2, "learner.gradient_accumulation": 2 * steps}
    return Remedy("shrink", values, {}, why, limit=limit)


def _recomputed(case: _Case, limit: Limit) -> Remedy | None:
    """Unless the idea is not to."""
    key = "learner.gradient_checkpointing"
    if case.recipe.learner.gradient_checkpointing is True or key in case.moved:
        return None
    why = "recompute activations instead of keeping them (the same step, a third slower)"
    return Remedy("shrink", {key: True}, {}, why, limit=limit)


def _fewer_rows(case: _Case, limit: Limit) -> Remedy | None:
    rollout = case.recipe.rollout
    rows = min(rollout.slots, rollout.prompts_per_cycle * rollout.samples_per_prompt)
    if rows < 2:
        return None
    why = f"{rows} -> {rows // 2} rows at a time while sampling (the samples' distribution stays)"
    return Remedy("shrink", {"rollout.slots": rows // 2}, {}, why, limit=limit)


def _shrunk(case: _Case, limit: Limit) -> Remedy | None:
    """The idea's own memory-expanding change, half of the way back; a choice goes back all of it."""
    for key in expanding(case.moved, phase_of(case.diagnosis)):
        old, new = case.moved[key]
        if isinstance(new, int | float) and not isinstance(new, bool) and isinstance(old, int | float):
            half = old + (new - old) // 2 if isinstance(new, int) else old + (new - old) / 2
            if half == new:
                half = old
            why = f"the idea's own change takes the memory: {key} {new} -> {half}, half of the way back to {old}"
            return Remedy("shrink", {key: half}, {}, why, limit=limit)
        why = f"the idea's own change takes the memory: {key} back to {old!r}"
        return Remedy("shrink", {key: old}, {}, why, limit=limit)
    return None


def _limit(case: _Case) -> Limit:
    """The size that ran out, with everything that it depends on."""
    grown = [key for key in expanding(case.moved, phase_of(case.diagnosis)) if key in SIZES]
    sampling = phase_of(case.diagnosis) == SAMPLING
    key = grown[0] if grown else "rollout.slots" if sampling else "learner.microbatch_tokens"
    context = {name: _plain(get_key(case.recipe, name)) for name in (*SIZES, *COSTS, "model.source") if name != key}
    value = get_key(case.recipe, key)
    return Limit(key, float(value), context, f"out of memory at {key} = {value}: {case.diagnosis.evidence[:120]}")


# --- backend -----------------------------------------------------------------------------------------------

ASKED_FOR = ("backend.", "execution.", "model.dtype", "rollout.engine")
"""Keys of the layer that fails, which an idea may itself have set."""
NO_CODE = ("hip-code-object", "no-device")
FAULTS = ("gpu-fault", "amdgpu-kernel", "hsa-status", "nvidia-xid")


def _backend(case: _Case) -> Response:
    """The shared layer, one step after another; an idea that itself asked for what fails is not mended."""
    asked = case.moves_any(*ASKED_FOR)
    if asked:
        return Response(
            None, f"the idea asks for what fails on this machine ({', '.join(asked)}); the incumbent does not"
        )
    if case.diagnosis.signature in NO_CODE:
        missing = (
            "a torch build with code for this GPU, and a driver that fits it "
            "(`python -m torch.utils.collect_env` shows what there is)"
        )
        return Response(None, case.diagnosis.reason, stops_campaign=True, missing=missing)
    steps = [step for step in _shared_steps(case) if not _already(case, *step[:2])]
    if not steps:
        return Response(None, "every change of the shared layer that is known has been tried")
    values, env, why = steps[0]
    return Response(Remedy("shared", values, env, why, scope="campaign"), why)


def _shared_steps(case: _Case) -> list[tuple[dict[str, Any], dict[str, str], str]]:
    """(keys, variables, why), the cheapest and likeliest first. Sources of the variables: hardware/presets.py."""
    recipe, said = case.recipe, case.diagnosis.evidence
    steps: list[tuple[dict[str, Any], dict[str, str], str]] = []
    if recipe.backend.compile:
        steps.append(({"backend.compile": False}, {}, "run without torch.compile"))
    if case.diagnosis.signature == "dtype-unsupported" and recipe.model.dtype != "float32":
        steps.append(({"model.dtype": "float32"}, {}, "compute in float32, which every device has"))
    if case.diagnosis.signature == "blas" or "BLAS" in said.upper():
        env = {"ROCBLAS_USE_HIPBLASLT": "0", "TORCH_BLAS_PREFER_HIPBLASLT": "0"}
        steps.append(({}, env, "use the other matrix library (ROCBLAS_USE_HIPBLASLT=0)"))
    if case.diagnosis.signature in FAULTS:
        steps.append(({}, {"HSA_ENABLE_SDMA": "0"}, "copy without the DMA engines (HSA_ENABLE_SDMA=0)"))
    if recipe.backend.attention in ("flash", "flex"):
        steps.append(({"backend.attention": "sdpa"}, {}, f"attention {recipe.backend.attention} -> sdpa"))
    if recipe.backend.attention != "eager":
        why = f"attention {recipe.backend.attention} -> eager, which needs no kernel of its own"
        steps.append(({"backend.attention": "eager"}, {}, why))
    if recipe.backend.environment != "none":
        steps.append(({"backend.environment": "none"}, {}, "run without the environment preset"))
    return steps


def _already(case: _Case, values: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    known = (*case.history, *case.ruled_out)
    return any(dict(values) == remedy.values and dict(env) == remedy.env for remedy in known)


# --- numeric, timeout, data, resource, unknown --------------------------------------------------------------


def _numeric(case: _Case) -> Response:
    """Less risk, once: a type with more range, else half the learning rate, else a tighter clip."""
    if case.tried("calm"):
        return Response(None, "less risk was tried once and has not helped")
    learner = case.recipe.learner
    if case.recipe.model.dtype == "float16":
        why = "float16 overflows above 65504: bfloat16 has the range of float32"
        return Response(Remedy("calm", {"model.dtype": "bfloat16"}, {}, why), why)
    if case.moves_any("rollout.temperature"):  # the learning rate may not move together with it
        norm = learner.max_grad_norm / 2
        why = f"clip gradients at {norm:g} instead of {learner.max_grad_norm:g}"
        return Response(Remedy("calm", {"learner.max_grad_norm": norm}, {}, why), why)
    rate = float(f"{learner.learning_rate / 2:.6g}")
    why = f"learning rate {learner.learning_rate:g} -> {rate:g}"
    return Response(Remedy("calm", {"learner.learning_rate": rate}, {}, why), why)


def _timeout(case: _Case) -> Response:
    """A hang looks like the machine and is tried once more; a limit that was reached will be reached again."""
    if case.diagnosis.signature in ("time_limit", "slow", "scheduler-limit", "SIGXCPU", "cancelled"):
        return Response(None, "it does not fit into its time; another try would not either")
    return _once_more(case, "it hung, which looks like the machine and not like the recipe")


ASKS_FOR_DATA = ("model.source", "model.revision", "task.", "prompt.", "rollout.max_total_sequence_length")
"""Keys by which an idea may itself ask for what is not there: also for prompts that its own length leaves no room."""


def _data(case: _Case) -> Response:
    """Nothing to try. If the idea did not bring it, every later run meets it too."""
    brought = case.moves_any(*ASKS_FOR_DATA)
    missing = case.diagnosis.reason
    if brought:
        return Response(None, f"the idea asks for what is not there ({', '.join(brought)}): {missing}", missing=missing)
    return Response(None, missing, stops_campaign=True, missing=missing)


def _resource(case: _Case) -> Response:
    if case.diagnosis.signature == "address-in-use":
        return _once_more(case, "a network port was taken; it is free again after a while")
    return Response(None, case.diagnosis.reason, stops_campaign=True, missing=case.diagnosis.reason)


def _unknown(case: _Case) -> Response:
    if case.diagnosis.signature in ("fatal-signal", "outside-kill"):
        return _once_more(case, f"it {case.diagnosis.reason}")
    return Response(None, "nothing is known about this failure")


def _once_more(case: _Case, why: str) -> Response:
    if case.tried("retry"):
        return Response(None, "it was tried once more and failed again")
    why = f"{why}: once more, unchanged"
    return Response(Remedy("retry", {}, {}, why), why)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


_ANSWERS = {
    "typo": _typo,
    "oom": _oom,
    "backend": _backend,
    "numeric": _numeric,
    "timeout": _timeout,
    "data": _data,
    "resource": _resource,
    "unknown": _unknown,
}
