"""What the tests of a campaign's report share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nights import Night

from agent.campaign.report import Reporter
from agent.report.vega import Charts

Reports = Callable[..., tuple[int, str]]
"""The command in a workspace, with options: (exit code, what it printed)."""


class NoCharts(Charts):
    def get(self) -> tuple[str | None, str]:
        return None, "these tests make none"


def reporter_of(night: Night, bench: Any, **also: Any) -> Reporter:
    session = bench.session
    reporter = Reporter(
        session.journal.path, name="night", root=night.root, folder=night.workspace.report_folder("night"),
        charts=NoCharts(night.root), warn=night.observer.warn, ranking=lambda: bench.last_ranking, least_pause_s=0.0,
        **also,
    )  # fmt: skip
    session.renew = reporter.request
    return reporter


def copied(night: Night, tmp_path: Path) -> Path:
    root = tmp_path / "ws"
    shutil.copytree(night.root, root)
    return root
