"""What it takes to run an experiment again: its recipe from its commit, the run that was recorded, what has changed
since.

It writes nothing into the campaign. How the two runs compare: `replay_result.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.campaign.lockbox import COMMIT, FILE, MODEL
from agent.campaign.recipes import RECIPES, loaded, texts_at, texts_of, version_of
from agent.campaign.repair import with_step
from agent.campaign.stairs import key_of, no_more
from agent.campaign.story import search_runs
from agent.contract import EVAL, HELD_OUT, Split
from agent.errors import Unavailable, UsageError, WorkspaceError
from agent.ledger.events import CampaignStarted, RunFinished, SharedLayerChanged
from agent.ledger.git import Repository
from agent.ledger.journal import CampaignState, Journal, Run
from agent.recipe.files import with_keys
from agent.recipe.places import kind_of, model_place
from agent.recipe.schema import Recipe
from agent.recipe.yardstick import Digests, data_file, verifier_files
from agent.run.remedies import Remedy

ARMS = ("candidate", "incumbent")


@dataclass(frozen=True)
class Recorded:
    """A run as the journal has it."""

    key: str
    seed: int
    out: Path
    """Its folder, which may be gone."""
    began: int
    """Number of the journal's line that planned it."""
    signature: str
    summary: Mapping[str, Any]
    """Empty where it left none."""
    ending: str
    """How it ended, in words, where it left no summary."""
    digests: Mapping[str, str]
    """Of the files that it left."""


@dataclass(frozen=True)
class Beside:
    """What a campaign gives its runs beside their recipe."""

    env: Mapping[str, str]
    """Variables of the shared layer."""
    mended: Mapping[str, str]
    """Files that the campaign has mended, by path."""
    model_commit: str | None
    notes: tuple[str, ...]
    """What a person should know of it, in words."""


NOTHING_BESIDE = Beside({}, {}, None, ())
"""For what belongs to no campaign."""


@dataclass(frozen=True)
class Again(Beside):
    """One experiment, ready to be run again."""

    campaign: str
    number: int
    arm: str
    of: int
    """Whose recipe it is: the idea's, or that of what it was compared with."""
    commit: str
    recipe: Recipe
    seed: int
    splits: tuple[Split, ...]
    recorded: Recorded | None
    changed: tuple[str, ...]
    """Files that decide a measurement and are not what they were."""
    known: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The campaign's digests by name."""

    @property
    def label(self) -> str:
        return f"{self.of:03d}-s{self.seed}" + (f"-beside-{self.number:03d}" if self.of != self.number else "")


def again(workspace: Path, journal: Journal, number: int, *, arm: str = ARMS[0], seed: int | None = None) -> Again:
    """Raises UsageError for no such idea or arm, WorkspaceError where git no longer has it, Unavailable where its model
    is gone."""
    state = journal.state()
    if state.started is None:
        raise UsageError("the campaign never began, so there is nothing to run again")
    if arm not in ARMS:
        raise UsageError(f"--arm {arm}: no such arm", hint=f"one of {', '.join(ARMS)}")
    version_of(state, number)  # refuses a number that there is not
    of = number if arm == ARMS[0] else _compared_with(state, number)
    recorded, words = _recorded(workspace, state, number, of, arm=arm, seed=seed)
    version, path = version_of(state, of), state.started.recipe_path
    own = _at_commit(workspace, state, of, version.commit)
    recipe, layer, env = _with_the_layer(loaded(own, path), state.shared_changes, recorded)
    known = digests_of(journal)
    mended = _mended(state, of)
    notes = [
        *words,
        *_about_the_layer(layer, len(state.shared_changes)),
        *_about_the_recipe(recorded, recipe, version.commit),
        *_about_the_mended(mended),
    ]
    return Again(
        campaign=state.campaign or "",
        number=number,
        arm=arm,
        of=of,
        commit=str(version.commit),
        recipe=recipe,
        seed=seed if seed is not None else recorded.seed if recorded else recipe.seed,
        splits=_splits(recorded),
        recorded=recorded,
        env=env,
        mended=mended,
        model_commit=_commit_of(recipe, known),
        notes=tuple(notes),
        changed=tuple(changed_files(workspace, recipe, known, mended)),
        known=known,
    )


def beside_of(journal: Journal, number: int, recipe: Recipe, *, with_keys_of_the_layer: bool = True) -> Beside:
    """What the campaign would give a run of this experiment's recipe now. Without the layer's keys, of a recipe that is
    taken as it is, these are not told as given either."""
    state = journal.state()
    changes, mended = list(state.shared_changes), _mended(state, number)
    if not with_keys_of_the_layer:
        changes = [one.model_copy(update={"values": {}}) for one in changes if one.env]
    notes = [*_about_the_layer(changes, len(changes)), *_about_the_mended(mended)]
    return Beside(state.shared_env, mended, _commit_of(recipe, digests_of(journal)), tuple(notes))


def _mended(state: CampaignState, number: int) -> dict[str, str]:
    return {name: text for name, text in texts_of(state, number).items() if not name.endswith(RECIPES)}


def _at_commit(workspace: Path, state: CampaignState, number: int, commit: str | None) -> dict[str, str]:
    """The recipe's files from git."""
    assert state.started is not None
    what = f"#{number}" if number else "the baseline"
    if commit is None:
        raise UsageError(f"{what} has no commit yet, so there is nothing to run again")
    repository = Repository(workspace)
    if repository.find(commit) is None:
        raise WorkspaceError(
            f"the commit of {what}, {commit[:12]}, is gone from this repository",
            where=str(workspace),
            hint=f"its branch was deleted and git has tidied up; `raft-agent diff {number}` has the recipe from the "
            "journal, and `raft-agent train` runs a file",
        )
    return texts_at(repository, commit, state.started.recipe_path)


def _with_the_layer(
    recipe: Recipe, changes: Sequence[SharedLayerChanged], recorded: Recorded | None
) -> tuple[Recipe, list[SharedLayerChanged], dict[str, str]]:
    """The recipe with the changes for all runs that were made before the recorded one; these changes; their variables.

    A change is written down once a run with it has ended well: that run is older than the change and had it all the
    same, with its variables in the recipe.
    """
    layer = [one for one in changes if recorded is None or one.seq < recorded.began]
    values = {key: value for change in layer for key, value in change.values.items()}
    env = {name: value for change in layer for name, value in change.env.items()}
    recipe = with_keys(recipe, values) if values else recipe
    if recorded is None or recipe.signature() == recorded.signature:
        return recipe, layer, env
    # it may have gone on after the change that it had shown to help
    shown = [one for one in layer if one.run == recorded.key]
    following = [one for one in changes if one not in layer]
    for one in [*following[:1], *shown]:
        tried = with_step(recipe, Remedy("shared", one.values, one.env, one.why))
        if tried.signature() == recorded.signature:
            return tried, [*layer, *([] if one in layer else [one])], env
    return recipe, layer, env


# --- which run was recorded --------------------------------------------------------------------------------


def _compared_with(state: CampaignState, number: int) -> int:
    if not number:
        raise UsageError("the baseline was compared with no other recipe", hint="leave out --arm incumbent")
    planned = state.experiments[number].planned
    return (planned.incumbent if planned else None) or 0


def _recorded(
    workspace: Path, state: CampaignState, number: int, of: int, *, arm: str, seed: int | None
) -> tuple[Recorded | None, list[str]]:
    """The run to compare with, and what to say of it: that of the seed, else what stood on the search split."""
    runs = runs_of(state, of)
    if seed is not None:
        same = [run for run in runs if run.words and run.words.seed == seed]
        if same:
            return _as_recorded(workspace, same[-1]), []
    by_key = {key_of(run): run for run in runs}
    judged = state.experiments[number].judged if number in state.experiments else None
    told = dict(judged.numbers.get("runs") or {}) if judged else {}
    first = list(told.get("search") or ()) if arm == ARMS[0] else search_runs(state, of)
    chosen = [by_key[key] for key in first if key in by_key] or runs[-1:]
    if not chosen:
        return None, ["the campaign has no run of it that has ended: there is nothing to compare with"]
    recorded = _as_recorded(workspace, chosen[0])
    if not recorded.summary:
        return recorded, [f"{recorded.key} left no summary: {recorded.ending}"]
    if seed is not None and seed != recorded.seed:
        return recorded, [
            f"no run of it had the seed {seed}: compared with {recorded.key}, whose seed is {recorded.seed}"
        ]
    return recorded, []


def runs_of(state: CampaignState, number: int) -> list[Run]:
    """The ended trainings of a recipe that count, in the order of the journal; of several starts in a folder the last.
    Those with a summary come last, a probe is none."""
    found: dict[str, Run] = {}
    void = no_more(state)
    for run in state.runs.values():
        words = run.words
        if words is None or run.finished is None or run.finished.ended_by == "lost" or run.id in void:
            continue
        idea = words.experiment == number and words.arm == "candidate"
        beside = key_of(run).startswith(f"{number:03d}-incumbent-")
        baseline = not number and words.role == "baseline" and words.arm is None
        if idea or beside or baseline:
            found[key_of(run)] = run
    return sorted(found.values(), key=lambda run: bool(run.finished and run.finished.summary))


def _as_recorded(workspace: Path, run: Run) -> Recorded:
    words, ended = run.words, run.finished
    assert words is not None
    assert ended is not None
    told = ended.model_extra or {}
    diagnosis = told.get("diagnosis") or {}
    ending = (
        f"{diagnosis.get('crash_class')}: {diagnosis.get('reason')}" if diagnosis else ended.reason or ended.ended_by
    )
    began = (run.planned or words).seq
    summary, left = dict(ended.summary or {}), dict(told.get("left") or {})
    return Recorded(
        key_of(run), words.seed, workspace / words.out, began, words.recipe_signature, summary, ending, left
    )


def _splits(recorded: Recorded | None) -> tuple[Split, ...]:
    """Those that were evaluated then."""
    metrics = (recorded.summary.get("metrics") or {}) if recorded else {}
    return tuple(split for split in HELD_OUT if split in metrics) or ("search",)


# --- what has changed since --------------------------------------------------------------------------------


def digests_of(journal: Journal) -> dict[str, str]:
    """What the campaign began with and what its runs have told first, by name (`lockbox.py`)."""
    known: dict[str, str] = {}
    for event in journal.events():
        told = event.model_extra or {}
        if isinstance(event, CampaignStarted):
            known = dict(told.get("lockbox") or {}) | known
        elif isinstance(event, RunFinished):
            known = dict(told.get("used") or {}) | known
    return known


def changed_files(
    workspace: Path, recipe: Recipe, known: Mapping[str, str], mended: Mapping[str, str]
) -> Iterator[str]:
    """Data, verifier and local model that are not what they were. Unavailable where the model is gone."""
    digests = Digests()
    data = data_file(recipe)
    names = {*([data] if data else []), *verifier_files(recipe.task.verifier, base=workspace)}
    names |= {name.removeprefix(FILE) for name in known if name.startswith(FILE)}
    for name in sorted(names - set(mended)):
        then, now = known.get(f"{FILE}{name}"), digests.of(workspace / name)
        if then is not None and then != now:
            yield f"{name} ({'gone' if now == 'missing' else 'another content'})"
    source = recipe.model.source
    kind, prefix = kind_of(source, base=workspace), _model_prefix(recipe)
    files = [name.removeprefix(prefix) for name in sorted(known) if name.startswith(prefix)]
    if kind == "hub" and files and COMMIT not in files:
        kind = "folder"  # that is gone; its name could be a hub's
    if kind not in ("folder", "gguf"):
        return
    place = model_place(workspace, source)
    there = place.is_file() if kind == "gguf" else place.is_dir()
    if not there:
        raise Unavailable(
            f"the model of that run is gone: no {'file' if kind == 'gguf' else 'folder'} {source}",
            hint="put it back at that place; a replay of another model would be another experiment",
        )
    for file in files if kind == "folder" else ():
        if "." in file and digests.of(place / file) != known[f"{prefix}{file}"]:
            yield f"{file} of the model {source}"


def _model_prefix(recipe: Recipe) -> str:
    model = recipe.model
    return f"{MODEL}{model.source}{f'@{model.revision}' if model.revision else ''} "


def _commit_of(recipe: Recipe, known: Mapping[str, str]) -> str | None:
    """Of a model of the hub, as the campaign's runs had it."""
    return known.get(f"{_model_prefix(recipe)}{COMMIT}")


def rows_are_as_left(recorded: Recorded) -> bool:
    """Whether the held-out rows of the recorded run are those that it left."""
    then = recorded.digests.get(EVAL)
    return then is None or Digests().of(recorded.out / EVAL) == then


def _about_the_layer(applied: list[SharedLayerChanged], all_of_them: int) -> Iterator[str]:
    for change in applied:
        settings = [f"{key}: {value}" for key, value in {**change.values, **change.env}.items()]
        yield f"with the campaign's change for all runs, {', '.join(settings)} ({change.why})"
    later = all_of_them - len(applied)
    if later:
        yield f"without {later} change{'s' if later > 1 else ''} for all runs that the campaign made after that run"


def _about_the_mended(mended: Mapping[str, str]) -> Iterator[str]:
    if mended:
        yield f"with {', '.join(mended)} as the campaign has mended it"


def _about_the_recipe(recorded: Recorded | None, recipe: Recipe, commit: str | None) -> Iterator[str]:
    if recorded is not None and recorded.signature != recipe.signature():
        yield (
            f"the recipe at {str(commit)[:12]} is read otherwise than {recorded.key} was: another version of "
            "raft-agent, or fixes that came after that run"
        )
