"""The final answer of a response: the part of its text that is graded."""

import re

from ..types import AnswerForm

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKS = re.compile(_BOX.pattern + "|[{}]")
# `\boxed 5`: up to the end of its formula, or of its word where no formula ends on the line.
_BARE_BOX = re.compile(r"\\boxed(?:\s*(?=[-+.(\[\\\d])|\s+(?=[A-Za-z]\s*(?:\$|\\[)\]])))([^\n$]{0,200})")
_MINUS_SIGNS = dict.fromkeys(
    map(ord, "\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}"), "-"
)
# A minus after a digit, a letter or a bracket is a sign between two numbers, not of one. Thousands
# are grouped by commas or spaces, thin ones and LaTeX's included.
_NUMBERS = re.compile(
    r"(?:(?<![\w)\]}])[+-])?"
    r"(?:\\[dt]?frac\s?(?:\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d\s?\d(?!\d))"
    r"|(?:(?<![\d.])\d{1,3}(?:(?:,|\{,\}|\\,|[ \u00a0\u2009\u202f])\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\w)\.\d+)"
    r"(?:[eE][+-]?\d+(?!\w)|\s?/\s?\d+)?)"
)  # fmt: skip


def final_answer(text: str, form: AnswerForm = "boxed") -> str | None:
    """The final answer of `text`: the content of its last complete `\\boxed{…}`, braces balanced,
    or of its last `\\boxed …` without braces where there is none with them; or its last line that
    is not empty; or its last number. None when there is none."""
    if form == "last_line":
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
    if form == "last_number":
        return last_number(text)
    first, found = text.find("\\"), None
    open_at: list[int | None] = []  # of each brace not yet closed: where its content begins if it is a box's
    begins = _BOX.search(text, max(first, 0))
    # One pass: a thousand unclosed boxes must not cost a thousand.
    for mark in _MARKS.finditer(text, begins.start()) if begins else ():
        if mark[0] != "}":
            open_at.append(mark.end() if len(mark[0]) > 1 else None)
        elif open_at and (begin := open_at.pop()) is not None and (found is None or begin > found[0]):
            found = (begin, mark.start())
    if found is not None:
        return text[slice(*found)].strip()
    *_, bare = (None, *_BARE_BOX.finditer(text))
    if bare is None:
        return None
    formula, *more = re.split(r"\\[)\]]", bare[1], maxsplit=1)
    if more or text[bare.end() : bare.end() + 1] == "$":
        return formula.strip()
    return formula.strip().split(" ")[0].rstrip(".,;")


def last_number(text: str) -> str | None:
    """The last number of `text` as it is written there: an integer, a decimal number (`.5`,
    `1.5e-3`) or a fraction of integers, digits grouped or not; typographic minus signs become
    `-`."""
    return next(reversed(_NUMBERS.findall(text.translate(_MINUS_SIGNS))), None)
