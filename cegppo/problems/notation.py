"""An answer as text: without what changes only its looks, and the number that it is. Nothing here
needs sympy."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST = 2000  # characters; what is longer is compared as it is


class Number(NamedTuple):
    """A number that is written out."""

    value: Fraction
    decimal: bool  # it has a point or an exponent: it may be rounded
    scientific: bool  # it has an exponent: its own size is what its digits count from


# ---------------------------------------------------------------------------------- clean text

_CHARACTERS = str.maketrans({
    **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FULLWIDTH HYPHEN-MINUS}", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007~", " "), "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∅": r"\emptyset ",
    "√": r"\sqrt ", "±": r"\pm ", "²": "^2", "³": "^3", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "€": "", "£": "",
})  # fmt: skip
_BOLD = r"boldsymbol|mathbf|bm|mathit|mathsf|underline|displaystyle|textstyle|scriptstyle|bf|rm|it"
_COMMANDS = (
    (r"\\!\s*|\{,\}(?=\d{3})|\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![a-zA-Z])", ""),  # `\{,\}` is not `{,}`
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}", " "),
    (r"(?<!\\)\\\$|\$|\\(?:text)?color\s*(?:\[\w*\])?\{[\w!]+\}|\\(?:limits|nolimits)(?![a-zA-Z])", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:varnothing|empty)(?![a-zA-Z])|^\s*(?:\\\{\s*\\\}|\{\s*\})\s*$", r"\\emptyset "),
    (r"\\(?:textbf|textit|textrm|textnormal|textsf|texttt|textup|emph|mbox|hbox|mathtt)\s*(?=\{)", r"\\text"),
    (r"\\mathrm\s*\{\s*([A-Za-z])\s*\}", r"\1 "),
    (r"\\mathrm\s*(?=\{[^{}\\]*\})", r"\\text"),
    (r"\\(?:operatorname)\*?\{(\w+)\}", r"\\text{\1}"),
    (r"\s+", " "),
)  # fmt: skip
_CLEANING = tuple((re.compile(pattern), by) for pattern, by in _COMMANDS)
_MARKUP = re.compile(rf"\\(?:{_BOLD}|boxed|fbox)(?![a-zA-Z])\s*")


def _closing(text: str, begin: int) -> int:
    """Where the brace that opens at `begin` closes; -1 when it does not."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1 : place] != "\\" else 0
        if depth == 0:
            return place
    return -1


def _unmarked(text: str) -> str:
    """`text` without bold, underlined, coloured and the like."""
    while found := _MARKUP.search(text):
        end = _closing(text, found.end()) if text[found.end() : found.end() + 1] == "{" else -1
        inside = text[found.end() + 1 : end] + text[end + 1 :] if end > 0 else text[found.end() :]
        text = f"{text[: found.start()]} {inside}"
    text = re.sub(r"^\s*([*_]{1,3}|`)(.+?)\1\s*$", r"\2", text).strip()
    while text.startswith("{") and _closing(text, 0) == len(text) - 1 > 1:
        text = text[1:-1].strip()
    return text


@lru_cache(maxsize=4096)
def clean(answer: str) -> str:
    """`answer` without what changes only its looks."""
    text = " ".join(answer.split())
    if len(text) > LONGEST:
        return text
    text = text.translate(_CHARACTERS)
    for pattern, by in _CLEANING:
        text = pattern.sub(by, text)
    while text.endswith(("\\\\", ".", " ")):
        text = text.rstrip(". ").removesuffix("\\\\")
    return _unmarked(text)


def normalised(answer: str) -> str:
    """`answer` as text that is equal for trivially equal answers: spacing, `$`, `\\left`,
    `\\dfrac`, a final full stop, and the way a plain number is written (`1,000`, `2.50`,
    `\\frac{1}{2}`, `5e-1`) make no difference."""
    text = clean(answer)
    found = number(text)
    if found is not None:
        return str(found.value)
    # But "1 2" is not 12, and "1, 234" is not 1,234.
    text = re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"(?<=\d), (?=\d{3}(?!\d))", ",\0", text))
    return text if re.fullmatch(r"[-+\d.\0,]*", text) else text.replace("\0", "")


def matches(answer: str, reference: str) -> bool:
    """Equal as text or as exact rational numbers, by `normalised`."""
    return normalised(answer) == normalised(reference)


# ------------------------------------------------------------------------------------- numbers

_INTEGER = r"(?:[1-9]\d{0,2}(?:[, ]\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_TEN = r"\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))"
_PLAIN = re.compile(rf"([+-]?)\s?(?:({_DECIMAL})(?:[eE]([+-]?\d{{1,3}})|{_TEN})?|10\s*\^\s*\{{?([+-]?\d{{1,3}})\}}?)")
_FRACTION = re.compile(
    rf"([+-]?)\s?(?:\\frac\s?(?:\{{\s*(-?\d+)\s*\}}\s*\{{\s*(-?\d+)\s*\}}|(\d)\s?(\d))|({_DECIMAL})\s?/\s?({_DECIMAL}))"
)
MIXED = re.compile(r"(?<![\d.,/^_}])(\d+)\s+(\d+)\s?/\s?(\d+)(?![\d/.])")
REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
EXPONENT = re.compile(rf"(?<![\w.\\])({_DECIMAL})[eE]([+-]?\d{{1,3}})(?![\w.])")


def number(text: str) -> Number | None:
    """The number that clean `text` is: an integer, a decimal number, one with a power of ten, a
    fraction, a mixed or a repeating number."""
    if len(text) > 60:
        return None
    try:
        if found := _PLAIN.fullmatch(text):
            sign, digits, *exponents = found.groups()
            exponent = next((int(e) for e in exponents if e is not None), None)
            value = Fraction(Decimal(re.sub("[, ]", "", digits or "1"))) * Fraction(10) ** (exponent or 0)
            return Number(
                -value if sign == "-" else value, "." in (digits or "") or exponent is not None, exponent is not None
            )
        if found := _FRACTION.fullmatch(text):
            sign, *parts = found.groups()
            over, under = (Fraction(Decimal(re.sub("[, ]", "", part))) for part in parts if part is not None)
            return Number(-over / under if sign == "-" else over / under, False, False)
        if found := re.fullmatch(rf"([+-]?)\s?(?:{MIXED.pattern}|{REPEATING.pattern})", text):
            sign, whole, top, bottom, *rest = found.groups()
            value = Fraction(int(top), int(bottom)) + int(whole) if whole else repeating(*rest)
            return Number(-value if sign == "-" else value, False, False)
    except (InvalidOperation, ValueError, ZeroDivisionError):
        pass
    return None


def repeating(whole: str, fixed: str, period: str | None, digit: str | None) -> Fraction:
    """The value of 0.12\\overline{3}, by its digits."""
    again = period or str(digit)
    nines = 10 ** len(again) - 1
    return int(whole or 0) + (int(fixed or 0) + Fraction(int(again), nines)) / 10 ** len(fixed)


def close(given: Number, wanted: Number) -> bool:
    """Whether two numbers are the same. Exact ones are the same when they are equal. Where one of
    them may be rounded, they differ by at most 10⁻⁶, relatively, and decimal numbers that are
    written out also absolutely."""
    apart = abs(given.value - wanted.value)
    whole = given.value.denominator == wanted.value.denominator == 1
    if not apart or whole or not (given.decimal or wanted.decimal):
        return not apart
    size = abs(wanted.value)
    return apart * 10**6 <= (size if given.scientific or wanted.scientific else min(size, Fraction(1)))


def written(value: int | float | Decimal) -> str:
    """A finite number of a data file as text, digit by digit; far from 1 with a power of ten."""
    if isinstance(value, int):
        return str(value)
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if -20 <= exact.adjusted() <= 20:
        return format(exact, "f")
    digits, _, exponent = format(exact, "e").partition("e")
    return f"{digits}\\times 10^{{{int(exponent)}}}"
