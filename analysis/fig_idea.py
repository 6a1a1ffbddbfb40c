"""The idea of the instrument in one picture, drawn from nothing recorded: a directional derivative
of all tokens' log-probabilities along D ∘ ∇H gives every token's part in the change of entropy."""

from pathlib import Path

import matplotlib.pyplot as plt

from . import style

BOXES = {  # left, text, what it costs
    "probe": (0.0, "probe batch\nfixed responses", "∇H: one backward pass"),
    "optimizer": (2.75, "optimizer\nΔθ = D ∘ g + momentum", "D: read off AdamW's state"),
    "direction": (5.5, "direction\nd = D ∘ ∇H", "one vector like θ"),
    "tokens": (8.25, "all tokens of the update\nlog π carried along d", "J: one pass in forward mode"),
}
SUMS = (
    "by class: PA&HP, PA&LP, NA&HP, NA&LP",
    "by clip side, the lever: what β would give back",
    "by token: a response, coloured",
)


def draw(results: Path) -> None:
    figure, axis = plt.subplots(figsize=(11.0, 3.5), constrained_layout=True)
    axis.set(xlim=(-0.1, 10.9), ylim=(-2.35, 1.05), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(False)
    for left, text, cost in BOXES.values():
        box(axis, left, 0.0, text, "#9CCBEE")
        axis.text(left + 1.1, -0.24, cost, ha="center", fontsize=8, color="#555555")
    for left in (2.25, 5.0, 7.75):
        arrow(axis, (left, 0.4), (left + 0.45, 0.4))
    box(axis, 4.0, -1.55, r"$\Delta H_t = \lambda_t\, J_t$" + "\nof every token, in nats", "#F7C09A", 2.6)
    arrow(axis, (9.35, -0.38), (6.7, -1.1))
    axis.text(8.35, -0.95, "× λ: the slope the loss\nputs on log π", fontsize=8.5)
    for n, text in enumerate(SUMS):
        left = 0.5 + 3.6 * n
        axis.text(left + 1.2, -2.28, text, ha="center", fontsize=8.5)
        arrow(axis, (4.6 + 0.7 * n, -1.6), (left + 1.2, -2.08))
    print(f"figure: {style.save(figure, results, 'idea')}")


def box(axis: plt.Axes, left: float, bottom: float, text: str, colour: str, width: float = 2.2) -> None:
    axis.add_patch(plt.Rectangle((left, bottom), width, 0.8, facecolor=colour, edgecolor="#333333", linewidth=0.8))
    axis.text(left + width / 2, bottom + 0.4, text, ha="center", va="center", fontsize=9, parse_math=True)


def arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2})
