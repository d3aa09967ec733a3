"""`lr`: the learning-rate calculator. The same schedule functions as the trainer's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agent.cli.app import app
from agent.cli.shared import kind_of_path, print_json
from agent.errors import AgentError, ResourceError, UsageError

if TYPE_CHECKING:
    from agent.plan.advice import Recommendation
    from agent.recipe.rates import Course
    from agent.recipe.schema import Learner

MOST_CYCLES = 1000
PARTS = {"decay": "--decay", "step_every": "--step-every", "decay_share": "--decay-share", "values": "--values"}
"""What only some kinds of schedule read."""
PICTURE = "learning-rates.png"
"""Of `--visualize` in the current folder, where `--png` names no other."""


@app.command()
def lr(
    rate: float | None = typer.Option(None, help="Peak learning rate. Default: 5e-5."),
    cycles: int | None = typer.Option(None, help="Cycles of the training. Default: --horizon, the recipe's, or 8."),
    schedule: str | None = typer.Option(
        None, metavar="KIND", help="One schedule: constant, exponential, step, wsd, linear, cosine, list."
    ),
    decay: float | None = typer.Option(None, help="Factor a cycle (exponential, the default kind) or a step (step)."),
    step_every: int | None = typer.Option(None, help="Cycles between two steps of step."),
    decay_share: float | None = typer.Option(None, help="Last share of the horizon, over which wsd decays."),
    values: str | None = typer.Option(None, metavar="A,B,...", help="Factors of list, one a cycle; the last repeats."),
    floor: float | None = typer.Option(None, help="Lowest factor."),
    horizon: int | None = typer.Option(None, help="Cycles that the shape spans. Default: --cycles."),
    by: str | None = typer.Option(None, metavar="cycle|budget", help="What moves it: cycles done, or budget spent."),
    warmup: float | None = typer.Option(None, help="Share of the budget over which the rate rises from 0."),
    recipe: str | None = typer.Option(None, help="Take rate, schedule, warm-up and cycles from this recipe."),
    compare: bool = typer.Option(False, "--compare", help="The usual schedules side by side, and the one asked for."),
    visualize: bool = typer.Option(False, "--visualize", help=f"Draw them: as bars here, and into {PICTURE}."),
    png: Path | None = typer.Option(None, metavar="FILE", help="Draw them into this picture."),
    recommendations: bool = typer.Option(
        False, "--recommendations", help="What to try when: what is measured, what is a hypothesis, and whose it is."
    ),
    yaml: bool = typer.Option(False, "--yaml", help="Print the schedule as a learner: block for a recipe."),
    json_output: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Learning-rate calculator.

    Rates across cycles, as the trainer would set them. Without --schedule, --decay or --recipe the usual schedules.
    A table has the mean of each cycle.
    """
    asked = {
        "kind": schedule, "by": by, "horizon": horizon, "decay": decay, "step_every": step_every,
        "decay_share": decay_share, "floor": floor, "values": _numbers(values),
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    note = ""
    if recipe is not None:
        _refuse_with_recipe(asked, rate, warmup)
        learner, count, note = _of_recipe(recipe, cycles)
        own, title = "recipe", f"{Path(recipe).stem}: "
    else:
        name = "--cycles" if cycles is not None else "--horizon without --cycles"
        count = _count(name, cycles if cycles is not None else horizon or 8)
        learner = _learner(rate, warmup, {"by": "cycle", "horizon": count, **asked})
        own, title = ("yours" if {"kind", *PARTS} & set(asked) else ""), ""
    courses = _courses(learner, count, own=own, compare=compare)
    if yaml and not own:
        raise UsageError("--yaml: of which schedule?", hint="raft-agent lr --schedule exponential --decay 0.85 --yaml")
    if yaml and not json_output and (compare or recommendations):
        raise UsageError(
            "--yaml prints a block to paste and nothing else", hint="leave out --compare, --recommendations"
        )
    advice = _recommendations() if recommendations else []
    picture = _picture(courses, png, visualize=visualize)
    if json_output:
        print_json(_json(courses, learner, count, own=own, advice=advice, note=note, picture=picture, yaml=yaml))
    elif yaml:
        from agent.recipe.rates import yaml_block

        print(yaml_block(learner), end="")
        if picture is not None:
            print(f"drawn into {picture}", file=sys.stderr)  # what stands above is for a recipe
    else:
        from agent.recipe.rates import in_words

        only_advice = recommendations and not (compare or visualize or own or png)
        _print(
            [] if only_advice else courses,
            advice,
            title=f"{title}{in_words(learner)}" if own else "",
            note=note,
            picture=picture,
            visualize=visualize,
            learner=learner,
        )


# --- what was asked for --------------------------------------------------------------------------------------


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--values {text!r} is no list of numbers", hint="for example --values 1,1,0.5,0.25") from None
    if not found:
        raise UsageError("--values needs at least one factor", hint="for example --values 1,1,0.5,0.25")
    return found


def _refuse_with_recipe(asked: dict[str, Any], rate: float | None, warmup: float | None) -> None:
    given = [*asked, *(name for name, value in (("rate", rate), ("warmup", warmup)) if value is not None)]
    if given:
        option = "--schedule" if given[0] == "kind" else "--" + given[0].replace("_", "-")
        raise UsageError(f"{option} does not go with --recipe, which says it already", hint="leave one of the two out")


def _of_recipe(name: str, cycles: int | None) -> tuple[Learner, int, str]:
    """(learner, cycles, what to know about the cycles)."""
    from agent.cli.shared import here, recipe_path
    from agent.recipe.files import load_recipe

    workspace = here()
    path = recipe_path(workspace, name)
    found = load_recipe(workspace.root / path)
    own, horizon = found.budget.cycles, found.learner.lr_schedule.horizon
    if cycles is not None:
        note = "" if own in (None, cycles) else f"its budget is {own} cycles, not {cycles}"
        return found.learner, _count("--cycles", cycles), note
    if own is not None:
        return found.learner, _count("budget.cycles", own), ""
    note = f"its budget is no number of cycles: shown over {horizon}, the horizon of its schedule (--cycles changes it)"
    return found.learner, _count("learner.lr_schedule.horizon", horizon), note


def _count(name: str, cycles: int) -> int:
    if not 1 <= cycles <= MOST_CYCLES:
        raise UsageError(f"{name} {cycles} must be from 1 to {MOST_CYCLES}", hint="for example --cycles 8")
    return cycles


def _learner(rate: float | None, warmup: float | None, keys: dict[str, Any]) -> Learner:
    """What the options say, held against the schema: bounds are those of a recipe."""
    from pydantic import ValidationError

    from agent.recipe.schema import SCHEDULE_READS, Learner

    kind = keys.setdefault("kind", "list" if "values" in keys else "exponential" if _has_part(keys) else "constant")
    for name, option in PARTS.items():
        if name in keys and name not in SCHEDULE_READS.get(kind, {name}):
            reads = [PARTS[one] for one in PARTS if one in SCHEDULE_READS[kind]]
            raise UsageError(
                f"{option} is not read by a {kind} schedule", hint=f"it reads {', '.join(reads) or 'no such part'}"
            )
    if kind == "list" and "values" not in keys:
        raise UsageError("a list needs its factors", hint="for example --values 1,1,0.5,0.25")
    given = {"learning_rate": rate, "warmup": warmup}
    try:
        return Learner.model_validate(
            {"lr_schedule": keys, **{name: value for name, value in given.items() if value is not None}}
        )
    except ValidationError as error:
        raise _wrong(error.errors()[0]) from None


def _has_part(keys: dict[str, Any]) -> bool:
    return any(name in keys for name in PARTS)


def _wrong(detail: Any) -> UsageError:
    """pydantic's finding, by the option that it is about."""
    from agent.recipe.keys import describe_keys

    place = [part for part in detail["loc"] if isinstance(part, str)]
    name = place[-1]
    options = {"kind": "--schedule", "learning_rate": "--rate"}
    accepts = describe_keys(".".join(["learner", *place]))[0].accepts
    value = detail["input"]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    option = options.get(name, "--" + name.replace("_", "-"))
    expected = "numbers from 0 to 100" if name == "values" else _in_words(accepts)
    return UsageError(f"{option} {shown} must be {expected}", hint="raft-agent lr --help explains the options")


def _in_words(accepts: str) -> str:
    """`number; > 0, <= 1` -> `a number > 0 and <= 1`"""
    if accepts.startswith(("number", "whole number")):
        return f"a {accepts.replace('; ', ' ').replace(', ', ' and ')}"
    return f"one of {accepts.replace(' | ', ', ')}"


def _courses(learner: Learner, cycles: int, *, own: str, compare: bool) -> list[Course]:
    """The one that was asked for, then the usual ones where those are wanted."""
    from agent.recipe.rates import course, usual_courses

    mine = [course(own, learner, cycles)] if own else []
    return [*mine, *usual_courses(learner, cycles)] if compare or not own else mine


def _recommendations() -> list[Recommendation]:
    """Of the playbook of this workspace, or of the shipped one outside of any."""
    from agent.errors import WorkspaceError
    from agent.ledger.create import HYPOTHESES, shipped_folder
    from agent.ledger.workspace import find_workspace
    from agent.plan.advice import recommendations
    from agent.plan.playbook import load_playbook

    try:
        folder = find_workspace(Path.cwd()).hypotheses
    except WorkspaceError:
        folder = shipped_folder() / HYPOTHESES
    return recommendations(load_playbook(folder))


# --- what is said --------------------------------------------------------------------------------------------


def _picture(courses: list[Course], png: Path | None, *, visualize: bool) -> Path | None:
    """Where they are drawn into; None where that is not wanted, or the folder will not have it."""
    if png is not None:
        _draw(courses, png, name=f"--png {png}")
        return png
    if not visualize:
        return None
    path = Path(PICTURE)
    try:
        _draw(courses, path, name=PICTURE)
    except AgentError as error:  # the bars are there
        print(f"warning: no picture: {error.message} (--png FILE writes it elsewhere)", file=sys.stderr)
        return None
    return path


def _draw(courses: list[Course], path: Path, *, name: str) -> None:
    from agent.files import write_atomic
    from agent.ledger.disk import disk_errors
    from agent.report.rates import plot
    from agent.report.vega import to_png

    kind = kind_of_path(path)
    if kind not in ("", "file"):
        raise UsageError(f"{name} is no file to write: {kind}", hint="name a file, for example rates.png")
    if not path.parent.is_dir():
        raise UsageError(f"{name}: there is no folder {path.parent}", hint="make it first")
    picture = to_png(plot(courses))
    try:
        with disk_errors(path):
            write_atomic(path.resolve(), picture)
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror}", where=str(path), hint="name another file") from error


def _print(
    courses: list[Course],
    advice: list[Recommendation],
    *,
    title: str,
    note: str,
    picture: Path | None,
    visualize: bool,
    learner: Learner,
) -> None:
    import shutil

    from agent.report.rates import drawn, side_by_side, within_cycles

    width = max(16, shutil.get_terminal_size().columns)
    lines = [line for text in (title, note) if text for line in _wrapped(text, width)]
    if courses:
        lines += within_cycles(courses[0], width=width) if len(courses) == 1 else side_by_side(courses, width=width)
        if visualize:
            lines += ["", *drawn(courses, width=width)]
    if picture is not None:
        lines += _wrapped(f"drawn into {picture}", width)
    if advice:
        lines += [*([""] if lines else []), *_advice_lines(advice, learner, width=width)]
    print("\n".join(lines))


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(text, width=width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _advice_lines(advice: list[Recommendation], learner: Learner, *, width: int) -> list[str]:
    indent = " " * (12 if width >= 60 else 2)
    lines = _wrapped("What is known and what is supposed, each with its source:", width)
    told = False
    for one in advice:
        if one.schedule is not None and not told:
            told = True
            lines += ["", *_wrapped("Schedules to try against the same recipe at a constant rate:", width)]
        head = one.says if one.schedule is None else f"{one.name}: {one.do}{_ending(one, learner)}"
        lines += _wrapped(head, width, f"{one.kind:<12}", indent)
        if one.schedule is None:
            lines += _wrapped(one.do, width, f"{indent}-> ", f"{indent}   ")
        else:
            lines += _wrapped(one.says, width, indent, indent)
            if one.answers:
                fits = ", ".join(f"{symptom} {fit:g}" for symptom, fit in one.answers.items())
                lines += _wrapped(f"when: {fits}", width, indent, indent)
        tested = "" if one.schedule is not None or not one.tested_by else f"; tested by {', '.join(one.tested_by)}"
        lines += _wrapped(f"[{one.status}; source: {one.source}{tested}]", width, indent, indent)
    forms = [one.tested_by[0] for one in advice if one.schedule is not None]
    if forms:
        lines += ["", *_wrapped(f"Put one to the test: raft-agent run --only {forms[0]} --budget 8h", width)]
    return lines


def _ending(one: Recommendation, learner: Learner) -> str:
    """`, ends at 32% of the peak`; nothing for a form that leaves the shape to the recipe."""
    from pydantic import ValidationError

    from agent.recipe.rates import course, with_schedule

    common = learner.lr_schedule.model_dump(include={"by", "horizon"})
    if "kind" not in (one.schedule or {}):
        return ""
    try:
        changed = with_schedule(learner, {**common, **(one.schedule or {})})
    except ValidationError:  # it refers to what a run has shown, or to a recipe
        return ""
    return f", ends at {course('', changed, min(common['horizon'], MOST_CYCLES)).left:.0%} of the peak"


def _json(
    courses: list[Course],
    learner: Learner,
    cycles: int,
    *,
    own: str,
    advice: list[Recommendation],
    note: str,
    picture: Path | None,
    yaml: bool,
) -> dict[str, Any]:
    import dataclasses

    from agent.recipe.rates import yaml_block

    found: dict[str, Any] = {
        "cycles": cycles,
        "schedules": {
            one.name: {
                "learning_rate": one.learner.learning_rate,
                "warmup": one.learner.warmup,
                "lr_schedule": one.schedule.model_dump(include=set(one.schedule.keys_read())),
                "start": one.start,
                "mean": one.mean,
                "end": one.end,
            }
            for one in courses
        },
    }
    if note:
        found["note"] = note
    if picture is not None:
        found["png"] = str(picture)
    if yaml and own:
        found["yaml"] = yaml_block(learner)
    if advice:
        found["recommendations"] = [dataclasses.asdict(one) for one in advice]
    return found
