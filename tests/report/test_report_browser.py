"""The page in a real Chromium: it draws quickly, runs nothing that it was given, and fits a desk, a phone and paper."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.report.page import render_page
from agent.report.vega import bundle
from tests.report.browser import CHROMIUM, DESKTOP, PHONE, Page, chromium
from tests.report.made_nights import NIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]
DRAWN = "Boolean(document.documentElement.dataset.drawn)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every made night as a page."""
    out = tmp_path_factory.mktemp("pages")
    charts = bundle(out / "cache")
    for name, make in NIGHTS.items():
        (out / f"{name}.html").write_text(render_page(make(), charts=charts), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def complaints(page: Page) -> list[str]:
    """What the browser said: refusals by the policy, errors, warnings of Vega, dialogs."""
    bad = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    return [str(event)[:400] for event in page.told if event["method"] in bad]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [name for name in NIGHTS if name != "many"])
def test_a_page_opens_whole(name: str, size: tuple[int, int], folder: Path, browser: Page) -> None:
    browser.look(size, dark=size == PHONE)
    browser.open(folder / f"{name}.html")
    if name != "interrupted":
        browser.wait(DRAWN)
        assert browser.run("document.querySelectorAll('#stairs svg .mark-symbol path').length") > 1
    browser.run("document.querySelectorAll('details:not(.card [data-curves])').forEach((box) => box.open = true)")
    browser.run("document.querySelector('.card [data-curves]')?.setAttribute('open', '')")
    browser.wait("[...document.querySelectorAll('figure .chart')].every((chart) => chart.querySelector('svg'))")
    assert browser.run("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
    assert complaints(browser) == []
    if "hostile" not in name:
        assert browser.run("document.querySelector('h1').getBoundingClientRect().bottom") < size[1] / 2
        if name != "interrupted":
            assert (
                browser.run("document.querySelector('.arms tr:nth-child(2)').getBoundingClientRect().bottom") < size[1]
            )


@pytest.mark.parametrize("name", ["hostile", "hostile-everywhere"])
def test_nothing_that_it_was_given_runs_or_loads(name: str, folder: Path, browser: Page) -> None:
    browser.look(DESKTOP)
    browser.open(folder / f"{name}.html")
    browser.wait(DRAWN)
    title = browser.run("document.title")
    browser.run("document.querySelectorAll('details').forEach((box) => box.open = true)")
    browser.run("document.querySelectorAll('th button').forEach((button) => button.click())")
    points = browser.run(
        "[...document.querySelectorAll('#stairs .mark-symbol path')].slice(-3).map((at) => at.getBoundingClientRect())"
        ".map((at) => [at.x + at.width / 2, at.y + at.height / 2])"
    )
    browser.run("scrollTo(0, 0)")
    for x, y in points:
        browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    time.sleep(0.3)
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.title") == title
    assert browser.run("getComputedStyle(document.body).display") == "block"
    assert browser.run("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    assert complaints(browser) == []
    asked = [
        event["params"]["request"]["url"] for event in browser.told if event["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith("file:") and url.endswith(f"{name}.html") for url in asked), asked


def test_the_policy_holds(folder: Path, browser: Page) -> None:
    """What would run if a text had got out of its place is refused; so is what would load."""
    page = (folder / "good.html").read_text(encoding="utf-8")
    bad = "<script>window.pwned=1</script><img src=x onerror='window.pwned=2'><img src='http://127.0.0.1:9/x.png'>"
    out = folder / "broken-out.html"
    out.write_text(page.replace("</h1>", f"</h1>{bad}", 1), encoding="utf-8")
    browser.look(DESKTOP)
    browser.open(out)
    browser.wait(DRAWN)
    assert browser.run("typeof window.pwned") == "undefined"
    assert (
        browser.run("(() => { try { return new Function('return 1')() } catch { return 'refused' } })()") == "refused"
    )
    assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => 'refused')") == "refused"
    assert any("Content Security Policy" in each for each in complaints(browser))


def test_five_hundred_ideas_are_drawn_quickly(folder: Path, browser: Page) -> None:
    assert (folder / "many.html").stat().st_size < 5_000_000
    browser.look(DESKTOP)
    browser.open(folder / "many.html")
    browser.wait(DRAWN)
    took = browser.run("+document.documentElement.dataset.drawn")
    print(
        f"500 ideas: the staircase was drawn {took} ms after the start, {(folder / 'many.html').stat().st_size} bytes"
    )
    assert took < 10_000  # about 1,200 where nothing else runs
    assert browser.run("document.querySelectorAll('#stairs svg .mark-symbol path').length") == 501


def test_over_time_or_over_ideas_and_a_click_goes_to_the_card(folder: Path, browser: Page) -> None:
    browser.look(DESKTOP)
    browser.open(folder / "good.html")
    browser.wait(DRAWN)
    browser.run("document.querySelector('input[value=idea]').click()")
    browser.wait("document.querySelector('#stairs').textContent.includes('idea')")
    browser.run("document.querySelector('#stairs').scrollIntoView()")
    where = "[...document.querySelectorAll('#stairs .mark-symbol path')].pop().getBoundingClientRect()"
    x, y = browser.run(f"(() => {{ const at = {where}; return [at.x + at.width / 2, at.y + at.height / 2] }})()")
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('#vg-tooltip-element')?.textContent.includes('#17')")
    for kind in ("mousePressed", "mouseReleased"):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.wait("location.hash === '#card-17'")
    browser.wait("document.querySelector('#card-17 details').open")  # told by an event after the address has changed


def test_ideas_can_be_found_and_sorted_with_the_keyboard(folder: Path, browser: Page) -> None:
    browser.look(DESKTOP)
    browser.open(folder / "good.html")
    browser.run("document.getElementById('find').focus()")
    browser.ask("Input.insertText", text="penalty inconclusive")
    shown = (
        "[...document.querySelectorAll('#all tbody tr')].filter((row) => !row.hidden).map((row) => +row.dataset.number)"
    )
    assert browser.run(shown) == [3, 19]
    assert browser.run("document.getElementById('found').textContent") == "2 of 24"
    browser.run("location.hash = '#idea-5'")
    browser.wait("!document.getElementById('idea-5').hidden")
    browser.run("document.querySelector('th[data-by=delta] button').focus()")
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            browser.ask(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
    assert browser.run("document.querySelector('th[data-by=delta]').getAttribute('aria-sort')") == "descending"
    found = browser.run("[...document.querySelectorAll('#all tbody tr')].map((row) => row.dataset.delta ?? null)")
    known = [float(each) for each in found if each is not None]
    assert known == sorted(known, reverse=True)
    assert found[-2:] == [None, None], "unknown is last either way"


def test_light_and_dark_by_the_system_and_by_the_switch(folder: Path, browser: Page) -> None:
    browser.look(DESKTOP, dark=True)
    browser.open(folder / "good.html")
    browser.wait(DRAWN)
    back = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('#stairs .mark-line path')).stroke"
    assert browser.run(back) == "rgb(20, 23, 26)"
    assert browser.run(line) == "rgb(108, 184, 240)"
    browser.run("document.getElementById('theme').click()")
    assert browser.run(back) == "rgb(255, 255, 255)"
    assert browser.run(line) == "rgb(0, 95, 158)", "charts follow"
    browser.run("localStorage.clear()")


def test_without_javascript_and_on_paper_it_can_be_read(folder: Path, browser: Page) -> None:
    browser.look(PHONE, scripts=False)
    browser.open(folder / "good.html")
    browser.look(PHONE)  # to ask; the page's own scripts have not run
    assert not browser.run(DRAWN)
    assert browser.run("document.querySelector('.as-table').open")
    assert browser.run("document.querySelector('.as-table').getBoundingClientRect().height") > 100
    assert browser.run("getComputedStyle(document.querySelector('#theme')).display") == "none"
    browser.look(DESKTOP, dark=True, media="print")
    browser.open(folder / "good.html")
    browser.wait(DRAWN)
    assert browser.run("getComputedStyle(document.querySelector('h1')).color") == "rgb(26, 29, 33)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.look(DESKTOP)


def test_curves_of_one_run_beside_another(folder: Path, browser: Page) -> None:
    browser.look(DESKTOP)
    browser.open(folder / "good.html")
    browser.run("document.querySelector('#curves details').open = true")
    browser.wait("document.querySelectorAll('#curves figure svg').length === 15")
    assert browser.run("document.querySelectorAll('#curves .pick select')[0].options.length") == 26
    browser.run(
        "(() => { const pick = document.querySelectorAll('#curves .pick select')[1]; pick.value = '';"
        " pick.dispatchEvent(new Event('change')) })()"
    )
    browser.wait("document.querySelectorAll('#curves figure svg').length === 15")
    assert browser.run("document.querySelectorAll('#curves figure:first-of-type .mark-line path').length") == 1
