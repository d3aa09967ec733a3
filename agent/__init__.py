"""raft-agent: an autonomous experiment loop for reward-ranked fine-tuning. Start at `agent/cli/main.py`."""

__version__ = "0.1.0"
