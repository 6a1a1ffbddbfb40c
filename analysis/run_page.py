"""What the page of one run shows."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import defaults, embed, health, ledger, load, stats, tables
from .curves import Lines

SEEN = ("step", "id", "prompt", "answer", "completions", "verdicts", "tokens")  # of a line of seen.jsonl
Shown = tuple[str, dict[str, Any], dict[str, Path], dict[str, Lines]]


def shown(folder: Path) -> Shown:
    """(title, what is fixed, the folder with tokens by name, lines by name): what a page is made
    of. Raises Missing: no run, or nothing recorded."""
    settings, meta = load.settings(folder), load.meta(folder)
    if not (settings and meta) and load.foreign_run(folder) is None:
        raise load.Missing(f"{folder} holds no run (config.yaml and meta.json), and no pack has it")
    metrics = load.run(folder)
    if metrics.empty:
        raise load.Missing(f"{folder}: no step is recorded yet")
    scores = load.evaluated(folder)
    title = " / ".join(folder.parts[-3:])
    fixed = {
        "kind": "run",
        "facts": _facts(folder, meta, metrics),
        "command": (meta.get("sessions") or [{}])[-1].get("command", ""),
        "asked": defaults.asked(settings),
        "notes": [asdict(note) | {"runs": []} for note in health.notes(metrics, settings, meta, scores)],
        "tables": _benchmarks(scores),
        "ledger": _ledger(folder, metrics),
        "without": _without(folder),
        "config": load.config(folder),
    }
    return title, fixed, {title: folder}, {title: Lines("", metrics, scores)}


def _facts(folder: Path, meta: dict[str, Any], metrics: pd.DataFrame) -> list[list[str]]:
    seconds = f", {metrics['time/step'].sum():.0f} s" if "time/step" in metrics else ""
    facts = [["how it ended", f"{meta.get('status', 'unknown')}, {int(metrics['step'].max())} steps{seconds}"]]
    if sessions := meta.get("sessions"):
        last = sessions[-1]
        changed = " with uncommitted changes" if last.get("diff") else ""
        facts += [
            ["when", f"{sessions[0]['start']}{f', in {len(sessions)} sessions' if len(sessions) > 1 else ''}"],
            ["where", str(last.get("machine", ""))],
            ["code", f"{str(last.get('commit', 'unknown'))[:10]}{changed}"],
        ]
    if taken := meta.get("taken_from"):
        facts.append(["stands for", str(taken)])
    if (folder / "foreign.yaml").is_file():
        facts.append(["recorded by", "another framework, read through foreign.yaml"])
    return [[name, value] for name, value in facts if value]


def _without(folder: Path) -> str:
    """Why a run has no tokens to look at; "" when it has."""
    if load.token_records(folder):
        return ""
    if taken := load.meta(folder).get("taken_from"):
        return f"This run stands for {taken}: its token records, if any were kept, are there."
    if not (folder / "meta.json").is_file() and load.meta(folder):
        return "This run is kept in a pack, which holds metrics and evaluations but no token records."
    every = load.settings(folder).get("diagnostics", {}).get("every")
    if every == 0:
        return "No tokens were recorded: diagnostics.every was 0."
    return f"This folder holds no token records{f' (diagnostics.every = {every})' if every else ''}."


def _benchmarks(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """The table of benchmarks: first and last avg@k and their difference, with intervals."""
    if scores.empty:
        return []
    steps = sorted(set(scores["step"]))
    heads = [f"step {steps[0]}", f"step {steps[-1]}", "change"]
    rows, known = [], []
    for name, mine in scores.groupby("benchmark", sort=False):
        first, last = (mine[mine["step"] == step].head(1).to_dict("records") for step in (steps[0], steps[-1]))
        n, k = (str(mine[key].iloc[0]) for key in ("n", "k"))
        ends = [[_shares(row) for row in rows] for rows in (first, last)]
        rows.append([str(name), n, k, *_cells(ends)])
        if all(ends):
            known.append((ends[0][0], ends[1][0]))
    if len(known) > 1:
        rows.append(["mean", "", "", *_cells([[a for a, _ in known], [b for _, b in known]])])
    caption = "avg@k, with 95 % bootstrap intervals over problems; the change is of the same problems"
    return [{"title": "Benchmarks", "caption": caption, "head": ["benchmark", "problems", "k", *heads], "rows": rows}]


def _shares(row: dict[str, Any]) -> np.ndarray:
    """The share of right answers of each problem; of another framework's run their mean alone."""
    return np.asarray([row["accuracy"]] if row["correct"] is None else np.asarray(row["correct"]) / row["k"], float)


def _cells(ends: list[list[np.ndarray]]) -> list[str]:
    """First, last and change of the mean over the benchmarks in `ends` (a list of them each)."""
    first, last = ends
    change = [b - a for a, b in zip(first, last)] if len(first) == len(last) else []
    cells = []
    for strata, form in ((first, "{:.3f}"), (last, "{:.3f}"), (change, "{:+.3f}")):
        if not strata:
            cells.append("")
            continue
        mean, low, high = stats.bootstrap_mean(strata)
        cells.append(tables.interval(mean, *((low, high) if low < high else (None, None)), form=form))
    return cells


def _ledger(folder: Path, metrics: pd.DataFrame) -> dict[str, Any]:
    """Tables of what moved the entropy, or why there are none."""
    if ledger.is_old(metrics):
        return {"why": f"{ledger.OLD}."}
    if ledger.entries(metrics).empty:
        return {"why": "No ledger is recorded (diagnostics.every=0, or the run is shorter)."}
    beta1 = ledger.momentum(folder)
    first = "10⁻³ nats a step, over the run in nats"
    then = "first order against measured, and the logit-space form against the parameter-space one"
    shown = [
        embed.table("What each class of tokens did", first, ledger.cells(ledger.table(metrics, beta1))),
        embed.table("How far first order goes", then, ledger.agreement_cells(ledger.agreements(metrics))),
    ]
    return {"tables": shown, "facts": [ledger.check_text(metrics, beta1), ledger.facts(metrics)]}


def completions(folder: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """(kept prompts with their completions, evaluations left out so that about `most` characters
    stay): the first and the last evaluation, and others evenly between."""
    frame = load.seen(folder)
    if frame.empty:
        return [], 0
    if absent := [key for key in SEEN if key not in frame or frame[key].isna().any()]:
        raise load.Unreadable(f"{folder / 'completions' / 'seen.jsonl'}: a line without '{absent[0]}'")
    rows = [{key: row[key] for key in SEEN} for row in frame.to_dict("records")]
    steps = sorted({row["step"] for row in rows})
    size = sum(len(str(row["prompt"])) + sum(map(len, row["completions"])) for row in rows)
    kept = max(2, int(len(steps) * most / max(size, 1)))
    if kept >= len(steps):
        return rows, 0
    chosen = {steps[i] for i in np.linspace(0, len(steps) - 1, kept).round().astype(int)}
    return [row for row in rows if row["step"] in chosen], len(steps) - len(chosen)
