"""What each regime of experiments/regimes/ looks like under GRPO alone: the calibration table of
docs/regimes.md, from <results>/calibration/<regime>/grpo/seed0.

    python -m analysis.regimes [RESULTS]      writes it between the markers of docs/regimes.md
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from . import load

DOC = Path(__file__).resolve().parent.parent / "docs" / "regimes.md"
MARKS = ("<!-- calibration: written by python -m analysis.regimes -->", "<!-- end of calibration -->")
SETTLED = 5  # steps left out of the means: the optimizer's moments are still filling
ENDS = 5  # steps that a start and an end are means of
COLUMNS = {
    "clip/low": "low", "clip/high": "high", "kl/old_k3": "kl", "ratio/min": "least", "ratio/max": "most",
}  # fmt: skip
AIMS = "p(up) < 0.2", "low : high ≤ 1.5", "KL ≤ 1e-3", "clip 0.05–0.5 %"


def observables(steps: pd.DataFrame) -> dict[str, float]:
    """The observables of one run, from its metrics, one row a step.

    Means over steps; the median probability of clipped tokens is a mean of the steps' medians,
    each step weighing as much as it clips on that side.
    """
    late = steps[steps["step"] > SETTLED]
    made = {name: float(late[key].mean()) for key, name in COLUMNS.items()}
    for side, name in (("low", "p_low"), ("high", "p_high")):
        weight, median = late[f"clip/{side}"], late.get(f"clip/prob_{side}_q50", pd.Series(np.nan, late.index))
        known = median.notna()
        made[name] = float((weight * median)[known].sum() / weight[known].sum()) if weight[known].sum() else np.nan
    for key in ("entropy", "accuracy", "reward"):
        values = steps[f"{key}/mean"]
        made[f"{key}_start"], made[f"{key}_end"] = float(values[:ENDS].mean()), float(values[-ENDS:].mean())
    return made | {"steps": len(steps), "seconds": float(steps["time/step"].median())}


def met(seen: dict[str, float]) -> list[bool]:
    """Which of AIMS the observables meet."""
    clips = (seen["low"], seen["high"])
    return [
        seen["p_high"] < 0.2,
        seen["low"] <= 1.5 * seen["high"],
        seen["kl"] <= 1e-3,
        all(5e-4 <= share <= 5e-3 for share in clips),
    ]


def trend(seen: dict[str, float]) -> str:
    """What the entropy does over the run."""
    change = seen["entropy_end"] / seen["entropy_start"] - 1
    if change < -0.5:
        return "collapses"
    return "falls" if change < -0.1 else "rises" if change > 0.1 else "holds"


def table(results: Path) -> str:
    """The calibration table as Markdown, a line a regime, in the order of how many aims are met.
    Raises Missing when nothing was recorded."""
    sweeps = sorted(path for path in (results / "calibration").glob("*") if path.is_dir())
    runs = {sweep.name: load.run(folder) for sweep in sweeps for folder in load.run_folders(sweep)}
    runs = {name: steps for name, steps in runs.items() if not steps.empty}
    if not runs:
        raise load.Missing(f"no run in {results / 'calibration'}")
    head = ["regime", "steps", "accuracy", "reward", "entropy", "", "clip low / high, %", "low : high",
            "p of low / up-clipped", "KL to old", "ratio", "s a step", *AIMS]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    seen = {name: observables(steps) for name, steps in runs.items()}
    for name in sorted(seen, key=lambda name: (-sum(met(seen[name])), name)):
        o = seen[name]
        cells = [
            name, f"{o['steps']}", f"{o['accuracy_start']:.2f} → {o['accuracy_end']:.2f}",
            f"{o['reward_start']:.2f} → {o['reward_end']:.2f}",
            f"{o['entropy_start']:.2f} → {o['entropy_end']:.2f}", trend(o),
            f"{100 * o['low']:.2f} / {100 * o['high']:.2f}",
            f"{o['low'] / o['high']:.2f}" if o["high"] else "–", f"{o['p_low']:.2f} / {o['p_high']:.2f}",
            f"{o['kl']:.0e}".replace("e-0", "e-"), f"{o['least']:.2f}–{o['most']:.1f}", f"{o['seconds']:.1f}",
            *("yes" if good else "no" for good in met(o)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: Path, doc: Path = DOC) -> None:
    """Put the table between the markers of `doc`."""
    before, _, rest = doc.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    doc.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "results"))
