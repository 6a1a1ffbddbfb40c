"""The measured sensitivity of entropy to β₁ and β₂ beside the first-order one, from forks that
`advise --measure` ran (docs/figures.md).

Measured: the difference of entropy between two forks of one checkpoint, k steps on, over the
difference of their β: a central difference, or a one-sided one where β − δ would be below 0. First
order: the base fork's own ledger over the same k steps. An update's effect at once is 1 − μ of what
it does in the end (μ is AdamW's β₁), and of an update with i steps left 1 − μ^i has come by then:

    Σ_j L_j (1 − μ^(k − j + 1)) / (1 − μ)     for j = 1 … k, L_j = ledger/lever_<side> of step n + j
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import ledger, load, stats

LABELS = {"low": "β₁ (A < 0)", "high": "β₂ (A > 0)"}


def entropy_after(folder: Path, step: int, steps: int) -> float:
    """Entropy `steps` steps after checkpoint `step`: of what the next step samples, before its
    updates. Raises Missing."""
    frame = load.run(folder)
    found = frame[frame["step"] == step + steps + 1] if "entropy/mean" in frame else frame.iloc[:0]
    if len(found) != 1 or not np.isfinite(found["entropy/mean"].iloc[0]):
        raise load.Missing(f"{folder}: no entropy of step {step + steps + 1}")
    return float(found["entropy/mean"].iloc[0])


def first_order(folder: Path, step: int, steps: int, side: str) -> float:
    """What a unit of the side's β does to entropy by then, by the ledger of the base fork; NaN
    where a step has none."""
    frame, momentum = load.run(folder).set_index("step"), ledger.momentum(folder)
    key = f"ledger/lever_{side}"
    levers = frame[key].reindex(range(step + 1, step + steps + 1)) if key in frame else pd.Series([np.nan])
    left = np.arange(len(levers), 0, -1)
    return float((levers.to_numpy(float) * (1 - momentum**left) / (1 - momentum)).sum())


def table(points: Sequence[Any], steps: int) -> pd.DataFrame:
    """A row per point (`cegppo.measure.Point`): measured and first order, nats per unit of β."""
    rows = []
    for p in points:
        ends = [entropy_after(folder, p.step, steps) for folder in (p.below, p.above)]
        rows.append(
            {
                "seed": p.seed, "step": p.step, "side": p.side, "steps": steps, "width": p.width,
                "one_sided": p.base in (p.below, p.above), "entropy": entropy_after(p.base, p.step, steps),
                "measured": (ends[1] - ends[0]) / p.width,
                "first_order": first_order(p.base, p.step, steps, p.side),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def units(made: pd.DataFrame, column: str) -> np.ndarray:
    """One number per seed (the mean of its checkpoints) where there are several seeds, else one
    per checkpoint."""
    if made["seed"].nunique() > 1:
        return made.groupby("seed")[column].mean().to_numpy()
    return made[column].to_numpy()


def text(made: pd.DataFrame, folder: Path) -> str:
    """What a person reads, of a `table`."""
    steps, seeds = int(made["steps"].iloc[0]), made["seed"].nunique()
    over = f"{seeds} seeds, each the mean of its checkpoints" if seeds > 1 else f"{made['step'].nunique()} checkpoints"
    rows = []
    for side, label in LABELS.items():
        mine = made[made["side"] == side]
        measured, told = (stats.mean_over_seeds(units(mine, column)) for column in ("measured", "first_order"))
        sign = stats.side(*measured[1:])
        rows.append(
            {
                "sensitivity to": label,
                "measured": ledger.show(measured, "{:+.4f}"),
                "first order": ledger.show(told, "{:+.4f}") if np.isfinite(told[0]) else "not recorded",
                "measured / first order": f"{measured[0] / told[0]:.2f}" if np.isfinite(told[0]) and told[0] else "",
                "measured says": {"above": "raises entropy", "below": "lowers entropy"}.get(sign, "sign undecided"),
            }
        )
    each = made.assign(side=made["side"].map(LABELS))[["seed", "step", "side", "entropy", "measured", "first_order"]]
    each = each.rename(columns={"entropy": "entropy, own β", "first_order": "first order", "step": "from step"})
    lines = [
        f"{folder}: change of entropy {steps} steps after a checkpoint, nats per unit of β, mean [95 % t interval] over"
        f" {over}",
        pd.DataFrame(rows).to_string(index=False),
        "",
        each.to_string(index=False, float_format="{:+.4f}".format),
    ]
    if made["one_sided"].any():
        lines.append("one-sided where β − δ would be below 0")
    if len(units(made[made["side"] == "low"], "measured")) < 3:
        lines.append("few checkpoints: a run with checkpoint_keep=0 keeps all of its own")
    return "\n".join(lines)
