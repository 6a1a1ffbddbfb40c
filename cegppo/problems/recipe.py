"""What the embedded model is made from, as values: the section `testbed:` of the configuration.

The folder that a model is cached in is named by these values, so code may be moved and formatted
without making another model. docs/testbed.md says what each value is for.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

MOST_WORDINGS = 16  # connectives that the tokenizer has
FAMILIES = ("chain_sum", "simple_equations", "gcd")  # tasks that can be worked out


@dataclass(frozen=True)
class Worker:
    """One kind of worker among those whose solutions the model learns from."""

    share: float = 1.0  # of the worked solutions, relative to the other kinds
    wordings: int = 0  # connectives that only this kind writes; 0: the recipe's, which kinds then share
    slip_rate: float = 0.15  # of its steps in the careless phase whose result is off


@dataclass(frozen=True)
class Recipe:
    """How the embedded model is made: what it learns from, in two phases, and its size."""

    wordings: int = 16  # connectives, equally good, one of which follows each step of a worked solution
    wordings_exponent: float = -1.0  # the connective of rank r has probability ∝ r^exponent; 0: all alike
    slip_rate: float = 0.15  # of the careless phase's steps whose result is off; without `workers`
    workers: list[Worker] = field(default_factory=list)  # several kinds instead of one
    direct_share: float = 0.5  # of the careless phase's solutions that answer at once
    clean_direct_share: float = 0.05  # of the clean phase's
    tasks: dict[str, float] = field(default_factory=lambda: {"chain_sum": 4.0, "simple_equations": 1.0, "gcd": 1.0})
    pool: int = 1500  # distinct problems of each task
    clean_steps: int = 480
    careless_steps: int = 80
    rows: int = 64  # solutions a step
    lr: float = 5e-3  # of the clean phase
    careless_lr: float = 1e-3
    hidden: int = 64
    intermediate: int = 128
    layers: int = 2
    heads: int = 4
    head_dim: int = 16
    init_std: float = 0.08  # of the order of 1/√hidden; the library's 0.02 is meant for wide models
    seed: int = 0

    def problem(self) -> tuple[str, str] | None:
        """(key, rule) of the first value that cannot be used; None when all can."""
        counts = ("pool", "rows", "hidden", "intermediate", "layers", "heads", "head_dim", "wordings")
        for key in counts:
            if getattr(self, key) < 1:
                return key, "must be at least 1"
        for key in ("clean_steps", "careless_steps", "seed"):
            if getattr(self, key) < 0:
                return key, "must be at least 0"
        if self.clean_steps + self.careless_steps < 1:
            return "clean_steps", "and careless_steps must not both be 0"
        for key in ("slip_rate", "direct_share", "clean_direct_share"):
            if not 0 <= getattr(self, key) <= 1:
                return key, "must be in [0, 1]"
        for key in ("lr", "careless_lr", "init_std"):
            if not getattr(self, key) > 0:
                return key, "must be above 0"
        if self.wordings > MOST_WORDINGS:
            return "wordings", f"must be at most {MOST_WORDINGS}"
        if not 0 < sum(self.tasks.values()) or min(self.tasks.values()) < 0:
            return "tasks", "takes shares of at least 0 that are not all 0"
        if strange := sorted(set(self.tasks) - set(FAMILIES)):
            return "tasks", f"knows {', '.join(FAMILIES)}, and not '{strange[0]}'"
        for worker in self.workers:
            if not worker.share > 0 or not 0 <= worker.slip_rate <= 1 or worker.wordings < 0:
                return "workers", "takes a share above 0, a slip_rate in [0, 1] and wordings of at least 0"
        if sum(worker.wordings for worker in self.workers) > MOST_WORDINGS:
            return "workers", f"have more than {MOST_WORDINGS} wordings of their own together"
        return None

    def values(self) -> dict[str, Any]:
        """The nested values: what a cached model is named by."""
        return asdict(self)
