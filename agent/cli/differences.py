"""`diff`: how two recipes of a campaign differ. It only reads."""

from __future__ import annotations

import typer

from agent.cli.app import app
from agent.cli.looking import JSON, NAME, state_of
from agent.cli.shared import here, print_json
from agent.cli.workspaces import campaign_name
from agent.text import clean


@app.command("diff")
def diff(
    new: str = typer.Argument(..., metavar="N", help="Number of an idea; 0 is the baseline; or best, lead, start."),
    old: str | None = typer.Argument(None, metavar="[M]", help="What to compare with. Default: what N changes."),
    campaign: str | None = NAME,
    json_output: bool = JSON,
) -> None:
    """Compare the recipes of two ideas.

    The keys that N has other than M, the textual diff, and what became of both. `start` is the recipe as the campaign
    found it, `best` the last one that was kept, `lead` what the next ideas build on.
    """
    from agent.campaign.diffs import difference
    from agent.recipe.change import describe_moves
    from agent.report.changes import changes_table
    from agent.report.terminal import console_for

    workspace = here()
    name = campaign_name(workspace, campaign)
    found = difference(workspace.root, state_of(workspace, name), new, old)
    if json_output:
        told = {
            "campaign": name,
            **{
                side: {"name": one.name, "number": one.number, "commit": one.commit, "outcome": outcome}
                for side, one, outcome in zip(("from", "to"), (found.old, found.new), found.outcomes, strict=True)
            },
            "changed": [{"key": key, "from": a, "to": b} for key, (a, b) in found.moves.items()],
            "change": describe_moves(found.moves),
            "diff": found.text,
            "notes": list(found.notes),
        }
        print_json(told)
        return
    for label, outcome in zip(("from", "to"), found.outcomes, strict=True):
        print(f"{label:<6}{clean(outcome)}")
    for note in found.notes:
        print(f"note  {clean(note)}")
    print()
    if found.moves:
        console_for().print(changes_table(found.moves))
    elif not found.notes:
        print("no key differs" + ("; the files do, in their words only" if found.text.strip() else ""))
    if found.text.strip():
        print(f"\n{found.text.rstrip()}")
