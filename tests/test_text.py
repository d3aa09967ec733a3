"""Text from outside: what a terminal would act on, and what is secret, does not come out."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent import text as texts
from agent.cli.output import CleanStream
from agent.text import clean, is_secret, keep_secret, one_line, passed_on, redact, redacted, redacted_values, visible

SECRETS = {"MY_API_KEY": "canary-0123456789", "DB_PASSWORD": 'pa"ss\\word\n2', "HF_TOKEN": "hf_abcdefghijklmnopqrst"}
HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from("\x1b[]m\x9b;\x07\x00\x7f\u202e\u2066\u200b\u2028\r=0a")))


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
@example("\x1b\x1b[0m[31m")
@example("\x9b\x1b\x9d0;x")
@example("\x1b]52;c;AAAA\x07\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\")
def test_no_control_character_comes_out_and_twice_is_once(text: str) -> None:
    once = clean(text, SECRETS)
    assert all(character.isprintable() or character in "\n\t" for character in once)
    assert clean(once, SECRETS) == once
    assert "\n" not in one_line(text, SECRETS)


@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" \n\t")))
def test_printable_text_comes_back_as_it_is(text: str) -> None:
    assert visible(text) == text
    if not any(mark in text for mark in "=:@"):
        assert clean(text, {}) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;https://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x9b31mred", "red"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("a\u200bb\ufeffc", "a\\u200bb\\ufeffc"),
        ("one\u2028two\x85three", "one two\\x85three"),
        ("10%\r20%\r\nend", "10%\n20%\nend"),
        ("bell\x07 nul\x00 del\x7f", "bell\\x07 nul\\x00 del\\x7f"),
        ("\ud800", "\\ud800"),
        ("tab\tstays, é漢🙂 too", "tab\tstays, é漢🙂 too"),
    ],
)
def test_what_is_made_of_it(text: str, shown: str) -> None:
    assert clean(text, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "key canary-0123456789 end",
        "canary-\x1b[0m0123456789",
        json.dumps({"p": SECRETS["DB_PASSWORD"]}),
        repr(SECRETS["DB_PASSWORD"]),
        "https://x/?q=" + "pa%22ss%5Cword%0A2",
        SECRETS["HF_TOKEN"],
    ],
)
def test_the_value_of_a_secret_variable_is_replaced_by_its_name(text: str) -> None:
    found = clean(text, SECRETS)
    assert "canary" not in found
    assert "word" not in found
    assert "hf_a" not in found
    assert any(f"[redacted {name}]" in found for name in SECRETS)


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1" * 12,
        "sk-" + "a1" * 12,
        "sk-ant-api03-" + "a1" * 12,
        "ghp_" + "a1" * 18,
        "github_pat_" + "a1" * 20,
        "AKIA" + "A1" * 8,
        "xoxb-" + "1234567890-abc",
        "glpat-" + "a1" * 10,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_a_well_known_shape_is_replaced_wherever_it_stands(secret: str) -> None:
    for around in ("{}", "x\\n{}", "\u202e{}", "x {} y", '{{"a": "{}"}}', "Error: 401 for {}."):
        found = redact(around.format(secret), {})
        assert secret not in found
        assert "[redacted " in found
        assert redact(found, {}) == found


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("https://me:hunter2@host/x", "@host/x", "hunter2"),
        ("git clone https://abcdefghijklmnop1234@host/x", "@host/x", "abcdefghijklmnop"),
        ("GET /a?token=abc123&page=2", "&page=2", "abc123"),
        ("Authorization: Bearer abcdefghijkl1234", "Authorization: ", "abcdefghijkl"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ", "dXNlcjpwYXNz"),
        ("password=hunter22 next", " next", "hunter22"),
        ('{"api_key": "abcdefghijkl1234"}', '{"api_key": "', "abcdefghijkl"),
    ],
)
def test_what_stands_around_a_secret_stays(text: str, kept: str, gone: str) -> None:
    found = redact(text, {})
    assert kept in found
    assert gone not in found
    assert redact(found, {}) == found


@pytest.mark.parametrize(
    "text",
    [
        "step 12 loss=0.31 tokens: 123456789012345 it/s",
        "pad_token='<|endoftext|>' eos_token_id: 151643",
        "KeyError: 'learner.learning_rate'",
        "sk-learn-contrib-and-some-more-words",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "https://host/path?page=2#token",
        "a basic understanding of bearers",
    ],
)
def test_ordinary_log_lines_stay(text: str) -> None:
    assert redact(text, {}) == text


def test_what_a_name_tells() -> None:
    for name in (
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "MYSQL_PWD",
        "sessionCookie",
        "X_AUTH",
        "A_PAT",
    ):
        assert is_secret(name, "12345678"), name
    for name in ("PWD", "GIT_AUTHOR_NAME", "XAUTHORITY", "TOKENIZERS_PARALLELISM", "PATH", "COMPASS"):
        assert not is_secret(name, "12345678"), name
    assert not is_secret("SSH_AUTH_SOCK", "/tmp/agent.sock")
    assert not is_secret("API_KEY", "short")
    for name in ("AUTH_MODE", "MAX_TOKENS", "MAX_NEW_TOKENS", "SECRET_BACKEND", "TOKEN_LIMIT"):
        assert not is_secret(name, "kerberos"), name
    for name in ("ACCESS_TOKENS", "AUTH_VERSION_KEY", "TOKEN_TYPE_SECRET"):
        assert is_secret(name, "kerberos"), name


def test_what_a_recipe_names_is_secret_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_named_secrets", set())
    variables = {"JUDGE_ACCESS": "q7wnzz-83kd-22", "OTHER": "q7wnzz-83kd-23"}
    said = "401 for user q7wnzz-83kd-22"
    assert redact(said, variables) == said
    keep_secret(["JUDGE_ACCESS"])
    assert redact(said, variables) == "401 for user [redacted JUDGE_ACCESS]"
    assert redacted_values(variables) == {"JUDGE_ACCESS": "[redacted JUDGE_ACCESS]", "OTHER": "q7wnzz-83kd-23"}


def test_a_short_value_is_replaced_only_where_it_stands_alone() -> None:
    assert redact("run tests, tests2", {"X_KEY": "tests2"}) == "run tests, [redacted X_KEY]"
    assert redact("mytests23", {"X_KEY": "tests2"}) == "mytests23"


def test_a_process_gets_no_more_than_it_needs() -> None:
    shell = {
        "PATH": "/bin", "HF_TOKEN": "hf_1234567890abcdefgh", "PIP_INDEX_URL": "https://u:secret@host/simple",
        "https_proxy": "http://u:secret@proxy", "HARMLESS": "ghp_0123456789abcdef0123", "AWS_SECRET_ACCESS_KEY": "abc",
        "SSH_AUTH_SOCK": "/tmp/s", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    plain = {"PATH", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"}
    assert set(passed_on(shell)) == plain
    assert set(passed_on(shell, hub=True)) == plain | {"HF_TOKEN", "https_proxy"}
    assert set(passed_on(shell, packages=True)) == plain | {"PIP_INDEX_URL", "https_proxy"}


def test_records_of_variables_and_values_of_json_hold_no_secret() -> None:
    assert redacted_values({"A_KEY": "abcdefgh", "B": "x"}) == {"A_KEY": "[redacted A_KEY]", "B": "x"}
    assert redacted({"n": 1, "t": ["ghp_" + "a1" * 18, None]}) == {"n": 1, "t": ["[redacted token]", None]}


def test_an_encoding_that_is_not_utf_8_takes_every_text() -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    CleanStream(narrow).write("caf\u00e9 \u4e16\u754c")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"caf\xe9 \\u4e16\\u754c"


def test_a_variable_that_changes_is_a_secret_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first-secret", "second-secret"):
        monkeypatch.setenv("SOME_API_KEY", value)
        assert redact(f"it is {value}") == "it is [redacted SOME_API_KEY]"
    monkeypatch.delenv("SOME_API_KEY")
    assert redact("it is second-secret") == "it is second-secret"


def test_what_was_cleaned_before_it_was_secret_is_cleaned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the password is marmalade-9, said twice"
    assert clean(text) == text == clean(text)
    monkeypatch.setenv("LATE_TOKEN", "marmalade-9")
    assert "marmalade-9" not in clean(text)
    monkeypatch.delenv("LATE_TOKEN")
    assert clean(text) == text
