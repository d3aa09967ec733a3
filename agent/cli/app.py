"""The command-line application that every group of commands adds itself to."""

from __future__ import annotations

import typer

from agent import __version__

EPILOG = (
    "Exit codes: 0 good, 1 a mistake in raft-agent itself, or what has no code of its own, 2 wrong argument, "
    "3 invalid recipe, playbook or data, 4 model or data not to be had, 5 workspace or git, 6 budget, 7 busy, "
    "8 training failed, 9 disk or limits, 10 not finite, 11 unsupported here, 130 paused, or stopped by Ctrl-C, "
    "143 watch ended by SIGTERM."
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Autonomous RAFT experiments: plan a change, commit it, train, judge, record. Start with: raft-agent init DIR",
    epilog=EPILOG,
)


def version(value: bool) -> None:
    if value:
        print(f"raft-agent {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
) -> None:
    pass
