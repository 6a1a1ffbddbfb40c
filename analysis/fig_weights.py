"""The weight that each method puts on a token, as a function of the token's ratio: A > 0 and A < 0,
a panel a rule. Reads weights.csv, which `python -m cegppo.curves` computes from the code itself."""

from pathlib import Path

import numpy as np
import pandas as pd

from . import load, style
from .style import plt

SIGNS = {"positive": ("A > 0", "#0B4F8A"), "negative": ("A < 0", "#A8431B")}
REFERENCE = "grpo"
COLUMNS = 5
FEW = 3  # names of methods that a panel has room for
LIMITS = (-0.6, 2.5)


def read(results: Path) -> pd.DataFrame:
    """A row a method, probability and ratio. Raises Missing."""
    path = results / "weights.csv"
    if not path.is_file():
        raise load.Missing(f"no {path}; `python -m cegppo.curves` writes it")
    return pd.read_csv(path)


def rules(curves: pd.DataFrame) -> dict[str, list[str]]:
    """{method: methods of the same curves, itself among them}, the reference first."""
    found: dict[bytes, list[str]] = {}
    for method, mine in curves.groupby("method"):
        found.setdefault(mine[["positive", "negative"]].to_numpy().tobytes(), []).append(str(method))
    groups = sorted(found.values(), key=lambda group: (REFERENCE not in group, group))
    return {REFERENCE if REFERENCE in group else group[0]: group for group in groups}


def draw(results: Path) -> None:
    curves = read(results)
    made = rules(curves)
    rows = -(-len(made) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(2.3 * COLUMNS, 1.75 * rows + 0.9), sharex=True, sharey=True, constrained_layout=True
    )
    probable, rare = sorted(curves["old_probability"].unique(), reverse=True)
    of = lambda method, probability: curves[
        (curves["method"] == method) & (curves["old_probability"] == probability)
    ].set_index("ratio")
    others = ""
    for axis, (method, group) in zip(axes.flat, made.items()):
        for key, (label, colour) in SIGNS.items():
            axis.plot(of(REFERENCE, probable)[key], color=colour, linewidth=4, alpha=0.16, label=f"GRPO, {label}")
            main, other = of(method, probable)[key], of(method, rare)[key]
            axis.plot(main, color=colour, linestyle="-" if key == "positive" else (0, (4, 1.2)), label=label)
            if not np.allclose(main, other, atol=5e-3):
                label = f"{label}, a rarer token"
                axis.plot(other, color=colour, linewidth=1.1, linestyle=(0, (1, 1)), label=label)
        name, *same = [method, *(one for one in group if one != method)]
        axis.set_title(name, fontsize=9)
        if len(same) > FEW:  # too many to write into a panel
            lines = [", ".join(same[n : n + 9]) for n in range(0, len(same), 9)]
            others += f"\n{name}: also " + "\n".join(lines)
        elif same:
            axis.text(0.05, 2.42, "= " + ", ".join(same), fontsize=5.2, color="#444444", va="top")
        axis.axvline(1, color="black", linewidth=0.5, alpha=0.4)
        axis.axhline(0, color="black", linewidth=0.5, alpha=0.4)
        axis.set(xlim=(0, 2.4), ylim=LIMITS, xticks=[0, 0.8, 1.2, 2], yticks=[0, 1, 2])
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(made) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("weight / A", fontsize=8)
    for axis in axes.flat[len(made) - COLUMNS : len(made)]:
        axis.set_xlabel("ratio", fontsize=8)
        axis.tick_params(labelbottom=True)
    style.legend(figure, 6, *axes.flat)
    style.caption(
        figure,
        f"w / A of one token of probability {probable:g} under the old policy (dotted: {rare:g}, where it differs), in"
        " a response of its own, the rest of the mini-batch on-policy;\na preset's values in a run's first step."
        f" Small: methods of the same curves, which act on something else than the ratio, or later in a run{others}",
    )
    print(f"{curves['method'].nunique()} methods, {len(made)} rules")
    print(f"figure: {style.save(figure, results, 'weights')}")
