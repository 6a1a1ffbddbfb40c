"""Knobs that change as a run goes on: a schedule is a list of [when, value], `when` being a step
(0 the first) or a share of the run such as "58%"."""

import re
from typing import Any


def first_step(when: int | str, steps: int) -> int:
    """The step from which an entry of a schedule holds in a run of `steps`."""
    return when if isinstance(when, int) else round(float(when.removesuffix("%")) / 100 * steps)


def knob_at(value: Any, step: int, steps: int) -> float:
    """A knob in step `step` of `steps`: `value` itself, or the last entry of a schedule that has
    begun."""
    return value if not isinstance(value, list) else [v for when, v in value if first_step(when, steps) <= step][-1]


def schedule_problem(value: list, steps: int) -> str | None:
    """What is wrong with a schedule; None when nothing is."""
    share = lambda when: isinstance(when, str) and re.fullmatch(r"\d+(\.\d+)?%", when)
    whole = lambda when: isinstance(when, int) and not isinstance(when, bool)
    pairs = all(isinstance(entry, list) and len(entry) == 2 for entry in value)
    if not value or not pairs or not all(share(when) or whole(when) for when, _ in value):
        return "a schedule is a list of [step, value] or [share%, value], such as [[0, 0.0], [58%, 0.5]]"
    if any(isinstance(when, str) and float(when[:-1]) > 100 for when, _ in value):
        return "a share of the run is at most 100%"
    starts = [first_step(when, steps) for when, _ in value]
    if starts[0] != 0 or starts != sorted(set(starts)):
        return f"a schedule begins at 0 and goes on, it does not begin at steps {starts}"
    return None
