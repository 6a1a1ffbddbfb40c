"""The knobs of a loss over a run: constants, schedules, and whatever sets itself while it trains.

Configuration in, the loss's `Params` of a step out. A loss whose knobs follow a controller defines
`make_knobs(values, steps)` beside its `Params`, which returns an object like `Knobs`.
"""

import re
from math import cos, pi
from typing import Any, Protocol

# How far a knob has gone from one value to the next after a share u of the way there.
GLIDES = {"linear": lambda u: u, "cosine": lambda u: (1 - cos(pi * u)) / 2}


class Knobs(Protocol):
    """What sets a loss's knobs. Called once a step, on every rank with the same numbers."""

    moving: tuple[str, ...]  # knobs that change within a run: logged as knob/<name>

    def at(self, step: int) -> dict[str, Any]:
        """The value of each knob in step `step` (0 the first)."""

    def observe(self, metrics: dict[str, float]) -> None:
        """The metrics of the step that has just ended, but for times, which differ by rank. A step
        that trained nothing lacks most of them."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""


class Scheduled:
    """Constants, and schedules. The simplest knobs: they observe nothing and have no
    state."""

    def __init__(self, values: dict[str, Any], steps: int):
        self.values, self.steps = values, steps
        self.moving = tuple(name for name, value in values.items() if isinstance(value, list))

    def at(self, step: int) -> dict[str, Any]:
        return {name: knob_at(value, step, self.steps) for name, value in self.values.items()}

    def observe(self, metrics: dict[str, float]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


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
