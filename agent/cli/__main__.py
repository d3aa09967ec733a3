"""`python -m agent.cli` is `raft-agent`."""

from agent.cli.main import main

main()
