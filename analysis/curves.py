"""Metrics of runs as curves of the page: one x axis for all, thinned where there are very many
steps, and which metrics share a panel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from . import embed, ledger

POINTS, VALUES = 2000, 600_000  # of a curve; of all curves of a page
MEAN = "eval/mean of benchmarks"

# {panel: {metric: label}}; a run's panels, the metrics being the lines.
PANELS = {
    "Entropy before the updates, nats": {"entropy/mean": "all tokens"},
    "Training accuracy and reward": {"accuracy/mean": "accuracy", "reward/mean": "reward"},
    "Outside the clip, share of tokens": {"clip/low": "low side (A < 0)", "clip/high": "high side (A > 0)"},
    "Tokens by class, share": {f"tokens/{k}": v for k, v in ledger.CLASSES.items()},
    "Gradient by class, share": {f"grad/share_{k}": v for k, v in ledger.CLASSES.items()},
    "First-order entropy change by class": {f"dentropy/predicted_{k}": v for k, v in ledger.CLASSES.items()},
    "Levers, first order, logit space": {"lever/low": "per unit of β₁", "lever/high": "per unit of β₂"},
    "Gradient norm before clipping": {"grad/norm": "gradient norm"},
    "KL(old ‖ new) at the update, nats": {"kl/old_k1": "k1", "kl/old_k3": "k3"},
    "Response length, tokens": {"length/mean": "mean"},
    "Failed answers, share": {"verdict/truncated": "truncated", "verdict/no_answer": "no answer"},
    "Constant groups, share": {"rollout/constant_groups": "constant groups"},
}
# A sweep's panels, one a metric, the arms being the lines.
OF_A_SWEEP = {
    "entropy/mean": "Entropy before the updates, nats",
    "accuracy/mean": "Training accuracy",
    "reward/mean": "Training reward",
    "clip/low": "Outside the clip, low side, share",
    "clip/high": "Outside the clip, high side, share",
    "grad/share_clip_low": "Gradient from outside the clip, low side, share",
    "grad/share_clip_high": "Gradient from outside the clip, high side, share",
    "grad/norm": "Gradient norm before clipping",
    "kl/old_k3": "KL(old ‖ new) at the update, k3, nats",
    "length/mean": "Response length, tokens",
    "verdict/truncated": "Truncated answers, share",
    "rollout/constant_groups": "Constant groups, share",
    "lever/low": "Lever per unit of β₁, logit space",
    "lever/high": "Lever per unit of β₂, logit space",
}


@dataclass(frozen=True)
class Lines:
    """One run: its arm, a row a step, a row an evaluation and benchmark."""

    arm: str
    metrics: pd.DataFrame
    scores: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """Everything numeric by step; benchmarks as eval/<name>, their mean as MEAN."""
        made = self.metrics.drop(columns=["arm", "seed"], errors="ignore").set_index("step")
        made = made.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
        if self.scores.empty:
            return made
        by = self.scores.pivot_table(index="step", columns="benchmark", values="accuracy", sort=False)
        mean = by.mean(axis=1).rename(MEAN)
        return pd.concat([made, mean, by.add_prefix("eval/")], axis=1).sort_index()


def columns(runs: dict[str, Lines], only: list[str] | None = None) -> tuple[dict[str, Any], str]:
    """({x, runs: [{name, arm}], metrics: {name: [a column a run, or null]}}, what was thinned, in
    words). `only`: these metrics; default: all."""
    frames = {name: lines.table() for name, lines in runs.items()}
    steps = sorted({int(step) for frame in frames.values() for step in frame.index})
    keys = list(dict.fromkeys(key for frame in frames.values() for key in frame))
    keys = keys if only is None else [key for key in only if key in keys]
    count = sum(key in frame for frame in frames.values() for key in keys)
    points = max(50, min(POINTS, VALUES // max(count, 1)))
    frames = {name: frame[~frame.index.duplicated(keep="last")].reindex(steps) for name, frame in frames.items()}
    size = -(-2 * len(steps) // points) if len(steps) > points else 0
    x = steps if not size else steps[:: size // 2]

    def put(values: np.ndarray) -> dict[str, Any]:
        return embed.column(thinned(values, size) if size else values, "single")

    metrics = {
        key: [put(frame[key].to_numpy(float)) if key in frame else None for frame in frames.values()] for key in keys
    }
    note = f"Curves of {len(steps):,} steps are drawn with {len(x):,} points: the least and the largest value of each"
    note += f" {size} steps, so that no spike is lost."
    made = {"x": x, "runs": [{"name": n, "arm": lines.arm} for n, lines in runs.items()], "metrics": metrics}
    return made, note if size else ""


def thinned(values: np.ndarray, size: int) -> np.ndarray:
    """Two values of each `size` (even), the least and the largest in the order they come."""
    size += size % 2
    whole = np.concatenate([values, np.full(-len(values) % size, np.nan)]).reshape(-1, size)
    known = ~np.isnan(whole)
    low, high = (np.where(known, whole, edge) for edge in (np.inf, -np.inf))
    least, most = low.argmin(axis=1), high.argmax(axis=1)
    places = np.sort(np.stack([least, most], axis=1), axis=1)
    made = np.take_along_axis(whole, places, axis=1)
    made[~known.any(axis=1)] = np.nan
    return made.reshape(-1)[: -(-len(values) // (size // 2))]


def of_run(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a run: [{title, lines: [[metric, label]], raw: not to be smoothed}], as far as
    it has the metrics."""
    asked = filter(_is_eval, made["metrics"])
    panels = [_panel("Benchmarks, avg@k", {key: key.removeprefix("eval/") for key in asked})]
    for title, lines in PANELS.items():
        panels.append(_panel(title, {key: label for key, label in lines.items() if key in made["metrics"]}))
    return [panel for panel in panels if panel["lines"]]


def of_sweep(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels of a sweep, as far as a run has the metric."""
    named = {MEAN: "Benchmarks, mean of avg@k", **OF_A_SWEEP}
    return [_panel(title, {key: ""}) for key, title in named.items() if key in made["metrics"]]


def _panel(title: str, lines: dict[str, str]) -> dict[str, Any]:
    """Evaluations are few, and each of many answers: they are not smoothed."""
    return {"title": title, "lines": [list(line) for line in lines.items()], "raw": any(map(_is_eval, lines))}


def _is_eval(key: str) -> bool:
    return key.startswith("eval/")
