"""What another β would do to a run's entropy, by first order, from its own levers."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from . import ledger, lever, load, stats
from .lever import Levers

LABELS = {"low": "low side, β₁ (A < 0)", "high": "high side, β₂ (A > 0)"}
WORDS = {"above": "raises entropy", "below": "lowers entropy", "undecided": "sign undecided"}


def text(folder: Path, results: Path, target: float | None = None) -> str:
    """The advice for a run, or for an arm with several seeds, in `folder`. `target`: the change of
    entropy at the run's end that is wanted, nats. Raises Missing."""
    folders, metrics = _read(folder)
    parameter, logit = lever.read(metrics, "ledger/lever"), lever.read(metrics, "lever")
    if ledger.entries(metrics).empty or parameter is None or logit is None:
        old = " of the kind that has levers" if ledger.is_old(metrics) else ""
        raise load.Missing(f"{folder}: no entropy ledger{old} is recorded there (diagnostics.every)")
    beta1, steps = ledger.momentum(folders[0]), ledger.steps_of(metrics)
    own_2 = lever.beta_of(folders[0], metrics)
    gain = 1 / (1 - beta1)
    lines = [
        (
            f"{folder}: {len(folders)} run{'s' if len(folders) > 1 else ''} of {steps:.0f} steps, loss"
            f" {load.setting(folders[0], 'loss.name')}, β = {_pair(own_2)}"
        ),
        *_caution(str(load.setting(folders[0], "loss.name"))),
        "",
        "levers: change of entropy per unit of β, mean [95 % t interval], first order",
        levers(parameter, logit, gain, steps).to_string(index=False),
        f"intervals: parameter space over {parameter.over()}, logit space over {logit.over()}; eventual: × {gain:.3g} ="
        f" 1/(1 − AdamW's β₁), over the run: × {steps:.0f} steps. Logit units have no size, only signs and ratios.",
        f"is eventual right in this run? {_size(metrics, beta1)} {ledger.check_text(metrics, beta1)}",
        "",
        *lines_of("parameter space", parameter, own_2),
        *lines_of("logit space", logit, own_2),
    ]
    if target is not None:
        lines += ["", *_target(parameter, own_2, target, gain * steps)]
    return "\n".join([*lines, "", *_record(results)])


def _read(folder: Path) -> tuple[list[Path], pd.DataFrame]:
    """The runs in `folder`, a run's or an arm's, and their steps."""
    folders = [folder]
    if not load.meta(folder) and not (folder / "config.yaml").is_file():
        folders = [run for run in load.run_folders(folder.parent) if run.parent == folder]
    frames: list[pd.DataFrame] = []
    damaged: list[load.Missing] = []
    for run in folders:
        try:
            with load.undamaged(run):
                frame = load.run(run) if load.settings(run) else pd.DataFrame()
        except load.Missing as error:
            damaged.append(error)
            print(f"left out, damaged: {error}", file=sys.stderr)
            continue
        if not frame.empty:
            frames.append(frame.assign(seed=load.settings(run).get("seed", 0)))
    if damaged and not frames:
        raise damaged[0]
    if not frames:
        there = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        there += [run.parent.name for run in load.run_folders(folder.parent)]
        what = "holds no run with a recorded step" if folder.is_dir() else "no such folder, and no pack has it"
        raise load.Missing(f"{folder}: {what}{load.nearest(folder.name, {*there} - {folder.name})}")
    return folders, pd.concat(frames, ignore_index=True)


def _size(metrics: pd.DataFrame, beta1: float) -> str:
    """Whether 1/(1 − β₁) is a measure of size here."""
    off = stats.side(*ledger.check(metrics, beta1)["difference"][1:]) != "undecided"
    return "No: read signs, not sizes." if off else "Not refuted."


def _caution(loss: str) -> list[str]:
    if loss in ("ppo_clip", "cegppo"):
        return []
    return [f"note: '{loss}' weighs tokens outside the clip in its own way; what is said here is of adding to that"]


def _pair(beta_2: np.ndarray) -> str:
    return f"({beta_2[0]:.3g}, {beta_2[1]:.3g})"


def levers(parameter: Levers, logit: Levers, gain: float, steps: float) -> pd.DataFrame:
    """A row a side; `gain` makes an effect at once the eventual one."""
    rows = []
    for side in lever.SIDES:
        of = parameter.of(side)
        rows.append(
            {
                "lever": LABELS[side],
                "at once, 10⁻³ nats a step": ledger.show(of, "{:+.3f}", ledger.MILLI),
                "eventual": ledger.show(of, "{:+.2f}", ledger.MILLI * gain),
                "over the run, nats": ledger.show(of, "{:+.3f}", gain * steps),
                "says": WORDS[parameter.sign(side)],
                "logit space, a step": ledger.show(logit.of(side), "{:+.4f}"),
                "logit says": WORDS[logit.sign(side)],
            }
        )
    return pd.DataFrame(rows)


def lines_of(space: str, levers: Levers, own_2: np.ndarray) -> list[str]:
    """The neutral line, and which side of it raises entropy."""
    head = f"entropy keeps this run's course, {space}: "
    signs = {side: levers.sign(side) for side in lever.SIDES}
    for solve in ("high", "low"):  # for the β whose lever has a sign
        found = lever.neutral(levers, solve)
        if found is not None and signs[solve] != "undecided":
            break
    else:
        return [f"{head}no line can be drawn, the sign of both levers is undecided"]
    slope, low, high = found
    left, right = ("β₂", "β₁") if solve == "high" else ("β₁", "β₂")
    y, x = own_2[::-1] if solve == "high" else own_2
    shift = y - slope * x
    formula = (
        f"{left} = {shift:.3g} {'-+'[slope > 0]} {abs(slope):.3g} {right}" if shift else f"{left} = {slope:.3g} {right}"
    )
    more = "larger" if signs[solve] == "above" else "smaller"
    other = "low" if solve == "high" else "high"
    unsure = f" ({LABELS[other]}: sign undecided)" if signs[other] == "undecided" else ""
    return [f"{head}along {formula}, slope [{low:.3g}, {high:.3g}]{unsure}; a {more} {left} than that raises entropy"]


def _target(levers: Levers, own_2: np.ndarray, target: float, gain: float) -> list[str]:
    """What first order recommends for `target` nats at the end of the run."""
    found, decided = lever.recommend(levers, own_2, target / gain)
    head = f"target {target:+.3g} nats at the end: "
    undecided = [LABELS[side] for side in lever.SIDES if side not in decided]
    if not decided:
        return [f"{head}nothing is recommended; the sign of both levers is undecided"]
    rests = f"; {undecided[0]} stays where it is, its sign is undecided" if undecided else ""
    if found is None:
        return [f"{head}no β in [0, 1]² reaches it by first order{rests}"]
    told = ledger.show(levers.moves(found - own_2), "{:+.3f}", gain)
    nearest = "" if undecided else ", the nearest to (0.5, 1) on the line of that target"
    return [(f"{head}β = {_pair(found)}{nearest}{rests}; first order foretells {told} nats")]


def _record(results: Path) -> list[str]:
    """How far such predictions have been right."""
    head = f"how far such predictions were right (sweeps under {results}; difference of entropy at the end, nats):"
    rows = lever.foretold(results)
    if not rows:
        return [f"{head} none recorded yet"]
    show = lambda triple: ledger.show(triple, "{:+.3f}")
    return [
        head,
        *(
            f"  {row.sweep}: {row.arm} {_pair(row.beta_2)} from {row.reference}: foretold {show(row.predicted)},"
            f" measured {show(row.measured)} ({row.seeds} seeds): {row.verdict()}"
            for row in rows
        ),
    ]
