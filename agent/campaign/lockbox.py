"""The lockbox: what results are measured by is written down before the first run, and nothing is kept once it differs.

What decides a measurement has a name and a digest (`agent.recipe.yardstick`): locked keys, held-out rows, the verifier
and what it imports and reads, the model's files, libraries, and this program's own code. They are compared on the disk
before and after every run, when a campaign is resumed, and when something is judged; and with what the trainer says
that it really read, so that a file which was another one for a moment is found too. What a run leaves (its rows, its
summary, its checkpoint) has digests as well, from the moment it ended.

It does not repair: the campaign pauses, says what changed and what can be done, and counts nothing of what was measured
meanwhile. Against somebody who may change this program's memory, or the Python that it runs on, nothing here helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.campaign.seal import first_edited
from agent.contract import CHECKPOINT, EVAL, RECIPE, RUNG, SELECT, SUMMARY, Summary
from agent.errors import AgentError, InvalidFile
from agent.files import Stamp, stamp_or_none
from agent.ledger.events import CampaignStarted, Note, RunFinished
from agent.recipe.files import load_recipe
from agent.recipe.schema import Recipe
from agent.recipe.yardstick import (
    CODE,
    HELD_OUT_ROWS,
    LOCKED,
    Digests,
    code_files,
    data_file,
    differences,
    digest_of,
    digest_of_value,
    libraries,
    locked_values,
    present_code_digest,
    verifier_files,
)
from agent.run.diagnosis import Diagnosis

if TYPE_CHECKING:
    from agent.campaign.jobs import Job
    from agent.campaign.session import Session
    from agent.run.telemetry import RunRecord

SIGNATURE = "lockbox"
"""Of the diagnosis of a run that was measured by something else."""
FILE, MODEL, SOURCE = "file ", "model ", "code "
"""How names of files, of a model's files and of this program's begin."""
LEFT = (EVAL, SUMMARY, RECIPE, SELECT, RUNG)
"""Files of a run that verdicts are read from."""
NOT_OF_A_MODEL = frozenset({"bootstrap.json", "README.md", ".gitattributes"})
READ_OF_A_MODEL = (".json", ".jinja", ".txt", ".model", ".safetensors", ".tiktoken", ".bpe", ".vocab", ".spm")
"""Endings of what loading a model may read."""
COMMIT, FILES = "commit", "set of files"
MOST_HASHED_BYTES = 2 << 30
"""Of a checkpoint of a trainer that does not tell its digests itself."""
VERDICT = "Verdict"
"""Trailer of a record."""
CUSTOMIZED = ("sitecustomize.py", "usercustomize.py")
"""Modules that Python imports by itself where they are on its path (docs.python.org, library/site)."""
NEW_CAMPAIGN = "or start a new campaign with raft-agent run --new, which measures a baseline of its own"


class YardstickChanged(InvalidFile):
    """What results are measured by is not what it was when the campaign began. The campaign pauses."""

    crash_class = "data"


def close(recipe: Recipe, *, workspace: Path) -> dict[str, str]:
    """Name -> digest of everything that decides a measurement, as it is now; for `campaign_started`."""
    digests = Digests()
    code = {f"{SOURCE}{name}": digests.of(path) for name, path in code_files().items()}
    return {"version": __version__, **_present(recipe, workspace, digests), **code}


def _present(recipe: Recipe, workspace: Path, digests: Digests) -> dict[str, str]:
    data = data_file(recipe)
    files = [*([data] if data is not None else []), *verifier_files(recipe.task.verifier, base=workspace)]
    return {
        CODE: present_code_digest(),
        LOCKED: digest_of_value(locked_values(recipe)),
        **libraries(recipe),
        **{f"{FILE}{name}": digests.of(workspace / name) for name in files},
    }


class Lockbox:
    """The digests of one campaign, and what is compared with them."""

    def __init__(self, session: Session):
        self.session = session
        self._digests = Digests()
        self.known: dict[str, str] = {}
        self._left: dict[str, dict[str, str]] = {}
        """By run folder, the digests of what its last run left."""
        self.void: set[str] = set()
        """Ids of runs whose files somebody has changed since."""
        self._last_good = "when it was last running"
        self._stamps: dict[str, Stamp | None] = {}
        for event in session.journal.events():
            told = event.model_extra or {}
            if isinstance(event, CampaignStarted):
                self.known = dict(told.get("lockbox") or {})
            elif isinstance(event, Note) and "void" in told:
                self.void.add(told["void"])
            elif isinstance(event, RunFinished):
                self._remember(told.get("used") or {})
                self._left[_folder(event.run)] = dict(told.get("left") or {})

    def _remember(self, used: Mapping[str, str]) -> None:
        for name, digest in used.items():
            self.known.setdefault(name, digest)

    # --- on the disk ----------------------------------------------------------------------------------------

    def check(self, when: str) -> None:
        """Raises YardstickChanged where something is not as it was; `when` says in words what is about to happen."""
        if not self.known:
            raise YardstickChanged(
                "the campaign was started by a version of raft-agent that did not write down what it measures by",
                where=self.session.settings.campaign,
                hint=f"finish it with that version, {NEW_CAMPAIGN}",
            )
        changed = self._changed_on_disk()
        if changed:
            raise self._broken(changed, f"noticed {when}; it was as at the start {self._last_good}")
        self._last_good = when
        self._stamps = self._stamps_now()

    def _changed_on_disk(self) -> list[str]:
        recipe = self.session.recipe_of(0)
        mended = self._mended()
        present = _present(recipe, self.session.workspace, self._digests)
        wanted = {**self.known, **mended}
        on_disk = {name: digest for name, digest in present.items() if name not in mended}
        # Files that only the trainer has named: what a verifier reads, or imports by another way than a statement.
        further = [name for name in self._named_files() if name not in on_disk and name not in mended]
        on_disk |= {name: self._digests.of(self._path(name)) for name in further}
        return differences(wanted, on_disk)

    def _named_files(self) -> list[str]:
        return [name for name in self.known if name.startswith(FILE)]

    def _path(self, name: str) -> Path:
        return self.session.workspace / name.removeprefix(FILE)

    def _mended(self) -> dict[str, str]:
        """Files that the campaign itself has mended, before anything was measured: the mended text is what counts."""
        files = self.session.files_of(0)
        return {
            f"{FILE}{path}": digest_of(text.encode())
            for path, text in files.items()
            if not path.endswith((".yaml", ".yml"))
        }

    def _stamps_now(self) -> dict[str, Stamp | None]:
        return {name: stamp_or_none(self._path(name)) for name in self._named_files() if name not in self._mended()}

    # --- a run ----------------------------------------------------------------------------------------------

    def look_at(self, job: Job, record: RunRecord) -> list[str]:
        """What is wrong with a run that has ended with a summary, in words: it was measured by something else, was
        given something else, or is not what it says. Empty where nothing is."""
        summary = record.summary
        if summary is None or job.arm == "probe":
            return []
        told = _evaluation_of(summary)
        used = told.get("used") or {}
        wrong = [self._in_words(name) for name in differences({**self.known, **self._mended()}, used)]
        wrong += self._changed_model(summary)
        if any(name in self.known for name in used if name == HELD_OUT_ROWS):  # a run before has told all of its own
            wrong += [_words(name) for name in used if name.endswith(CUSTOMIZED) and name not in self.known]
        if not used:
            stamps = self._stamps_now()
            wrong += [
                f"{name.removeprefix(FILE)} (written to during the run)"
                for name, stamp in self._stamps.items()
                if stamps.get(name) != stamp
            ]
        wrong += [self._in_words(name) for name in self._changed_on_disk() if name not in used]
        return [*dict.fromkeys(wrong), *self._not_as_ordered(job, record, summary, told)]

    def _not_as_ordered(self, job: Job, record: RunRecord, summary: Summary, told: Mapping[str, Any]) -> list[str]:
        wanted = job.recipe.signature()
        wrong = []
        signatures = [summary.recipe_signature, told.get("recipe_signature") or wanted, _signature_in(record.out)]
        if any(signature != wanted for signature in signatures):
            wrong.append(f"{RECIPE} of the run (it trained or measured another recipe than it was given)")
        if summary.seed != job.seed:
            wrong.append(f"the seed of the run ({summary.seed} instead of {job.seed})")
        rows = told.get("rows")
        if rows is not None and self._digests.of(record.out / EVAL) != rows:
            wrong.append(f"{EVAL} of the run (not the rows that the evaluation wrote)")
        if job.evaluate is not None and Path(job.evaluate).name == CHECKPOINT:
            key = Path(job.evaluate).parent.name
            before = {name: digest for name, digest in self._left.get(key, {}).items() if name.startswith(CHECKPOINT)}
            now = _of_checkpoint(told) or self._hashed(Path(job.evaluate))
            if before and now and before != now:
                wrong.append(f"the checkpoint of {key} (not what that run delivered)")
        return wrong

    def _changed_model(self, summary: Summary) -> list[str]:
        """Of the files that the trainer has loaded, those that lie there otherwise now, or were others before."""
        model = summary.provenance.get("model") or {}
        source = _source_of(model)
        wrong = [
            f"{what} of the model {source}"
            for what, digest in self._what_model_it_was(model).items()
            if self.known.get(f"{MODEL}{source} {what}") not in (None, digest)
        ]
        for folder, files in (model.get("folders") or {}).items():
            place = self.session.workspace / folder
            if place.is_relative_to(self.session.runs_folder):
                continue  # a checkpoint, which has digests of its own
            for name, stamp in files.items():
                if name in NOT_OF_A_MODEL:
                    continue
                if stamp_or_none(place / name) != tuple(stamp):
                    wrong.append(f"{name} of the model {source} (replaced while or since it was loaded)")
                elif self.known.get(f"{MODEL}{source} {name}") not in (None, self._digests.of(place / name)):
                    wrong.append(f"{name} of the model {source}")
        return wrong

    def _what_model_it_was(self, model: Mapping[str, Any]) -> dict[str, str]:
        """Beside the digests of its files: its commit, and which files there are, because one that has come since is
        read as well (a chat template). Where its own code is trusted, that decides what is fetched, and when."""
        found = {COMMIT: str(model["commit"])} if model.get("commit") else {}
        if self.session.recipe_of(0).model.trust_remote_code:
            return found
        places = {self.session.workspace / folder: files for folder, files in (model.get("folders") or {}).items()}
        ours = [set(files) for place, files in places.items() if not place.is_relative_to(self.session.runs_folder)]
        names = sorted(name for name in set().union(*ours) - set(NOT_OF_A_MODEL) if name.endswith(READ_OF_A_MODEL))
        return found | ({FILES: digest_of_value(names)} if names else {})

    def commit_of_model(self) -> str | None:
        """Of a model of the hub, once a run has found it."""
        model = self.session.recipe_of(0).model
        return self.known.get(f"{MODEL}{_source_of(model.model_dump())} {COMMIT}")

    def take_in(self, record: RunRecord) -> dict[str, dict[str, str]]:
        """Of a run with which nothing is wrong: what it tells for the first time, and what it has left. For the
        journal."""
        summary = record.summary
        if summary is None:
            return {}
        told = _evaluation_of(summary)
        found = dict(told.get("used") or {})
        model = summary.provenance.get("model") or {}
        source = _source_of(model)
        found |= {f"{MODEL}{source} {what}": digest for what, digest in self._what_model_it_was(model).items()}
        for folder, files in (model.get("folders") or {}).items():
            place = self.session.workspace / folder
            if not place.is_relative_to(self.session.runs_folder):
                names = [name for name in files if name not in NOT_OF_A_MODEL]
                found |= {f"{MODEL}{source} {name}": self._digests.of(place / name) for name in names}
        used = {name: digest for name, digest in found.items() if name not in self.known and name not in self._mended()}
        self._remember(used)
        left = {name: self._digests.of(record.out / name) for name in LEFT if (record.out / name).exists()}
        if summary.ended_by != "evaluated" and not summary.stopped:
            left |= _of_checkpoint(told) or self._hashed(record.out / CHECKPOINT)
        self._left[record.out.name] = left
        return {"used": used, "left": left}

    def forget_what_was_left(self, out: Path) -> None:
        """A later start in the folder has written over it, and left nothing that counts."""
        self._left.pop(out.name, None)

    def _hashed(self, folder: Path) -> dict[str, str]:
        files = [path for path in sorted(folder.glob("*")) if path.is_file()]
        if sum(path.stat().st_size for path in files) > MOST_HASHED_BYTES:
            return {}
        return {f"{CHECKPOINT}/{path.name}": self._digests.of(path) for path in files}

    def changed_since(self, out: Path) -> list[str]:
        """Files of a finished run that are not what it left. One that is gone is not there to mislead."""
        left = {name: digest for name, digest in self._left.get(out.name, {}).items() if "/" not in name}
        now = {name: self._digests.of(out / name) for name in left}
        return [name for name in differences(left, now) if now[name] != "missing"]

    def set_aside(self, run: str, out: Path, words: str) -> None:
        """Write down that a run counts no more."""
        self.void.add(run)
        self.forget_what_was_left(out)
        self.session.tell("note", text=words, void=run)

    # --- a verdict ------------------------------------------------------------------------------------------

    def allow_keep(self, number: int, runs: Iterable[Path]) -> None:
        """Raises YardstickChanged where an experiment that is about to be kept does not rest on what was measured."""
        session = self.session
        for out in runs:
            changed = self.changed_since(out)
            if changed:
                raise self._broken(
                    [f"{name} of the run {out.name}" for name in changed],
                    f"noticed when #{number} was about to be kept for it",
                    hint="the run no longer counts: raft-agent resume repeats it",
                )
        experiment = session.state.experiments[number]
        branch = session.branches.experiment_branches().get(number) if session.branches else None
        if number and branch is not None and session.repository.resolve(f"refs/heads/{branch}") != experiment.commit:
            raise YardstickChanged(
                f"the branch {branch} no longer ends at the commit that was measured, so #{number} is not kept",
                where=session.settings.campaign,
                hint=f"put it back (git branch -f {branch} {experiment.commit}), then raft-agent resume",
            )

    # --- the journal ----------------------------------------------------------------------------------------

    def check_journal(self) -> None:
        """Raises YardstickChanged where the journal does not say what it said when verdicts were written: each verdict
        has the digest of all lines before it, and its record in git has its own."""
        session = self.session
        broken = first_edited(session.journal.path)
        if broken is None and session.branches is not None:
            told = {entry.experiment: entry.trailers.get(VERDICT) for entry in session.branches.log()}
            recorded = sorted(number for number, one in session.state.experiments.items() if one.recorded)
            judged = session.seal.verdicts()
            broken = next((number for number in recorded if told.get(number) != judged.get(number)), None)
        if broken is not None:
            raise YardstickChanged(
                f"the journal was edited: it is not what it was when #{broken} was judged",
                where=str(session.journal.path),
                hint=f"put back the journal as the campaign wrote it, {NEW_CAMPAIGN}",
            )

    # --- words ----------------------------------------------------------------------------------------------

    def refuse(self, job: Job, wrong: list[str]) -> YardstickChanged:
        """The error for a run that does not count."""
        return self._broken(wrong, f"in the run {job.key}, which does not count")

    def diagnosis(self, wrong: list[str]) -> Diagnosis:
        reason = f"measured by something else than the campaign began with: {', '.join(wrong)}"
        return Diagnosis("data", reason, reason, "the agent", SIGNATURE, confidence=1.0)

    def _in_words(self, name: str) -> str:
        if name == CODE:
            before = {part: digest for part, digest in self.known.items() if part.startswith(SOURCE)}
            now = {f"{SOURCE}{part}": self._digests.of(path) for part, path in code_files().items()}
            parts = [part.removeprefix(SOURCE) for part in sorted({*before, *now}) if before.get(part) != now.get(part)]
            more = f" and {len(parts) - 2} more of its files" if len(parts) > 2 else ""
            was = self.known.get("version")
            versions = f" ({was} at the start, {__version__} now)" if was != __version__ else ""
            return f"raft-agent itself{versions}: {', '.join(parts[:2]) or 'while it ran'}{more}"
        if name == LOCKED:
            return "locked keys of the recipe (evaluation, budget, seed, data set or verifier)"
        return _words(name)

    def _broken(self, wrong: list[str], when: str, *, hint: str | None = None) -> YardstickChanged:
        named = [self._in_words(name) if name in self.known else name for name in wrong]
        own = any(name.startswith("raft-agent itself") for name in named)
        back = f"go on with the version that it was started with ({self.known.get('version')})" if own else (
            "put it back as it was, and raft-agent resume goes on"
        )  # fmt: skip
        return YardstickChanged(
            f"what results are measured by has changed: {', '.join(named)}; {when}",
            where=self.session.settings.campaign,
            hint=hint or f"nothing is kept that was measured so; {back}, {NEW_CAMPAIGN}",
        )


# --- what is looked at -------------------------------------------------------------------------------------


def _words(name: str) -> str:
    return name.removeprefix(FILE)


def _source_of(model: Mapping[str, Any]) -> str:
    return f"{model.get('source')}{'@' + model['revision'] if model.get('revision') else ''}"


def _evaluation_of(summary: Summary) -> dict[str, Any]:
    """What the trainer tells of its evaluation; nothing where another trainer does not."""
    told = summary.provenance.get("evaluation")
    return dict(told) if isinstance(told, dict) else {}


def _of_checkpoint(told: Mapping[str, Any]) -> dict[str, str]:
    return {f"{CHECKPOINT}/{name}": digest for name, digest in (told.get("checkpoint") or {}).items()}


def _signature_in(out: Path) -> str | None:
    try:
        return load_recipe(out / RECIPE, edited=False).signature()
    except AgentError:
        return None


def _folder(run: str) -> str:
    """Of a run's id: repeats in the same folder have `.2` behind its name."""
    name, dot, number = run.rpartition(".")
    return name if dot and number.isdigit() else run
