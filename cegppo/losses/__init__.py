"""One file, one token loss. The file's name is the registry.

A module defines `Params`, a frozen dataclass of its knobs with their limits (`types.knob`), and
`token_loss(x: TokenBatch, p: Params)`, which returns the loss to MINIMISE per token ([B, T]) and a
dict of per-token facts ([B, T]) that only this loss knows. It never reduces, logs, draws random
numbers from a global generator, or mutates.

Two facts have a meaning of their own: `clip_low` and `clip_high`, the bounds on the token's ratio
outside which this loss changes its rule (A < 0 below the one, A > 0 above the other). The
instrument states clip facts at them. A loss without such bounds leaves them out.

A loss that shares another's rule imports it, and its `Params` may extend the other's.

What a module may ask for, each by a name of its own:
* `WHOLE_BATCH = True`: it is given the whole mini-batch at once, however that is cut up;
* `NEEDS = ("old_entropy_BT", …)`: fields of the batch that it reads besides log-probabilities,
  advantages and the mask;
* `DRAWS = True`: `x.uniform_BT` holds seeded draws, the same however the mini-batch is cut up;
* `PROXY = "knob"`: `x.proxy_logprob_BT` holds log-probabilities of the old policy without the
  tokens that are less probable than that knob times its most probable one, renormalised.

docs/methods.md has the methods built of them side by side, with their sources.
"""

import importlib
import pkgutil
from types import ModuleType

from ..types import BadInput


def names() -> list[str]:
    """Every loss there is: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module `name`, with `Params` and `token_loss`. Raises BadInput when there is none."""
    if name not in names():
        raise BadInput(f"there is no loss '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
