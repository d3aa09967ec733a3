"""The `raft-agent` command. The only place that prints errors: one message, what to do, the exit code, no traceback.

Commands import the rooms when they run, so that `--help` is instant.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

import typer

from agent import __version__
from agent.cli.app import app
from agent.cli.output import clean_output
from agent.errors import INTERRUPTED_EXIT_CODE, AgentError
from agent.text import one_line, redact


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    register()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    with clean_output():
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except AgentError as error:
        print_error(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        return _without_reader()
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # which typer turns into this
            return _without_reader()
        raise
    except typer.Exit as leave:
        return int(leave.exit_code)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}".replace(" : ", " "), file=sys.stderr)
        return 9
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a wrong argument, as typer words it
            print(f"error: {error.format_message()}\n  raft-agent --help lists the commands", file=sys.stderr)
            return int(error.exit_code)
        return bug(error)


def _without_reader() -> int:
    """The reader of a pipe has enough, as in `raft-agent log | head`: no failure, and nothing more to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def print_error(error: AgentError) -> None:
    where = f"{error.where}: " if error.where else ""
    print(f"{error.label}{where}{error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


def bug(error: Exception) -> int:
    """What nobody foresaw: the details go to a file, the terminal gets one line."""
    with tempfile.NamedTemporaryFile("w", prefix="raft-agent-", suffix=".txt", delete=False) as file:
        file.write(f"raft-agent {__version__}\n{redact(' '.join(sys.argv))}\n\n")
        file.write(redact("".join(traceback.format_exception(error))))
    print(f"error: a mistake in raft-agent itself: {type(error).__name__}: {one_line(str(error))}", file=sys.stderr)
    print(f"  the details are in {file.name}; nothing that was recorded is lost", file=sys.stderr)
    return 1


def register() -> None:
    """One file per group of commands; importing it adds them."""
    from agent.cli import (  # noqa: F401  (imported for effect)
        bench,
        campaigns,
        controls,
        differences,
        doctor,
        export,
        ideas,
        looking,
        rates,
        replays,
        report,
        simulate,
        studies,
        training,
        triage,
        watch,
        workspaces,
    )
