"""Mend a user's verifier file where its slip has only one mending, on the branch of the baseline and for this campaign.

Only before anything was measured: a verifier that changes later would make what comes after incomparable with what came
before. The user's own file is left as it is.
"""

from __future__ import annotations

from pathlib import Path

from agent.campaign.session import Session, inside
from agent.contract import Failure
from agent.files import write_atomic
from agent.run.diagnosis import Diagnosis
from agent.run.mend import mend
from agent.run.remedies import Remedy
from agent.run.told import raised_in


def verifier_fix(session: Session, experiment: int, failure: Failure | None, diagnosis: Diagnosis) -> Remedy | None:
    """The remedy for a verifier that fails by a slip; None where a person has to look."""
    if failure is None or failure.exception != "VerifierError" or diagnosis.crash_class != "typo":
        return None
    if experiment != 0 or session.ran_well():
        return None
    own = session.recipe_of(0).task.verifier.own_function()
    raised = raised_in(failure)
    if own is None or raised is None or raised.line is None or raised.path is None:
        return None
    name = own[0]
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return None  # outside the workspace: no commit can hold it, and the copy would be the user's own file
    if Path(raised.path).name != Path(name).name:
        return None  # it came from a file that the verifier imports
    try:
        text = session.files_of(0).get(name) or (session.workspace / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    mended = mend(text, exception=raised.type, message=raised.message, line=raised.line)
    if mended is None:
        return None
    why = f"{name}:{raised.line}: {mended.why} (mended for this campaign; your file is as it was)"
    return Remedy("fix", {}, {}, why, files={name: mended.text})


def mended_files(session: Session, experiment: int) -> Path | None:
    """Folder with the files other than recipes that fixes have changed, for the trainer; None where there are none."""
    own = {path: text for path, text in session.files_of(experiment).items() if not path.endswith((".yaml", ".yml"))}
    if not own:
        return None
    folder = session.folder / "mended" / f"{experiment:03d}"
    for path, text in own.items():
        target = inside(folder, path)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_atomic(target, text)
    return folder
