"""The branches of one campaign: ideas, fixes, records of outcomes, and the clean branch of what was kept.

    refs/heads/raft/<campaign>/best            linear, only ever extended: a start commit, then one record per idea
    refs/heads/raft/<campaign>/exp/NNN-slug    the idea, and its fixes; kept whatever the outcome
    refs/heads/raft/<campaign>/final           the kept ideas alone, for review and merge
    refs/notes/raft                            outcomes, on the experiment's tip and on its record

Every method that writes may be called again with the same words and then changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.errors import WorkspaceError
from agent.ledger.messages import commit_message, slug_of
from agent.ledger.objects import BRANCHES, LogEntry, ObjectStore


@dataclass(frozen=True)
class KeptIdea:
    """One commit of the final branch. `files` are whole texts by path, relative to the workspace."""

    files: Mapping[str, str]
    subject: str
    body: str = ""
    trailers: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FinalBranch:
    branch: str
    base: str
    commit: str
    commits: tuple[str, ...]
    files: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    added: int = 0
    """Commits that were not there before."""
    kept: int = 0
    """Of the commits, those of kept ideas; the others make the recipe what it was, or what it had to be to run."""
    beyond: int = 0
    """Commits that somebody has put on top."""


class NothingKept(WorkspaceError):
    """There is nothing to make a final branch of."""


@dataclass(frozen=True)
class OutcomeCommits:
    """Where an outcome was attached: the tip of the experiment's branch, and its record on `best`."""

    experiment: str | None
    record: str


class CampaignBranches:
    """The branches of one campaign. From `Repository.start_campaign` or `open_campaign`."""

    def __init__(self, repository: ObjectStore, name: str):
        self.repository = repository
        self.name = name
        self.best_branch = f"raft/{name}/best"
        self.final_branch = f"raft/{name}/final"
        self.best_ref = BRANCHES + self.best_branch
        self._start: LogEntry | None = None

    @property
    def best(self) -> str:
        """Tip of the best branch."""
        return self.repository.resolve(self.best_ref)

    @property
    def start(self) -> LogEntry:
        """The first commit of the campaign. Raises WorkspaceError where the branch is not one of a campaign's."""
        if self._start is None:
            options = ["--fixed-strings", f"--grep=Campaign: {self.name}", self.best_ref]
            found = [entry for entry in self.repository.log(options) if self._is_start(entry)]
            if not found:
                raise WorkspaceError(
                    f"{self.best_branch} was not made by a campaign of this name",
                    where=str(self.repository.workspace),
                    hint="rename the branch, or choose another --name",
                )
            self._start = found[-1]
        return self._start

    def _is_start(self, entry: LogEntry) -> bool:
        return entry.trailers.get("Campaign") == self.name and "Base" in entry.trailers

    @property
    def base(self) -> str:
        """The user's commit that the campaign started from."""
        return self.start.trailers["Base"]

    def log(self) -> list[LogEntry]:
        """The story: the start commit, then one record per idea, oldest first, with their notes."""
        return [self.start, *self._records()]

    def _records(self) -> list[LogEntry]:
        return self.repository.log([f"{self.start.commit}..{self.best_ref}"])

    def experiment_branches(self) -> dict[int, str]:
        """Experiment number -> branch name."""
        prefix = f"{BRANCHES}raft/{self.name}/exp/"
        found = {}
        for ref in self.repository.refs(prefix):
            match = re.match(r"(\d+)-", ref.removeprefix(prefix))
            if match:
                found[int(match.group(1))] = ref.removeprefix(BRANCHES)
        return found

    def experiment_log(self, number: int) -> list[LogEntry]:
        """The commits of one experiment, its idea first; empty where it has none."""
        branch = self.experiment_branches().get(number)
        if branch is None:
            return []
        entries = self.repository.log([f"{self.base}..{BRANCHES}{branch}"])
        return [
            entry
            for entry in entries
            if entry.experiment == number
            and entry.trailers.get("Campaign") == self.name
            and "Outcome" not in entry.trailers
        ]

    def commit_experiment(
        self,
        number: int,
        slug: str,
        files: Mapping[str, str],
        *,
        subject: str,
        body: str = "",
        trailers: Mapping[str, Any] | None = None,
        parent: str | None = None,
    ) -> str:
        """Commit an idea on a branch of its own, `raft/<campaign>/exp/NNN-slug`, and return the commit.

        `files` are whole texts by path. `parent` is what it starts from, the tip of `best` where not given. The
        trailers Experiment and Campaign are added. Where the number has this very change already, that commit is
        returned; where it has another one, WorkspaceError.
        """
        known = self.experiment_log(number)
        branch = self.experiment_branches().get(number)
        if known and self._holds(known[0].commit, files):
            return known[0].commit
        if branch is not None:
            raise WorkspaceError(
                f"branch {branch} already holds another change",
                where=str(self.repository.workspace),
                hint=f"rename it: git branch -m {branch} kept/{branch.rsplit('/', 1)[-1]}",
            )
        trailers = {**(trailers or {}), "Experiment": number, "Campaign": self.name}
        message = commit_message(subject, body=body, trailers=trailers)
        start = self.repository.resolve(parent) if parent else self.best
        commit = self.repository.commit(start, files, message)
        ref = f"{BRANCHES}raft/{self.name}/exp/{number:03d}-{slug_of(slug)}"
        if not self.repository.move(ref, commit, old=None, why=f"experiment {number}"):
            raise WorkspaceError(f"{ref} was made by somebody else just now", where=str(self.repository.workspace))
        return commit

    def commit_fix(
        self,
        number: int,
        files: Mapping[str, str],
        *,
        fix: int,
        subject: str,
        body: str = "",
        trailers: Mapping[str, Any] | None = None,
    ) -> str:
        """Commit fix 1, 2, ... of an experiment on its branch, and return the commit; one that is there is returned.

        Raises WorkspaceError where the experiment has no branch.
        """
        known = self.experiment_log(number)
        branch = self.experiment_branches().get(number)
        if not known or branch is None:
            raise WorkspaceError(f"experiment {number} has no branch to fix", where=str(self.repository.workspace))
        for entry in known:
            if entry.trailers.get("Fix") == str(fix):
                return entry.commit
        trailers = {**(trailers or {}), "Experiment": number, "Fix": fix, "Campaign": self.name}
        message = commit_message(subject, body=body, trailers=trailers)
        return self._extend(BRANCHES + branch, lambda tip: self.repository.commit(tip, files, message))

    def record_on_best(
        self,
        number: int,
        *,
        outcome: str,
        subject: str,
        files: Mapping[str, str] | None = None,
        body: str = "",
        trailers: Mapping[str, Any] | None = None,
    ) -> str:
        """One commit on `best` for an idea's outcome, and its id; a record that is there is returned.

        With `files` (a keep) the commit makes the change; without, it leaves the tree as it is and only tells.
        """
        for entry in self._records():
            if entry.experiment == number and "Outcome" in entry.trailers:
                return entry.commit
        trailers = {**(trailers or {}), "Experiment": number, "Campaign": self.name, "Outcome": outcome}
        message = commit_message(subject, body=body, trailers=trailers)
        return self._extend(self.best_ref, lambda tip: self.repository.commit(tip, files or {}, message))

    def push_outcome(
        self,
        number: int,
        *,
        outcome: str,
        note: str,
        subject: str,
        files: Mapping[str, str] | None = None,
        body: str = "",
        trailers: Mapping[str, Any] | None = None,
    ) -> OutcomeCommits:
        """All that git is told of an outcome: the record on `best`, the note on it and on the experiment's tip."""
        record = self.record_on_best(
            number, outcome=outcome, subject=subject, files=files, body=body, trailers=trailers
        )
        branch = self.experiment_branches().get(number)
        tip = self.repository.resolve(BRANCHES + branch) if branch else None
        for commit in (tip, record):
            if commit:
                self.repository.add_note(commit, note)
        return OutcomeCommits(tip, record)

    def finalize(self, ideas: Sequence[KeptIdea] | None = None) -> FinalBranch:
        """Make or extend `raft/<campaign>/final`: from the user's base, one commit per kept idea, its files only.

        Without `ideas` they are read off `best`: its records that change something. A recipe that was not
        committed as the campaign found it comes first, as a commit of its own. Raises WorkspaceError where nothing
        was kept, or the branch has commits that are not these.
        """
        ideas = self.kept_ideas() if ideas is None else ideas
        if not ideas:
            raise NothingKept(
                f"campaign {self.name} kept nothing, so there is nothing to take over",
                hint=f"`git log --notes=raft {self.best_branch}` tells what was tried",
            )
        wanted = [*self._uncommitted_start(), *ideas]
        ref = BRANCHES + self.final_branch
        tip = self.repository.find(ref)
        existing = self.repository.log([f"{self.base}..{ref}"]) if tip else []
        commits = self._build_final(wanted, existing)
        if len(commits) > len(existing):
            self.check_not_checked_out(ref)
            if not self.repository.move(ref, commits[-1], old=tip, why="finalize"):
                raise WorkspaceError(f"{ref} is being moved by somebody else", where=str(self.repository.workspace))
        return FinalBranch(
            self.final_branch,
            self.base,
            commits[-1],
            tuple(commits),
            files=tuple(sorted({path for idea in wanted for path in idea.files})),
            subjects=tuple(idea.subject for idea in wanted),
            added=max(0, len(commits) - len(existing)),
            kept=sum((idea.trailers or {}).get("Experiment") not in (None, "0", 0) for idea in ideas),
            beyond=max(0, len(existing) - len(commits)),
        )

    def kept_ideas(self) -> list[KeptIdea]:
        """The records on `best` that changed something, oldest first. What somebody else has committed there is no
        idea, and stays out."""
        ideas, before = [], self.start
        for entry in self._records():
            ours = "Outcome" in entry.trailers and entry.trailers.get("Campaign") == self.name
            if ours and entry.tree != before.tree:
                ideas.append(self._idea_of(before, entry))
            before = entry
        return ideas

    def _idea_of(self, before: LogEntry, entry: LogEntry) -> KeptIdea:
        """The files as the record put them on best; the words of the experiment, and what it proved."""
        paths = self.repository.changed_files(before.commit, entry.commit)
        files = {path: self.repository.read_file(entry.commit, path) for path in paths}
        told = self.experiment_log(entry.experiment) if entry.experiment is not None else []
        # the baseline's own commit changes nothing: what it kept is its last fix
        source = (told[-1] if entry.experiment == 0 else told[0]) if told else entry
        result = "Result:\n" + "".join(f"- {line}\n" for line in (entry.note or "").splitlines()) if entry.note else ""
        trailers = {key: value for key, value in source.trailers.items() if key != "Outcome"}
        return KeptIdea(files, source.subject, f"{_body_of(source)}\n\n{result}", trailers)

    def _uncommitted_start(self) -> list[KeptIdea]:
        paths = self.repository.changed_files(self.base, self.start.commit)
        if not paths:
            return []
        files = {path: self.repository.read_file(self.start.commit, path) for path in paths}
        subject = f"recipe as campaign {self.name} found it"
        return [KeptIdea(files, subject, trailers={"Campaign": self.name})]

    def _build_final(self, wanted: Sequence[KeptIdea], existing: Sequence[LogEntry]) -> list[str]:
        """The commits of the final branch, taking those that are there already as long as they say the same."""
        commits: list[str] = []
        for at, idea in enumerate(wanted):
            message = commit_message(idea.subject, body=idea.body, trailers=idea.trailers)
            if at < len(existing):
                same_words = existing[at].subject == message.partition("\n")[0]
                if not (same_words and self._holds(existing[at].commit, idea.files)):
                    raise WorkspaceError(
                        f"{self.final_branch} has other commits than those that were kept",
                        where=str(self.repository.workspace),
                        hint=f"rename it, then finalize again: git branch -m {self.final_branch} my-{self.name}",
                    )
                commits.append(existing[at].commit)
                continue
            parent = commits[-1] if commits else self.base
            commits.append(self.repository.commit(parent, idea.files, message))
        return commits

    def check_not_checked_out(self, ref: str) -> None:
        """Refuse to move a branch that a checkout of the user's stands on: its files would seem changed."""
        tree = self.repository.checked_out(ref)
        if tree is not None:
            branch = ref.removeprefix(BRANCHES)
            raise WorkspaceError(
                f"the branch {branch} is checked out, and the agent has to move it",
                where=str(tree),
                hint="stay on the commit without the branch (git switch --detach), then try again",
            )

    def _holds(self, commit: str, files: Mapping[str, str]) -> bool:
        """Whether `commit` has these files with these texts."""
        try:
            return all(self.repository.read_file(commit, path) == text for path, text in files.items())
        except WorkspaceError:
            return False

    def _extend(self, ref: str, build: Callable[[str], str]) -> str:
        """Put one commit on top of a branch; again on its new tip where somebody else moved it meanwhile."""
        for _ in range(5):
            tip = self.repository.resolve(ref)
            commit = build(tip)
            if self.repository.move(ref, commit, old=tip, why="extend"):
                return commit
        raise WorkspaceError(f"{ref} is being moved by somebody else", where=str(self.repository.workspace))


def _body_of(entry: LogEntry) -> str:
    """The message without its subject and its trailers."""
    body = entry.message.partition("\n")[2].strip()
    return body.rpartition("\n\n")[0] if entry.trailers else body
