"""The digest that ties a verdict to the journal before it does not depend on when it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.campaign.seal import Seal, first_edited
from agent.files import read_jsonl
from agent.ledger.journal import Journal


def judged(journal: Journal, seal: Seal, number: int, reason: str = "why") -> None:
    journal.append("experiment_judged", experiment=number, outcome="keep", reason=reason, before=seal.so_far())


def anew(journal: Journal) -> Seal:
    return Seal(Journal(journal.path))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.jsonl")
    seal = Seal(journal)
    for number in range(3):
        journal.append("note", text=f"ü {number}")
        judged(journal, seal, number)
    return journal


def test_asked_on_the_way_it_is_what_it_is_asked_once(journal: Journal) -> None:
    seal = Seal(journal)
    for number in range(3, 6):
        judged(journal, seal, number)
        assert seal.so_far() == anew(journal).so_far()
        assert seal.verdicts() == anew(journal).verdicts()
    assert sorted(seal.verdicts()) == list(range(6))
    assert first_edited(journal.path) is None
    said = [fields["before"] for fields in read_jsonl(journal.path) if "before" in fields]
    assert len(set(said)) == 6


def test_a_line_is_read_once(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = Seal(journal)
    seal.so_far()
    monkeypatch.setattr(Seal, "_begin", lambda self: pytest.fail("the whole journal was read"))
    judged(journal, seal, 3)
    assert 3 in seal.verdicts()


def test_what_somebody_writes_meanwhile_is_in_it(journal: Journal) -> None:
    seal = Seal(journal)
    before = seal.so_far()
    Journal(journal.path).append("note", text="somebody else")
    assert seal.so_far() == anew(journal).so_far() != before
    with journal.path.open("a") as file:
        file.write('{"kind": "no')
    journal.append("note", text="after a torn line")
    assert seal.so_far() == anew(journal).so_far()
    text = journal.path.read_text()
    journal.path.write_text(text.replace("ü 1", "u 1").replace("\\u00fc 1", "u 1"))
    assert seal.so_far() == anew(journal).so_far()
    assert first_edited(journal.path) == 1
