"""Pages of made nights, to be looked at: `python tests/benchmarks/report_pages.py OUT`. Nothing in them was measured.

Writes OUT/NAME.html for each of `tests/report/made_nights.py`, and `good-without-charts.html`; prints sizes and seconds.
It is no test: pytest does not collect it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.report.page import render_page
from agent.report.vega import bundle
from tests.report.made_nights import NIGHTS, good


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    charts = bundle(out / "cache")
    for name, make in NIGHTS.items():
        began = time.perf_counter()
        page = render_page(make(), charts=charts)
        took = time.perf_counter() - began
        (out / f"{name}.html").write_text(page, encoding="utf-8")
        print(f"{name:20} {len(page.encode()) / 1e6:6.2f} MB  rendered in {took:5.2f}s")
    reason = "building the JavaScript of the charts took more than 120s"
    (out / "good-without-charts.html").write_text(
        render_page(good(), charts=None, why_no_charts=reason), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
