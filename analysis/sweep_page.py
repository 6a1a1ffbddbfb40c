"""What the page of a sweep, or of one arm, shows: arms with their seeds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import arms as naming
from . import compare, defaults, embed, evolution, health, load, stats, style
from .curves import Lines
from .run_page import Shown


def shown(folders: list[Path], results: Path, order: list[str]) -> Shown:
    """(title, what is fixed, folders with tokens by name, lines by name), as for a run. Raises
    Missing."""
    c = compare.compared(folders, results, order)
    labels = naming.labels(c.settings)
    looks = style.looks(labels)
    place = {at: folder for folder, at in compare.places(c.folders).items()}
    lines, folder_of, found = {}, {}, {}
    for arm in c.arms:
        for seed, metrics in c.runs[c.runs["arm"] == arm].groupby("seed"):
            name, folder = f"{labels[arm]}, seed {seed}", place[arm, int(str(seed))]
            tests = c.tests[(c.tests["arm"] == arm) & (c.tests["seed"] == seed)] if len(c.tests) else c.tests
            lines[name], folder_of[name] = Lines(arm, metrics.dropna(axis=1, how="all"), tests), folder
            found[name] = health.notes(lines[name].metrics, load.settings(folder), load.meta(folder), tests)
    # The microscope's runs, arms side by side: the first seed of each that has tokens, else texts.
    first: dict[str, str] = {}
    for kept in (load.token_records, load.has_seen):
        for name, line in lines.items():
            if kept(folder_of[name]):
                first.setdefault(line.arm, name)
    rewards = list(dict.fromkeys(naming.reward(tree) for tree in c.settings.values()))
    reward = rewards[0] if len(rewards) == 1 else "differs by arm"
    most = int(c.runs.groupby("arm")["seed"].nunique().max())
    fixed = {
        "kind": "sweep",
        "facts": [
            ["runs", f"{len(c.arms)} arms, {evolution.seeds(c.runs)} an arm, {int(c.runs['step'].max())} steps"],
            ["reward", reward],
            *(["note", note] for note in c.notes),
        ],
        "command": "",
        "asked": _shared(c.settings),
        "notes": _together(found),
        "tables": [
            *(embed.table(s.title, s.caption, s.cells) for s in compare.sections(c, looks, reward)),
            _runs(lines, folder_of, found),
        ],
        "arms": [
            {"arm": arm, "label": looks[arm][0], "colour": looks[arm][1]["color"], "dash": _dash(looks[arm][1])}
            for arm in c.arms
        ],
        "without": "No run of this sweep has token records here; a pack holds metrics and evaluations, no tokens.",
        "t": {n: stats.t_quantile((1 + stats.LEVEL) / 2, n - 1) for n in range(evolution.INTERVAL, most + 1)},
    }
    return c.name, fixed, {name: folder_of[name] for name in first.values()}, lines


def _shared(settings: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """What every arm asks for beyond the defaults; what differs says the arms' names."""
    asked = [{row["key"]: row for row in defaults.asked(tree)} for tree in settings.values()]
    return [row for key, row in asked[0].items() if all(other.get(key) == row for other in asked)] if asked else []


def _together(found: dict[str, list[health.Note]]) -> list[dict[str, Any]]:
    """A note a kind with the runs that it is of; what is fine in every run last."""
    kinds: dict[tuple[str, str], list[tuple[str, health.Note]]] = {}
    for name, notes in found.items():
        for note in notes:
            kinds.setdefault((note.level, note.what), []).append((name, note))
    made = []
    for mine in kinds.values():
        row = asdict(mine[0][1]) | {"runs": [[name, note.number] for name, note in mine]}
        made.append(row | {"number": f"{len(mine)} of {len(found)} runs"})
    return sorted(made, key=lambda row: health.LEVELS.index(row["level"]))


def _runs(lines: dict[str, Lines], folder_of: dict[str, Path], found: dict[str, list[health.Note]]) -> dict[str, Any]:
    """A row a run: how it ended, and what was raised of it."""
    rows = []
    for name, line in lines.items():
        last = line.scores[line.scores["step"] == line.scores["step"].max()] if len(line.scores) else line.scores
        raised = "; ".join(note.what for note in found[name] if note.level != "fine")
        state = str(load.meta(folder_of[name]).get("status", "unknown"))
        score = f"{last['accuracy'].mean():.3f}" if len(last) else ""
        rows.append([name, state, str(int(line.metrics["step"].max())), score, raised])
    return {"title": "Runs", "caption": "", "head": ["run", "state", "step", "benchmarks", "notes"], "rows": rows}


def _dash(look: dict[str, Any]) -> list[float]:
    """A line style of matplotlib's as a canvas has it."""
    dashes = look["linestyle"]
    return [2.0 * part for part in dashes[1]] if isinstance(dashes, tuple) else []
