"""The repository of a workspace and the campaigns in it. See `branches.py` for what a campaign leaves in git, and
`objects.py` for how it is written without touching anything of the user's.

    repository = Repository(workspace.root)
    campaign = repository.start_campaign("night", base=repository.head().commit, files={"recipes/tiny.yaml": text})
    commit = campaign.commit_experiment(1, "raise-lr", {"recipes/tiny.yaml": new}, subject="learner: ...")
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import UsageError, WorkspaceError
from agent.ledger.branches import CampaignBranches, FinalBranch, KeptIdea, NothingKept, OutcomeCommits
from agent.ledger.messages import commit_message
from agent.ledger.objects import BRANCHES, NOTES_REF, Head, LogEntry, ObjectStore

__all__ = [
    "CampaignBranches",
    "FinalBranch",
    "Head",
    "KeptIdea",
    "LogEntry",
    "NothingKept",
    "OutcomeCommits",
    "Repository",
]


class Repository(ObjectStore):
    """An `ObjectStore` that knows about campaigns. `Repository(workspace.root)`; errors as there."""

    def list_campaigns(self) -> list[str]:
        """Names of the campaigns that have branches here."""
        return sorted({name.split("/")[3] for name in self.refs(f"{BRANCHES}raft/") if name.count("/") >= 4})

    def campaign_exists(self, name: str) -> bool:
        return bool(self.refs(f"{BRANCHES}raft/{name}/"))

    def start_campaign(
        self, name: str, *, base: str, files: Mapping[str, str], subject: str | None = None, body: str = ""
    ) -> CampaignBranches:
        """Make `raft/<name>/best`: one commit on top of `base` that holds `files` as the campaign found them.

        Called again for the same base it gives the branch as it is. Raises UsageError where the name belongs to a
        campaign with another base, WorkspaceError where a branch of the user's is in the way.
        """
        base = self.resolve(base)
        campaign = CampaignBranches(self, name)
        known = self.find(campaign.best_ref)
        if known is None:
            self._check_way_is_free(name)
            subject = subject or f"campaign {name}: start from {base[:12]}"
            trailers = {"Campaign": name, "Base": base}
            commit = self.commit(base, files, commit_message(subject, body=body, trailers=trailers))
            if not self.move(campaign.best_ref, commit, old=None, why="campaign start"):
                return self.start_campaign(name, base=base, files=files, subject=subject, body=body)
        _refuse_other_base(campaign, base)
        campaign.check_not_checked_out(campaign.best_ref)
        return campaign

    def open_campaign(
        self, name: str, *, base: str | None = None, last_known_best: str | None = None
    ) -> CampaignBranches:
        """The branches of a campaign that was started. A deleted `best` is put back at `last_known_best`.

        Raises WorkspaceError where there is no such branch and nothing to make it from, or where the user has it
        checked out (it would move under that checkout); UsageError where it is of a campaign with another `base`.
        """
        campaign = CampaignBranches(self, name)
        if self.find(campaign.best_ref) is None:
            commit = self.find(last_known_best) if last_known_best else None
            if commit is None:
                raise self._no_branch(campaign, last_known_best)
            self._check_way_is_free(name)
            self.move(campaign.best_ref, commit, old=None, why="put back")
        if base is not None:
            _refuse_other_base(campaign, self.resolve(base))
        campaign.check_not_checked_out(campaign.best_ref)
        return campaign

    def _no_branch(self, campaign: CampaignBranches, last_known_best: str | None) -> WorkspaceError:
        words, hint = f"there is no branch {campaign.best_branch}", ""
        if last_known_best:
            words += f", and its last commit {last_known_best[:12]} is not in this repository"
            refs = f"{BRANCHES}raft/{campaign.name}/*"
            hint = (
                f"fetch it from the repository in which the campaign ran: git fetch FOLDER '{refs}:{refs}'; "
                "raft-agent run --new starts another one"
            )
        return WorkspaceError(
            words,
            where=str(self.workspace),
            hint=hint or "`git branch --list 'raft/*'` shows the campaigns that there are",
        )

    def _check_way_is_free(self, name: str) -> None:
        """git cannot have a branch `raft` beside a branch `raft/x`."""
        for branch in ("raft", f"raft/{name}"):
            if self.find(BRANCHES + branch):
                raise WorkspaceError(
                    f"a branch called {branch} is in the way of raft/{name}/best",
                    where=str(self.workspace),
                    hint=f"rename it: git branch -m {branch} {branch.replace('/', '-')}-old",
                )
        self._check_notes()

    def _check_notes(self) -> None:
        """Better said now than when the first outcome is known. Notes of the user's under that name stay."""
        below = self.refs(f"{NOTES_REF}/")
        if below:
            raise WorkspaceError(
                f"{next(iter(below))} is in the way of {NOTES_REF}, where outcomes are noted",
                where=str(self.workspace),
                hint="move it to another name: git update-ref refs/notes/NAME OLD && git update-ref -d OLD",
            )
        if self.refs(NOTES_REF) and self.find(NOTES_REF) is None:
            raise WorkspaceError(
                f"{NOTES_REF} is not a commit, so no outcome can be noted there",
                where=str(self.workspace),
                hint=f"remove it: git update-ref -d {NOTES_REF}",
            )


def _refuse_other_base(campaign: CampaignBranches, base: str) -> None:
    if campaign.base != base:
        raise UsageError(
            f"there is a campaign {campaign.name} already, started from {campaign.base[:12]}",
            hint="choose another --name, or `raft-agent resume` to go on with it",
        )
