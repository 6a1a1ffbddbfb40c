"""One file, one entropy controller. The file's name is the registry, as in `cegppo.losses`.

A controller reads a step's metrics and sets knobs of the next step: of the loss (`loss.beta1`) or
of the terms beside it (`update.entropy_coef`). The first step has the values of the configuration.

A module defines
* `Params`, a frozen dataclass of its knobs with their limits (`types.knob`), `target` among them:
  H*, the `entropy/mean` to hold, a number or a schedule;
* `SETS`, the keys of the configuration that it sets, each of them a number there;
* `Rule(p, start)` with `decide`, `state` and `restore` (below), `start` being the configured values
  of `SETS`;
* where values have to go together, `problem(p, flat)`: (key, what it must be) or None, `flat` being
  the configuration by dotted keys.
"""

import importlib
import pkgutil
from collections.abc import Callable
from math import isfinite
from types import ModuleType
from typing import Any, Protocol

from ..knobs import knob_at
from ..types import BadInput

NONE = "none"  # what controller.name says where there is none
Target = Callable[[int], float]  # H* a number of steps after the step that has just ended


class Rule(Protocol):
    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        """The values of `SETS` for the next step, and facts to log as controller/<name>, from the
        metrics of a step that trained. Called once a step, on every rank with the same numbers."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, for JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""


def names() -> list[str]:
    """Every controller there is: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module `name`. Raises BadInput when there is none."""
    if name not in names():
        raise BadInput(f"there is no controller '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


class Controller:
    """A rule in a run of `steps` steps, with its target over them and what it has set."""

    def __init__(self, name: str, values: dict[str, Any], start: dict[str, float], steps: int):
        module = load(name)
        self.schedule, self.steps = values["target"], steps
        constants = {key: value for key, value in values.items() if key != "target"}
        self.rule: Rule = module.Rule(module.Params(**constants), start)
        self.values = dict(start)  # of the step to come, by their keys in the configuration

    def section(self, name: str) -> dict[str, float]:
        """What it has set in section `name` of the configuration, by the key there."""
        parts = ((key.partition("."), value) for key, value in self.values.items())
        return {key: value for (head, _, key), value in parts if head == name}

    def knobs(self) -> dict[str, float]:
        """What it has set, as metrics."""
        return {f"knob/{key.rpartition('.')[2]}": value for key, value in self.values.items()}

    def observe(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Set the next step's values from the metrics of `step` (0 the first). Returns what was
        made of them, for the line of that step: nothing, and nothing is set, where nothing trained
        or the entropy is no number."""
        entropy = metrics.get("entropy/mean", float("nan"))
        if not metrics.get("updates") or not isfinite(entropy):
            return {}
        target = lambda ahead: float(knob_at(self.schedule, min(step + ahead, self.steps - 1), self.steps))
        self.values, facts = self.rule.decide(metrics, target)
        facts = {"target": target(0), "error": target(0) - entropy} | facts
        return {f"controller/{name}": value for name, value in facts.items()}

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "rule": self.rule.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.values = dict(state["values"])
        self.rule.restore(state["rule"])
