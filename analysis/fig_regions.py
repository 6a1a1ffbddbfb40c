"""Where β₁ and β₂ act: the weight that a token's gradient has against its ratio, in GRPO and in
CE-GPPO (arXiv 2509.20712, Eq. 8). Drawn from the formula."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from . import style

EPSILON, BETA1, BETA2 = 0.2, 0.5, 1.0
SIDES = {  # sign of A: (title, where the clip acts, the bound there, β, its name)
    -1: ("A < 0: a token to make rarer", "low", 1 - EPSILON, BETA1, "β₁"),
    1: ("A > 0: a token to make more probable", "high", 1 + EPSILON, BETA2, "β₂"),
}


def draw(results: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10.0, 3.6), sharey=True, constrained_layout=True)
    for axis, (title, side, bound, beta, name) in zip(axes, SIDES.values()):
        low = side == "low"
        outside = np.array([0.4, bound] if low else [bound, 1.8])
        inside = np.array([bound, 1.8] if low else [0.4, bound])
        axis.axvspan(*outside, color="#F3E3D3", zorder=0)
        axis.plot(inside, inside, color="#333333")
        axis.plot(outside, [0, 0], color=style.LOOK["grpo"][1], label="GRPO: nothing")
        axis.plot(
            outside, [beta * bound] * 2, color=style.LOOK["cegppo"][1], linestyle=(0, (5, 2)),
            label=f"CE-GPPO: {name} · {bound:g} at {name} = {beta:g}",
        )  # fmt: skip
        middle = float(outside.mean())
        axis.annotate(
            "", (middle, bound), (middle, 0), arrowprops={"arrowstyle": "<->", "color": "#888888", "linewidth": 0.9}
        )
        axis.text(middle + 0.02, bound / 4, f"{name}: 0 to 1", fontsize=8.5, color="#555555", va="center")
        axis.text(*((1.42, 1.3) if low else (0.62, 0.46)), "the ratio itself", fontsize=8.5)
        axis.axvline(1, color="#BBBBBB", linewidth=0.8, zorder=0)
        axis.set(title=title, xlabel="ratio π(token) / π_old(token)", xlim=(0.4, 1.8), ylim=(-0.08, 1.85))
        axis.text(middle, 1.74, f"outside the clip,\n{side} side", ha="center", va="top", fontsize=8.5)
        axis.legend(loc="lower right" if low else "upper left", fontsize=8)
    axes[0].set_ylabel("weight of ∇log π, in units of |A|")
    print(f"figure: {style.save(figure, results, 'regions')}")
