"""Near-duplicates: which questions of a data set are one question in other words.

What a held-out question asks must not have been trained on. Two questions are duplicates where their tokens are the
same: words, figures and signs, in Unicode NFKC and without case; white space, apostrophes and hyphens within words and
the marks that end a clause do not count. They are near-duplicates where all of this holds:

- the same figures in the same order: numbers, number words, signs, brackets, single letters. `7 - 3` and `3 - 7`,
  `x + y` and `x * y`, half and twice make different problems, however many words they share;
- at least 6 different words each, of which the two share 4 of 5 (Jaccard similarity: words in both / words in either).
  Another name, a few other words, a phrase before the question stay above that;
- at least 2 different telling words each, of which the two share 1 of 2. A word is telling where at most the square
  root of n of the n questions have it. Without this all rows of one long template would be one question: 17 of 100
  data sets of reasoning_gym would lose a tenth of their rows or more, nine of them nearly all.

Groups are transitive: a near-duplicate of a near-duplicate is in the group. Words are compared by their spelling, so
a problem that is told anew is not found, nor `five` for `5`, nor anything in a script without case, such as Chinese.
And rows without figures that a template made from few words may become one question, where they are a small part of
a large file.

It is fast, and misses nothing by this definition. Only questions with the same figures are compared. With the words
of each in one order, the rarest first, two sets that share two words and have a Jaccard similarity of t or more share
two already among the first n - ceil(t n) + 2 of the n words of either (prefix filter: AllPairs, Bayardo et al. 2007;
PPJoin, Xiao et al. 2008). That holds for all words with t = 4/5 and for the telling ones with t = 1/2, so also for the
shorter prefix. All words in it are telling, so each question meets no more than a multiple of the square root of all.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, groupby
from typing import NamedTuple

FEWEST_WORDS = 6
FEWEST_TELLING = 2
WORDS_SHARED = (4, 5)
TELLING_SHARED = (1, 2)

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|(?:[^\w\s]|_)+")
"""Signs in a row are one: `####` and `## ##` are different pictures."""
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_WITHIN_WORDS = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_MARKS = ".,;:?"
_CLAUSE_END = re.compile(r"""(?<=[\w)"'])[.,;:?]+(?=[\s)"']|$)|(?<=[^\W\d_]{2})[.,;:?!]+(?=[\s)"']|$)""")
"""Before white space only: `.` may be an empty field of a board. `5!` is factorial 5."""
_LETTERS_AS_WORDS = frozenset("ai")
_NUMBER_WORDS = frozenset(
    word
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
        "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million",
        "billion dozen first second third fourth fifth sixth seventh eighth ninth tenth last half thirds quarter",
        "quarters once twice thrice single double triple plus minus times divided multiplied",
    )
    for word in words.split()
)


def group_numbers(texts: Sequence[str]) -> list[int]:
    """For each text the index of the first one of its group, which is its own where no text before it is in there.

    Which texts are in a group together does not depend on their order.
    """
    groups = _Groups(len(texts))
    reader = _Reader()
    first: dict[str, int] = {}
    frequency: Counter[str] = Counter()
    blocks: defaultdict[tuple[str, ...], list[_Question]] = defaultdict(list)
    for place, text in enumerate(texts):
        tokens, figures, words = reader.read(text)
        if tokens in first:
            groups.join(first[tokens], place)
            continue
        first[tokens] = place
        frequency.update(words)
        if len(words) >= FEWEST_WORDS:
            blocks[figures].append(_Question(place, words))
    telling = _telling(frequency, questions=len(first))
    for block in blocks.values():
        if len(block) > 1:
            _join_near_duplicates(block, telling, groups)
    return [groups.first_of(place) for place in range(len(texts))]


class _Question(NamedTuple):
    place: int
    """In the list that was given."""
    words: tuple[str, ...]


class _Groups:
    """Disjoint sets of the numbers below `count`, at first one for each. A set goes by its least member."""

    def __init__(self, count: int):
        self._towards_first = list(range(count))

    def first_of(self, member: int) -> int:
        step = self._towards_first
        while step[member] != member:
            # Shortens the way for the next time.
            step[member] = step[step[member]]
            member = step[member]
        return member

    def join(self, left: int, right: int) -> None:
        first, second = sorted((self.first_of(left), self.first_of(right)))
        self._towards_first[second] = first


def _join_near_duplicates(block: Sequence[_Question], telling: Mapping[str, int], groups: _Groups) -> None:
    """Compare questions with the same figures. `telling` is the place of each telling word, the rarest first."""
    holders: defaultdict[str, list[int]] = defaultdict(list)
    seen: list[tuple[_Question, list[str]]] = []
    for question in block:
        words = set(question.words)
        told = sorted(words & telling.keys(), key=telling.__getitem__)
        if len(told) < FEWEST_TELLING:
            continue
        prefix = told[: min(_prefix(len(words), WORDS_SHARED), _prefix(len(told), TELLING_SHARED))]
        shared = Counter(chain.from_iterable([holders[word] for word in prefix]))
        for number in [number for number, count in shared.items() if count >= FEWEST_TELLING]:
            other, other_told = seen[number]
            if (
                groups.first_of(other.place) != groups.first_of(question.place)
                and _similar(words, other.words, WORDS_SHARED)
                and _similar(set(told), other_told, TELLING_SHARED)
            ):
                groups.join(other.place, question.place)
        for word in prefix:
            holders[word].append(len(seen))
        seen.append((question, told))


def _telling(frequency: Mapping[str, int], *, questions: int) -> dict[str, int]:
    """Place of each word that few questions have, the rarest first; equally rare ones by spelling."""
    few = sorted((count, word) for word, count in frequency.items() if count <= math.isqrt(questions))
    return {word: place for place, (_, word) in enumerate(few)}


def _prefix(size: int, share: tuple[int, int]) -> int:
    """How many of a set's words, in order, hold two of those it shares with any that is similar to it."""
    part, whole = share
    return size - max(FEWEST_TELLING, -(-size * part // whole)) + FEWEST_TELLING


def _similar(left: set[str], right: Sequence[str], share: tuple[int, int]) -> bool:
    """Whether the Jaccard similarity is at least `share`, without rounding. No word comes twice in `right`."""
    part, whole = share
    return len(left.intersection(right)) * (whole + part) >= part * (len(left) + len(right))


# Reading ----------------------------------------------------------------------------------------------------


_Read = tuple[str, tuple[str, ...], tuple[str, ...]]
"""The tokens of a text, and which of them are figures and which are words."""


class _Reader(dict[str, _Read]):
    """Holds what stands between two white spaces, read once: reading takes most of the time, and much comes again."""

    def read(self, text: str) -> _Read:
        """The words of `text` are given once each."""
        if text.upper() == text.lower():
            # Without letters, as in `12+34=`, every sign counts, and there are no words to compare.
            return text, (), ()
        tokens, figures, words = zip(*map(self.__getitem__, text.split()), strict=True)
        return " ".join(tokens), tuple(chain.from_iterable(figures)), tuple(set(chain.from_iterable(words)))

    def __missing__(self, piece: str) -> _Read:
        tokens = _tokens(piece)
        words = [token for token in tokens if _is_word(token)]
        figures = [token for token in tokens if not _is_word(token)] if len(words) < len(tokens) else []
        # Interned, so that a word that stands in many questions is in memory once.
        read = " ".join(tokens), tuple(figures), tuple(map(sys.intern, words))
        self[piece] = read
        return read


def _tokens(piece: str) -> list[str]:
    word = piece.rstrip(_MARKS)
    if word.isascii() and word.isalpha():
        # What the lines below would find, in a tenth of the time; four pieces in five are like that.
        return [word.casefold()]
    plain = _WITHIN_WORDS.sub("", _folded(piece.translate(_STRAIGHT)))
    tokens: list[str] = _TOKEN.findall(_CLAUSE_END.sub("", _BETWEEN_WORDS.sub(" ", plain)))
    return tokens


def _folded(text: str) -> str:
    """NFKC and case folding, except where that would make another number: of 10² it makes 102."""
    if not text.isascii():
        runs = [(raised, "".join(run)) for raised, run in groupby(text, _is_raised)]
        text = "".join(f" {run} " if raised else unicodedata.normalize("NFKC", run) for raised, run in runs)
    return text.casefold()


def _is_raised(character: str) -> bool:
    return unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>", "<circle>"))


def _is_word(token: str) -> bool:
    """No number, word for a number, sign, or letter that stands for something."""
    return token.isalpha() and (len(token) > 1 or token in _LETTERS_AS_WORDS) and token not in _NUMBER_WORDS
