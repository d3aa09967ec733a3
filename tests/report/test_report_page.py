"""The page of a night holds what it must, escapes what it is given, and refers to nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.report import charts, look
from agent.report.night import Estimate, Gain
from agent.report.night_markdown import markdown
from agent.report.page import as_data, render_page, script_text
from agent.report.staircase import staircase
from agent.report.telemetry import CURVE_BYTES, curves_that_fit
from tests.report.made_nights import NIGHTS, good, hostile, interrupted, many, no_keeps, only_crashes

FAKE = "window.vegaEmbed = null;"
VEGA_BYTES = 900_000
VOID = {"meta", "br", "input", "link", "img", "hr", "path", "circle"}


class Seen(HTMLParser):
    """The elements of a page: (tag, attributes), and the text of each script by its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words = ""
        self.unclosed: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.unclosed and self.unclosed[-1] != "style":
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    nights = {name: make() for name, make in NIGHTS.items() if name != "many"}
    nights["many"] = replace(many(curves=False), curves=nights["good"].curves[:1])
    return {name: render_page(night, charts=FAKE) for name, night in nights.items()}


@pytest.fixture(scope="module")
def seen(pages: dict[str, str]) -> dict[str, Seen]:
    return {name: Seen(page) for name, page in pages.items()}


# --- it is one page --------------------------------------------------------------------------------------


def test_every_page_is_whole_and_refers_to_nothing_outside(pages: dict[str, str], seen: dict[str, Seen]) -> None:
    for name, page in pages.items():
        one = seen[name]
        assert one.unclosed == [], name
        ids = [attributes["id"] for _, attributes in one.tags if "id" in attributes]
        assert len(ids) == len(set(ids)), name
        for _, attributes in one.tags:
            assert not {"src", "action", "data", "background", "poster", "srcset"} & set(attributes), (name, attributes)
            assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for link in one.all("a"):
            href = link["href"] or ""
            assert href.startswith("#"), (name, link)
            assert href[1:] in ids, (name, href)
        style = page.split("<style>")[1].split("</style>")[0]
        assert "url(" not in style
        assert "@import" not in style
        assert not one.all("link")
        assert not one.all("iframe")


def test_only_the_pages_own_scripts_may_run(seen: dict[str, Seen]) -> None:
    for name, one in seen.items():
        policy = next(
            meta["content"] or "" for meta in one.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
        )
        running = [text for attributes, text in one.scripts if attributes.get("type") != "application/json"]
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
        assert len(running) == 2, name
        allowed = re.search(r"script-src ([^;]*)", policy)
        assert allowed is not None
        assert set(allowed[1].split()) == {f"'sha256-{one}'" for one in hashes}
        assert policy.startswith("default-src 'none';")
        assert "unsafe-eval" not in policy
        assert "connect-src" not in policy


def test_headings_are_in_order_and_controls_and_columns_are_named(seen: dict[str, Seen]) -> None:
    for name, one in seen.items():
        levels = [int(tag[1]) for tag, _ in one.tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), (name, levels)
        assert all(head.get("scope") in ("col", "row") for head in one.all("th")), name
        named = {attributes.get("id") for _, attributes in one.tags}
        assert all(section["aria-labelledby"] in named for section in one.all("section")), name


def test_pages_are_small_enough(pages: dict[str, str]) -> None:
    """500 ideas without their curves leave room for all curves that a page takes, within 5 MB."""
    assert len(pages["many"].encode()) + CURVE_BYTES + VEGA_BYTES < 5_000_000
    assert len(pages["hostile-everywhere"].encode()) + VEGA_BYTES < 2_500_000
    assert len(pages["good"].encode()) + VEGA_BYTES < 1_400_000


def test_what_has_no_room_is_counted(pages: dict[str, str]) -> None:
    curves = good().curves
    shown, left_out = curves_that_fit([*curves[3:], *curves[:3]], most=40_000)
    assert 0 < len(shown) < len(curves)
    assert len(shown) + left_out == len(curves)
    assert len(json.dumps(shown, separators=(",", ":"))) <= 41_000
    assert 0 in {one["experiment"] for one in shown}, "the baseline's come first"
    page = render_page(replace(good(), curves_left_out=7), charts=FAKE)
    assert "7 more would have made the page too large" in page


def test_the_same_night_gives_the_same_page(pages: dict[str, str]) -> None:
    assert render_page(good(), charts=FAKE) == pages["good"]


# --- it takes text for text --------------------------------------------------------------------------------


def test_hostile_text_adds_no_element(pages: dict[str, str], seen: dict[str, Seen]) -> None:
    for name in ("hostile", "hostile-everywhere"):
        assert not seen[name].all("img")
        assert len(seen[name].all("script")) == 3
        assert len(seen[name].all("style")) == 1
        assert "49" not in re.findall(r"raw %} (\d+)", pages[name])
        assert "{{ 7*7 }}" in seen[name].words
        assert "${window.pwned=6}" in seen[name].words
        assert not set("\x00\x1b\x07\u202e\u202c\u2028\u2029\ud800") & set(pages[name]), name
    assert sum(tag == "article" for tag, _ in seen["hostile"].tags) > 5


def test_a_word_that_nobody_knows_is_no_style() -> None:
    night = good()
    steps = tuple(replace(step, outcome="x-style", kind="y-style") for step in night.steps)
    page = render_page(replace(night, state="z-style", steps=steps), charts=None)  # type: ignore[arg-type]
    assert "z-style" not in page
    classes = {name for _, attributes in Seen(page).tags for name in (attributes.get("class") or "").split()}
    assert not [name for name in classes if "style" in name]


def test_a_secret_of_the_environment_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    night = replace(good(), verdict="it printed correct-horse-battery", limits=("correct-horse-battery",))
    night = replace(
        night, steps=(*night.steps[:1], replace(night.steps[1], title="correct-horse-battery"), *night.steps[2:])
    )
    page = render_page(night, charts=FAKE)
    assert "correct-horse-battery" not in page
    assert "[redacted MY_API_KEY]" in page


@settings(deadline=None, max_examples=40)
@given(
    st.recursive(st.text() | st.floats() | st.none(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_data_come_back_out_of_the_page_as_they_were(value: object) -> None:
    written = as_data([value, "</script><!--<script>&amp;\u2028"])
    assert not set("<>&\u2028\u2029") & set(written)
    one = Seen(f'<script type="application/json">{written}</script><p>after</p>')
    assert one.all("p") == [{}]
    assert json.loads(one.scripts[0][1]) == json.loads(json.dumps([_finite(value), "</script><!--<script>&amp;\u2028"]))


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def test_a_script_cannot_end_its_element() -> None:
    for text in ("'</script>'", "'</SCRIPT >'", "/<!--/", "a\r\nb"):
        one = Seen(f"<script>{script_text(text)}</script><p>after</p>")
        assert one.all("p") == [{}]
        assert "\r" not in one.scripts[0][1]


# --- it says what the night was ----------------------------------------------------------------------------


def test_the_page_says_what_each_split_decided(seen: dict[str, Seen]) -> None:
    said = "Search chose what was confirmed, confirm decided what was kept, the holdout decided nothing."
    assert said in seen["good"].words


def test_a_good_night_shows_what_was_gained(seen: dict[str, Seen]) -> None:
    words = seen["good"].words
    order = [
        "Confirmed improvement",
        "#17 improves",
        "pass_rate",
        "winner over",
        "Ideas: 24",
        "Where the time went",
        "The night, idea by idea",
        "Kept: 2",
        "Near-misses",
        "Crashes: 2",
        "Learned about this machine",
        "Ruled out",
        "All ideas",
        "Telemetry and learning curves",
        "before and after",
        "What it would try next",
        "reproduce it",
        "Nothing in it is loaded from the network",
    ]
    places = [words.index(each) for each in order[:6]] + [words.rindex(each) for each in order[6:]]
    assert places == sorted(places)
    for each in (
        "+6.3pp",
        "[+4.2, +8.4]",
        "0.8pp",
        "13 inconclusive",
        "gain +3.0pp",
        "learning_rate: 2.0e-4",
        "#### 72",
    ):
        assert each in words, each


def test_a_bad_night_reads_as_one() -> None:
    page = Seen(render_page(no_keeps(), charts=None)).words
    assert (
        page.index("No confirmed improvement")
        < page.index("pass_rate")
        < page.index("Ruled out")
        < page.index("idea by idea")
    )
    assert "Confirmed improvement" not in page
    assert "no gain above" in page
    crashed = Seen(render_page(only_crashes(), charts=None)).words
    assert "all 5 ideas crashed" in crashed
    assert "no idea was measured" in crashed
    plain = replace(no_keeps(), verdict="It was a long night.")
    assert "No confirmed improvement" in Seen(render_page(plain, charts=None)).words


def test_a_keep_that_the_holdout_does_not_show_is_no_success() -> None:
    night = good()
    gains = [gain for gain in night.gains if gain.split != "holdout"]
    lost = Gain("winner", "baseline", "holdout", Estimate(-0.004, -0.02, 0.012))
    assert look.headline(replace(night, gains=(*gains, lost))).tone == "doubt"


def test_without_charts_the_page_says_why_and_has_the_staircase_as_a_table() -> None:
    page = render_page(good(), charts=None, why_no_charts="the <compiler> was out")
    one = Seen(page)
    assert "no charts: the <compiler> was out" in one.words
    assert len(one.scripts) == 1
    assert 'id="stairs"' not in page
    assert "best after it" in one.words
    assert "Nothing is measured" in Seen(render_page(interrupted(), charts=None)).words


def test_a_night_without_values_draws_nothing() -> None:
    steps = tuple(replace(step, value=None, best=None) for step in good().steps)
    page = render_page(replace(good(), steps=steps), charts=FAKE)
    assert "there is nothing to draw" in page
    assert 'id="stairs"' not in page


@pytest.mark.parametrize(("consumed", "title"), [(90.0, "seconds"), (600.0, "minutes"), (8 * 3600.0, "hours")])
def test_the_time_axis_has_a_unit_that_fits(consumed: float, title: str) -> None:
    spec = staircase(replace(good(), consumed_s=consumed))
    assert spec["layer"][0]["encoding"]["x"]["title"] == f"consumed {title}"


def test_numbers_that_are_none_or_not_finite_are_left_empty() -> None:
    night = good()
    nan = float("nan")
    steps = [replace(step, value=nan, low=math.inf, high=None, delta=Estimate(nan, None, None)) for step in night.steps]
    arms = [replace(arm, metrics={"search": Estimate(nan)}) for arm in night.arms]
    page = render_page(replace(night, steps=tuple(steps), arms=tuple(arms), gains=(), consumed_s=0.0), charts=FAKE)
    assert not re.search(r"\bnan\b|\binf\b", Seen(page).words, flags=re.IGNORECASE)


def test_a_smaller_metric_is_better_where_the_recipe_says_so(seen: dict[str, Seen]) -> None:
    words = seen["minimised"].words
    assert "smaller is better; a gain is a fall" in words
    spec = staircase(NIGHTS["minimised"]())
    assert spec["layer"][0]["encoding"]["y"]["scale"]["reverse"] is True


# --- its colours -------------------------------------------------------------------------------------------


def test_charts_and_page_have_the_same_colours() -> None:
    style = resources.files("agent.report").joinpath("templates", "page.css").read_text(encoding="utf-8")
    known = {name: (light, dark) for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", style)}
    assert {name: known.get(name) for name in charts.PALETTE} == charts.PALETTE
    for theme in (0, 1):
        for behind in ("bg", "panel", "added", "removed"):
            for name in (
                ("ink", "soft") if behind != "bg" else ("ink", "soft", "keep", "lead", "discard", "open", "crash")
            ):
                ratio = contrast(known[name][theme], known[behind][theme])
                assert ratio >= 4.5, (name, behind, theme, ratio)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_staircase_has_every_idea_and_the_line_of_the_best() -> None:
    night = good()
    spec = staircase(night)
    rows = spec["datasets"]["steps"]
    assert {row["number"] for row in rows} == {step.number for step in night.steps}
    low, _ = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert all(row["y"] == low for row in rows if row["group"] == "crash")
    line = [point["y"] for point in spec["datasets"]["line"]]
    assert line == sorted(line)
    assert spec["datasets"]["line"][-1]["x"] == pytest.approx(night.consumed_s / 3600)
    band = spec["datasets"]["line"][0]
    assert band["high"] - band["y"] == pytest.approx(2 * 0.0081)
    assert list(places(staircase(night, by="idea"))) == [step.number for step in night.steps]


def test_by_number_the_line_of_the_best_does_not_fall_back_after_a_keep() -> None:
    """The losers of a batch that was screened are judged before what was kept of it, and have higher numbers."""
    night = good()
    kept = next(step for step in night.steps if step.outcome == "keep" and step.number)
    before = night.steps[kept.number - 1].best
    assert kept.at_s is not None
    loser = replace(night.steps[kept.number + 1], outcome="discard", best=before, at_s=kept.at_s - 1.0)
    steps = [loser if step.number == loser.number else step for step in night.steps]
    late = replace(night, steps=tuple(steps))
    line = [point["y"] for point in staircase(late, by="idea")["datasets"]["line"]]
    assert line == [point["y"] for point in staircase(night, by="idea")["datasets"]["line"]]
    assert line == sorted(line)


def places(spec: dict) -> Iterator[float]:
    yield from sorted(row["x"] for row in spec["datasets"]["steps"])


def test_hostile_text_is_data_of_a_chart_and_nothing_else() -> None:
    """Of a spec only the datasets and the title of an axis hold text of the night."""
    spec = staircase(hostile(everywhere=True))
    del spec["datasets"]
    for layer in spec["layer"]:
        layer["encoding"]["y"].pop("title", None)
    assert "pwned" not in json.dumps(spec)
    assert "pwned" not in json.dumps(charts.curve())


@pytest.mark.parametrize(
    ("above", "page_says", "text_says"),
    [
        (-0.0123, "worse by 1.2pp or more", "worse by at least 1.2pp"),
        (-0.0002, "worse", "worse"),
        (0.0002, "no gain above +0.0pp", "gains above 0.0pp"),
    ],
)
def test_what_is_worse_by_less_than_is_shown_is_worse_by_no_number(
    above: float, page_says: str, text_says: str
) -> None:
    night = no_keeps()
    one = replace(night.ruled_out[0], title="the only one", above=above)
    night = replace(night, ruled_out=(one,))
    words = " ".join(Seen(render_page(night, charts=FAKE)).words.split())
    assert f"#{one.number} the only one: {page_says} The measured differences" in words
    assert f"| #{one.number} | the only one | {text_says} |" in " ".join(markdown(night).split())
