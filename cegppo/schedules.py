"""Every value that may change over a run: constants, schedules and what a controller sets.

Configuration in; out come the values of a step by their keys in the configuration, and the
objective that is made of them.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from . import losses
from .config import Config, flatten
from .controllers import NONE, Controller
from .controllers import load as load_controller
from .knobs import knob_at
from .objective import Objective, Terms

Values = Mapping[str, Any]  # of one step, by key of the configuration


class Schedules:
    """The values of each step. A controller that reads a step's metrics sets those of the next."""

    def __init__(self, config: Config):
        self.config = config
        self.controller = controller_of(config)

    def at(self, step: int) -> dict[str, Any]:
        """The values of step `step` (0 the first): of the loss, of the terms beside it, learning
        rates."""
        c = self.config
        given = {f"loss.{name}": value for name, value in c.loss.items() if name != "name"}
        given |= {f"update.{f.name}": getattr(c.update, f.name) for f in fields(Terms) if hasattr(c.update, f.name)}
        given |= {"update.lr": c.update.lr, "critic.lr": c.critic.lr}
        given["advantage.polarity_drift"] = c.advantage.polarity_drift
        values = {key: knob_at(value, step, c.steps) for key, value in given.items()}
        values["critic.lr"] = float(values["critic.lr"])
        values["update.lr"] = float(values["update.lr"]) * min(1.0, (step + 1) / max(1, c.update.warmup_steps))
        return values | (self.controller.values if self.controller is not None else {})

    def metrics(self, values: Values, trained: bool) -> dict[str, float]:
        """What of a step's values is logged: what changes within the run. `trained`: whether the
        step had an update."""
        c = self.config
        moving = [name for name, value in c.loss.items() if isinstance(value, list)]
        made = {"lr": values["update.lr"]} | {f"knob/{name}": values[f"loss.{name}"] for name in moving}
        if c.advantage.kind == "gae" and isinstance(c.critic.lr, list):
            made["critic/lr"] = values["critic.lr"]
        if self.controller is not None:
            made |= self.controller.knobs()
            if trained and "update.entropy_coef" in self.controller.values:
                made["loss/entropy"] = 0.0  # a coefficient of 0 has no term, and so no value of its own
        return made

    def observe(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Let the controller set the next step's values from the metrics of `step`; what it says of
        that, as metrics."""
        return {} if self.controller is None else self.controller.observe(step, metrics)


def controller_of(c: Config) -> Controller | None:
    """The controller that `controller.name` chooses."""
    name = c.controller["name"]
    if name == NONE:
        return None
    flat = flatten(c.to_dict())
    values = {key: value for key, value in c.controller.items() if key != "name"}
    return Controller(name, values, {key: flat[key] for key in load_controller(name).SETS}, c.steps)


def objective_of(c: Config, values: Values) -> Objective:
    """What a step of these values minimises."""
    section = lambda name: {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
    loss, known = losses.load(c.loss["name"]), {f.name for f in fields(Terms)}
    terms = {name: value for name, value in section("update").items() if name in known}
    return Objective(loss, loss.Params(**section("loss")), Terms(**terms, max_tokens=c.rollout.max_tokens))
