"""One file, one token loss. The file's name is the registry.

A module defines `Params`, a frozen dataclass of its knobs with their limits (`types.knob`), and
`token_loss(x: TokenBatch, p: Params)`, which returns the loss to MINIMISE per token ([B, T]) and a
dict of per-token facts ([B, T]) that only this loss knows. It never reduces, logs, draws random
numbers from a global generator, or mutates. A module that sets `WHOLE_BATCH = True` is given the
whole mini-batch at once, however it is split into micro-batches. One that sets `TOKEN_CLIP = False`
has an eps_low and an eps_high that do not bound a token's ratio.
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
