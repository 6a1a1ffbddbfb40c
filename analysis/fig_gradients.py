"""Which tokens the gradient comes from: shares by class over time, and what CE-GPPO gives back.
Reads the runs of sweeps/algorithms.yaml.

A share is of the summed norms of the tokens' logit gradients, |w| √(1 − 2p + Σπ²): what tokens put
in, before they cancel.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import evolution, ledger, load, style

AREAS = ["grpo", "cegppo"]
GIVES_BACK = ["cispo", "gspo", "cegppo", "cegppo_0.75"]  # a hard clip gives nothing back
ARMS = ["grpo", "clip_higher", *GIVES_BACK]
SIDES = {"clip_low": "Given back, low side (A < 0)", "clip_high": "Given back, high side (A > 0)"}


def draw(results: Path) -> None:
    runs = load.metrics(results, "algorithms", ARMS)
    figure, (areas, lines) = plt.subplots(2, 2, figsize=(8.6, 6.6), sharex=True, constrained_layout=True)
    for axis, arm in zip(areas, AREAS):
        mine = runs[runs["arm"] == arm]
        floor: float | pd.Series = 0.0
        for key, name in ledger.CLASSES.items():
            share = evolution.smooth(mine, f"grad/share_{key}").mean(axis=1) * 100
            axis.fill_between(share.index, floor, floor + share, **style.area(key), label=name)
            floor = floor + share
        axis.set(title=f"By class, {style.look(arm)[0]}", ylabel="% of the gradient", ylim=(0, 100))
    for axis, (key, title) in zip(lines, SIDES.items()):
        evolution.over_steps(axis, runs, GIVES_BACK, f"grad/share_{key}", 100)
        axis.set(title=title, xlabel="step", ylabel="% of the gradient", ylim=(0, None))
    style.legend(figure, 4, areas[0], lines[0])
    style.caption(
        figure,
        f"{evolution.caption(runs)} (areas: mean; GRPO and clip-higher give nothing back); moving average over"
        f" {evolution.WINDOW} steps",
    )
    keys = [*ledger.CLASSES, *SIDES]
    table = runs.groupby("arm")[[f"grad/share_{key}" for key in keys]].mean().loc[ARMS]
    table.index = [style.look(arm)[0] for arm in ARMS]
    print(
        (table * 100).rename(columns=lambda c: c.removeprefix("grad/share_")).to_string(float_format="{:.2f} %".format)
    )
    print(f"\nfigure: {style.save(figure, results, 'gradients')}")
