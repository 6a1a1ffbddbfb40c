"""What a value of the configuration may be over a run: a constant or a schedule, within the limits
that `types.knob` states."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from math import cos, pi
from typing import Any

GUARD = 1000  # a largest value from here on is a guard, not a meaning
LARGEST = 2**40  # of whole numbers: sizes and counts beyond it overflow in one library or another

# How far a knob has gone from one value to the next after a share u of the way there.
GLIDES = {"linear": lambda u: u, "cosine": lambda u: (1 - cos(pi * u)) / 2}


def first_step(when: int | str, steps: int) -> int:
    """The step from which an entry of a schedule holds: a step, or a share of the run ("58%")."""
    return when if isinstance(when, int) else round(float(when.removesuffix("%")) / 100 * steps)


def knob_at(value: Any, step: int, steps: int) -> Any:
    """A knob in step `step` of `steps`: `value` itself, or of a schedule [[when, value], …] the
    value of the last entry that has begun; on the way to an entry [when, value, "linear"] or
    [when, value, "cosine"] what lies between the two."""
    if not isinstance(value, list):
        return value
    last = [i for i, entry in enumerate(value) if first_step(entry[0], steps) <= step][-1]
    now = value[last][1]
    if last + 1 == len(value) or len(value[last + 1]) == 2:
        return now
    begin, (end, then, how) = first_step(value[last][0], steps), value[last + 1]
    return now + GLIDES[how]((step - begin) / (first_step(end, steps) - begin)) * (then - now)


def schedule_problem(value: list, steps: int) -> str | None:
    """What is wrong with a schedule; None when nothing is."""
    entries = all(isinstance(entry, list) and len(entry) in (2, 3) for entry in value)
    share = lambda when: isinstance(when, str) and re.fullmatch(r"\d+(\.\d+)?%", when)
    whole = lambda when: isinstance(when, int) and not isinstance(when, bool)
    if not value or not entries or not all(share(entry[0]) or whole(entry[0]) for entry in value):
        return (
            "a schedule is a list of [step, value] or [share%, value], such as [[0, 0.0], [58%, 0.5]]; "
            "[58%, 0.5, linear] or [58%, 0.5, cosine] goes there from the entry before"
        )
    starts = [first_step(entry[0], steps) for entry in value]
    if any(isinstance(entry[0], str) and float(entry[0][:-1]) > 100 for entry in value):
        return "a share of the run is at most 100%"
    if starts[0] != 0 or starts != sorted(set(starts)):
        return f"a schedule begins at 0 and goes on, it does not begin at steps {starts}"
    if len(value[0]) == 3:
        return "the first entry of a schedule has no value before it to come from"
    if unknown := [entry[2] for entry in value if len(entry) == 3 and entry[2] not in list(GLIDES)]:
        return f"a schedule goes {' or '.join(GLIDES)} from one value to the next, not {unknown[0]!r}"
    return None


# ------------------------------------------------------------- what a value may be, and what to say


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """'; did you mean …?' for an unknown name; `prefix` is said before each valid one."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{close[0]}'?" if close else f"; there are: {', '.join(prefix + v for v in valid)}"


def fits(value: Any, default: Any) -> bool:
    """Whether a knob with that default can take the value: a whole number serves as a float."""
    if isinstance(default, (bool, str)) or isinstance(value, (bool, str)):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int)
    return isinstance(value, (int, float))


def beyond(value: float, knob: dataclasses.Field) -> str | None:
    """The limit of `knob` that `value` breaks, as "must be …"; None when it breaks none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"must be at most {LARGEST}"
    least, above, most, below = (knob.metadata.get(name) for name in ("least", "above", "most", "below"))
    high_enough = (least is None or value >= least) and (above is None or value > above)
    low_enough = (most is None or value <= most) and (below is None or value < below)
    if high_enough and low_enough:
        return None
    if most is not None and most >= GUARD:  # there only so that no library overflows: the other limit is the one to say
        return f"must be at most {most:.15g}" if high_enough else _beyond_least(least, above)
    if (least is None) != (above is None) and (most is None) != (below is None) and (above is None or below is None):
        low = f"({above:g}" if least is None else f"[{least:g}"
        high = f"{below:g})" if most is None else f"{most:g}]"
        return f"must be in {low}, {high}"
    words = {"at least": least, "above": above, "at most": most, "below": below}
    return f"must be {' and '.join(f'{word} {limit:g}' for word, limit in words.items() if limit is not None)}"


def _beyond_least(least: float | None, above: float | None) -> str:
    return f"must be above {above:g}" if least is None else f"must be at least {least:g}"


def numbers(value: Any) -> list[float]:
    """The numbers in a value, in its list, or that its schedule takes."""
    values = [v[1] if isinstance(v, list) else v for v in value] if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def misfit(value: Any, knob: dataclasses.Field) -> str | None:
    """What is wrong with one value of `knob`, as "takes …" or "must be …"; None when nothing
    is."""
    if not fits(value, knob.default):
        return f"takes a {type(knob.default).__name__}, not {value!r}"
    problem = beyond(value, knob) if numbers(value) else None
    return problem and f"{problem}, not {value}"
