"""`raft-agent` with the fake trainer, as a process of its own: python commanded.py ARGUMENTS, in a workspace."""

from __future__ import annotations

import functools
import sys

from nights import MACHINE, fake_launch

from agent.campaign import open as opening
from agent.campaign.runs import Runner
from agent.cli import doctor
from agent.cli.main import main

if __name__ == "__main__":
    opening.machine_of = lambda workspace: MACHINE
    doctor.complaints = list
    assert Runner.__init__.__kwdefaults__ is not None
    Runner.__init__.__kwdefaults__["launcher"] = functools.partial(fake_launch(), grace_s=20.0)
    main(sys.argv[1:])
