"""The weight that every method puts on a token, as a function of the token's ratio.

    python -m cegppo.curves         writes results/weights.csv, which `figures --only weights` draws

Evaluated by the objective of the method's preset in a run's first step, not restated: one token of
probability p under the old policy, in a response of its own, within a mini-batch of 512 others that
are still on-policy, half of them with A > 0, of probabilities from 0.05 to 1. A loss with
statistics of the mini-batch has those of this one; a loss that draws, the mean of two draws.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import torch

from . import config
from .objective import Objective, weigh
from .schedules import Schedules, objective_of
from .types import TokenBatch

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results" / "weights.csv"
PROBABILITIES = (0.2, 0.02)  # of the token, under the old policy
OTHERS = 512
# A grid, and either side of where clips lie.
RATIOS = sorted({n / 20 for n in range(1, 49)} | {bound + d for bound in (0.8, 1.2, 1.28) for d in (-1e-3, 1e-3)})


def objective(method: str) -> Objective:
    """That of the preset in a run's first step."""
    made, _ = config.load(ROOT / "experiments" / "testbed.yaml", [f"method={method}"])
    return objective_of(made, Schedules(made).at(0))


def batch(probability: float, advantage: float, ratio: float, draw: float) -> TokenBatch:
    """The token, row 0, and the others, on-policy; one token a row, float64."""
    place_N = torch.linspace(0, 1, OTHERS, dtype=torch.float64)
    old_B1 = torch.cat([torch.tensor([probability], dtype=torch.float64), 0.05 + 0.94 * place_N])[:, None]
    sign_N = torch.ones(OTHERS, dtype=torch.float64)
    sign_N[::2] = -1
    ratio_B1 = torch.ones_like(old_B1)
    ratio_B1[0] = ratio
    advantage_B1 = torch.cat([torch.tensor([advantage], dtype=torch.float64), sign_N])[:, None]
    entropy_B1 = -(old_B1 * old_B1.log() + (1 - old_B1) * ((1 - old_B1) / 3).log())  # the rest on three tokens alike
    return TokenBatch(
        logprob_BT=old_B1.log() + ratio_B1.log(),
        old_logprob_BT=old_B1.log(),
        ref_logprob_BT=old_B1.log(),  # the policy that a run starts from, in its first step
        advantage_BT=advantage_B1,
        mask_BT=torch.ones_like(old_B1),
        entropy_BT=entropy_B1,
        old_entropy_BT=entropy_B1,
        proxy_logprob_BT=(old_B1 / 0.95).log(),
        uniform_BT=torch.full_like(old_B1, draw),
        correct_B=(advantage_B1[:, 0] > 0).double(),
    )


def weight(of: Objective, probability: float, advantage: float, ratio: float) -> float:
    """w / A of the token: 1 is the score function times the advantage."""
    draws = (0.25, 0.75) if of.draws else (0.5,)
    found = []
    for draw in draws:
        x = batch(probability, advantage, ratio, draw)
        made, _ = weigh(of, x, of.scales(x))
        found.append(float(made.weight_BT[0, 0]) / advantage)
    return sum(found) / len(found)


def rows() -> Iterator[tuple[str, float, float, float, float]]:
    """(method, probability, ratio, w / A where A > 0, w / A where A < 0)."""
    for method in config.methods():
        of = objective(method)
        for probability in PROBABILITIES:
            for ratio in RATIOS:
                positive, negative = (round(weight(of, probability, sign, ratio), 4) + 0.0 for sign in (1.0, -1.0))
                yield method, probability, ratio, positive, negative


def text() -> str:
    """The file."""
    made = io.StringIO()
    out = csv.writer(made, lineterminator="\n")
    out.writerow(["method", "old_probability", "ratio", "positive", "negative"])
    out.writerows((m, f"{p:g}", f"{r:g}", f"{plus:g}", f"{minus:g}") for m, p, r, plus, minus in rows())
    return made.getvalue()


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(FILE)
