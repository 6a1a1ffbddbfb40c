"""The knobs of a loss over a run: constants, schedules, and whatever sets itself while it trains.

Configuration in, the loss's `Params` of a step out. A loss whose knobs follow a controller defines
`make_knobs(values, steps)` beside its `Params`, which returns an object like `Knobs`.
"""

import re
from typing import Any, Protocol


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
    """Constants, and schedules by step. The simplest knobs: they observe nothing and have no
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
    """A knob in step `step` of `steps`: `value` itself, or the last entry of a schedule
    [[when, value], …] that has begun."""
    if not isinstance(value, list):
        return value
    return [v for when, v in value if first_step(when, steps) <= step][-1]


def schedule_problem(value: list, steps: int) -> str | None:
    """What is wrong with a schedule; None when nothing is."""
    pairs = all(isinstance(entry, list) and len(entry) == 2 for entry in value)
    share = lambda when: isinstance(when, str) and re.fullmatch(r"\d+(\.\d+)?%", when)
    whole = lambda when: isinstance(when, int) and not isinstance(when, bool)
    if not value or not pairs or not all(share(when) or whole(when) for when, _ in value):
        return "a schedule is a list of [step, value] or [share%, value], such as [[0, 0.0], [58%, 0.5]]"
    starts = [first_step(when, steps) for when, _ in value]
    if any(isinstance(when, str) and float(when[:-1]) > 100 for when, _ in value):
        return "a share of the run is at most 100%"
    if starts[0] != 0 or starts != sorted(set(starts)):
        return f"a schedule begins at 0 and goes on, it does not begin at steps {starts}"
    return None
