"""Watches report signals side by side; probes are evaluations with another prompt, and say when a gain vanishes."""

from __future__ import annotations

from plan_fixtures import BOOK, shipped, tiny

from agent.plan.watches import ProbeResult, probes, read_probes, report_watches


def test_a_watch_shows_both_runs_and_speaks_up_beyond_its_limit() -> None:
    incumbent = {"format_rate": 0.95, "near_rate": 0.01}
    [reading] = report_watches(
        BOOK, ["format_drift"], candidate={"format_rate": 0.80, "near_rate": 0.02}, incumbent=incumbent
    )
    assert reading.text == "format_rate 0.95 -> 0.80; near_rate 0.01 -> 0.02"
    assert reading.alarms == ["format_rate fell by 0.15 (limit 0.05)"]


def test_an_unknown_signal_is_a_question_mark_and_no_alarm() -> None:
    [reading] = report_watches(BOOK, ["format_drift"], candidate={}, incumbent={"format_rate": 0.9})
    assert reading.text == "format_rate 0.90 -> ?; near_rate ? -> ?"
    assert reading.alarms == []


def test_fixed_limits() -> None:
    [reading] = report_watches(
        BOOK, ["saturation"], candidate={"all_solved_share": 0.8}, incumbent={"all_solved_share": 0.1}
    )
    assert reading.alarms == ["all_solved_share 0.80 > 0.60"]


def test_a_prompt_hypothesis_is_probed_with_paraphrases_and_at_another_length() -> None:
    recipe = shipped("smollm2-strict", prompt__system="Be brief.")
    found = {(p.watch, p.name): p.probed for p in probes(BOOK, BOOK.watches_of("prompt-answer-schema"), recipe)}
    assert set(found) == {
        ("paraphrases", "task-line"),
        ("paraphrases", "polite"),
        ("paraphrases", "labelled"),
        ("other_length", "longer"),
        ("other_length", "shorter"),
    }
    assert found["paraphrases", "task-line"].prompt.template == "Task: {question}"
    assert found["other_length", "longer"].prompt.system.startswith("Be brief. Read the question")
    assert found["other_length", "shorter"].prompt.system is None
    for probed in found.values():
        assert probed.model_copy(update={"prompt": recipe.prompt}) == recipe


def test_a_probe_that_would_leave_the_prompt_alone_is_left_out() -> None:
    assert "shorter" not in {p.name for p in probes(BOOK, ["other_length"], tiny())}


def test_a_gain_that_vanishes_under_a_probe_is_told() -> None:
    watch = BOOK.watches["paraphrases"]
    held = read_probes(watch, 0.10, [ProbeResult("a", 0.60, 0.51), ProbeResult("b", 0.55, 0.48)])
    assert held.alarms == []
    assert held.text.endswith("spread over wordings 0.05")
    gone = read_probes(watch, 0.10, [ProbeResult("a", 0.60, 0.51), ProbeResult("b", 0.50, 0.48)])
    assert gone.alarms == ["the gain of +0.10 is +0.02 under b"]


def test_throughput_is_compared_by_share() -> None:
    """Nine per cent fewer tokens a second are within the limit, eleven are not."""

    def alarms(tokens_per_s: float) -> list[str]:
        candidate, incumbent = {"tokens_per_s": tokens_per_s}, {"tokens_per_s": 10_000.0}
        reading = report_watches(BOOK, ["tokens_per_second"], candidate=candidate, incumbent=incumbent)
        return reading[0].alarms

    assert alarms(9_100.0) == []
    assert alarms(8_900.0) == ["tokens_per_s fell by 11% (limit 10%)"]
