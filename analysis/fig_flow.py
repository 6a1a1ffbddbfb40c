"""One step of training as a row of stations, with what each writes into the record. Drawn from
nothing recorded."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import style
from .fig_idea import arrow, box

STATIONS = (  # what happens, where its code is, what it leaves in the record
    ("prompts", "problems/data.py", "place in the stream"),
    ("groups of\nresponses", "rollout/", "completions, length"),
    ("rewards and\nverdicts", "problems/reward.py", "accuracy, verdict/…"),
    ("advantages", "advantage.py", "constant groups"),
    ("a loss a token,\na weight measured", "losses/, objective.py", "clip/…, grad/…"),
    ("updates", "update.py", "kl/…, entropy/…"),
)
WIDTH, GAP = 1.55, 0.35


def draw(results: Path) -> None:
    figure, axis = plt.subplots(figsize=(11.0, 2.9), constrained_layout=True)
    span = len(STATIONS) * (WIDTH + GAP) - GAP
    axis.set(xlim=(-0.1, span + 0.1), ylim=(-2.0, 1.25), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(False)
    for n, (what, where, left_behind) in enumerate(STATIONS):
        left = n * (WIDTH + GAP)
        middle = left + WIDTH / 2
        box(axis, left, 0.0, what, "#9CCBEE" if n < 4 else "#F7C09A", WIDTH)
        axis.text(middle, 0.9, where, ha="center", fontsize=8, color="#555555", family="monospace")
        axis.text(middle, -0.62, left_behind, ha="center", fontsize=8.5)
        arrow(axis, (middle, -0.05), (middle, -0.42))
        arrow(axis, (middle, -0.72), (middle, -1.05))
        if n:
            arrow(axis, (left - GAP, 0.4), (left, 0.4))
    axis.add_patch(plt.Rectangle((0, -1.5), span, 0.42, facecolor="#EEEEEE", edgecolor="#333333", linewidth=0.8))
    axis.text(
        span / 2, -1.29, "results/<experiment>/<arm>/seed<k>/   metrics.jsonl · eval.jsonl · tokens/ · checkpoints/",
        ha="center", va="center", fontsize=8.5, family="monospace",
    )  # fmt: skip
    axis.text(
        span / 2, -1.82, "every figure, table, verdict and page is made of these files alone", ha="center", fontsize=8.5
    )
    last = span - WIDTH / 2
    axis.annotate(
        "", (WIDTH / 2 + WIDTH + GAP, 1.08), (last, 1.08),
        arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2, "connectionstyle": "bar,fraction=0.03"},
    )  # fmt: skip
    axis.text(span / 2 + 1, 1.2, "new weights to the sampler", ha="center", fontsize=8.5)
    print(f"figure: {style.save(figure, results, 'flow')}")
