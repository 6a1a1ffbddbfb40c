"""What a mirror shows of a token record: histograms, and the few rows that moved the entropy
most."""

from typing import Any

import numpy as np

from ..instrument.entropy import CLASSES, SIDES

Histogram = tuple[np.ndarray, np.ndarray]  # counts [BINS] and edges [BINS + 1]
Columns = dict[str, np.ndarray]  # of a token record, [rows] each (docs/metrics.md)

BINS = 64
QUANTITIES = ("entropy", "prob", "ratio", "gradient", "influence")
SHOWN = (
    "update", "prompt_id", "rollout", "position", "text", "class", "side", "prob", "old_prob", "ratio", "entropy",
    "advantage", "weight", "gradient", "influence", "dentropy_exact", "verdict",
)  # fmt: skip


def histograms(columns: Columns) -> dict[str, Histogram]:
    """`hist/<quantity>/<group>` of a token record: all tokens, each class, each side of the clip. A
    quantity has the same edges in all of its groups, from its least value to its largest; tokens
    for which it was not taken (the influence, where only a part was looked at) are left out, and so
    is a group without any."""
    groups = {"all": np.ones(len(columns["step"]), dtype=bool)}
    groups |= {name: columns["class"] == name for name in CLASSES[1:]}
    groups |= {name if name == "inside" else f"clip_{name}": columns["side"] == name for name in SIDES}
    made = {}
    for quantity in QUANTITIES:
        values = columns[quantity].astype(np.float64)
        known = np.isfinite(values)
        if not known.any():
            continue
        edges = np.histogram_bin_edges(values[known], BINS)
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)  # the last one is closed
        for group, inside in groups.items():
            if (mine := place[known & inside]).size:
                made[f"hist/{quantity}/{group}"] = np.bincount(mine, minlength=BINS), edges
    return made


def most_moving(columns: Columns, most: int) -> list[dict[str, Any]]:
    """At most `most` rows of a token record, those whose update moved the entropy furthest through
    them (|`dentropy_exact`|) first."""
    size = np.nan_to_num(np.abs(columns["dentropy_exact"]), nan=-1.0)
    order = np.argsort(-size, kind="stable")[:most]
    picked = [columns[name][order].tolist() for name in SHOWN]
    return [dict(zip(SHOWN, row)) for row in zip(*picked)]
