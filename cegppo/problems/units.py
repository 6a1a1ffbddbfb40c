"""Units of measurement as they stand behind a number in an answer: `cm^2`, `km/h`, `miles per
hour`. A unit is what it measures and how large it is; a word that is no unit is None.

Everyday units of contest and school problems only; temperatures and currencies are not converted.
"""

import re
from fractions import Fraction
from functools import lru_cache

Unit = tuple[tuple[tuple[str, int], ...], Fraction]  # ((quantity, power), …) sorted, and its size in the first named

# Quantity, names of one size, the size in the quantity's own unit. Plurals are understood.
_SIZES: tuple[tuple[str, str, str], ...] = (
    ("length", "m meter metre", "1"), ("length", "mm millimeter millimetre", "1/1000"),
    ("length", "cm centimeter centimetre", "1/100"), ("length", "dm decimeter decimetre", "1/10"),
    ("length", "km kilometer kilometre", "1000"), ("length", "in inch", "0.0254"), ("length", "ft foot feet", "0.3048"),
    ("length", "yd yard", "0.9144"), ("length", "mi mile", "1609.344"), ("length", "nm nanometer", "1/1000000000"),
    ("time", "s sec second", "1"), ("time", "ms millisecond", "1/1000"), ("time", "min minute", "60"),
    ("time", "h hr hour", "3600"), ("time", "day", "86400"), ("time", "week", "604800"),
    ("month", "month", "1"), ("month", "yr year", "12"),
    ("mass", "g gram", "1"), ("mass", "mg milligram", "1/1000"), ("mass", "kg kilogram", "1000"),
    ("mass", "lb pound", "453.59237"), ("mass", "oz ounce", "28.349523125"), ("mass", "ton tonne", "1000000"),
    ("volume", "L liter litre", "1"), ("volume", "mL ml milliliter millilitre", "1/1000"),
    ("gallon", "gal gallon", "1"), ("gallon", "quart qt", "1/4"), ("gallon", "pint pt", "1/8"),
    ("gallon", "cup", "1/16"),
    ("money", "dollar USD", "1"), ("money", "cent", "1/100"), ("money", "dime", "1/10"), ("money", "nickel", "1/20"),
    ("euro", "euro EUR", "1"), ("angle", "degree deg", "1"), ("radian", "radian rad", "1"),
    ("energy", "J joule", "1"), ("energy", "kJ kilojoule", "1000"), ("force", "N newton", "1"),
    ("power", "W watt", "1"), ("power", "kW kilowatt", "1000"), ("voltage", "V volt", "1"),
    ("current", "A ampere amp", "1"), ("resistance", "ohm", "1"), ("frequency", "Hz hertz", "1"),
    ("pressure", "Pa pascal", "1"), ("temperature", "K kelvin", "1"), ("amount", "mol mole", "1"),
    ("unit", "unit", "1"),
)  # fmt: skip
_NAMES = {name: (quantity, Fraction(size)) for quantity, names, size in _SIZES for name in names.split()}
_WHOLE = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "kmph": "km/hour", "rpm": "unit/minute"}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_ATOM = re.compile(r"([A-Za-z]+)\.?(?:\s*\^?\s*\{?(-?\d)\}?)?")


def _named(word: str) -> tuple[str, Fraction] | None:
    stems = (word, word.removesuffix("s"), word.removesuffix("es"))
    for stem in (*stems, *(s.lower() for s in stems if len(s) > 3)):
        if stem in _NAMES and (stem == word or len(stem) > 1):
            return _NAMES[stem]
    return None


@lru_cache(maxsize=1024)
def unit(text: str) -> Unit | None:
    """The unit that `text` says, e.g. `cm^2`, `m/s`, `square feet`, `miles per hour`; None when a
    part of it is no unit."""
    text = re.sub(r"\\cdot|[*·~]|\\[,;: ]", " ", _WHOLE.get(text.strip().lower(), text))
    text = re.sub(r"\bper\b", "/", text).strip()
    if not text or len(text) > 60:
        return None
    size, powers = Fraction(1), dict[str, int]()
    for place, part in enumerate(text.split("/")):
        held = 1
        for piece in re.sub(r"\s*\^\s*", "^", part).split():
            if piece in _POWERS:
                held = _POWERS[piece]
                continue
            atom = _ATOM.fullmatch(piece)
            found = _named(atom[1]) if atom else None
            if atom is None or found is None:
                return None
            power = int(atom[2] or 1) * held * (-1 if place else 1)
            powers[found[0]] = powers.get(found[0], 0) + power
            size, held = size * found[1] ** power, 1
        if held != 1 or not part.strip():
            return None
    return tuple(sorted((name, power) for name, power in powers.items() if power)), size
