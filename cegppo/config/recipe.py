"""What the embedded model is made from, as values: the section `testbed:` of the configuration.

The folder that a model is cached in is named by these values, so code may be moved and formatted
without making another model. docs/testbed.md says what each value is for.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ..types import knob

MOST_WORDINGS = 16  # connectives that the tokenizer has
FAMILIES = (  # tasks that can be worked out
    "chain_sum", "simple_equations", "gcd",
    "knights_knaves", "letter_counting", "palindrome_generation", "countdown",
)  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """One kind of worker among those whose solutions the model learns from."""

    share: float = knob(1.0, "of the worked solutions, relative to the other kinds", above=0)
    wordings: int = knob(
        0,
        "connectives that only this kind writes; 0: the recipe's, which kinds then share",
        least=0,
        most=MOST_WORDINGS,
    )
    slip_rate: float = knob(0.15, "of its steps in the careless phase whose result is off", least=0, most=1)


@dataclass(frozen=True)
class Recipe:
    """How the embedded model is made: what it learns from, in two phases, and its size."""

    wordings: int = knob(
        16,
        "connectives, equally good, one of which follows each step of a worked solution",
        least=1,
        most=MOST_WORDINGS,
    )
    wordings_exponent: float = knob(-1.0, "the connective of rank r has probability ∝ r^exponent; 0: all alike")
    slip_rate: float = knob(
        0.15, "of the careless phase's steps whose result is off; without `workers`", least=0, most=1
    )
    workers: list[Worker] = knob([], "several kinds instead of one")
    direct_share: float = knob(0.5, "of the careless phase's solutions that answer at once", least=0, most=1)
    clean_direct_share: float = knob(0.05, "of the clean phase's", least=0, most=1)
    tasks: dict[str, float] = knob({"chain_sum": 4.0, "simple_equations": 1.0, "gcd": 1.0}, "share of each task")
    pool: int = knob(1500, "distinct problems of each task", least=1)
    clean_steps: int = knob(480, "supervised steps on clean work", least=0)
    careless_steps: int = knob(80, "supervised steps on careless work, after them", least=0)
    rows: int = knob(64, "solutions a step", least=1)
    lr: float = knob(5e-3, "of the clean phase", above=0)
    careless_lr: float = knob(1e-3, "of the careless phase", above=0)
    hidden: int = knob(64, "width", least=1)
    intermediate: int = knob(128, "width of the feed-forward layers", least=1)
    layers: int = knob(2, "of the decoder", least=1)
    heads: int = knob(4, "of attention", least=1)
    head_dim: int = knob(16, "of each head", least=1)
    init_std: float = knob(0.08, "of the order of 1/√hidden; the library's 0.02 is meant for wide models", above=0)
    seed: int = knob(0, "of the weights and the solutions", least=0)

    def problem(self) -> tuple[str, str] | None:
        """(key, rule) of the first value that does not go with the others; None when all do."""
        if self.clean_steps + self.careless_steps < 1:
            return "clean_steps", "and careless_steps must not both be 0"
        if not 0 < sum(self.tasks.values()) or min(self.tasks.values()) < 0:
            return "tasks", "takes shares of at least 0 that are not all 0"
        if strange := sorted(set(self.tasks) - set(FAMILIES)):
            return "tasks", f"knows {', '.join(FAMILIES)}, and not '{strange[0]}'"
        if sum(worker.wordings for worker in self.workers) > MOST_WORDINGS:
            return "workers", f"have more than {MOST_WORDINGS} wordings of their own together"
        return None

    def values(self) -> dict[str, Any]:
        """The nested values: what a cached model is named by."""
        return asdict(self)
