"""What a configuration asks for, as objects: its loss's knobs, its controller, its objective."""

from dataclasses import fields

from . import losses
from .config import Config, flatten
from .controllers import NONE, Controller
from .controllers import load as load_controller
from .knobs import Knobs
from .objective import Objective, Terms


def knobs_of(c: Config) -> Knobs:
    """What sets the knobs of the configured loss."""
    return losses.knobs(c.loss["name"], {name: value for name, value in c.loss.items() if name != "name"}, c.steps)


def controller_of(c: Config) -> Controller | None:
    """What sets knobs from the entropy while the run goes on."""
    name = c.controller["name"]
    if name == NONE:
        return None
    flat = flatten(c.to_dict())
    values = {key: value for key, value in c.controller.items() if key != "name"}
    return Controller(name, values, {key: flat[key] for key in load_controller(name).SETS}, c.steps)


def objective_of(c: Config, knobs: Knobs, step: int, controller: Controller | None = None) -> Objective:
    """The objective of step `step` (0 the first); what the controller has set wins."""
    own = {f.name: getattr(c.update, f.name) for f in fields(Terms) if hasattr(c.update, f.name)}
    params = knobs.at(step)
    if controller is not None:
        own |= controller.section("update")
        params |= controller.section("loss")
    loss = losses.load(c.loss["name"])
    return Objective(loss, loss.Params(**params), Terms(**own, max_tokens=c.rollout.max_tokens))
