"""Numbers in text: find them, read them exactly, compare them.

Values are `Decimal`, so `0.1` is a tenth and twenty digits stay twenty digits. LaTeX's thousands (`1{,}234`,
`1\\,234`, `1,\\!234`) and dollar signs are read. Not read: fractions, units, percent signs, spaces as thousands
separators, a comma as decimal point.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation, localcontext

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_EXPONENT = r"(?:[eE][-+]?[0-9]{1,4}(?![0-9A-Za-z]))?"
_CURRENCY = r"[$€£]?"
# A minus sign belongs to the number unless something stands directly before it: `5-3` ends in 3, `= -3` in -3.
_SIGN = r"(?:(?<![0-9A-Za-z)\]])[-+−])?"
_NUMBER = re.compile(rf"({_SIGN}){_CURRENCY}({_DIGITS})({_EXPONENT})")


_THIN_SPACE = re.compile(r"(?<=[0-9])\\,(?=[0-9]{3})")


def numbers_in(text: str) -> list[tuple[str, Decimal]]:
    """Every number in `text`, as written (without what LaTeX puts between its digits) and as value, from left to
    right."""
    found = []
    for match in _NUMBER.finditer(_without_latex(text)):
        value = _decimal(*match.groups())
        if value is not None:
            found.append((match.group(), value))
    return found


def as_number(text: str) -> Decimal | None:
    """The value of a text that is one number (`1,234.50`, `-$3`, `56.`), else None."""
    text = _without_latex(text).strip().removesuffix(".")
    if text.startswith("$") and text.endswith("$") and text.count("$") == 2:
        text = text[1:-1].strip()  # a formula
    match = _NUMBER.fullmatch(text)
    return _decimal(*match.groups()) if match else None


def _without_latex(text: str) -> str:
    if "\\" not in text and "{,}" not in text:
        return text
    return _THIN_SPACE.sub("", text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$"))


def same_number(left: Decimal, right: Decimal, *, tolerance: float = 0.0, relative: float = 0.0) -> bool:
    """|left - right| <= max(tolerance, relative * |right|), where `right` is the right answer; 0 and 0 is exact."""
    if tolerance == 0 and relative == 0:
        return left == right
    with localcontext() as context:
        context.prec = 60
        # A difference too large to hold becomes infinite instead of raising.
        context.clear_traps()
        room = max(Decimal(str(tolerance)), Decimal(str(relative)) * abs(right))
        return bool(abs(left - right) <= room)


def _decimal(sign: str, digits: str, exponent: str) -> Decimal | None:
    try:
        return Decimal(sign.replace("−", "-") + digits.replace(",", "") + exponent)
    except InvalidOperation:
        return None
