"""Text from outside, before it is shown or recorded: nothing in it steers a terminal, and no secret is in it.

A log line, a model's sample, a row of a data set, a name in a playbook and an exception's message are data. `clean` is
for everything that leaves: what a terminal would act on is taken out or made visible, and what looks like a secret is
replaced by `[redacted NAME]`. `redact` does the second alone, for texts whose bytes are to stay otherwise.

What this does not do: find a secret that was encoded, cut in pieces, or has neither a known shape nor a variable with
a telling name. So the trainer is not given what it does not need in the first place (`passed_on`).
"""

from __future__ import annotations

import functools
import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any

ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor: CSI
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # titles, links, clipboard: OSC, DCS
    r"|\x1b[ -/]*[0-~]|\x1b"
)
"""Escape sequences of ECMA-48, in seven and in eight bits, and of xterm (OSC 8 links, OSC 52 clipboard)."""
UNPRINTED = re.compile(r"[^\n\t\x20-\x7e]")
"""What has to be looked at one by one."""


def clean(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` as it may be shown: no secret, no control character but newline and tab, all that is invisible visible.

    Escape sequences are taken out, carriage returns become newlines (a progress bar's states are lines). Every other
    character that Python does not call printable is written as an escape: directions (U+202E and the like) would show
    text in another order than it has, those of no width would hide it. Printable text comes back as it is, and
    cleaning twice is cleaning once.
    """
    if environment is None and len(text) <= LONGEST_KEPT:
        return _kept(text)
    return _clean(text, _secrets(environment))


def _clean(text: str, secrets: Secrets | None) -> str:
    if UNPRINTED.search(text) is not None:
        text = ANSI.sub("", text)  # first: one may stand in the middle of a secret
    return visible(_redact(text, secrets))


def _kept(text: str) -> str:
    """`_clean`, from memory where it has been asked before: a report says the same words many times. What was kept is
    forgotten as soon as what is secret has changed."""
    global _cleaned
    secrets = _secrets(None)
    known = _cleaned
    if known[0] is not secrets or len(known[1]) >= MOST_KEPT:
        _cleaned = known = secrets, {}
    found = known[1].get(text)
    if found is None:
        found = known[1][text] = _clean(text, secrets)
    return found


def one_line(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`clean`, with all white space as single spaces."""
    return " ".join(clean(text, environment).split())


def visible(text: str) -> str:
    """`clean` without looking for secrets."""
    if UNPRINTED.search(text) is None:
        return text
    text = ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return UNPRINTED.sub(lambda found: _shown(found.group()), text)


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) in ("Zs", "Zl", "Zp"):
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def redacted(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """A value of JSON with every text in it redacted."""
    secrets = _secrets(environment)
    return _redacted(value, functools.cache(lambda text: _redact(text, secrets)))


def _redacted(value: Any, of_text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return of_text(value)
    if isinstance(value, Mapping):
        return {key: _redacted(item, of_text) for key, item in value.items()}
    return [_redacted(item, of_text) for item in value] if isinstance(value, list | tuple) else value


# --- secrets -----------------------------------------------------------------------------------------------

Secrets = tuple[re.Pattern[str], dict[str, str]]
"""What to look for, and the name of each spelling."""
LONGEST_KEPT = 500
MOST_KEPT = 10_000
_cleaned: tuple[Secrets | None, dict[str, str]] = (None, {})
"""Texts of at most LONGEST_KEPT characters as they may be shown, and what was secret then. Both in one, for threads."""
SHORTEST = 6
"""Characters of a variable's value below which it is no secret worth the name, and too likely a word of any text."""
SHORT = 8
"""A value below this is replaced only where it stands alone."""
LONG_LINE = 16
"""A line of a secret of several lines (a key) is one too from this length on."""
TELLING = re.compile(
    r"KEY|TOKEN(?!IZER)|SECRET|WEBHOOK|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|AUTH(?!OR(?!IZ))"
    r"|(?:^|_)(?:PASS|PAT|DSN)(?:_|$)|_PWD$",
    re.IGNORECASE,
)
"""In a variable's name. Not GIT_AUTHOR_NAME, XAUTHORITY, PWD or TOKENIZERS_PARALLELISM."""
PLACE = re.compile(r"(?:_SOCK|_PATH|_FILE|_DIR|_HOME|_CREDENTIALS|_CONTROL)$", re.IGNORECASE)
"""A name that ends so and has a path for a value says where a secret is."""
SETTING = re.compile(
    r"_(?:MODE|TYPE|METHOD|BACKEND|ENABLED|TIMEOUT|LIMIT|TTL|SIZE|LENGTH|COUNT|ALGORITHM|VERSION)$"
    r"|(?:^|_)(?:MAX|MIN|NUM)_(?:\w+_)?TOKENS$",
    re.IGNORECASE,
)
"""A name that ends so says how something is done (AUTH_MODE, MAX_TOKENS), and its value is a word of any text."""
_named_secrets: set[str] = set()
HUB_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"})
"""What huggingface_hub reads (its documentation, "Environment variables")."""
PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "ftp_proxy"})

START = r"(?:(?<![A-Za-z0-9_])|(?<=\\[nrtbfv0])|(?<=\\x[0-9a-fA-F]{2})|(?<=\\u[0-9a-fA-F]{4})|(?<=\\U[0-9a-fA-F]{8}))"
"""Where a word begins, also behind an escape of JSON's or Python's, whose last letter is no part of it."""

SHAPES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (name, hints, re.compile(pattern))
    for name, hints, pattern in [
        (
            "private key",
            ("PRIVATE KEY",),
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END)(?:\\[^\"]|[^\"\\])){0,20000}"
            r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?",
        ),
        ("token", ("hf_",), START + r"hf_[A-Za-z0-9]{16,}"),
        ("token", ("sk-",), START + r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}"),
        ("token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), START + r"gh[pousr]_[A-Za-z0-9]{16,}"),
        ("token", ("github_pat_",), START + r"github_pat_[A-Za-z0-9_]{16,}"),
        ("token", ("glpat-",), START + r"glpat-[A-Za-z0-9_-]{12,}"),
        ("token", ("xox",), START + r"xox[a-z]-[A-Za-z0-9-]{10,}"),
        ("token", ("npm_", "gsk_", "r8_"), START + r"(?:npm|gsk|r8)_[A-Za-z0-9]{20,}"),
        ("token", ("pypi-",), START + r"pypi-[A-Za-z0-9_-]{50,}"),
        ("key", ("AKIA", "ASIA"), START + r"A[KS]IA[A-Z0-9]{12,}"),
        ("key", ("AIza",), START + r"AIza[A-Za-z0-9_-]{30,}"),
        ("token", ("eyJ",), START + r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*"),
    ]
)
"""What it is called, what such a text contains, what it looks like. Sources: the issuers' documentation of their token
formats (GitHub "About authentication", GitLab "Token overview", AWS IAM "Unique identifiers", RFC 7519)."""
NAMED_SHAPES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("credential", ("earer ",), re.compile(START + r"(?P<before>[Bb]earer[ ]+)[A-Za-z0-9._~+/-]{12,}=*")),
    (
        "credential",
        ("asic ",),
        re.compile(r"(?P<before>(?i:authorization)[\"']?[ ]*:[ ]*[\"']?[Bb]asic[ ]+)[\w+/-]{6,}=*"),
    ),
    ("password", ("://",), re.compile(r"(?P<before>://)(?:[^/\s:@\"'\\\[]*:[^/\s@\"'\\]+|[^/\s:@\"'\\\[]{16,})(?=@)")),
    (
        "query",
        ("=",),
        re.compile(
            r"(?P<before>[?&](?:(?:access_|auth_)?token|(?:api_?)?key|sig|signature|password|X-Amz-Signature)=)"
            r"(?!\[redacted)[^&\s\"'\\]+",
            re.IGNORECASE,
        ),
    ),
    (
        "value",
        (":", "="),
        re.compile(
            START + r"(?P<before>(?:(?:api|access|secret|private)[_-]?key|token|authorization)\b\\?[\"']?\s*[=:]\s*"
            r"(?:bearer\s+)?\\?[\"']?)[\w\-./+]{12,}",
            re.IGNORECASE,
        ),
    ),
    (
        "value",
        (":", "="),
        re.compile(
            START
            + r"(?P<before>(?:password|passwd|passphrase|secret)\b\\?[\"']?\s*[=:]\s*\\?[\"']?)[\w\-./+!#$%*]{6,}",
            re.IGNORECASE,
        ),
    ),
)
"""The same, where what stands before it says that it is one, and stays."""
REPLACED = (
    *((f"[redacted {name}]", hints, shape) for name, hints, shape in SHAPES),
    *((rf"\g<before>[redacted {name}]", hints, shape) for name, hints, shape in NAMED_SHAPES),
)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` with `[redacted NAME]` for the secrets in it, everything else as it was.

    Secrets are the values of the environment's variables with telling names (default: this process's), and what has
    the shape of a token, a key, or a password in an address.
    """
    return _redact(text, _secrets(environment)) if len(text) >= SHORTEST else text


def _secrets(environment: Mapping[str, str] | None) -> Secrets | None:
    given = _own_environment() if environment is None else tuple(sorted(environment.items()))
    return _values(given, frozenset(_named_secrets))


def _redact(text: str, secrets: Secrets | None) -> str:
    if len(text) < SHORTEST:  # no shape is shorter either
        return text
    if secrets is not None:
        pattern, names = secrets
        text = pattern.sub(lambda found: f"[redacted {names[found.group()]}]", text)
    for replacement, hints, shape in REPLACED:
        for hint in hints:
            if hint in text:
                text = shape.sub(replacement, text)
                break
    return text


def redacted_values(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables as they may be recorded: the value of one with a telling name is not."""
    return {
        name: f"[redacted {name}]" if is_secret(name, value) else redact(value) for name, value in variables.items()
    }


def keep_secret(names: Collection[str]) -> None:
    """From now on the values of these variables are secrets in this process, whatever the names tell: those that a
    recipe names for its verifier."""
    _named_secrets.update(names)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable's value is a secret, as far as name and length tell."""
    if name in _named_secrets:
        return len(value) >= SHORTEST
    is_place = PLACE.search(name) is not None and value.startswith(("/", "~", "."))
    return len(value) >= SHORTEST and _is_telling(name) and not is_place


def holds_secret(text: str) -> bool:
    """Whether the value of one of this process's variables that `redact` replaces stands in it."""
    secrets = _secrets(None)
    return secrets is not None and secrets[0].search(text) is not None


def _is_telling(name: str) -> bool:
    return TELLING.search(name) is not None and SETTING.search(name) is None


def passed_on(
    environment: Mapping[str, str], *, hub: bool = False, packages: bool = False, named: Collection[str] = ()
) -> dict[str, str]:
    """The variables that a process gets which has no business with the user's secrets.

    Left out are those with a telling name, agents' sockets among them, and those whose value has the shape of a
    secret. `hub`: it has to reach the hub, so it keeps the hub's token and the proxies; `packages`: it has to reach
    the package index, so it keeps pip's settings and the proxies; `named`: what the user lets it have.
    """
    kept = {}
    for name, value in environment.items():
        wanted = (hub and name in HUB_TOKENS) or (packages and name.startswith(("PIP_", "UV_")))
        wanted |= name in named or ((hub or packages) and name.lower() in PROXIES)
        if wanted or (not _is_telling(name) and redact(value, {}) == value):
            kept[name] = value
    return kept


_last_environment: tuple[dict[Any, Any], tuple[tuple[str, str], ...]] = ({}, ())


def _own_environment() -> tuple[tuple[str, str], ...]:
    """This process's variables, in order. To decode them all takes longer than to look through a text, so that is done
    again only where one has changed."""
    global _last_environment
    raw = getattr(os.environ, "_data", None)
    known, found = _last_environment
    if raw is None or raw != known:
        found = tuple(sorted(os.environ.items()))
        _last_environment = dict(raw or {}), found
    return found


@functools.lru_cache(maxsize=8)
def _values(environment: tuple[tuple[str, str], ...], named: frozenset[str]) -> Secrets | None:
    """(what to look for, name by spelling) of an environment's secrets. `named` are those whose names do not tell, and
    decide what is kept for the next call."""
    names: dict[str, str] = {}
    for name, value in environment:
        if is_secret(name, value):
            pieces = [value, value.strip(), *(line for line in value.split("\n") if len(line.strip()) >= LONG_LINE)]
            for piece in pieces:
                for spelling in _spellings(piece):
                    names.setdefault(spelling, name)
    if not names:
        return None
    longest_first = sorted(names, key=len, reverse=True)
    alternatives = (re.escape(one) if len(one) >= SHORT else rf"(?<!\w){re.escape(one)}(?!\w)" for one in longest_first)
    return re.compile("|".join(alternatives)), names


def _spellings(value: str) -> set[str]:
    """As it is, as JSON and Python write it, and as it stands in an address."""
    quoted = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {one for one in {value, *quoted, urllib.parse.quote(value, safe="")} if len(one) >= SHORTEST}
