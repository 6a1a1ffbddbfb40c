"""Whether an answer equals its reference: what is settled without algebra, and what a text has to
look like for math-verify to read all of it.

math-verify leaves out what it does not understand, and that rewards wrong answers: words that
multiply (million), subscripts that are bases, a last letter that is also a unit, e-notation. Here
they are read; what cannot be read is said to be so. Nothing here needs sympy.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from .notation import EXPONENT, LONGEST, MIXED, REPEATING, clean, close, matches, number, repeating
from .units import Unit, unit

Pair = tuple[str, str]  # reference, answer: texts for math-verify

# --------------------------------------------------------------------------------------- words

_TRUE_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")


def words(text: str) -> str | None:
    """Clean `text` as words, spaces and hyphens left out; None where it holds anything else."""
    bare = _TEXT.sub(r"\1", text).strip()
    if re.fullmatch(r"[A-Za-z]'+", bare):  # a derivative
        return None
    if choice := _CHOICE.fullmatch(bare):
        return choice[1].upper() if bare != choice[1] or "\\text" in text else choice[1]
    return re.sub(r"[ '-]", "", bare) if _TRUE_WORDS.fullmatch(bare.rstrip(".")) and "\\" not in bare else None


def _same_words(given: str, wanted: str) -> bool:
    if len(wanted) == len(given) == 1:  # letters of a choice in whatever case, variables in theirs
        return given == wanted or given.upper() == wanted.upper() and "A" <= wanted <= "J"
    if len(wanted) == len(given) == 2 and (given + wanted).islower():  # a product of two variables
        return sorted(given) == sorted(wanted)
    return given.rstrip(".").lower() == wanted.rstrip(".").lower()


def _items(text: str) -> list[str] | None:
    """The words of a list of words; None where an item is none."""
    bare = re.sub(r",?\s*\b(?:and|or)\b|;", ",", re.sub(r"^\\\{|\\\}$", "", _TEXT.sub(r"\1", text)))
    found = [words(item.strip()) for item in bare.split(",")]
    return [item.lower() for item in found if item is not None] if len(found) > 1 and None not in found else None


# ---------------------------------------------------------------------------------- quantities

_MULTIPLIERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words that say more than what is counted: they are never left out.
_SAYING = set(
    "or and if when where mod modulo base times less more most least than not no dozen half halves quarter third"
    " factorial squared cubed minus plus negative approximately about between to from over under up except undefined"
    " percent percentage pct for all any per".split()
)
_QUANTITY = re.compile(rf"\s*({_TEXT.pattern})\s*((?:\^\s*(?:\{{-?\d\}}|-?\d))?)")
_POWER = r"(?:\s?\^\s?\{?-?\d\}?)?"
_BARE = re.compile(rf"(?<=[\d)}}\]])(\s?)([A-Za-z]+{_POWER}(?:(?:\s?/\s?|\s)[A-Za-z]+{_POWER})*)$")
_FUNCTIONS = set(
    "sin cos tan cot sec csc log ln exp sqrt max min gcd lcm mod pi theta alpha beta det deg arg lim".split()
)


class Quantity(NamedTuple):
    """A number or formula and what it is counted in."""

    head: str
    unit: Unit | None
    named: bool  # words follow it, known as a unit or not


def _bare_units(text: str, loose: bool) -> str:
    """`text` with the words at its end in `\\text{…}`. Letters that may be variables are words only
    where `loose` says that nothing else can be meant."""
    found = _BARE.search(text, max(0, len(text) - 60))
    if not found:
        return text
    tail = found[2]
    names = re.findall("[A-Za-z]+", tail)
    known = unit(tail) is not None and (loose or min(map(len, names)) > 1) and (found[1] or max(map(len, names)) > 1)
    said = found[1] and all(len(name) > 2 and name.lower() not in _FUNCTIONS for name in names)
    return f"{text[: found.start()]}\\text{{ {tail}}}" if known or said else text


def quantities(text: str, loose: bool = False) -> list[Quantity] | None:
    """What clean `text` counts, e.g. 5 hours 30 minutes; None where it is nothing like that."""
    pieces = _QUANTITY.split(_bare_units(text, loose))  # head, \text{words}, words, power, head, …
    if len(pieces) < 5 or pieces[-1].strip(" )"):
        return None
    found = []
    for place in range(0, len(pieces) - 1, 4):
        head, _, said, power = pieces[place : place + 4]
        said = re.sub(r"^\s*(?:,|and\b)|(?:,|\band)\s*$", "", said) if len(pieces) > 5 else said
        first, *others = said.split() or [""]
        while first.lower() in _MULTIPLIERS:
            head, first, others = (
                f"{head} \\times 10^{{{_MULTIPLIERS[first.lower()]}}}",
                (others or [""])[0],
                others[1:],
            )
        said = " ".join((first, *others))
        if not head.strip() or re.search(r"[=<>]|\\[lg]e|\\text", head):
            return None
        if not _SAYING.isdisjoint(re.findall("[a-z]+", said.lower())) and unit(said + power) is None:
            return None
        found.append(Quantity(_ungrouped(head.strip()), unit(said + power) if said else None, bool(said)))
    return found


def _ungrouped(head: str) -> str:
    """Powers of ten in `head` as one, so that five hundred million is a number."""
    while (
        again := re.sub(r"10\^\{(\d+)\} \\times 10\^\{(\d+)\}", lambda m: f"10^{{{int(m[1]) + int(m[2])}}}", head)
    ) != head:
        head = again
    return head


def _total(parts: list[Quantity]) -> tuple[tuple, Fraction] | None:
    """What quantities of one kind add up to; None where they are of several or of no known kind."""
    total, kinds = Fraction(0), set()
    for part in parts:
        size = number(part.head)
        if size is None or part.unit is None:
            return None
        kinds.add(part.unit[0])
        total += size.value * part.unit[1]
    return (kinds.pop(), total) if len(kinds) == 1 else None


def _counted(answer: str, reference: str) -> bool | Pair | None:
    """Two answers of which at least one counts something; None where neither does."""
    wanted = quantities(reference)
    given = quantities(answer, loose=number(reference) is not None or wanted is not None)
    if given is None and wanted is None:
        return None
    given, wanted = given or [Quantity(answer, None, False)], wanted or [Quantity(reference, None, False)]
    if len(given) > 1 or len(wanted) > 1:
        totals = _total(given), _total(wanted)
        if None not in totals:
            return totals[0] == totals[1]
        same = len(given) == len(wanted) and all(
            g.unit == w.unit and number(g.head) == number(w.head) is not None for g, w in zip(given, wanted)
        )
        return same if len(given) == len(wanted) else False
    (one,), (other,) = given, wanted
    factor = Fraction(1)
    if one.unit is not None and other.unit is not None:
        if one.unit[0] != other.unit[0]:
            return False
        factor = one.unit[1] / other.unit[1]
    heads = number(one.head), number(other.head)
    if heads[0] is not None and heads[1] is not None:
        return close(heads[0]._replace(value=heads[0].value * factor), heads[1])
    scaled = one.head if factor == 1 else f"({one.head})\\cdot\\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    return other.head, scaled


# --------------------------------------------------------------------------------- in one piece

_BASED = re.compile(
    r"\(?\s*([0-9A-F]*\d[0-9A-F]*)\s*\)?\s*_\s*(?:\{\s*(?:\\text\s*\{\s*)?(\w+)\s*\}?\s*\}|\\text\s*\{\s*(\w+)\s*\}|(\d))"
)
_BASES = dict(zip("two three four five six seven eight nine ten eleven twelve sixteen".split(), [*range(2, 13), 16]))


def _based(found: re.Match[str]) -> tuple[int, int] | None:
    """(value, base) of digits with their base as a subscript."""
    named = next(filter(None, found.groups()[1:]))
    base = int(named) if named.isdecimal() else _BASES.get(named.lower(), 0)
    try:
        return (int(found[1], base), base) if 2 <= base <= 36 else None
    except ValueError:  # a digit that the base does not have
        return None


def _in_bases(answer: str, reference: str) -> bool | None:
    """Whether two integers are the same in the same base; None where neither names a base."""
    spelt = [
        re.sub(
            r"\\text\s*\{\s*\(?\s*base\s+(\w+)\s*\)?\s*\}$|\s+\(?base\s+(\w+)\)?$",
            lambda m: f"_{{{m[1] or m[2]}}}",
            text,
        )
        for text in (answer, reference)
    ]
    found = [_BASED.fullmatch(text) for text in spelt]
    if not any(found):
        return None
    read = [_based(match) if match else None for match in found]
    plain = [number(text) for text in (answer, reference)]
    values = [r or (n and (n.value, 10)) for r, n in zip(read, plain)]
    given, wanted = values
    if given is None or wanted is None:
        return None
    # Where the reference names no base, its value counts.
    return given == wanted if read[1] is not None else given[0] == wanted[0]


_PRIME = r"\s*(?:'+|\^\s*\{?\s*(?:\\prime\s*|')+\}?)"


def _primed(found: re.Match[str]) -> str:
    count = len(re.findall("'|prime", found[2]))
    return f"{found[1]}_{{p{count}}}"


def _points(found: re.Match[str]) -> str:
    return f"{found[1][0].upper()}_{{{found[2].replace(' ', '')}}}"


# What math-verify drops, or reads as a product in any order, as a symbol with a subscript.
_AS_SYMBOL: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(rf"(?<![A-Za-z\\])([A-Za-z])({_PRIME})"), _primed),
    (re.compile(r"\\(angle|triangle|overrightarrow|vec)\s*\{?\s*([A-Z](?:\s?[A-Z])+)(?![A-Za-z])\s*\}?"), _points),
    (re.compile(r"\\frac\s*\{\s*d\s*([a-z])\s*\}\s*\{\s*d\s*([a-z])\s*\}"), r"D_{\1\2}"),
    (re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*\^\s*\{?\s*(?:T|\\top|\\intercal)(?![A-Za-z])\s*\}?"), r"\1_{T}"),
)
_SET = re.compile(r"\\\{[^(){}\[\]]*,[^(){}\[\]]*\\\}")
_TUPLE = re.compile(r"\([^()\[\]]*,[^()\[\]]*\)")


def readable(text: str) -> str | None:
    """Clean `text` as math-verify reads it whole; None where a part of it would be dropped."""
    for pattern, by in _AS_SYMBOL:
        text = pattern.sub(by, text)
    if re.search(r"[A-Za-z)}\]]" + _PRIME, text):
        return None
    text = EXPONENT.sub(r"\1\\times 10^{\2}", text)
    text = REPEATING.sub(lambda m: "\\frac{{{}}}{{{}}}".format(*repeating(*m.groups()).as_integer_ratio()), text)
    text = MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<![\d,])([1-9]\d{0,2})((?: \d{3})+)(?![\d,])", lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"(?<![A-Za-z\\])(?:infinity|inf)(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(\d)\s*(?:\\text\s*\{\s*)?(?:percent(?:age)?|pct)\b\s*\}?", r"\1\\%", text)
    bases = list(_BASED.finditer(text))
    for found in reversed(bases):
        if (read := _based(found)) is None:
            return None
        text = text[: found.start()] + str(read[0]) + text[found.end() :]
    if re.search(r"(?<!_)\d\s+\d|\d\s*_", text):  # math-verify adds the one and drops the other
        return None
    if re.search(r"[(\[{]", text) and "," in text and ", " not in text:  # a list, not digits in groups
        text = text.replace(",", ", ")
    return text


@lru_cache(maxsize=4096)  # the responses of a group give the same answers again and again
def compare(answer: str, reference: str) -> bool | Pair | None:
    """Whether `answer` equals `reference`; or, where algebra is needed to tell, the two texts for
    math-verify; None where the reference cannot be read."""
    if matches(answer, reference):
        return True
    if not answer:
        return False
    given, wanted = clean(answer), clean(reference)
    if max(len(given), len(wanted)) > LONGEST:
        return reference, answer
    one, other = number(given), number(wanted)
    if one is not None and other is not None:
        return close(one, other)
    if matches(_TEXT.sub(r"\1", given), _TEXT.sub(r"\1", wanted)):
        return True
    said, meant = words(given), words(wanted)
    if said is not None and meant is not None:
        return _same_words(said, meant)
    if any(_SET.fullmatch(a) and _TUPLE.fullmatch(b) for a, b in ((given, wanted), (wanted, given))):
        return False
    listed, named = _items(given), _items(wanted)
    if listed is not None and named is not None:
        return sorted(listed) == sorted(named)
    settled: bool | Pair | None = _in_bases(given, wanted)
    settled = _counted(given, wanted) if settled is None else settled
    if isinstance(settled, bool):
        return settled
    wanted, given = settled or (wanted, given)
    texts = readable(wanted), readable(given)
    if texts[0] is None:
        return None
    return (texts[0], texts[1]) if texts[1] is not None else False


def quick(answer: str, reference: str) -> bool | None:
    """Whether `answer` equals `reference` where no algebra is needed to tell; None where it is."""
    settled = compare(answer, reference)
    return settled if isinstance(settled, bool) else None
