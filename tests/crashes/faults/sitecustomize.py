"""Found by Python at the start of every process that has this folder on its path: lets a trainer break on purpose."""

import os
import sys

if os.environ.get("RAFT_FAULT") and any("agent.raft" in word for word in sys.orig_argv):
    import faults

    faults.install()
