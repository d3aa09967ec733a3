"""Pages of made nights, to be looked at: `python tests/benchmarks/report_pages.py OUT`. Nothing in them was measured.

Writes OUT/NAME.html for each of `tests/report/made_nights.py`, and `good-without-charts.html`; prints sizes and
seconds. With `--pictures` also OUT/NAME-desktop.png, -phone.png and -dark.png, by the Chromium of this machine.
It is no test: pytest does not collect it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.report.page import render_page
from agent.report.vega import bundle
from tests.report.browser import DESKTOP, PHONE, chromium
from tests.report.made_nights import NIGHTS, good

LOOKS = {"desktop": (DESKTOP, False), "phone": (PHONE, False), "dark": (DESKTOP, True)}


def main() -> None:
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
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
    if "--pictures" in sys.argv:
        pictures(out)


def pictures(out: Path) -> None:
    """Each page as a whole (down to 12,000 pixels), on a desk, on a phone, in the dark."""
    with chromium() as browser:
        for page in sorted(out.glob("*.html")):
            for name, (size, dark) in LOOKS.items():
                browser.look(size, dark=dark)
                browser.open(page)
                if browser.run("Boolean(document.getElementById('stairs'))"):
                    browser.wait("document.documentElement.dataset.drawn")
                browser.picture(out / f"{page.stem}-{name}.png", whole=True)


if __name__ == "__main__":
    main()
